"""Gates of Bayesian Bits against the equations of the paper, their grids, what they cost, and what is left of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bitpress.core.cost import Costs, largest, open_ends, search_space
from bitpress.core.encoding import twos
from bitpress.core.graph import Graph
from bitpress.core.projection import Move, lowering, raising
from bitpress.core.supernet import SuperNet, inherit
from bitpress.core.supernet_bits import PHI_MOST, PHI_ON, BitsNet, drawn, hard_concrete, probability
from bitpress.core.supernet_rounding import EVEN, UNIT, clipped, clipped_by_gates, nested, nested_clip, split
from bitpress.core.supernet_starts import fit
from bitpress.core.train_annealed import Pull
from bitpress.core.train_bits import Prior, margins, price

from ..benchmarks.graphs import residual
from .extracted import as_integers
from .test_cost import chain, depthwise

NETS = [chain, depthwise, residual]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _images(graph: Graph, n: int = 8) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 1, (n, *graph.inputs[0].shape)).astype(np.float32))


def _net(graph: Graph, *, group_size: int = 1, ends: bool = False) -> BitsNet:
    space = search_space(graph, group_size=group_size)
    space = open_ends(graph, space) if ends else space
    source, net = SuperNet(graph, space, grid=EVEN), BitsNet(graph, space)
    fit(source, [_images(graph, 16)])
    inherit(net, source)
    net.start(source)
    return net


def _set(net: BitsNet, name: str, *values: float) -> None:
    with torch.no_grad():
        net.tensor(name).copy_(torch.tensor(values))


def _searched_by(net: BitsNet) -> BitsNet:
    """As if a search had gone on: every pair of widths somewhere, some parts gone."""
    phis = [(-3.0, 6.0), (6.0, -3.0), (6.0, 6.0)]
    for i, layer in enumerate(net.space.searched):
        _set(net, f"{layer}.phi_w", *phis[i % 3])
        _set(net, f"{layer}.phi_a", *phis[(i + 1) % 3])
    with torch.no_grad():
        for group, gate in net.space.open.items():
            net.tensor(f"{group}.phi")[: gate.removable] = -3.0
    return net


# the distribution


def _chance(phi: float) -> float:
    return 1 / (1 + math.exp(-(phi - 2 / 3 * math.log(0.1 / 1.1))))


def _uniform(n: int = 400_000) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize("phi", [6.0, 0.0, -0.5, -1.9])
def test_a_gate_is_on_with_the_probability_of_the_paper(phi: float) -> None:
    """sigmoid(phi - beta ln(-gamma / zeta)), beta 2/3, zeta 1.1, gamma -0.1; as often do draws leave 0."""
    on = _chance(phi)
    assert float(probability(torch.tensor(phi, dtype=torch.float64))) == pytest.approx(on, abs=1e-6)
    gates = hard_concrete(torch.tensor(phi, dtype=torch.float64), _uniform())
    assert float((gates > 0).double().mean()) == pytest.approx(on, abs=1e-5)
    assert float(gates.min()) >= 0 and float(gates.max()) == 1


def test_draws_are_the_stretched_and_clamped_concrete_distribution() -> None:
    u = np.linspace(0.01, 0.99, 197)
    for phi in (-1.0, 0.3, 4.0):
        soft = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + phi) / (2 / 3)))
        wanted = np.clip(soft * 1.2 - 0.1, 0, 1)
        found = hard_concrete(torch.full((197,), phi, dtype=torch.float64), torch.from_numpy(u))
        assert np.allclose(found.numpy(), wanted, atol=1e-12)
    gates = drawn(torch.zeros(200_000))
    assert float((gates > 0).float().mean()) == pytest.approx(0.8318, abs=5e-3)
    assert 0.1 < float(((gates > 0) & (gates < 1)).float().mean()) < 0.9


def test_the_gradient_is_that_of_differences_and_none_where_it_is_clamped() -> None:
    u = torch.tensor([0.02, 0.3, 0.5, 0.7, 0.999], dtype=torch.float64)
    phi = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    hard_concrete(phi, u).sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        slope = (hard_concrete(phi + 1e-6, u) - hard_concrete(phi - 1e-6, u)) / 2e-6
    assert torch.allclose(phi.grad, slope, atol=1e-8)
    assert float(phi.grad[0]) == float(phi.grad[-1]) == 0
    assert bool((phi.grad[1:-1] > 0).all())


def test_a_gate_that_has_come_down_to_minus_two_is_off_for_good() -> None:
    phi = torch.tensor([-2.0, -1.9], requires_grad=True)
    gates = hard_concrete(phi, torch.full((2,), 0.99))
    (gates.sum() + probability(phi).sum()).backward()  # type: ignore[no-untyped-call]
    assert float(gates[0].detach()) == 0 < float(gates[1].detach())
    assert float(probability(phi)[0].detach()) == float(phi.grad[0]) == 0 < float(phi.grad[1])


# widths


@pytest.mark.parametrize(("gates", "bits"), [((1.0, 1.0), 8), ((1.0, 0.0), 4), ((0.0, 0.0), 2), ((0.0, 1.0), 2)])
def test_the_chained_residuals_are_the_symmetric_grids_and_eight_needs_four(
    gates: tuple[float, float], bits: int
) -> None:
    """2 bits {-1, 0, 1}, 4 bits -7..7, 8 bits -127..127 in steps of 2 v / (2**b - 1); without a sign 0..2**b - 1."""
    x, v = torch.randn(20_000) * 2, torch.tensor(1.7)
    g4, g8 = (torch.tensor(g) for g in gates)
    found = clipped_by_gates(x, v, (g4, g8), nested(x, v), EVEN)
    assert torch.allclose(found, clipped(x, nested_clip(v, bits), bits, EVEN), atol=1e-6)
    levels = torch.unique(torch.round(found * (2**bits - 1) / (2 * v)))
    assert levels.tolist() == list(range(1 - 2 ** (bits - 1), 2 ** (bits - 1)))
    positive = x.abs()
    found = clipped_by_gates(positive, v, (g4, g8), split(positive, v, UNIT)[0], UNIT)
    assert torch.allclose(found, clipped(positive, v, bits, UNIT), atol=1e-6)


def test_weights_at_the_end_of_the_range_stay_on_the_grid() -> None:
    v = torch.tensor(0.37)
    x = torch.stack([v, -v, 2 * v])
    for gates, top in (((1.0, 1.0), 254 / 255), ((1.0, 0.0), 14 / 15), ((0.0, 0.0), 2 / 3)):
        found = clipped_by_gates(x, v, (torch.tensor(gates[0]), torch.tensor(gates[1])), nested(x, v), EVEN)
        assert torch.allclose(found / v, torch.tensor([top, -top, top]))


def test_eight_bits_are_off_whenever_four_are() -> None:
    """In what is chosen, in what is counted, and in a forward while it trains."""
    graph = chain()
    net = _net(graph).train()
    for layer in net.space.searched:
        _set(net, f"{layer}.phi_w", -3.0, 6.0)
        _set(net, f"{layer}.phi_a", -3.0, 6.0)
        assert net.searched_bits(layer) == (2, 2)
        assert [float(bits.detach()) for bits in net.widths(layer)] == [2, 2]
    values = dict(net.walk(_images(graph)))
    for layer in net.space.searched:
        v = net.tensor(f"{layer}.weight_clip").detach().abs()
        weight = net.rounded_weight(layer).detach() / nested_clip(v, 2)
        assert torch.allclose(weight, weight.round(), atol=1e-5) and float(weight.abs().max()) <= 1 + 1e-5
    acts = {net.stored_clip(name): value for name, value in values.items()}
    layer = net.space.acts[0]
    levels = acts[f"{layer}.act_clip"].detach() / net.tensor(f"{layer}.act_clip").detach() * 3
    assert torch.allclose(levels, levels.round(), atol=1e-4)


def test_gates_are_on_where_the_chance_of_being_off_is_less_than_34_percent() -> None:
    net = _net(chain())
    layer = net.space.searched[0]
    for off, bits in ((0.339, 8), (0.341, 2)):
        phi = math.log((1 - off) / off) + 2 / 3 * math.log(0.1 / 1.1)
        _set(net, f"{layer}.phi_w", phi, 6.0)
        assert net.searched_bits(layer)[0] == bits
    _set(net, f"{layer}.phi_w", 6.0, phi)
    assert net.searched_bits(layer)[0] == 4


def test_gates_are_drawn_by_the_seed_while_it_trains_and_only_then() -> None:
    graph = chain()
    net = _net(graph)
    x = _images(graph)
    for layer in net.space.searched:
        _set(net, f"{layer}.phi_w", 0.0, 0.0)
    with torch.no_grad():
        net.eval()
        assert torch.equal(net(x), net(x))
        net.train()
        torch.manual_seed(3)
        first = net(x)
        assert not torch.equal(first, net(x))
        torch.manual_seed(3)
        assert torch.equal(first, net(x))


def test_every_gate_and_range_gets_a_gradient_from_the_loss() -> None:
    graph = depthwise()
    net = _net(graph).train()
    names = [f"{layer}.phi_{side}" for layer in net.space.searched for side in "wa"]
    names += [f"{group}.phi" for group in net.space.open]
    for name in names:
        with torch.no_grad():
            net.tensor(name).fill_(0.5)
    for _ in range(20):
        net(_images(graph)).square().sum().backward()  # type: ignore[no-untyped-call]
    for name in names:
        assert bool((net.tensor(name).grad != 0).all()), name
    for name, _ in net._ranges():
        assert float(net.tensor(name).grad) != 0, name


# channels


def test_a_channel_whose_gate_is_off_is_as_good_as_removed() -> None:
    """While it trains: whatever its filters and the columns that read it hold, nothing behind it changes."""
    graph = chain()
    net = _searched_by(_net(graph)).train()
    x = _images(graph)
    gone = {group: gate.removable for group, gate in net.space.open.items()}
    torch.manual_seed(1)
    with torch.no_grad():
        before = net(x)
        for group, count in gone.items():
            net.tensor(graph.value(group).consts["weight"])[:count] *= -3
        torch.manual_seed(1)
        assert torch.equal(net(x), before)
        net.tensor(graph.value(group).consts["weight"])[count] *= -3  # one that stays
        torch.manual_seed(1)
        assert not torch.equal(net(x), before)


def test_no_more_parts_go_than_the_space_allows() -> None:
    net = _net(chain())
    group, gate = next(iter(net.space.open.items()))
    count = len(gate.sizes)
    _set(net, f"{group}.phi", *(-3 + 0.01 * i for i in range(count)))
    assert net.part_gates(group).tolist() == [float(i >= gate.removable) for i in range(count)]
    net.clamp()
    assert bool((net.tensor(f"{group}.phi")[gate.removable :] >= PHI_ON - 1e-6).all())
    assert float(net.tensor(f"{group}.phi").detach().max()) <= PHI_MOST


@pytest.mark.parametrize("make", NETS)
def test_a_folded_net_computes_the_same_and_masking_is_removal(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    net = _searched_by(_net(graph)).eval()
    x = _images(graph)
    with torch.no_grad():
        drawn_no_more = net(x)
        choice = net.choice()
        net.fold()
        plain = SuperNet(graph, net.space, grid=EVEN)
        inherit(plain, net)
        plain.freeze(choice)
        plain.eval()
        assert float((plain(x) - drawn_no_more).abs().max()) < 1e-3 * float(drawn_no_more.abs().max())
    plan, _ = as_integers(graph, plain, x.numpy())
    assert plan.keep or not net.space.open
    assert {s.encoding for bits in plan.bits.values() for s in bits.weight} <= {twos(2), twos(4), twos(8)}


# what gates cost


def test_the_price_is_the_paper_s_regulariser() -> None:
    """Per quantiser MACs / largest MACs * (2 + 4 P_4 + 8 P_4 P_8), weights times the mean chance of their filters."""
    graph = chain()
    net = _net(graph, group_size=3)
    drawn_phi = np.random.default_rng(2)
    for layer in net.space.searched:
        for side in "wa":
            _set(net, f"{layer}.phi_{side}", *drawn_phi.uniform(-1.9, 3, 2))
    for group, gate in net.space.open.items():
        _set(net, f"{group}.phi", *drawn_phi.uniform(-1.9, 3, len(gate.sizes)))

    macs = {t.layer: t.unit * t.c_in * t.c_out for t in net.costs.terms}
    size = {t.layer: t.depth * t.c_in * t.c_out for t in net.costs.terms}
    wanted = {"bops": 0.0, "size": 0.0}
    for term in net.costs.terms:
        stays = 1.0
        if term.outside in net.space.gates:
            gate = net.space.gates[term.outside]  # type: ignore[index]
            phis = net.tensor(f"{term.outside}.phi").tolist()
            stays = sum(_chance(phi) * n for phi, n in zip(phis, gate.sizes, strict=True)) / gate.channels
        reached = {"w": 14.0, "a": 0.0}  # at the ends 8 bits are given, and only filters can go
        if term.layer in net.space.searched:
            for side in "wa":
                p4, p8 = (_chance(phi) for phi in net.tensor(f"{term.layer}.phi_{side}").tolist())
                reached[side] = 2 + 4 * p4 + 8 * p4 * p8
        wanted["bops"] += macs[term.layer] / max(macs.values()) * (stays * reached["w"] + reached["a"])
        wanted["size"] += size[term.layer] / max(size.values()) * stays * reached["w"]
    for kind, value in wanted.items():
        assert float(price(net, kind).detach()) == pytest.approx(value, rel=1e-5), kind


def test_a_filter_s_gate_is_pulled_as_if_it_were_alone_a_width_s_as_it_costs() -> None:
    """Backward, each part of a group counts as often as there are parts; the price itself stays the paper's."""
    net = _net(chain(), group_size=3).double()
    group, gate = next(iter(net.space.open.items()))
    layer = net.space.searched[0]
    names = {f"{group}.phi": len(gate.sizes), f"{layer}.phi_w": 1, f"{layer}.phi_a": 1}
    price(net, "bops").backward()  # type: ignore[no-untyped-call]
    for name, times in names.items():
        phi = net.tensor(name)
        found = float(phi.grad[0])
        ends = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                phi[0] += step
            ends.append(float(price(net, "bops").detach()))
        assert found == pytest.approx(times * (ends[0] - ends[1]) / 2e-5, rel=1e-3), name


def test_a_figure_below_its_target_asks_for_nothing() -> None:
    net = _net(chain())
    figure = float(net.cost("bops").detach())
    below, above = (Prior(net).penalty({"bops": Pull(0.1, figure * by, figure / 2)}).loss for by in (1.01, 0.99))
    assert float(below) == 0
    assert float(above.detach()) == pytest.approx(0.1 * float(price(net, "bops").detach()))


@pytest.mark.parametrize("ends", [False, True])
def test_figures_are_those_of_expected_bits_and_channels(ends: bool) -> None:
    net = _net(chain(), ends=ends)
    whole = Costs(net.graph, net.space).bops(largest(net.space))
    expected = float(net.cost("bops").detach())
    for name in [n for n in net.state_dict() if ".phi" in n]:
        with torch.no_grad():
            net.tensor(name).fill_(PHI_MOST)
    assert expected < float(net.cost("bops").detach()) == pytest.approx(whole, rel=0.01)
    net.cost("bops").backward()  # type: ignore[no-untyped-call]
    names = [f"{layer}.phi_{side}" for layer in net.space.acts for side in "wa"]
    for name in [*names, *(f"{group}.phi" for group in net.space.open)]:
        assert bool((net.tensor(name).grad > 0).all()), name  # likelier costs more
    layer = net.space.searched[-1]
    _set(net, f"{layer}.phi_w", -3.0, 6.0)
    _set(net, f"{layer}.phi_a", 6.0, -3.0)
    assert net.searched_bits(layer) == (2, 4)
    assert [round(float(bits.detach()), 2) for bits in net.widths(layer)] == [2, 4]
    for image in net.space.image:
        assert net.searched_bits(image)[1] == 8 == float(net.widths(image)[1].detach())


def test_margins_grow_with_phi_and_bring_back_only_parts_whose_gates_are_on() -> None:
    net = _searched_by(_net(chain()))
    choice, harm = net.choice(), margins(net)
    assert all(harm(choice, move) > 0 for move in lowering(net.space, choice))
    assert all(harm(choice, move) < 0 for move in raising(net.space, choice))
    gone = [m for m in raising(net.space, choice, parts=True) if m.side == "restore"]
    assert gone and all(harm(choice, move) > 0 for move in gone)
    layer = net.space.searched[2]
    assert harm(choice, Move("weight", layer, 4)) == 1  # all the way above
    _set(net, f"{layer}.phi_w", 6.0, 2.0)
    assert margins(net)(choice, Move("weight", layer, 4)) == pytest.approx(0.5)
    group, gate = next(iter(net.space.open.items()))
    last = len(gate.sizes) - 1
    cut = replace(choice, parts={**choice.parts, group: choice.parts[group][:-1]})
    assert harm(cut, Move("restore", group, last)) == -0.5
