"""Budgets, spaces, prices: what is said before any time is spent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitpress.core import bops
from bitpress.core.cost import (
    Choice,
    Costs,
    Space,
    hold_bits,
    hold_channels,
    largest,
    open_ends,
    parse_budget,
    plan_cost,
    search_space,
    smallest,
    stair_above,
    stair_near,
    stairs,
    to_plan,
)
from bitpress.core.errors import UnsupportedError, UsageError
from bitpress.core.graph import Graph
from bitpress.core.models import load
from bitpress.core.plan import GroupId, LayerId
from bitpress.core.projection import (
    Move,
    lowering,
)

from ..benchmarks.graphs import Maker, residual
from ..compiler.nets import gated


def chain(seed: int = 0) -> Graph:
    """conv, conv, max pool, conv, flatten, two linears: a plain chain with features spread behind a flatten."""
    m = Maker((3, 8, 8), seed)
    x = m.add("relu", "a.relu", m.norm("a.bn", m.conv("a", "image", 10)))
    x = m.add("relu", "b.relu", m.norm("b.bn", m.conv("b", x, 12)))
    x = m.add("max_pool2d", "max", x, kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0))
    x = m.add("relu", "c.relu", m.norm("c.bn", m.conv("c", x, 8)))
    x = m.add("relu", "hidden.relu", m.linear("hidden", m.add("flatten", "flat", x), 20))
    return m.graph(m.linear("fc", x, 10))


def depthwise(seed: int = 0) -> Graph:
    """Stem, an inverted residual, a last convolution."""
    m = Maker((3, 8, 8), seed)
    x = m.norm("stem.bn", m.conv("stem", "image", 8))
    y = m.add("clip", "expand.act", m.norm("expand.bn", m.conv("expand", x, 16, 1)), lo=0.0, hi=6.0)
    y = m.add("clip", "dw.act", m.norm("dw.bn", m.conv("dw", y, 16, groups=16)), lo=0.0, hi=6.0)
    x = m.add("add", "sum", m.norm("project.bn", m.conv("project", y, 8, 1)), x)
    x = m.add("clip", "last.act", m.norm("last.bn", m.conv("last", x, 16, 1)), lo=0.0, hi=6.0)
    x = m.add("flatten", "flat", m.add("global_avg_pool", "pool", x))
    return m.graph(m.linear("fc", x, 10))


@pytest.mark.parametrize(
    ("text", "value", "relative"),
    [
        ("bops=2%", 0.02, True), ("bops=630M", 630e6, False), ("bops=1.5%", 0.015, True), ("bops=5e8", 5e8, False),
        ("size=120kB", 120e3, False), ("size=20%", 0.2, True), ("size=1.5MB", 1.5e6, False), ("size=999", 999, False),
        ("latency=0.8ms", 0.8, False), ("latency=60%", 0.6, True), ("latency=120us", 0.12, False),
    ],
)  # fmt: skip
def test_budgets_are_read(text: str, value: float, relative: bool) -> None:
    budget = parse_budget(text)
    assert budget.value == pytest.approx(value)
    assert budget.relative is relative
    assert budget.bound(1000) == pytest.approx(1000 * value if relative else value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bops", "not a number"), ("flops=2%", "none of bops, size, latency"), ("bops=2kB", "not a number"),
        ("size=2M", "not a number"), ("bops=0", "above zero"), ("bops=-3", "not a number"), ("size=", "not a number"),
        ("latency=0.8", "number with %, ms, us, s"), ("bops=nan", "not a number"), ("bops=1e400", "finite"),
    ],
)  # fmt: skip
def test_budgets_that_make_no_sense_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_budget(text)


def test_in_a_chain_every_convolution_but_the_last_is_gated() -> None:
    space = search_space(chain(), group_size=4)
    assert list(space.gates) == ["a", "b"]
    assert space.ends == ("a", "fc")
    assert space.searched == ("b", "c", "hidden")
    assert space.gates[GroupId("a")].sizes == (4, 4, 2)
    assert space.gates[GroupId("a")].removable == 1  # half of 10 channels is one part of 4
    assert space.gates[GroupId("a")].kept((0, 2)) == (0, 1, 2, 3, 8, 9)


def test_in_residual_networks_streams_stay_whole() -> None:
    assert list(search_space(residual()).gates) == ["a"]
    gates = search_space(_captured("resnet20")).gates
    assert sorted(gates) == sorted(f"layer{k}.{i}.conv1" for k in (1, 2, 3) for i in (0, 1, 2))
    gates = search_space(_captured("preresnet20")).gates
    assert sorted(gates) == sorted(f"layer{k}.{i}.conv1" for k in (1, 2, 3) for i in (0, 1, 2))


def test_inverted_residuals_are_scored_on_the_depthwise_weights() -> None:
    gates = search_space(depthwise()).gates
    assert {g: gate.scored for g, gate in gates.items()} == {"expand": ("dw",)}


def test_a_squeeze_follows_the_block_that_it_scales() -> None:
    """One gate a block: filters of the last convolution go with their channels, the inner one stays whole."""
    graph = gated()
    space = search_space(graph)
    assert {g: gate.scored for g, gate in space.gates.items()} == {"a": ("dw",)}
    costs = Costs(graph, space)
    whole, cut = largest(space), smallest(space)
    assert cut.parts["a"] == (2, 3)
    less = replace(whole, parts=cut.parts)
    plans = [to_plan(graph, space, choice, residual="int8") for choice in (whole, less)]
    assert [costs.bops(choice) for choice in (whole, less)] == [bops.count(graph, p).totals.bops for p in plans]
    assert [row.channels_kept for row in bops.count(graph, plans[1]).layers if row.name == "excite"] == [8]


def _captured(name: str) -> Graph:
    from bitpress.core.capture import capture

    loaded = load(name)
    return capture(loaded.module, loaded.in_shape)


def test_an_unknown_op_and_a_strange_ratio_are_refused() -> None:
    m = Maker((3, 8, 8))
    strange = m.add("unknown", "odd", m.conv("a", "image", 8), target="aten.erf.default")
    with pytest.raises(UnsupportedError, match="erf"):
        search_space(m.graph(strange))
    with pytest.raises(UsageError, match="pruning ratio"):
        search_space(chain(), max_pruning_ratio=1.0)


@pytest.mark.parametrize("make", [chain, residual, depthwise])
def test_prices_are_those_of_core_bops(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    space = search_space(graph, group_size=4)
    costs, rng = Costs(graph, space), np.random.default_rng(0)
    for _ in range(20):
        choice = _random(space, rng)
        found = plan_cost(graph, to_plan(graph, space, choice, residual="int8"))
        assert {"bops": costs.bops(choice), "size": costs.size(choice)} == found


def _random(space: Space, rng: np.random.Generator) -> Choice:
    ends = dict.fromkeys(space.ends, 8)
    weight = {name: int(rng.choice(space.widths)) for name in space.searched} | ends
    act = {name: int(rng.choice(space.widths)) for name in space.searched} | ends
    parts = {}
    for group, gate in space.gates.items():
        gone = set(rng.permutation(len(gate.sizes))[: rng.integers(0, gate.removable + 1)].tolist())
        parts[group] = tuple(p for p in range(len(gate.sizes)) if p not in gone)
    return Choice(weight, act, parts)


@pytest.mark.parametrize("make", [chain, depthwise])
def test_a_space_with_everything_held_has_one_point_and_it_is_the_uniform_one(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    for bits in ((4, 4), (2, 8), (8, 3)):
        space = hold_channels(hold_bits(graph, search_space(graph), bits))
        assert smallest(space) == largest(space)
        assert lowering(space, largest(space)) == []
        found = bops.count(graph, to_plan(graph, space, largest(space), residual="int8")).totals
        want = bops.count(graph, uniform=bits).totals
        assert (found.bops, found.weight_bytes) == (want.bops, want.weight_bytes)
        assert Costs(graph, space).bops(largest(space)) == want.bops


def test_one_bit_of_a_signed_input_costs_two() -> None:
    graph = depthwise()
    space = hold_bits(graph, search_space(graph), (2, 1))
    assert space.given(LayerId("expand")) == (2, 2)  # reads a linear bottleneck
    assert space.given(LayerId("dw")) == (2, 1)
    plan = to_plan(graph, space, smallest(space), residual="int8")
    assert bops.count(graph, plan).totals.bops == Costs(graph, space).bops(smallest(space))


@pytest.mark.parametrize(("bits", "says"), [((3, 4), "weights of 3 bits"), ((4, 9), "activations of 9 bits")])
def test_widths_without_kernels_are_not_held(bits: tuple[int, int], says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        hold_bits(chain(), search_space(chain()), bits)


def test_a_gate_that_is_decided_does_not_move() -> None:
    graph = chain()
    whole = search_space(graph, group_size=4)
    group = next(iter(whole.gates))
    space = replace(whole, cut={group: (1, 2)})
    assert group not in space.open
    assert smallest(space).parts[group] == largest(space).parts[group] == (1, 2)
    assert not [m for m in lowering(space, largest(space)) if m.name == group and m.side == "prune"]
    assert Costs(graph, space).bops(largest(space)) < Costs(graph, whole).bops(largest(whole))


def test_stairs_are_the_uniform_points_that_weights_bear() -> None:
    graph = chain()
    space = search_space(graph)
    costs = Costs(graph, space)
    found = stairs(space)
    one = space.searched[0]
    assert [(c.weight[one], c.act[one]) for c in found] == [(2, 2), (2, 4), (4, 4), (4, 8), (8, 8)]
    figures = [costs.bops(c) for c in found]
    assert figures == sorted(figures)
    for i, figure in enumerate(figures):
        assert stair_near(costs, [parse_budget(f"bops={int(figure * 1.1)}")]) == found[i]
        assert stair_near(costs, [parse_budget(f"bops={int(figure / 1.1)}")]) == found[i]
        assert stair_above(costs, [parse_budget(f"bops={int(figure * 0.99)}")]) == found[i]
    assert stair_above(costs, [parse_budget("bops=100%")]) == found[-1]  # none breaks it
    assert len(stairs(hold_bits(graph, space, (4, 4)))) == 1  # nothing to climb


def test_plans_have_odd_weights_and_unsigned_inputs_where_nothing_is_negative() -> None:
    graph = depthwise()
    space = search_space(graph)
    plan = to_plan(graph, space, smallest(space), residual="int8")
    assert str(plan.bits[LayerId("stem")]) == "w:o8 a:i8"  # the image has a sign
    assert str(plan.bits[LayerId("expand")]) == "w:o2 a:i2"  # reads a linear bottleneck
    assert str(plan.bits[LayerId("dw")]) == "w:o2 a:u2"
    assert plan.keep == {"expand": tuple(range(8, 16))}
    assert plan.bits[LayerId("dw")].weight[0].filters == tuple(range(8, 16))
    assert bops.count(graph, plan).totals.bops == Costs(graph, space).bops(smallest(space))


# ends that are searched


@pytest.mark.parametrize("make", [chain, depthwise])
def test_searched_ends_are_counted_at_their_own_bits_and_the_image_at_eight(make: object) -> None:
    """Costs, moves and corners of the space that convention djpq is made for, against `core.bops`."""
    graph: Graph = make()  # type: ignore[operator]
    inner = search_space(graph)
    space = open_ends(graph, inner)
    assert not space.ends
    assert set(space.searched) == {*inner.searched, *inner.ends}
    assert space.image == (space.searched[0],)
    costs = Costs(graph, space)
    for choice in (smallest(space), largest(space)):
        assert choice.act[space.image[0]] == 8
        plan = to_plan(graph, space, choice, residual="int8")
        assert plan_cost(graph, plan, "djpq") == {"bops": costs.bops(choice), "size": costs.size(choice)}
    moves = lowering(space, largest(space))
    assert Move("weight", space.image[0], 4) in moves
    assert Move("act", space.image[0], 4) not in moves
    assert Move("act", space.searched[-1], 4) in moves
    assert costs.bops(smallest(space)) < Costs(graph, inner).bops(smallest(inner))
    held = hold_bits(graph, space, (4, 4)).held
    assert {bits[0] for bits in held.values()} == {4} and held[space.image[0]] == (4, 8)
