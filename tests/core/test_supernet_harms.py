"""Harms against their definition: change of a layer's outputs times the gradient, image by image, with whole layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitpress.core.cost import Choice, stairs
from bitpress.core.graph import Graph
from bitpress.core.plan import LayerId
from bitpress.core.supernet import SuperNet, best_clip
from bitpress.core.supernet_harms import IMAGES, Harms, measured
from bitpress.core.supernet_rounding import ODD
from bitpress.core.train import reestimate
from bitpress.core.train_gates import place_thresholds
from bitpress.core.train_goals import TEMPERATURE

from ..benchmarks.graphs import everything, residual
from .test_cost import chain, depthwise
from .test_supernet import _images, _net


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _drawn(
    net: SuperNet, images: Tensor, wanted: list[str], distill: float = 0.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values, and gradients of p - e_y at the outputs, labels y drawn as `measured` draws them."""
    drawn, values, grads = torch.Generator().manual_seed(0), {}, {}
    for x in torch.split(images, IMAGES):
        found = dict(net.walk(x))
        outputs = found[net.graph.outputs[0]]
        t = torch.where(torch.rand(len(x), 1, generator=drawn) < distill, TEMPERATURE, 1.0)
        p = F.softmax(outputs.detach() / t, 1)
        labels = torch.multinomial(p, 1, generator=drawn)[:, 0]
        at = p - F.one_hot(labels, p.shape[1])
        each = torch.autograd.grad(outputs, [found[n] for n in wanted], grad_outputs=at)
        for name, grad in zip(wanted, each, strict=True):
            values[name], grads[name] = found[name].detach(), grad
    return values, grads


def _ready(graph: Graph, base: Choice | None = None) -> tuple[SuperNet, Choice, Tensor]:
    net, images = _net(graph, group_size=2), _images(graph, 48)
    base = base or stairs(net.space)[2]
    net.freeze(base)
    reestimate(net, [images])
    return net.eval(), base, images


def _output(net: SuperNet, images: Tensor, layer: LayerId, base: Choice, *, w: int | None, a: int | None) -> Tensor:
    """A layer's outputs in a forward that rounds its weight and its input to `w` and `a` bits, None: not at all."""
    saved = {k: v.clone() for k, v in net.state_dict().items()}
    seen: list[Tensor] = []
    with torch.no_grad():
        if w not in (None, base.weight[layer]):
            clip = net.tensor(f"{layer}.weight_clip")
            clip.fill_(1.0)
            clip.fill_(best_clip(net.normalised_weight(layer)[0], ODD, w))
        name = f"{layer}.act_clip"
        net.watch = lambda clip, x: clip != name or bool(seen.append(x))
        list(net.walk(images))
        if a not in (None, base.act[layer]):
            net.tensor(name).fill_(best_clip(seen[0], net.domains[name], a))
        net.watch = lambda clip, _x: clip != name or a is not None
        widths = {**base.weight, layer: w or base.weight[layer]}, {**base.act, layer: a or base.act[layer]}
        net.freeze(Choice(*widths, base.parts))
        rounded = net.rounded_weight
        if w is None:
            z, scale = net.normalised_weight(layer)
            net.rounded_weight = lambda other: (z * scale).float() if other == layer else rounded(other)  # type: ignore
        out = next(value for at, value in net.walk(images) if at == layer)
        net.rounded_weight = rounded  # type: ignore[method-assign]
    net.watch = None
    net.load_state_dict(saved)
    return out


def _normed(graph: Graph, layer: str, out: Tensor, like: Tensor) -> Tensor:
    """Outputs with mean and spread of `like`, channel by channel, where a norm follows."""
    if not any(n.op == "batch_norm" and n.inputs[0] == layer for n in graph.nodes):
        return out
    over = (0, *range(2, out.dim()))
    shift, scale = out.mean(over, keepdim=True), out.std(over, keepdim=True)
    return (out - shift) / scale * like.std(over, keepdim=True) + like.mean(over, keepdim=True)


@pytest.mark.parametrize(("make", "distill"), [(chain, 0.5), (residual, 0.0), (residual, 1.0)])
def test_a_widths_harm_is_half_the_mean_square_of_gradient_times_change(make: object, distill: float) -> None:
    net, base, images = _ready(make())  # type: ignore[operator]
    graph, layers = net.graph, net.space.searched
    found = measured(net, images, base, distill)
    values, grads = _drawn(net, images, list(layers), distill)
    for layer in layers:
        out, grad, w, a = values[layer], grads[layer], base.weight[layer], base.act[layer]

        def moved(w: int | None, a: int | None, layer: LayerId = layer, out: Tensor = out) -> Tensor:
            return _normed(graph, layer, _output(net, images, layer, base, w=w, a=a), out)

        def harm(change: Tensor, grad: Tensor = grad) -> float:
            return float(((grad * change).flatten(1).sum(1).double() ** 2).mean() / 2)

        for bits in net.space.widths:
            want = harm(moved(bits, a) - moved(None, a)), harm(moved(w, bits) - moved(w, None))
            assert found.width(layer, "weight", bits) == pytest.approx(want[0], rel=1e-3)
            assert found.width(layer, "act", bits) == pytest.approx(want[1], rel=1e-3)


def test_a_parts_harm_is_that_of_its_activations_less_their_means() -> None:
    net, base, images = _ready(chain())
    found = measured(net, images, base)
    for group, gate in net.space.open.items():
        end = net.masked_end(group)
        values, grads = _drawn(net, images, [end])
        value, grad = values[end], grads[end]
        over = (0, *range(2, value.dim()))
        each = (grad * (value - value.mean(over, keepdim=True))).flatten(2).sum(2)
        each = each.reshape(len(each), gate.channels, -1).sum(2)
        for part in range(len(gate.sizes)):
            want = float((each[:, list(gate.kept([part]))].sum(1).double() ** 2).mean() / 2)
            assert found.removal(group, (), part) == pytest.approx(want, rel=1e-4)


def test_removals_of_a_group_add_up_as_if_all_moved_the_outputs_alike() -> None:
    harms = Harms(parts={"g": [1.0, 4.0, 9.0]})
    assert [harms.removal("g", (), p) for p in range(3)] == [1.0, 4.0, 9.0]
    assert harms.removal("g", (0,), 2) == pytest.approx(16 - 1)
    assert harms.removal("g", (0, 2), 1) == pytest.approx(36 - 16)


@pytest.mark.parametrize("make", [chain, depthwise, everything])
def test_measuring_leaves_the_net_alone_and_ranks_the_widths(make: object) -> None:
    net = _net(make()).train()  # type: ignore[operator]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    harms = measured(net, _images(net.graph, 32), stairs(net.space)[2])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert set(harms.widths) == {f"{n}.{side}{bits}" for n in net.space.searched for side in "wa" for bits in (2, 4, 8)}
    assert set(harms.parts) == set(net.space.open)
    for side in ("weight", "act"):
        two, four, eight = (sum(harms.width(n, side, b) for n in net.space.searched) for b in (2, 4, 8))
        assert two > four > eight >= 0


def test_nothing_to_choose_has_no_harms() -> None:
    graph = chain()
    net = _net(graph)
    closed = SuperNet(graph, type(net.space)((), net.space.ends, {}, held={n: (4, 4) for n in net.space.searched}))
    assert measured(closed, _images(graph, 8), stairs(closed.space)[-1]) == Harms()


def test_what_training_leaves_is_a_share_by_kind() -> None:
    harms = Harms({"a.b.w2": 0.5, "a.b.a8": 2.0}, {"g": [1.0, 3.0]})
    assert harms.document() == {"a.b.w2": 0.5, "a.b.a8": 2.0, "g.p0": 1.0, "g.p1": 3.0}
    left = harms.once_trained({"w2": 0.1, "a8": 0.5, "p": 2.0})
    assert left.document() == {"a.b.w2": 0.05, "a.b.a8": 1.0, "g.p0": 2.0, "g.p1": 6.0}


@pytest.mark.parametrize("step", range(5))
def test_gates_start_at_a_uniform_point_the_most_harmful_furthest_from_closing(step: int) -> None:
    net, _, images = _ready(residual())
    harms = measured(net, images, stairs(net.space)[2])
    start = stairs(net.space)[step]
    net.tensor("gates_frozen").fill_(False)
    place_thresholds(net, harms, start)
    assert net.choice() == start
    away = {}
    for layer in net.space.searched:
        margin = net.weight_residuals(layer)[0] - net.tensor(f"{layer}.threshold_w")[0]
        away[harms.width(layer, "weight", 2) - harms.width(layer, "weight", 4)] = float(margin)
    if start.weight[layer] > 2:
        assert away[max(away)] == max(away.values())
    else:
        assert max(away.values()) < 0  # shut
