"""DJPQ's quantiser and gates against their equations (methods A.2), and what is left of them in the integers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bitpress.core.cost import Choice, Costs, largest, search_space
from bitpress.core.encoding import odd, twos
from bitpress.core.errors import UnsupportedError
from bitpress.core.graph import Graph
from bitpress.core.groups import groups
from bitpress.core.integer import integer
from bitpress.core.projection import Move, lowering, raising
from bitpress.core.supernet import SuperNet, from_plan, inherit
from bitpress.core.supernet_rounding import EVEN, UNIT, stepped
from bitpress.core.supernet_starts import fit
from bitpress.core.supernet_vib import LN_VAR_START, VibNet, norm_of
from bitpress.core.train_vib import margins

from ..benchmarks.graphs import residual
from .extracted import as_integers
from .test_cost import chain, depthwise

NETS = [chain, depthwise, residual]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _images(graph: Graph, n: int = 8, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (n, *graph.inputs[0].shape)).astype(np.float32))


def _net(graph: Graph, *, group_size: int = 1) -> VibNet:
    space = search_space(graph, group_size=group_size)
    space = replace(space, gates={g: gate for g, gate in space.gates.items() if g in norm_of(graph, space)})
    source, net = SuperNet(graph, space, grid=EVEN), VibNet(graph, space)
    fit(source, [_images(graph, 16)])
    fit(source, [_images(graph, 16)], largest(space))
    inherit(net, source)
    net.start(source)
    return net


def _set(net: VibNet, name: str, value: float) -> None:
    with torch.no_grad():
        net.tensor(name).fill_(value)


def _searched_by(net: VibNet, *, mu: float = 0.5) -> VibNet:
    """As if a search had gone on: exponents, ranges and steps moved, means of gates uneven, some parts gone."""
    drawn = np.random.default_rng(1)
    with torch.no_grad():
        for i, layer in enumerate(net.space.searched):
            _set(net, f"{layer}.exponent", 0.9 + 0.1 * i)
            net.tensor(f"{layer}.ln_q_w").sub_(0.2)
            net.tensor(f"{layer}.ln_d_w").add_(1 + i)
            net.tensor(f"{layer}.ln_d_a").add_(0.5 + i)
        for group, gate in net.space.open.items():
            means = drawn.choice([mu, 1.0, 2.0], len(gate.sizes)).astype(np.float32)
            net.tensor(f"{group}.ln_mu").copy_(torch.from_numpy(np.log(means)))
            net.tensor(f"{group}.ln_var")[: gate.removable] = 2.0
    net.restricted = True
    net.clamp()
    return net


# the quantiser


@pytest.mark.parametrize(
    ("q", "t", "d", "bits"), [(1.0, 1.0, 1.0, 2), (7.0, 1.0, 1.0, 4), (2.0, 1.0, 2 / 127, 8), (3.0, 2.0, 3.0, 3)]
)
def test_bits_are_those_of_the_formula(q: float, t: float, d: float, bits: float) -> None:
    """log2(q_m ** t / d + 1) + 1, without the 1 where there is no sign: by hand."""
    net = _net(chain())
    layer = net.space.searched[0]
    for side in "wa":
        _set(net, f"{layer}.ln_q_{side}", math.log(q))
        _set(net, f"{layer}.ln_d_{side}", math.log(d))
    _set(net, f"{layer}.exponent", t)
    assert float(net.bits(layer, "w").detach()) == pytest.approx(bits, abs=1e-5)
    if t == 1:
        assert net.domains[f"{layer}.act_clip"] == UNIT
        assert float(net.bits(layer, "a").detach()) == pytest.approx(bits - 1, abs=1e-5)


@pytest.mark.parametrize("t", [0.7, 1.0, 1.6, None])
def test_gradients_are_those_of_differences_with_the_rounding_held(t: float | None) -> None:
    """d, q_m and t: as if round(u) were u plus a constant. x: 1 within the range, 0 outside, whatever t is."""
    x = torch.randn(400, dtype=torch.float64) * 0.7
    x = x[(x.abs() - 0.8).abs() > 1e-3]
    weight = torch.randn_like(x)
    start = [0.11, 0.8] + ([] if t is None else [t])

    def power(values: list[float]) -> Tensor:
        return x.abs().clamp(max=values[1]) ** (values[2] if t is not None else 1.0)

    held = torch.round(power(start) / start[0]) - power(start) / start[0]

    def smooth(values: list[float]) -> float:
        return float((weight * torch.sign(x) * (power(values) + values[0] * held)).sum())

    scalars = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in start]
    leaf = x.clone().requires_grad_()
    out = stepped(leaf, *scalars)
    assert float((weight * out).sum().detach()) == pytest.approx(smooth(start), rel=1e-9)
    (weight * out).sum().backward()  # type: ignore[no-untyped-call]
    for i, scalar in enumerate(scalars):
        up, down = ([v + h * (i == j) for j, v in enumerate(start)] for h in (1e-6, -1e-6))
        assert float(scalar.grad) == pytest.approx((smooth(up) - smooth(down)) / 2e-6, rel=1e-5)
    assert torch.equal(leaf.grad, weight * (x.abs() <= 0.8))


def test_the_exponent_s_gradient_is_finite_at_zero() -> None:
    x, t = torch.tensor([0.0, 1e-30, 0.5]), torch.tensor(0.5, requires_grad=True)
    stepped(x, torch.tensor(0.1), torch.tensor(1.0), t).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(t.grad)


@pytest.mark.parametrize(("bits", "nearest"), [(2.0, 2), (2.8, 2), (2.9, 4), (5.6, 4), (5.7, 8), (8.0, 8)])
def test_a_restricted_width_is_the_nearest_power_of_two_and_its_step_follows(bits: float, nearest: int) -> None:
    net = _net(chain())
    layer = net.space.searched[0]
    _set(net, f"{layer}.exponent", 1.3)
    for side, sign in (("w", 1), ("a", 0)):
        top = float(net.ranges(layer, side)[1].detach())
        _set(net, f"{layer}.ln_d_{side}", math.log(top / (2 ** (bits - sign) - 1)))
        free = float(net.step_size(layer, side).detach())
        assert free == pytest.approx(top / (2 ** (bits - sign) - 1), rel=1e-5)
        net.restricted = True
        assert float(net.step_size(layer, side).detach()) == pytest.approx(top / (2 ** (nearest - sign) - 1), rel=1e-5)
        net.restricted = False
        assert float(net.bits(layer, side).detach()) == pytest.approx(bits, abs=1e-4)  # the penalty's stay continuous
    assert net.searched_bits(layer) == (nearest, nearest)


def test_through_the_restriction_the_learned_step_still_gets_a_gradient() -> None:
    graph = chain()
    net = _searched_by(_net(graph)).train()
    net(_images(graph)).square().sum().backward()  # type: ignore[no-untyped-call]
    for layer in net.space.searched:
        for name in ("ln_d_w", "ln_d_a", "ln_q_w", "ln_q_a", "exponent"):
            assert float(net.tensor(f"{layer}.{name}").grad) != 0, (layer, name)


def test_steps_are_drawn_back_to_widths_that_exist() -> None:
    net = _net(chain())
    for layer in net.space.searched:
        _set(net, f"{layer}.ln_d_w", 5.0)
        _set(net, f"{layer}.ln_d_a", -50.0)
        _set(net, f"{layer}.exponent", 9.0)
    net.clamp()
    for layer in net.space.searched:
        assert float(net.bits(layer, "w").detach()) == pytest.approx(2, abs=1e-4)
        assert float(net.bits(layer, "a").detach()) == pytest.approx(8, abs=1e-4)
        assert float(net.tensor(f"{layer}.exponent").detach()) == 2


# gates


def test_information_is_the_regulariser_of_every_channel() -> None:
    net = _net(chain(), group_size=3)
    groups = net.space.open
    for group in groups:
        _set(net, f"{group}.ln_mu", math.log(2.0))
        _set(net, f"{group}.ln_var", math.log(0.5))
    channels = sum(gate.channels for gate in groups.values())
    assert float(net.information().detach()) == pytest.approx(channels * math.log(1 + 4 / 0.5) / 2, rel=1e-5)


def test_parts_go_where_noise_exceeds_the_mean_but_no_more_than_the_space_allows() -> None:
    net = _net(chain())
    group, gate = next(iter(net.space.open.items()))
    assert bool((net.part_gates(group) == 1).all())
    assert float(net.ln_ratios(group)[0].detach()) == LN_VAR_START
    with torch.no_grad():
        net.tensor(f"{group}.ln_var")[1] = 0.1
        assert net.part_gates(group).tolist() == [float(i != 1) for i in range(len(gate.sizes))]
        net.tensor(f"{group}.ln_var").copy_(torch.arange(1, len(gate.sizes) + 1))
        left = [i for i, g in enumerate(net.part_gates(group).tolist()) if g]
    assert left == list(range(len(gate.sizes) - gate.removable))


def test_margins_are_positive_for_losses_and_bring_back_only_what_tells_something() -> None:
    net = _searched_by(_net(chain()))
    choice, harm = net.choice(), margins(net)
    assert {m.side for m in lowering(net.space, choice)} >= {"weight", "act"}
    assert all(harm(choice, move) > 0 for move in lowering(net.space, choice))
    gone = [m for m in raising(net.space, choice, parts=True) if m.side == "restore"]
    assert gone and all(harm(choice, move) > 0 for move in gone)  # noise: no gain
    group, gate = next(iter(net.space.open.items()))
    less = Move("prune", group, len(gate.sizes) - 1).applied(choice)
    assert harm(less, Move("restore", group, len(gate.sizes) - 1)) < 0
    assert all(harm(choice, m) < 0 for m in raising(net.space, choice))


def test_noise_is_there_while_it_trains_and_is_drawn_by_the_seed() -> None:
    graph = chain()
    net = _net(graph)
    x = _images(graph)
    with torch.no_grad():
        net.eval()
        assert torch.equal(net(x), net(x))
        for group in net.space.open:
            _set(net, f"{group}.ln_var", 0.0)
        net.train()
        torch.manual_seed(3)
        first = net(x)
        assert not torch.equal(first, net(x))
        torch.manual_seed(3)
        assert torch.equal(first, net(x))


def test_bops_count_continuous_bits_and_the_channels_of_both_sides() -> None:
    graph = chain()
    net = _net(graph).train()
    net(_images(graph))
    costs = Costs(graph, net.space)
    assert float(net.cost("bops").detach()) == pytest.approx(costs.bops(largest(net.space)), rel=1e-4)
    layer = net.space.searched[0]
    term = next(t for t in net.costs.terms if t.layer == layer)
    _set(net, f"{layer}.ln_d_w", float(net.tensor(f"{layer}.ln_d_w").detach()) + 0.5)
    bits = float(net.bits(layer, "w").detach())
    assert bits != round(bits)
    less = term.unit * term.c_in * term.c_out * 8 * (8 - bits)
    assert float(net.cost("bops").detach()) == pytest.approx(costs.bops(largest(net.space)) - less, rel=1e-4)
    net.cost("bops").backward()  # type: ignore[no-untyped-call]
    assert all(bool((net.tensor(f"{g}.ln_var").grad < 0).all()) for g in net.space.open)  # more noise costs less
    with torch.no_grad():
        group = next(iter(net.space.open))
        net.tensor(f"{group}.ln_var")[0] = 5.0
        net.clamp()
    net(_images(graph))
    choice = net.choice()
    assert len(choice.parts[group]) == len(net.space.gates[group].sizes) - 1


# what is left of it


@pytest.mark.parametrize("make", NETS)
def test_folding_computes_the_same(make: object) -> None:
    """Exponents into weights and means of gates into norms: equal but for the rounding of floats."""
    graph: Graph = make()  # type: ignore[operator]
    net = _searched_by(_net(graph), mu=0.7).eval()
    x = _images(graph)
    with torch.no_grad():
        before = dict(net.walk(x))
        choice = net.choice()
        net.fold()
        after = dict(net.walk(x))
    assert net.choice() == choice
    for name, value in before.items():
        clip = net.stored_clip(name)
        layer = net.layer_of(clip) if clip else None
        searched = layer is not None and layer in net.space.searched
        unit = float(net.step_size(layer, "a").detach()) if searched else float(value.abs().max()) / 100
        moved = (after[name] - value).abs() > 1e-4 * float(value.abs().max())
        assert float(moved.float().mean()) < 0.01, name  # a tie here and there falls to the other side
        if clip is not None:
            assert float((after[name] - value).abs().max()) <= 2.01 * unit, name


def test_folding_powers_of_two_changes_no_bit() -> None:
    graph = chain()
    net = _searched_by(_net(graph)).eval()
    for layer in net.space.searched:
        _set(net, f"{layer}.exponent", 1.0)
    x = _images(graph)
    with torch.no_grad():
        before = net(x)
        net.fold()
        assert torch.equal(net(x), before)


@pytest.mark.parametrize("make", NETS)
def test_a_folded_net_is_what_the_integers_compute_and_removal_changes_nothing(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    net = _searched_by(_net(graph)).eval()
    x = _images(graph)
    with torch.no_grad():
        noiseless = net(x)
        choice = net.choice()
        net.fold()
        plain = SuperNet(graph, net.space, grid=EVEN)
        inherit(plain, net)
        plain.freeze(choice)
        plain.eval()
        assert float((plain(x) - noiseless).abs().max()) < 0.05 * float(noiseless.abs().max()) + 1e-6
    plan, whole = as_integers(graph, plain, x.numpy())
    if net.space.open:
        assert plan.keep
    assert {s.encoding for bits in plan.bits.values() for s in bits.weight} <= {twos(2), twos(4), twos(8)}
    for name, levels in whole.consts.items():  # two's complement has one level more below; it is never used
        if name.endswith(".levels"):
            assert levels.min() >= -levels.max() or abs(int(levels.min())) in (1, 7, 127)


def test_weights_beyond_the_clip_are_saved_as_the_clip() -> None:
    graph = chain()
    net = SuperNet(graph, search_space(graph), grid=EVEN)
    fit(net, [_images(graph, 16)])
    layer = net.space.searched[0]
    whole = largest(net.space)
    net.freeze(Choice({**whole.weight, layer: 2}, whole.act, whole.parts))
    const = graph.value(layer).consts["weight"]
    with torch.no_grad():
        net.tensor(f"{layer}.weight_clip").fill_(0.3 * float(net.tensor(const).abs().max()))
    plan, tensors = net.extract()
    assert np.abs(tensors[const]).max() == tensors[f"{layer}.weight_clip"]
    levels = integer(graph.with_nodes(graph.nodes, {k: tensors[k] for k in graph.consts}), plan, tensors)
    found = levels.consts[f"{layer}.levels"]
    assert set(np.unique(found)) == {-1, 0, 1}
    again = from_plan(graph.with_nodes(graph.nodes, {k: tensors[k] for k in graph.consts}), plan, tensors)
    with torch.no_grad():
        assert torch.equal(again.rounded_weight(layer), net.rounded_weight(layer))
    (segment,) = plan.bits[layer].weight
    uneven = replace(plan.bits[layer], weight=(replace(segment, encoding=odd(2)),))
    mixed = replace(plan, bits={**plan.bits, layer: uneven})
    with pytest.raises(UnsupportedError, match="all odd or all even"):
        from_plan(graph, mixed, tensors)


def test_gates_stand_on_the_last_norm_of_their_group() -> None:
    graph = depthwise()
    space = search_space(graph, group_size=1)
    for group, norm in norm_of(graph, space).items():
        node = graph.value(norm)
        assert node.op == "batch_norm"
        (values,) = (g.values for g in groups(graph) if g.id == group)
        names = [n.name for n in graph.nodes if n.name in values and n.op == "batch_norm"]
        assert names[-1] == node.name
