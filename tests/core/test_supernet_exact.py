"""What a super-net promises of its integers: nested gates, the grid of two bits, removal that changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitpress.compiler.prune import prune
from bitpress.core.cost import search_space
from bitpress.core.encoding import odd
from bitpress.core.graph import Graph, run
from bitpress.core.integer import integer, kept_channels, weight_levels
from bitpress.core.ops import OPS
from bitpress.core.plan import BitConfig, CompressionPlan, GroupId, Segment
from bitpress.core.semantics import Semantics
from bitpress.core.supernet import SuperNet, hard_gate, width
from bitpress.core.supernet_rounding import EVEN, ODD, UNIT, decomposed
from bitpress.core.supernet_starts import fit

from ..benchmarks.graphs import residual
from .test_cost import chain, depthwise

OPEN, CLOSED = 0.0, 9.0  # thresholds below and above every residual


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _images(graph: Graph, n: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (n, *graph.inputs[0].shape)).astype(np.float32))


def _net(graph: Graph) -> SuperNet:
    net = SuperNet(graph, search_space(graph, group_size=4))
    fit(net, [_images(graph, 16)])
    return net


def _set(net: SuperNet, four: float, eight: float) -> None:
    """Thresholds of all widths."""
    with torch.no_grad():
        for layer in net.space.searched:
            for side in "wa":
                net.tensor(f"{layer}.threshold_{side}").copy_(torch.tensor([four, eight]))


# nested gates


@pytest.mark.parametrize("domain", [UNIT, ODD, EVEN])
def test_eight_bits_are_off_wherever_four_are(domain: str) -> None:
    """Forward, figure and gradient of a closed g_4 do not see g_8 (methods A.1.3)."""
    z = torch.rand(500, dtype=torch.float64) * (2 if domain == EVEN else 1) - (1 if domain == EVEN else 0)
    closed, opened = (torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0))
    assert torch.equal(decomposed(z, closed, opened, domain), decomposed(z, closed, closed, domain))
    g8 = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (decomposed(z, closed, g8, domain) * torch.randn_like(z)).sum().backward()  # type: ignore[no-untyped-call]
    assert float(g8.grad) == 0
    assert [int(width((a, b))) for a in (closed, opened) for b in (closed, opened)] == [2, 2, 4, 8]


@pytest.mark.parametrize("make", [chain, depthwise])
def test_an_open_gate_of_eight_behind_a_closed_one_of_four_chooses_two_bits(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    net, x = _net(graph).train(), _images(graph)
    outputs, figures = [], []
    for eight in (OPEN, CLOSED):
        _set(net, CLOSED, eight)
        choice = net.choice()
        assert {choice.weight[n] for n in net.space.searched} == {choice.act[n] for n in net.space.searched} == {2}
        outputs.append(net(x).detach())
        figures.append(float(net.cost("bops").detach()))
    assert torch.equal(*outputs)
    assert figures[0] == figures[1]


def test_the_gradient_of_a_gate_to_its_threshold_is_the_sigmoid_s() -> None:
    """d g / d alpha = -sigma(A - alpha) (1 - sigma(A - alpha)), for open and closed gates alike."""
    for residual_, alpha in ((0.08, 0.03), (0.02, 0.05), (0.4, 0.0)):
        threshold = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
        gate = hard_gate(torch.tensor(residual_, dtype=torch.float64), threshold)
        gate.backward()  # type: ignore[no-untyped-call]
        sigma = 1 / (1 + np.exp(-(residual_ - alpha)))
        assert float(gate.detach()) == float(residual_ > alpha)
        assert float(threshold.grad) == pytest.approx(-sigma * (1 - sigma), rel=1e-12)


# grids


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_of_a_net_lie_on_the_odd_grid_without_zero(bits: int) -> None:
    """Two bits are {-3, -1, 1, 3}: the search's chained weights, and the codes that are compiled."""
    graph = chain()
    net = _net(graph).train()
    _set(net, CLOSED if bits < 4 else OPEN, CLOSED if bits < 8 else OPEN)
    top = 2**bits - 1
    net(_images(graph))
    plan, tensors = net.extract()
    for layer in net.space.searched:
        node = graph.value(layer)
        _, scale = net.normalised_weight(layer)
        chained = (net.rounded_weight(layer).detach().double() / scale.detach() * top).numpy()
        weight = tensors[node.consts["weight"]]
        encoding = plan.bits[layer].weight[0].encoding
        assert encoding == odd(bits)
        kept = weight[list(plan.bits[layer].weight[0].filters)]
        codes, _ = weight_levels(node, weight, encoding, tensors[f"{layer}.weight_clip"], kept)
        assert np.abs(chained - np.rint(chained)).max() < 1e-3
        assert np.array_equal(np.rint(chained), codes)
        assert set(np.unique(codes)) <= set(range(-top, top + 1, 2))
        if bits == 2:
            assert set(np.unique(codes)) == {-3, -1, 1, 3}


def test_the_chained_weights_of_the_search_are_the_direct_ones() -> None:
    """Training rounds in a chain, evaluation at once: the same weights at every width, off ties."""
    graph = chain()
    net = _net(graph)
    for four, eight in ((CLOSED, CLOSED), (OPEN, CLOSED), (OPEN, OPEN)):
        _set(net, four, eight)
        for layer in net.space.searched:
            one, other = (net.train(mode).rounded_weight(layer).detach() for mode in (True, False))
            assert torch.allclose(one, other, rtol=0, atol=1e-6 * float(one.abs().max()))


# pruning


def _built_small(graph: Graph, kept: Mapping[str, tuple[int, ...]]) -> Graph:
    """The float network as if it had never had the channels that `kept` (by values; a missing one is whole) leaves."""
    keep = {n.name: kept.get(n.name, tuple(range(n.shape[0]))) for n in (*graph.inputs, *graph.nodes)}
    nodes, consts = [], {}
    shapes = {n.name: n.shape for n in graph.inputs}
    for node in graph.nodes:
        rows, columns = list(keep[node.name]), list(keep[node.inputs[0]])
        attrs, mine = dict(node.attrs), {role: graph.consts[name] for role, name in node.consts.items()}
        if node.op in ("conv2d", "linear"):
            mine["weight"] = mine["weight"][rows]
            if attrs.get("groups", 1) == 1:
                mine["weight"] = mine["weight"][:, columns]
            else:
                attrs["groups"] = len(rows)
        mine = {role: a if role == "weight" and a.ndim > 1 else a[rows] for role, a in mine.items()}
        shapes[node.name] = OPS[node.op].shape(attrs, mine, [shapes[i] for i in node.inputs])
        consts |= {node.consts[role]: np.ascontiguousarray(a) for role, a in mine.items()}
        nodes.append(replace(node, attrs=attrs, shape=shapes[node.name]))
    return Graph(graph.inputs, tuple(nodes), graph.outputs, consts)


@pytest.mark.parametrize("make", [chain, residual, depthwise])
def test_masked_is_physically_removed_in_the_integer_semantics(make: object) -> None:
    """Every code of the masked net: that of the pruned graph, and that of a net built without those channels."""
    graph: Graph = make()  # type: ignore[operator]
    net = _net(graph).train()
    with torch.no_grad():
        _set(net, OPEN, CLOSED)
        for group in net.space.open:
            net.tensor(f"{group}.threshold_p").fill_(CLOSED)
    net.clamp_thresholds()
    net(_images(graph))
    plan, tensors = net.extract()
    assert set(plan.keep) == set(net.space.gates)
    trained = graph.with_nodes(graph.nodes, {k: tensors[k] for k in graph.consts})
    x = _images(graph, 6, 5).numpy()
    whole = integer(trained, plan, tensors)
    masked = Semantics(whole).values(x)

    removed = run(prune(whole), {graph.inputs[0].name: x}, keep=True)
    kept = {n.name: list(n.attrs.get("kept", range(n.shape[0]))) for n in (*whole.inputs, *whole.nodes)}
    assert any(len(c) < masked[name].shape[1] for name, c in kept.items())
    for name, value in removed.items():
        assert np.array_equal(masked[name][:, kept[name]], value), name

    small = _built_small(trained, kept_channels(trained, plan.keep))
    bits = {
        layer: BitConfig((Segment(c.weight[0].encoding, tuple(range(small.value(layer).shape[0]))),), c.act)
        for layer, c in plan.bits.items()
    }
    alone = CompressionPlan(small.fingerprint(), bits, {}, plan.residual)
    others = {k: v for k, v in tensors.items() if k not in graph.consts}
    built = Semantics(integer(small, alone, {**others, **small.consts})).values(x)
    assert built.keys() == masked.keys()
    for name, value in built.items():
        assert np.array_equal(masked[name][:, kept[name]], value), name


def test_the_removed_may_hold_anything() -> None:
    """Weights and norms of masked filters, and the weights that read them, move no code."""
    graph = chain()
    net = _net(graph)
    with torch.no_grad():
        net.tensor("b.threshold_p").fill_(CLOSED)
    net.clamp_thresholds()
    plan, tensors = net.extract()
    x = _images(graph, 4, 6).numpy()
    gone = [c for c in range(12) if c not in plan.keep[GroupId("b")]]
    want = Semantics(integer(graph.with_nodes(graph.nodes, {k: tensors[k] for k in graph.consts}), plan, tensors))
    other = {k: v.copy() for k, v in tensors.items()}
    for name in ("b.weight", "b.bn.weight", "b.bn.bias", "b.bn.mean"):
        other[name][gone] += 3.0
    other["c.weight"][:, gone] -= 2.0
    got = Semantics(integer(graph.with_nodes(graph.nodes, {k: other[k] for k in graph.consts}), plan, other))
    assert np.array_equal(want.run(x), got.run(x))
