"""`profile` with a made-up clock: what is measured, what is gone on with, what is left out, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitpress.benchmarks import latency_networks, latency_table, pace
from bitpress.benchmarks.harness import Timing
from bitpress.benchmarks.latency_table import axis, cells, profile
from bitpress.core import latency
from bitpress.core.bops import layer_nodes
from bitpress.core.capture import capture
from bitpress.core.errors import CheckFailed, CorruptError, Interrupted, UnsupportedError, UsageError
from bitpress.core.graph import Graph
from bitpress.core.latency import load_table, target
from bitpress.core.models import load

from ..schema.schemas import check

pytestmark = pytest.mark.native
NETS = Path(__file__).resolve().parents[1] / "search" / "nets.py"
CHAIN, BLOCK = f"{NETS}:chain", f"{NETS}:block"
QUICK: dict[str, Any] = {"grid": 2, "left_out": 1, "seconds": 0.001}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every candidate is called once and takes 2 ms, the pace 1 ms, a whole network 30 ms; the names of all."""
    for name in ("BITPRESS_NATIVE", "BITPRESS_FORCE_ISA", "BITPRESS_FORCE_KERNEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(latency_networks, "RANDOM", 1)
    monkeypatch.setattr(latency_networks, "CHECKS", 1)
    seen: list[str] = []

    def measure(
        candidates: Mapping[str, Callable[[], Any]], *, observe: Callable[[str, Any], None] = lambda _n, _r: None,
        **_options: Any,
    ) -> dict[str, Timing]:  # fmt: skip
        out = {}
        for name, run in candidates.items():
            result = run()
            observe(name, np.full(len(result), 1.0) if name.startswith("steps") else result)
            seen.append(name)
            ms = 1.0 if name == pace.NAME else 30.0 if name.startswith("total") else 2.0
            out[name] = Timing((ms,), (ms,))
        return out

    monkeypatch.setattr(pace, "measure", measure)
    return seen


@pytest.fixture
def layers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole networks take nothing beside their layers."""

    def network(model: str, graph: Graph, residual: str, *_args: Any, **_options: Any) -> dict[str, Any]:
        return {
            "model": model, "graph": graph.fingerprint(), "residual": residual, "steps": [], "overhead": 0.0,
            "extra": {node.name: 0.0 for node in layer_nodes(graph)}, "checks": [],
        }  # fmt: skip

    monkeypatch.setattr(latency_table, "measured_network", network)


def _profiled(path: Path, *models: str, **more: Any) -> dict[str, Any]:
    return check(profile(models, output=path, **{**QUICK, **more}))


def test_a_table_holds_every_layer_at_all_widths_and_is_what_searches_read(tmp_path: Path, clock: list[str]) -> None:
    path = tmp_path / "t.json"
    document = _profiled(path, CHAIN)
    assert document == json.loads(path.read_text()) and document["complete"]
    assert [row["in_shape"] + [row["rows"]] for row in document["shapes"]] == [
        [1, 6, 6, 8], [8, 6, 6, 16], [16, 3, 3, 16], [16, 1, 1, 4]
    ]  # fmt: skip
    assert len(document["points"]) == 9 * len([c for c in cells(document) if c.key == "points"])
    assert {(p["w"], p["a"]) for p in document["points"]} == {(w, a) for w in (2, 4, 8) for a in (2, 4, 8)}
    assert {p["ms"] for p in document["points"]} == {2.0}
    assert document["interpolation"] == {"points": len(document["left_out"]), "median": 0, "p90": 0, "largest": 0}
    (network,) = document["networks"]
    assert [(step["name"], step["group"]) for step in network["steps"]] == [
        ("input.q", ""), ("body.6", "body.3"), ("pool", "")
    ]  # fmt: skip
    loaded = load(CHAIN)
    on = target(load_table(path), capture(loaded.module, loaded.in_shape), CHAIN, "int8")
    assert on.uniform() == pytest.approx(30)  # layers, steps and what lies between them make the whole
    assert all(c["predicted"] == pytest.approx(30) and c["measured"] == 30 for c in network["checks"])
    assert clock.count(pace.NAME) > len(document["shapes"])


@pytest.mark.usefixtures("layers_only")
def test_the_same_command_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[str]
) -> None:
    whole = _profiled(tmp_path / "whole.json", CHAIN)
    path, timed = tmp_path / "t.json", latency_table.timed
    left = [3]

    def killed(*args: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return timed(*args)

    monkeypatch.setattr(latency_table, "timed", killed)
    with pytest.raises(Interrupted, match="holds 18 times so far; the same command goes on"):
        profile([CHAIN], output=path, **QUICK)
    with pytest.raises(UsageError, match="not finished"):
        load_table(path)
    assert len(json.loads(path.read_text())["points"]) == 18
    monkeypatch.setattr(latency_table, "timed", timed)
    clock.clear()
    assert _profiled(path, CHAIN) == whole
    cell = clock.count("w2a2")
    clock.clear()
    assert _profiled(path, CHAIN) == whole and not clock.count("w2a2")  # nothing is left to measure
    assert cell == sum(1 for _ in cells(whole)) - 2


@pytest.mark.usefixtures("layers_only")
def test_another_network_adds_to_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    first = _profiled(path, CHAIN)
    both = _profiled(path, BLOCK)
    assert both["points"][: len(first["points"])] == first["points"]
    assert [n["model"] for n in both["networks"]] == [CHAIN, BLOCK]
    conv = next(row for row in both["shapes"] if row["in_shape"] == [8, 6, 6] and row["rows"] == 8)
    assert len(conv["grids"]) == 2  # conv1 loses filters, conv2 input channels
    streams = _profiled(path, BLOCK, residual="float32")
    assert [n["residual"] for n in streams["networks"]] == ["int8", "int8", "float32"]
    assert len(streams["points"]) == len(both["points"])


@pytest.mark.usefixtures("layers_only")
def test_a_file_of_other_settings_or_another_machine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    document = _profiled(path, CHAIN)
    for changed, says in (({"seconds": 0.5}, "seconds 0.001 there, 0.5 now"), ({"grid": 3}, "grid 2 there, 3 now")):
        with pytest.raises(UsageError, match=says):
            profile([CHAIN], output=path, **{**QUICK, **changed})
    assert json.loads(path.read_text()) == document
    path.write_text(json.dumps({**document, "host": {**document["host"], "cpu": "Another"}}))
    with pytest.raises(UsageError, match="cpu Another there"):
        profile([CHAIN], output=path, **QUICK)
    path.write_text(json.dumps({k: v for k, v in document.items() if k != "shapes"}))
    with pytest.raises(CorruptError, match="lacks the key 'shapes'"):
        profile([CHAIN], output=path, **QUICK)


def test_a_kernel_that_computes_something_else_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = latency_table.case

    def wrong(*args: Any, **options: Any) -> Any:
        found = made(*args, **options)
        found.want[0, 0] += 1
        return found

    monkeypatch.setattr(latency_table, "case", wrong)
    with pytest.raises(CheckFailed, match=r"at w2a2: 1 of .* outputs differ from the reference; nothing is timed"):
        profile([CHAIN], output=tmp_path / "t.json", **QUICK)
    assert not (tmp_path / "t.json").exists()


def test_a_network_that_computes_something_else_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_networks.Model, "golden_check", lambda _self: False)
    with pytest.raises(CheckFailed, match="golden sample; nothing is timed"):
        profile([CHAIN], output=tmp_path / "t.json", **QUICK)


def test_an_op_that_is_not_known_is_refused_before_any_work(tmp_path: Path, clock: list[str]) -> None:
    with pytest.raises(UnsupportedError, match="erf"):
        profile([f"{NETS}:odd"], output=tmp_path / "t.json", **QUICK)
    assert not clock


def test_axes_hold_whole_blocks_and_one_that_covers_a_single_channel() -> None:
    assert axis(64, 4, varied=True, block=16) == [16, 32, 48, 64]
    assert axis(10, 4, varied=True, block=8) == [8, 10]
    assert axis(10, 3, varied=True) == [1, 4, 7, 10]
    assert axis(10, 3, varied=False, block=8) == [10]


@pytest.mark.usefixtures("layers_only")
def test_points_outside_of_the_table_judge_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = latency_table.timed

    def slower(cell: Any, *args: Any) -> Any:
        rows = timed(cell, *args)
        return [{**row, "ms": 2.5} for row in rows] if cell.key == "left_out" else rows

    monkeypatch.setattr(latency_table, "timed", slower)
    document = _profiled(tmp_path / "t.json", CHAIN)
    assert document["left_out"] and document["interpolation"]["median"] == pytest.approx(0.2)
    grid = {(p["shape"], p["in"], p["out"]) for p in document["points"]}
    assert not grid & {(p["shape"], p["in"], p["out"]) for p in document["left_out"]}


def test_the_pace_of_the_machine_is_divided_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitpress import _native

    def measure(candidates: Mapping[str, Any], **_options: Any) -> dict[str, Timing]:
        return {name: Timing((6.0, 8.0), (6.0, 8.0)) if name == "x" else Timing((3.0, 4.0), (3.0, 4.0))
                for name in candidates}  # fmt: skip

    monkeypatch.setattr(pace, "measure", measure)
    one = pace.Pace(_native, 1, 0.5, seconds=0.001)
    times, raw = one.measure({"x": lambda: None}, alone=False)
    assert times == {"x": 1.0} and raw["x"].median == 7  # twice the layer, which takes 0.5 ms where nothing disturbs


assert latency.TABLE_VERSION == 1, "another version needs a file of the first among the tests"
