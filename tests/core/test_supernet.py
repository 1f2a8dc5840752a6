"""Each mechanism of the super-net against its equation (methods A.1), and the whole against the integer semantics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bitpress.core import supernet as sn
from bitpress.core.bops import count
from bitpress.core.cost import Choice, Costs, hold_bits, hold_channels, largest, search_space, stairs, to_plan
from bitpress.core.errors import UnsupportedError
from bitpress.core.graph import Graph, run
from bitpress.core.integer import integer, weight_levels
from bitpress.core.plan import CompressionPlan, GroupId, LayerId
from bitpress.core.quant import quantize_odd
from bitpress.core.semantics import Semantics
from bitpress.core.supernet import FloatNet, SuperNet, best_clip, hard_gate, sampled
from bitpress.core.supernet_rounding import EVEN, ODD, UNIT, steps
from bitpress.core.supernet_starts import fit

from ..benchmarks.graphs import everything, residual, tolerance
from .test_cost import chain, depthwise


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _images(graph: Graph, n: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (n, *graph.inputs[0].shape)).astype(np.float32))


def _net(graph: Graph, *, residual: str = "int8", group_size: int = 4) -> SuperNet:
    net = SuperNet(graph, search_space(graph, group_size=group_size), residual=residual)
    fit(net, [_images(graph, 16)])
    return net


# the float net


@pytest.mark.parametrize("make", [everything, residual, chain, depthwise])
def test_the_float_net_computes_the_graph_under_its_names(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    net = FloatNet(graph).eval()
    assert set(net.state_dict()) == set(graph.consts)
    x = _images(graph).numpy()
    want = run(graph, {graph.inputs[0].name: x})[graph.outputs[0]]
    with torch.no_grad():
        got = net(torch.from_numpy(x)).numpy()
    assert np.abs(got - want).max() <= tolerance(graph, x)
    assert all(np.array_equal(net.float_tensors()[k], v) for k, v in graph.consts.items())


def test_training_uses_and_updates_the_statistics_of_the_batch() -> None:
    graph = residual()
    net = FloatNet(graph).train()
    before = net.tensor("stem.bn.mean").clone()
    values = dict(net.walk(_images(graph)))
    own = values["stem"].mean((0, 2, 3))
    assert torch.allclose(net.tensor("stem.bn.mean"), 0.9 * before + 0.1 * own, atol=1e-6)
    assert torch.allclose(values["stem.bn"].mean((0, 2, 3)), net.tensor("stem.bn.bias"), atol=1e-5)


# quantisers


@pytest.mark.parametrize("domain", [UNIT, ODD, EVEN])
@pytest.mark.parametrize(("g4", "g8", "bits"), [(0, 0, 2), (0, 1, 2), (1, 0, 4), (1, 1, 8)])
def test_the_chain_of_residuals_is_the_direct_grid(domain: str, g4: int, g8: int, bits: int) -> None:
    z = torch.linspace(-1 if domain == EVEN else 0, 1, 200_001, dtype=torch.float64)
    n = steps(domain, bits)
    got = sn.decomposed(z, torch.tensor(float(g4)), torch.tensor(float(g8)), domain)
    off = (got * n).round() != (z * n).round()
    tie = ((z * n) % 1 - 0.5).abs() < 1e-6
    assert not (off & ~tie).any()
    assert float((off & tie).double().mean()) < 1e-3
    assert torch.allclose(got * n, (got * n).round(), atol=1e-9)


@pytest.mark.parametrize("domain", [UNIT, ODD, EVEN])
def test_gradients_of_the_decomposition_are_those_of_its_equation(domain: str) -> None:
    """Against autograd on z2 + g4 (e4 + g8 e8) written with straight-through rounding of every term."""

    def ste(t: torch.Tensor, n: int) -> torch.Tensor:
        return t + (torch.round(t * n) / n - t).detach()

    torch.manual_seed(1)
    z = torch.rand(500, dtype=torch.float64) * (2 if domain == EVEN else 1) - (1 if domain == EVEN else 0)
    out = []
    for ours in (True, False):
        x, g4, g8 = (t.clone().requires_grad_() for t in (z, torch.tensor(1.0).double(), torch.tensor(0.0).double()))
        if ours:
            y = sn.decomposed(x, g4, g8, domain)
        else:
            two, four, eight = (steps(domain, b) for b in (2, 4, 8))
            z2 = ste(x, two)
            if domain == EVEN:
                z4 = ste(x, four)
                e4, e8 = z4 - z2, ste(x, eight) - z4
            else:
                e4 = ste(x - z2, four)
                e8 = ste(x - z2 - e4, eight)
            y = z2 + g4 * (e4 + g8 * e8)
        (y * torch.sin(7 * z)).sum().backward()
        out.append((y.detach(), x.grad, g4.grad, g8.grad))
    for ours_, plain in zip(*out, strict=True):
        assert torch.allclose(ours_, plain, atol=1e-12)


def test_the_clip_learns_as_pact_and_lsq_do() -> None:
    """dL/dv is q(z) - z inside the range and 1 outside; dL/dx passes inside only (methods A.1.1)."""
    graph = chain()
    net = _net(graph)
    net.freeze(largest(net.space))
    v = net.tensor("b.act_clip")
    with torch.no_grad():
        v.fill_(0.7)
    x = torch.tensor([0.1, 0.33, 0.69, 0.9, 2.0, -0.2], requires_grad=True)
    net._round(x, "b.act_clip").sum().backward()  # type: ignore[no-untyped-call]
    z = (x.detach() / 0.7).clamp(0, 1)
    q = torch.round(z * 255) / 255
    inside = (x.detach() >= 0) & (x.detach() <= 0.7)
    assert torch.equal(x.grad, inside.float())
    want = torch.where(inside, q - z, (x.detach() > 0.7).float()).sum()
    assert torch.allclose(v.grad, want, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_the_codes_that_core_integer_derives(bits: int) -> None:
    graph = chain()
    net = _net(graph)
    top = largest(net.space)
    net.freeze(Choice({**top.weight, LayerId("b"): bits, LayerId("hidden"): bits}, top.act, top.parts))
    for layer in ("b", "hidden"):
        node = graph.value(layer)
        weight, clip = graph.consts[node.consts["weight"]], net.tensor(f"{layer}.weight_clip").detach().numpy()
        plan, _ = net.extract()
        levels, scale = weight_levels(node, weight, plan.bits[LayerId(layer)].weight[0].encoding, clip, weight)
        ours = net.rounded_weight(LayerId(layer)).detach().numpy()
        assert np.allclose(ours, levels * scale.reshape(-1, *(1,) * (weight.ndim - 1)), atol=1e-5)


def test_linear_layers_are_not_standardised_and_convolutions_keep_their_function() -> None:
    graph = chain()
    net = _net(graph)
    net.freeze(largest(net.space))
    fc = net.rounded_weight(LayerId("fc")).detach().numpy()
    clip = float(net.tensor("fc.weight_clip").detach())
    want = quantize_odd(graph.consts["fc.weight"] / clip, 8) * clip / 255
    assert np.allclose(fc, want, atol=1e-6)
    conv, w = net.rounded_weight(LayerId("b")).detach().numpy(), graph.consts["b.weight"]
    assert np.abs(conv - (w - w.mean())).mean() < 0.03 * w.std()  # 8 bits on a clip that was fitted for 4


# gates


def test_gates_are_hard_forward_and_sigmoid_backward() -> None:
    score, threshold = torch.tensor([0.3, 0.1, 0.2]), torch.tensor(0.2, requires_grad=True)
    gate = hard_gate(score, threshold)
    assert gate.tolist() == [1.0, 0.0, 0.0]  # equal is closed
    (gate * torch.tensor([2.0, 3.0, 5.0])).sum().backward()  # type: ignore[no-untyped-call]
    s = torch.sigmoid(score - 0.2)
    assert math.isclose(
        float(threshold.grad), float(-(s * (1 - s) * torch.tensor([2.0, 3.0, 5.0])).sum()), rel_tol=1e-6
    )


def test_weight_and_activation_gates_have_thresholds_of_their_own() -> None:
    graph = chain()
    net = _net(graph)
    a4, a8 = net.weight_residuals("b")
    with torch.no_grad():
        net.tensor("b.threshold_w").copy_(torch.tensor([0.0, float(a8)]))
        net.tensor("c.threshold_a").copy_(torch.tensor([1.0, 0.0]))
    choice = net.choice()
    assert choice.weight["b"] == 4  # type: ignore[index]
    assert choice.act["b"] == 8  # type: ignore[index]
    assert (choice.weight["c"], choice.act["c"]) == (8, 2)  # type: ignore[index]
    assert float(a4) > float(a8) > 0


def test_activation_gates_read_a_running_mean_that_the_state_keeps() -> None:
    graph = chain()
    net = _net(graph).train()
    before = net.tensor("b.mean_residual").clone()
    assert (before > 0).all()
    net(3 * _images(graph, 8, 5))
    after = net.tensor("b.mean_residual")
    assert not torch.equal(before, after)
    other = _net(graph)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.tensor("b.mean_residual"), after)
    assert torch.equal(other.act_gates("b")[0], net.act_gates("b")[0])
    net.eval()
    net(_images(graph))
    assert torch.equal(net.tensor("b.mean_residual"), after)


def test_thresholds_are_clamped_and_pruning_is_capped() -> None:
    graph = chain()
    net = _net(graph)
    with torch.no_grad():
        net.tensor("b.threshold_w").fill_(-3.0)
        net.tensor("b.threshold_p").fill_(9.0)
    net.clamp_thresholds()
    assert (net.tensor("b.threshold_w") == 0).all()
    parts = net.choice().parts[GroupId("b")]
    assert len(parts) == 3 - net.space.gates[GroupId("b")].removable == 2
    scores = net.part_scores("b")
    assert set(parts) == set(scores.argsort(descending=True)[:2].tolist())


def test_scores_are_normalised_l1_means_with_gradient_to_the_weights() -> None:
    graph = chain()
    net = _net(graph)
    w = np.abs(graph.consts["a.weight"]) / np.abs(graph.consts["a.weight"]).max()
    want = [w[i : i + 4].mean() for i in (0, 4, 8)]
    assert np.allclose(net.part_scores("a").detach().numpy(), want, atol=1e-6)
    net.part_gates("a").sum().backward()  # type: ignore[no-untyped-call]
    assert float(net.tensor("a.weight").grad.abs().sum()) > 0


# figures


@pytest.mark.parametrize("make", [chain, residual, depthwise])
def test_the_differentiable_figures_are_core_bops_at_hard_gates(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    net = _net(graph).train()
    rng = np.random.default_rng(0)
    for _ in range(4):
        with torch.no_grad():
            for layer in net.space.searched:
                for side in "wa":
                    net.tensor(f"{layer}.threshold_{side}").copy_(torch.tensor(rng.choice([0.0, 1.0], 2)))
            for group in net.space.gates:
                net.tensor(f"{group}.threshold_p").fill_(float(rng.choice([0.0, 9.0])))
        net.clamp_thresholds()
        net(_images(graph))
        totals = count(graph, to_plan(graph, net.space, net.choice(), residual="int8")).totals
        assert int(net.cost("bops").detach()) == totals.bops
        assert abs(float(net.cost("size").detach()) - totals.weight_bytes) <= 64  # rows end on whole bytes there


@pytest.mark.parametrize("make", [chain, residual, depthwise])
def test_what_is_held_has_neither_threshold_nor_gradient_and_is_counted(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    whole = search_space(graph, group_size=4)
    group, gate = next(iter(whole.gates.items()))
    parts = tuple(range(1, len(gate.sizes)))
    for space in (hold_bits(graph, whole, (4, 2)), replace(whole, cut={group: parts}), hold_channels(whole)):
        net = SuperNet(graph, space)
        fit(net, [_images(graph, 16)])
        net.train()(_images(graph))
        totals = count(graph, to_plan(graph, space, net.choice(), residual="int8")).totals
        assert int(net.cost("bops").detach()) == totals.bops
        names = {n for n in net.state_dict() if ".threshold_" in n}
        assert names == {f"{n}.threshold_{s}" for n in space.searched for s in "wa"} | {
            f"{g}.threshold_p" for g in space.open
        }
        net.clamp_thresholds()
    net = SuperNet(graph, replace(whole, cut={group: parts}))
    fit(net, [_images(graph, 16)])
    assert net.choice().parts[group] == parts
    mask = net.mask(next(v for v, (g, _) in net._masked.items() if g == group))
    assert float(mask[: gate.size].sum()) == 0 and bool((mask[gate.size :] == 1).all())


def test_the_figure_telescopes_over_widths_and_channels() -> None:
    """d bops / d gate = the difference that opening it makes (methods A.1.5), times the surrogate's slope."""
    graph = chain()
    net = _net(graph).train()
    costs, choice = Costs(graph, net.space), largest(net.space)
    net(_images(graph))
    net.cost("bops", weights=True, acts=False).backward()  # type: ignore[no-untyped-call]
    at = costs.bops(choice)
    slope4, slope8 = (s * (1 - s) for s in torch.sigmoid(net.weight_residuals("b")))
    saved8 = at - costs.bops(Choice({**choice.weight, LayerId("b"): 4}, choice.act, choice.parts))
    saved4 = at - costs.bops(Choice({**choice.weight, LayerId("b"): 2}, choice.act, choice.parts))
    grad = net.tensor("b.threshold_w").grad
    assert math.isclose(float(grad[1]), -float(slope8) * saved8, rel_tol=1e-5)
    assert math.isclose(float(grad[0]), -float(slope4) * saved4, rel_tol=1e-5)
    assert net.tensor("b.threshold_a").grad is None  # the other side's turn
    scores = net.part_scores("b").detach()
    lost = [at - costs.bops(Choice(choice.weight, choice.act, {**choice.parts, GroupId("b"): p})) for p in
            ((1, 2), (0, 2), (0, 1))]  # fmt: skip
    slopes = torch.sigmoid(scores) * (1 - torch.sigmoid(scores))
    want = -float((slopes * torch.tensor(lost, dtype=torch.float32)).sum())
    assert math.isclose(float(net.tensor("b.threshold_p").grad), want, rel_tol=1e-4)


# pruning


@pytest.mark.parametrize("make", [chain, residual, depthwise])
def test_a_masked_channel_is_a_removed_channel(make: object) -> None:
    """The outputs do not depend on anything that a removed channel's weights, norms and consumers hold."""
    graph: Graph = make()  # type: ignore[operator]
    net = _net(graph)
    group = next(iter(net.space.gates))
    top = largest(net.space)
    parts = top.parts[group][1:]
    net.freeze(Choice(top.weight, top.act, {**top.parts, group: parts}))
    net.eval()
    x = _images(graph)
    with torch.no_grad():
        want = net(x)
        kept = net.space.gates[group].kept(parts)
        gone = [c for c in range(net.space.gates[group].channels) if c not in kept]
        mine = {v for v, (g, _) in net._masked.items() if g == group}
        for node in graph.nodes:
            if node.name in mine:
                for const in node.consts.values():
                    net.tensor(const)[gone] += 1.0
            if node.op == "conv2d" and node.inputs[0] in mine and node.attrs["groups"] == 1:
                net.tensor(node.consts["weight"])[:, gone] += 1.0
        assert torch.allclose(net(x), want, atol=1e-6)


# the whole


@pytest.mark.parametrize("make", [chain, residual, depthwise, everything])
@pytest.mark.parametrize("held", ["int8", "float32"])
def test_the_integer_semantics_of_what_is_extracted_agree_with_the_forward(make: object, held: str) -> None:
    graph: Graph = make()  # type: ignore[operator]
    net = _net(graph, residual=held)
    rng = np.random.default_rng(3)
    top = largest(net.space)
    weight = {k: int(rng.choice([2, 4, 8])) if k in net.space.searched else 8 for k in top.weight}
    act = {k: int(rng.choice([2, 4, 8])) if k in net.space.searched else 8 for k in top.act}
    choice = Choice(weight, act, {g: p[: max(1, len(p) - 1)] for g, p in top.parts.items()})
    net.freeze(choice)
    fit(net, [_images(graph, 16)], choice)
    plan, tensors = net.extract()
    trained = graph.with_nodes(graph.nodes, {k: tensors[k] for k in graph.consts})
    semantics = Semantics(integer(trained, plan, tensors))
    x = _images(graph, 12, 9)
    values = semantics.values(x.numpy())
    shares = sn.differing_codes(trained, plan, tensors, values, x.numpy())
    assert shares
    assert max(shares.values()) < 0.02, shares
    with torch.no_grad():
        ours = net.eval()(x).numpy()
    theirs = semantics.run(x.numpy())
    assert np.abs(ours - theirs).mean() < 0.02 * np.abs(ours).mean() + 1e-6


def test_clips_stay_where_the_width_is_the_one_they_learned() -> None:
    graph = chain()
    net = _net(graph)
    trained, images = stairs(net.space)[1], [_images(graph, 16)]
    layer = net.space.searched[0]
    choice = replace(trained, act={**trained.act, layer: 8}, weight={**trained.weight, layer: 8})
    clips = {n: net.tensor(n) for n in (*net.domains, *(f"{name}.weight_clip" for name in net.layers))}
    with torch.no_grad():
        for clip in clips.values():
            clip.fill_(0.123)
    net.freeze(choice)
    fit(net, images, choice, trained)
    assert {n for n, clip in clips.items() if float(clip.detach()) != pytest.approx(0.123)} == {
        f"{layer}.act_clip", f"{layer}.weight_clip",
    }  # fmt: skip
    fit(net, images, choice)
    assert all(float(clip.detach()) != pytest.approx(0.123) for clip in clips.values())


def test_what_is_extracted_names_clips_for_other_widths_too() -> None:
    graph = chain()
    net = _net(graph)
    plan, tensors = net.extract()
    assert isinstance(plan, CompressionPlan)
    assert {f"b.weight_clip{s}" for s in ("", ".2", ".4")} <= set(tensors)
    assert "b.weight_clip.8" not in tensors  # the trained one
    assert not any("threshold" in name or "mean_residual" in name for name in tensors)
    assert all(v.dtype == np.float32 for v in tensors.values())


def test_a_plan_that_was_never_trained_has_no_training_forward() -> None:
    from bitpress.core.calibrate import calibrate

    graph = residual()
    plan, tensors = calibrate(graph, _images(graph).numpy(), weight_bits=4, act_bits=4)
    with pytest.raises(UnsupportedError, match="weight clips; only one"):
        sn.from_plan(graph, plan, tensors)


# starts


@pytest.mark.parametrize("domain", [UNIT, ODD, EVEN])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_best_clip_rounds_better_than_others(domain: str, bits: int) -> None:
    values = torch.randn(4000)
    if domain == UNIT:
        values = values.relu()

    def error(v: float) -> float:
        n = steps(domain, bits)
        z = (values / v).clamp(0 if domain == UNIT else -1, 1)
        q = 2 * (((z + 1) / 2) * n).round() / n - 1 if domain == ODD else (z * n).round() / n
        return float(((q * v - values) ** 2).sum())

    best = best_clip(values, domain, bits)
    assert all(error(best) <= error(best * f) * 1.001 for f in (0.6, 0.8, 1.25, 1.6))
    assert best_clip(torch.zeros(5), domain, bits) == 1.0


def test_gaussian_weights_want_the_known_clips() -> None:
    values = torch.randn(20_000)
    assert 1.3 < best_clip(values, ODD, 2) < 1.7  # levels at v and v/3: Lloyd's uniform 4-level step is 0.996 sigma
    assert 2.4 < best_clip(values, ODD, 4) < 2.8  # 16 levels: 0.335 sigma x 7.5


def test_samples_meet_every_column_and_row() -> None:
    """Values that differ by column alone, and by row alone, in images whose sides are powers of two."""
    for images, side in ((64, 32), (128, 16), (256, 8)):
        ramp = torch.arange(side).float()
        columns = ramp.expand(images, 16, side, side)
        assert set(sampled(columns).tolist()) == set(range(side))
        assert set(sampled(columns.transpose(2, 3)).tolist()) == set(range(side))
        assert abs(float(sampled(columns).mean()) - (side - 1) / 2) < 0.02 * side


@pytest.mark.parametrize("frozen", [False, True])
def test_a_net_on_another_device_mixes_in_no_tensor_of_the_cpu(monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    """torch's meta device, which has shapes and no values, stands for a GPU: an op that mixes it with the CPU fails."""
    graph = residual()
    here = SuperNet(graph, search_space(graph, group_size=4))
    with sn.placed(sn.Place("meta")):
        net = SuperNet(graph, here.space)
    tensor = net.tensor

    def readable(name: str) -> Tensor:
        return here.tensor(name) if name.endswith((".bits", "gates_frozen")) else tensor(name)

    if frozen:
        here.freeze(largest(here.space))
        monkeypatch.setattr(net, "_hides", lambda _value: True)
    monkeypatch.setattr(net, "tensor", readable)
    monkeypatch.setattr(
        net, "statistics", lambda _layer: (torch.zeros((), device="meta"), torch.ones((), device="meta"))
    )
    *_, (_, out) = net.train().walk(torch.zeros(4, *graph.inputs[0].shape, device="meta"))
    loss = out.sum()
    if not frozen:
        loss = loss + net.cost("bops") + net.cost("size")
    assert loss.device.type == "meta"
    loss.backward()
    assert all(p.grad is not None for kind in ("network", "clips") for p in net.parameters_of(kind))
