"""Latency tables: what is read, what lies in between, what plans cost, what budgets make of widths that do not pay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitpress.core.cost import (
    Budget,
    Choice,
    Costs,
    cheapest,
    largest,
    parse_budget,
    plan_cost,
    search_space,
    smallest,
    to_plan,
)
from bitpress.core.encoding import odd
from bitpress.core.errors import CheckFailed, CorruptError, UnsupportedError, UsageError
from bitpress.core.graph import Graph
from bitpress.core.latency import Grid, load_table, target
from bitpress.core.plan import BitConfig, LayerId, Segment
from bitpress.core.projection import Move, check_reachable, fill, project
from bitpress.core.supernet import SuperNet

from ..benchmarks.graphs import residual
from .tables import OVERHEAD, document, flat, made, narrow_is_slow, smooth, write
from .test_cost import _random, chain, depthwise

MAKERS = [chain, residual, depthwise]


def test_in_between_is_linear_and_points_are_themselves() -> None:
    ms = np.arange(2 * 3 * 2 * 1, dtype=float).reshape(2, 3, 2, 1)
    grid = Grid(((1.0, 5.0), (2.0, 4.0, 8.0), (2.0, 8.0), (8.0,)), ms)
    assert grid.at((1, 2, 2, 8)) == 0 and grid.at((5, 8, 8, 8)) == 11
    assert grid.at((3, 2, 2, 8)) == 3  # half way of 0 and 6
    assert grid.at((1, 6, 2, 8)) == 3  # half way of 2 and 4
    assert not grid.covers((0.5, 2, 2, 8)) and not grid.covers((1, 2, 2, 4))


def test_chords_feel_widths_that_pay_only_together() -> None:
    ms = np.array([[[[1.0, 4.0], [4.0, 4.0]]]])  # fast at w2a2 alone
    grid = Grid(((3.0,), (4.0,), (2.0, 8.0), (2.0, 8.0)), ms)
    assert grid.chords((3, 4, 8, 8)) == (0, 0, 0.25, 0.25)


@pytest.mark.parametrize("make", MAKERS)
def test_a_choice_and_its_plan_take_the_same_time(make: Callable[[], Graph], tmp_path: Path) -> None:
    graph = make()
    group = next(iter(search_space(graph).gates))
    steps = [{"name": "pool", "group": group, "channels": [1, 16], "ms": [0.1, 0.4]}]
    on = made(tmp_path, graph, steps=steps)
    space = replace(search_space(graph, group_size=4), target=on)
    costs, rng = Costs(graph, space), np.random.default_rng(0)
    for _ in range(20):
        choice = _random(space, rng)
        plan = to_plan(graph, space, choice, residual="int8")
        assert costs.latency(choice) == pytest.approx(plan_cost(graph, plan, target=on)["latency"], rel=1e-12)
        assert plan.target == on.name and on.table.sha256[:16] in plan.target


def test_the_time_of_a_choice_is_that_of_the_formula(tmp_path: Path) -> None:
    graph = depthwise()
    space = replace(search_space(graph), target=made(tmp_path, graph))
    costs, choice = Costs(graph, space), largest(space)
    layers = {"stem": (3, 8), "expand": (8, 16), "dw": (1, 16), "project": (16, 8), "last": (8, 16), "fc": (16, 10)}
    assert costs.latency(choice) == pytest.approx(OVERHEAD + sum(smooth(*c, 8, 8) for c in layers.values()))
    assert costs.whole["latency"] == costs.latency(choice)
    half = replace(choice, parts={g: (0, 1) for g in space.gates})  # two parts of four channels
    layers |= {"expand": (8, 8), "dw": (1, 8), "project": (8, 8)}
    assert costs.latency(half) == pytest.approx(OVERHEAD + sum(smooth(*c, 8, 8) for c in layers.values()))


def test_segments_are_steps_of_their_own(tmp_path: Path) -> None:
    graph = chain()
    on = made(tmp_path, graph)
    space = replace(search_space(graph), target=on)
    plan = to_plan(graph, space, largest(space), residual="int8")
    layer = LayerId("b")
    before = plan.bits[layer]
    parts = (Segment(odd(2), (0, 1, 2, 3)), Segment(odd(8), tuple(range(4, 12))))
    mixed = replace(plan, bits={**plan.bits, layer: BitConfig(parts, before.act)})
    change = smooth(10, 4, 2, 8) + smooth(10, 8, 8, 8) - smooth(10, 12, 8, 8)
    assert on.plan(graph, mixed) - on.plan(graph, plan) == pytest.approx(change)


@pytest.mark.parametrize("formula", [smooth, flat, narrow_is_slow])
@pytest.mark.parametrize("make", MAKERS)
def test_the_cheapest_point_is_the_fastest(make: Callable[[], Graph], formula: Any, tmp_path: Path) -> None:
    graph = make()
    space = replace(search_space(graph, group_size=4), target=made(tmp_path, graph, formula))
    costs, rng = Costs(graph, space), np.random.default_rng(1)
    least = costs.latency(cheapest(costs, "latency"))
    assert least <= min(costs.latency(_random(space, rng)) for _ in range(200)) + 1e-9
    text = f"latency={least * 1.001:.9f}ms"
    check_reachable(graph, [parse_budget(text)], space)
    with pytest.raises(CheckFailed, match=r"the least is .* of the network at w8a8"):
        check_reachable(graph, [parse_budget(f"latency={least * 0.99}ms")], space)


def test_where_fewer_bits_do_not_pay_widths_stay_and_channels_go(tmp_path: Path) -> None:
    graph = chain()
    space = replace(search_space(graph, group_size=4), target=made(tmp_path, graph, narrow_is_slow))
    costs, budgets = Costs(graph, space), [parse_budget("latency=97%")]
    start = replace(smallest(space), parts=largest(space).parts)  # least bits, whole: slower than w8a8
    assert costs.latency(start) > costs.whole["latency"]
    found, steps = project(costs, budgets, start, _harm)
    assert not costs.over(found, budgets)
    assert any(step.move.to == 8 for step in steps if step.move.side in ("weight", "act"))
    assert any(step.move.side == "prune" for step in steps)
    filled, _ = fill(costs, budgets, found, lambda c, m: -_harm(c, m))
    assert {filled.weight[name] for name in space.searched} == {8}  # wider is free


def test_filters_take_the_time_of_whole_blocks() -> None:
    grid = Grid(((1.0,), (8.0, 16.0, 20.0), (8.0,), (8.0,)), np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1), block=8)
    assert [grid.at((1, c, 8, 8)) for c in (1, 8, 9, 16, 17, 20)] == [1, 1, 2, 2, 3, 3]
    assert not grid.covers((1, 21, 8, 8))


def test_parts_go_together_where_one_alone_saves_nothing(tmp_path: Path) -> None:
    graph = depthwise()
    on = made(tmp_path, graph, lambda _in, out, _w, _a: 0.01 * out, block=8)
    space = replace(search_space(graph, group_size=2), target=on)
    costs, budgets = Costs(graph, space), [parse_budget("latency=95%")]
    ((group, gate),) = space.gates.items()
    one_less = Move("prune", group, 0).applied(largest(space))
    assert costs.latency(one_less) == costs.latency(largest(space))
    found, steps = project(costs, budgets, largest(space), lambda _c, m: 1 / (1 + m.to))
    assert not costs.over(found, budgets)
    assert [step.move.side for step in steps] == ["prune"] * 4 and gate.removable == 4
    assert found.parts[group] == (0, 1, 2, 3)  # the last harm least


def test_two_sides_narrow_together_where_one_alone_saves_nothing(tmp_path: Path) -> None:
    graph = chain()
    space = replace(search_space(graph), gates={}, target=made(tmp_path, graph, flat))
    costs, budgets = Costs(graph, space), [parse_budget("latency=80%")]
    found, steps = project(costs, budgets, largest(space), _harm)
    assert not costs.over(found, budgets) and steps
    narrowed = [name for name in space.searched if found.weight[name] < 8 or found.act[name] < 8]
    assert narrowed == ["hidden"] and found.weight[narrowed[0]] == found.act[narrowed[0]] == 2  # it alone is enough


@pytest.mark.parametrize("formula", [smooth, flat, narrow_is_slow])
def test_budgets_of_all_kinds_hold_together(formula: Any, tmp_path: Path) -> None:
    graph = chain()
    space = replace(search_space(graph, group_size=4), target=made(tmp_path, graph, formula))
    costs, rng = Costs(graph, space), np.random.default_rng(2)
    budgets = [parse_budget(text) for text in ("latency=98%", "bops=6%", "size=20%")]
    check_reachable(graph, budgets, space)
    for _ in range(10):
        found, steps = project(costs, budgets, _random(space, rng), _harm)
        assert not costs.over(found, budgets)
        assert all({"latency", "bops", "size"} == step.figures.keys() for step in steps)


def test_budgets_that_contradict_each_other_are_refused_together(tmp_path: Path) -> None:
    graph = chain()
    space = replace(search_space(graph, group_size=4), target=made(tmp_path, graph, narrow_is_slow))
    costs = Costs(graph, space)
    fast, small = (costs.figure(kind, cheapest(costs, kind)) for kind in ("latency", "bops"))
    budgets = [Budget("latency", "latency", fast * 1.01, False), Budget("bops", "bops", small * 1.01, False)]
    for budget in budgets:
        check_reachable(graph, [budget], space)
    with pytest.raises(CheckFailed, match="cannot be reached together"):
        check_reachable(graph, budgets, space)


def test_latency_needs_a_table() -> None:
    graph = chain()
    with pytest.raises(UsageError, match="--latency-table"):
        check_reachable(graph, [parse_budget("latency=1ms")], search_space(graph))


def _harm(choice: Choice, move: Move) -> float:
    """More for fewer bits and channels."""
    if move.side in ("prune", "restore"):
        return 0.1 if move.side == "prune" else -0.1
    now = (choice.weight if move.side == "weight" else choice.act)[LayerId(move.name)]
    return 1 / move.to - 1 / now


@pytest.mark.parametrize("make", MAKERS)
def test_the_super_net_prices_its_gates_as_the_table_does(make: Callable[[], Graph], tmp_path: Path) -> None:
    graph = make()
    group = next(iter(search_space(graph).gates))
    steps = [{"name": "pool", "group": group, "channels": [1, 16], "ms": [0.1, 0.4]}]
    space = replace(search_space(graph, group_size=4), target=made(tmp_path, graph, steps=steps))
    torch.manual_seed(0)
    net = SuperNet(graph, space, residual="int8")
    net(torch.randn(4, *graph.inputs[0].shape))
    cost = net.cost("latency")
    assert float(cost.detach()) == pytest.approx(net.costs.latency(net.choice()), rel=1e-6)
    cost.backward()  # type: ignore[no-untyped-call]
    for name in space.searched:
        for side in "wa":
            grad = net.tensor(f"{name}.threshold_{side}").grad
            assert grad is not None and float(grad.sum()) < 0, (name, side)  # a higher threshold saves time
    for group in space.gates:
        grad = net.tensor(f"{group}.threshold_p").grad
        assert grad is not None and float(grad.sum()) < 0


def test_a_table_for_another_network_names_the_command(tmp_path: Path) -> None:
    table = load_table(write(tmp_path, chain()))
    with pytest.raises(UnsupportedError, match=r"no times of stem .* bitpress profile net -o .*table.json"):
        target(table, depthwise(), "net", "int8")
    with pytest.raises(UnsupportedError, match=r"float32 residual streams .*--residual float32"):
        target(table, chain(), "net", "float32")


def test_beyond_what_was_measured_is_refused(tmp_path: Path) -> None:
    graph = chain()
    on = made(tmp_path, graph)
    with pytest.raises(UnsupportedError, match=r"no time of b .* at w8a1: it has .* 2 to 8 bits of activations"):
        on.layer("b", (10, 12, 8, 1))


def test_a_table_of_another_cpu_is_said(tmp_path: Path) -> None:
    assert load_table(write(tmp_path, chain())).warning() == ""
    other = load_table(write(tmp_path, chain(), cpu="Another CPU"))
    assert "measured on Another CPU, this machine is" in other.warning()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"complete": False}, UsageError, "not finished"), ({"schema": "bitpress.gemm"}, CorruptError, "latency table"),
        ({"schema_version": 9}, CorruptError, "version 9"), ({"points": []}, CorruptError, "damaged"),
        ({"points": [{"shape": 0}]}, CorruptError, "damaged"), ({"networks": 3}, CorruptError, "damaged"),
    ],
)  # fmt: skip
def test_files_that_are_no_table_are_refused(
    change: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**document(chain(), smooth), **change}))
    with pytest.raises(error, match=says):
        load_table(path)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bitpress profile MODEL"):
        load_table(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(CorruptError, match="no JSON"):
        load_table(tmp_path / "text.json")


def test_times_that_are_no_times_are_refused(tmp_path: Path) -> None:
    found = document(chain(), smooth)
    found["points"][0]["ms"] = float("nan")
    path = tmp_path / "table.json"
    path.write_text(json.dumps(found))
    with pytest.raises(CorruptError, match="damaged"):
        load_table(path)
