"""Sweeps: one RUN a bound, the float network once, what is refused first, what goes on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitpress.core import pareto
from bitpress.core.errors import CheckFailed, Interrupted, UsageError
from bitpress.core.pareto import on_front, points, sweep, swept

from ..schema.schemas import check
from .test_search import NETS, QUICK

NET: dict[str, Any] = {**QUICK, "model": f"{NETS}:chain", "budgets": ["bops=4%,2.5%"]}


def test_a_list_of_bounds_is_a_sweep_and_the_tightest_comes_first() -> None:
    assert swept(["size=20%", "bops=1%,2%"]) and not swept(["bops=1%", "size=20%"])
    assert points(["size=20%", "latency=2ms,0.5ms,1ms"]) == (
        "latency", [(f"latency={t}", "size=20%") for t in ("0.5ms", "1ms", "2ms")]
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
    assert [p["run"] for p in document["points"]] == ["bops-2.5pct", "bops-4pct"]
    assert any(p["front"] for p in document["points"])
    first, second = (json.loads((out / p["run"] / "result.json").read_text()) for p in document["points"])
    assert first["epochs"]["float"] > 0 and second["epochs"]["float"] == 0
    assert first["baseline_top1"] == second["baseline_top1"]
    assert first["bops"] <= 0.025 * first["bops_fp32"] and second["bops"] <= 0.04 * second["bops_fp32"]
    before = (out / "bops-4pct" / "result.json").stat().st_mtime_ns
    assert sweep(**NET, out=out) == document
    assert (out / "bops-4pct" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="is a RUN of one search"):
        sweep(**NET, out=out / "bops-4pct")


def test_what_cannot_be_reached_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"bops=0.01% cannot be reached"):
        sweep(**NET | {"budgets": ["bops=4%,0.01%"], "out": tmp_path / "front"})
    assert not (tmp_path / "front").exists()


def test_an_interrupted_sweep_keeps_its_points_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    stop = True

    def search(_model: str, *, budgets: Any, weights: Any, **_options: Any) -> dict[str, Any]:
        if stop and budgets[0] == "bops=2%":
            raise Interrupted("SIGTERM")
        asked.append((budgets[0], weights))
        bops = int(float(budgets[0][5:-1]) * 100)
        return {
            "schema": "bitpress.search", "host": {"threads": 1}, "data": "d", "method": "sbs", "mode": "joint",
            "bits": None, "seed": 0, "bops_convention": "sbs", "top1": 90.0, "baseline_top1": 91.0, "bops": bops,
            "bops_ratio": 10.0, "weight_bytes": 5, "latency": None, "predictions_sha256": "", "seconds": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(pareto, "search", search)
    args: dict[str, Any] = {"model": "m", "budgets": ["bops=4%,1%,2%"], "out": tmp_path}
    with pytest.raises(Interrupted):
        sweep(**args)
    left = check(json.loads((tmp_path / "pareto.json").read_text()))
    assert not left["complete"] and [p["budget"] for p in left["points"]] == [["bops=1%"]]
    stop = False
    assert [p["front"] for p in sweep(**args)["points"]] == [True, False, False]
    start = tmp_path / "bops-1pct" / "float.safetensors"
    assert asked[1:] == [("bops=1%", None), ("bops=2%", start), ("bops=4%", start)]
    asked.clear()
    sweep(**args, weights="mine.safetensors")
    assert {weights for _, weights in asked} == {"mine.safetensors"}
