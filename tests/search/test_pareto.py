"""Sweeps: one RUN a bound, the float network once, what is refused first, what goes on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitpress.core import pareto
from bitpress.core.errors import CheckFailed, Interrupted, UsageError
from bitpress.core.pareto import on_front, points, sweep, swept
from bitpress.core.rundir import FLOAT, SEARCHED, read_tensors
from bitpress.core.search import search
from bitpress.core.supernet_bits import probability

from ..schema.schemas import check
from .test_search import NETS, QUICK

NET: dict[str, Any] = {**QUICK, "model": f"{NETS}:chain", "budgets": ["bops=2.5%,4%"]}


def test_a_list_of_bounds_is_a_sweep_and_the_largest_comes_first() -> None:
    assert swept(["size=20%", "bops=1%,2%"]) and not swept(["bops=1%", "size=20%"])
    assert points(["size=20%", "latency=2ms,0.5ms,1ms"]) == (
        "latency", [(f"latency={t}", "size=20%") for t in ("2ms", "1ms", "0.5ms")]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        (["bops=1%,2%", "size=10%,20%"], "a sweep moves one of them"), (["bops=1%,2M"], "all bounds in % or none"),
        (["bops=1%,1%"], "the same bound twice"), (["bops=1%,x"], "not a number"), (["flops=1%,2%"], "none of bops"),
    ],
)  # fmt: skip
def test_lists_that_make_no_sense_are_refused(budgets: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        points(budgets)


def test_the_front_is_what_nothing_else_beats() -> None:
    results = [{"top1": t, "bops": b} for t, b in ((90.0, 1), (92.0, 2), (91.0, 3), (92.0, 2), (93.0, 9))]
    assert [r["front"] for r in on_front(results, "bops")] == [True, True, False, True, True]


def test_every_point_is_a_run_and_the_float_network_is_trained_once(tmp_path: Path) -> None:
    out = tmp_path / "front"
    document = check(sweep(**NET, out=out))
    assert document == json.loads((out / "pareto.json").read_text()) and document["complete"]
    assert [p["run"] for p in document["points"]] == ["bops-4pct", "bops-2.5pct"] and document["order"] == "warm"
    assert any(p["front"] for p in document["points"])
    first, second = (json.loads((out / p["run"] / "result.json").read_text()) for p in document["points"])
    assert first["epochs"] == {"float": 2, "search": 3, "finetune": 1} == second["epochs"] | {"float": 2}
    assert second["epochs"]["float"] == 0 and first["start"] is None
    assert second["start"] == {"run": "bops-4pct", "epochs": {"float": 2, "search": 3}}
    assert [(p["start"], p["epochs_before"]) for p in document["points"]] == [
        (None, {}), ("bops-4pct", second["start"]["epochs"])
    ]  # fmt: skip
    assert first["baseline_top1"] == second["baseline_top1"]
    assert first["bops"] <= 0.04 * first["bops_fp32"] and second["bops"] <= 0.025 * second["bops_fp32"]
    before = (out / "bops-4pct" / "result.json").stat().st_mtime_ns
    assert sweep(**NET, out=out) == document
    assert (out / "bops-4pct" / "result.json").stat().st_mtime_ns == before
    (out / "bops-4pct" / "searched.safetensors").unlink()
    with pytest.raises(UsageError, match=r"searched.safetensors is missing"):
        sweep(**NET, out=out)
    with pytest.raises(UsageError, match="is a RUN of one search"):
        sweep(**NET, out=out / "bops-4pct")


LEAVES = {"djpq": ("ln_var", "ln_mu"), "bayesian-bits": ("phi",)}


def _only(run: Path, kind: str) -> dict[str, Any]:
    """The one event of a kind."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (found,) = (event for event in events if event["event"] == kind)
    return dict(found)


@pytest.mark.parametrize("method", ["sbs", "djpq", "bayesian-bits"])
def test_a_search_begins_with_weights_scales_and_gates_of_another(tmp_path: Path, method: str) -> None:
    options: dict[str, Any] = {**QUICK, "method": method, "epochs_finetune": 0, "epochs_search": 2}
    still = {"lr_search": 1e-12, "lr_thresholds": 1e-12}  # moves no weight
    if method != "sbs":
        del options["lr_thresholds"], still["lr_thresholds"]
    model, first, second = f"{NETS}:chain", tmp_path / "a", tmp_path / "b"
    search(model, out=first, **options | {"budgets": ["bops=4%"], "followed": [["bops=2%"]]})
    given = {"budgets": ["bops=2%"], "start": first, "weights": first / FLOAT, "followed": [["bops=1.5%"]]}
    search(model, out=second, **options | still | given)
    floats, left, then = (read_tensors(path) for path in (first / FLOAT, first / SEARCHED, second / SEARCHED))
    convs = [name for name, value in floats.items() if value.ndim == 4]
    assert not any(np.allclose(floats[name], left[name], atol=1e-5) for name in convs)
    assert all(np.allclose(left[name], then[name], atol=1e-6) for name in convs)
    start = _only(second, "start")
    if method == "sbs":
        chosen = _only(first, "choice")
        assert start["figures"]["bops"] >= chosen["figures"]["bops"] > start["bounds"]["bops"]
    else:
        told = {"djpq": "ln_ratios", "bayesian-bits": "p_parts"}[method]
        for group, values in start[told].items():
            state = {leaf: torch.from_numpy(left[f"{group}.{leaf}"]) for leaf in LEAVES[method]}
            found = probability(state["phi"]) if "phi" in state else state["ln_var"] - 2 * state["ln_mu"]
            assert values == pytest.approx(found.tolist())
    with pytest.raises(CheckFailed, match=r"bops=0.01% cannot be reached"):
        search(model, out=tmp_path / "d", **options | {"budgets": ["bops=4%"], "followed": [["bops=0.01%"]]})


def test_what_cannot_be_reached_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"bops=0.01% cannot be reached"):
        sweep(**NET | {"budgets": ["bops=4%,0.01%"], "out": tmp_path / "front"})
    assert not (tmp_path / "front").exists()


def test_an_interrupted_sweep_keeps_its_points_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any, Any, list[str]]] = []
    stop = True

    def search(*, budgets: Any, weights: Any, start: Any, followed: Any, **_options: Any) -> dict[str, Any]:
        if stop and budgets[0] == "bops=2%":
            raise Interrupted("SIGTERM")
        asked.append((budgets[0], weights, start, [texts[0] for texts in followed]))
        bops = int(float(budgets[0][5:-1]) * 100)
        return {
            "schema": "bitpress.search", "host": {"threads": 1}, "data": "d", "method": "sbs", "mode": "joint",
            "bits": None, "seed": 0, "bops_convention": "sbs", "top1": 90.0, "baseline_top1": 91.0, "bops": bops,
            "budget": list(budgets), "epochs": {"float": 2, "search": 3}, "start": None,
            "bops_ratio": 10.0, "weight_bytes": 5, "latency": None, "predictions_sha256": "", "seconds": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(pareto, "search", search)
    args: dict[str, Any] = {"model": "m", "budgets": ["bops=1%,4%,2%"], "out": tmp_path}
    with pytest.raises(Interrupted):
        sweep(**args)
    left = check(json.loads((tmp_path / "pareto.json").read_text()))
    assert not left["complete"] and [p["budget"] for p in left["points"]] == [["bops=4%"]]
    stop = False
    document = check(sweep(**args))
    assert [p["front"] for p in document["points"]] == [False, False, True]
    assert [p["epochs_before"] for p in document["points"]] == [{}, {"float": 2}, {"float": 2}]
    first, second = tmp_path / "bops-4pct", tmp_path / "bops-2pct"
    weights = first / "float.safetensors"
    assert asked[1:] == [
        ("bops=4%", None, None, ["bops=2%", "bops=1%"]), ("bops=2%", weights, first, ["bops=1%"]),
        ("bops=1%", weights, second, []),
    ]  # fmt: skip
    asked.clear()
    sweep(**args, weights="mine.safetensors", order="apart")
    assert {(weights, start) for _, weights, start, _ in asked} == {("mine.safetensors", None)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"order": "cold"}, "--sweep 'cold' is none of warm, apart"),
        ({"workers": "dask"}, "--workers 'dask' is unknown"), ({"order": "warm", "workers": "ray"}, "is a chain"),
        ({"order": "warm", "method": "ajpq"}, "it goes with sbs, djpq"),
        ({"order": "warm", "method": "two-stage"}, "does nothing with --method two-stage"),
        ({"method": "sbss"}, "unknown --method"),
    ],
)  # fmt: skip
def test_an_order_that_makes_no_sense_is_refused(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        sweep("m", budgets=["bops=1%,2%"], out=tmp_path / "front", **options)
    assert not (tmp_path / "front").exists()
