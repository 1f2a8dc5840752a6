"""How much each choice hurts: what it adds to the objective of training, to second order, from one backward pass.

A choice moves a layer's outputs by d, and the objective by d' H d / 2 beyond what training takes back at first order. H
is the Gauss-Newton matrix E[g g'], where g is the gradient of the cross-entropy with a label drawn from the network's
own outputs; of the share of the objective that is distilled, from its softened ones. So the mean of (g d)^2 / 2 over
images says how much a choice hurts, for all choices from the same g (Fisher information; methods F). Differences of
outputs, measured choice by choice, need a forward each and bury what rounding does in what it happens to do to single
images: on ResNet-20 at 4 bits their standard error was as large as the figures. Knows no budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .cost import Choice
from .data import CLASSIFICATION
from .graph import Node
from .plan import GroupId, LayerId
from .supernet import SuperNet, best_clip
from .supernet_rounding import ODD, clipped, steps
from .torch_ops import TORCH_OPS
from .train import reestimate
from .train_goals import GOALS, Goal

IMAGES, PIXELS = 256, 1 << 22  # of a batch, and of all, that are looked at, at most
LOOKED_AT = 4096  # images: standard errors of a fifth of a figure, and most of that is common to all


@dataclass(frozen=True)
class Harms:
    """Means over images, in nats.

    `widths`: "{layer}.w{bits}" and "{layer}.a{bits}" -> harm of rounding that tensor alone to so many bits, against not
    rounding it. `parts`: group -> harm of removing each of its parts alone.
    """

    widths: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def width(self, layer: str, side: str, bits: int) -> float:
        """Harm of `side` ("weight" or "act") of a layer at `bits`."""
        return self.widths[f"{layer}.{side[0]}{bits}"]

    def removal(self, group: str, gone: Iterable[int], part: int) -> float:
        """What it hurts more when `part` goes beside the parts that are `gone`: as if all moved the outputs alike.

        k equal parts hurt k * k times as much as one. Their measured products say less (1.3 to 2.8 times the sum for
        all of a group of ResNet-20), but a group that lost most of its filters has fewer left to take over.
        """
        roots = [math.sqrt(self.parts[group][p]) for p in (part, *gone)]
        return sum(roots) ** 2 - sum(roots[1:]) ** 2

    def once_trained(self, left: Mapping[str, float]) -> Harms:
        """What is left after training: kind ("w2", ..., "a8", "p") -> share."""
        return Harms(
            {key: value * left[key.rpartition(".")[2]] for key, value in self.widths.items()},
            {group: [value * left["p"] for value in values] for group, values in self.parts.items()},
        )

    def document(self) -> dict[str, float]:
        """For the log: the widths, and the parts as "{group}.p{part}"."""
        return {**self.widths, **{f"{g}.p{i}": v for g, values in self.parts.items() for i, v in enumerate(values)}}


def looked_at(shape: Sequence[int]) -> int:
    """How many images of [C, H, W] are enough, and not too many to hold."""
    return max(2, min(LOOKED_AT, PIXELS // math.prod(shape[1:])))


def measured(
    net: SuperNet, images: Tensor, base: Choice, distill: float = 0.0, goal: Goal = GOALS[CLASSIFICATION]
) -> Harms:
    """Harms around `base`, which the net is rounded by; the net stays as it was. `distill`: share of the objective.

    Batch norms have statistics of `images`, and what a norm that follows would take away again (mean and spread of each
    channel) is no harm. A width that is not the base's has the clip of least squared error.
    """
    images = images[: looked_at(images.shape[1:])]
    chunks = [c for c in torch.split(images, IMAGES) if len(c) > 1]
    saved, before = {k: v.clone() for k, v in net.state_dict().items()}, net.training
    net.freeze(base)
    reestimate(net, chunks)
    net.eval()
    drawn = torch.Generator().manual_seed(0)
    sums = _Sums(net, base)
    if not sums.wanted:
        chunks = []
    for x in chunks:
        with _observed(net) as seen:
            values = _kept(net, x, sums.wanted)
        loss = goal.drawn(values.pop(""), distill, drawn)
        grads = torch.autograd.grad(loss, list(values.values()))
        with torch.no_grad():
            sums.add(seen, {n: v.detach() for n, v in values.items()}, dict(zip(values, grads, strict=True)))
    net.load_state_dict(saved)
    net.train(before)
    return sums.harms(sum(len(c) for c in chunks))


@contextmanager
def _observed(net: SuperNet) -> Iterator[dict[str, Tensor]]:
    """Layer -> its whole input before it is rounded."""
    seen: dict[str, Tensor] = {}

    def watch(clip: str, x: Tensor) -> bool:
        layer = net.layer_of(clip)
        if layer is not None:
            seen[layer] = x.detach()
        return True

    net.watch = watch
    try:
        yield seen
    finally:
        net.watch = None


def _kept(net: SuperNet, x: Tensor, wanted: set[str]) -> dict[str, Tensor]:
    """The values that are wanted, and the outputs as ""."""
    out: dict[str, Tensor] = {}
    with torch.autocast(x.device.type, torch.bfloat16, enabled=net.place.precision == "bf16"):
        for name, value in net.walk(x):
            if name in wanted:
                out[name] = value
            out[""] = value
    out[""] = out[""].float()
    return out


class _Sums:
    """Sums of squares over images."""

    def __init__(self, net: SuperNet, base: Choice) -> None:
        self.net, self.base, self.layers = net, base, net.space.searched
        self.ends = {g: net.masked_end(g) for g in net.space.open}  # where a group's parts are last seen
        self.wanted = {*self.layers, *self.ends.values()}
        self.widths: dict[str, float] = {}
        self.parts: dict[str, Tensor] = {}
        self.paths = {n: self._path(n) for n in self.layers}
        self.clips: dict[tuple[str, int], Tensor] = {}  # of activations
        with torch.no_grad():
            self.whole = {n: self._weight(n, None) for n in self.layers}
            self.rounded = {(n, b): self._weight(n, b) for n in self.layers for b in net.space.widths}

    def _path(self, layer: LayerId) -> list[Node]:
        """What stands between where a layer's input is rounded and the layer: pools and views of the codes."""
        graph, clip = self.net.graph, f"{layer}.act_clip"
        path: list[Node] = []
        value = graph.value(layer).inputs[0]
        while self.net.stored_clip(value) != clip and self.net.read_clip(layer) != clip:
            path.insert(0, graph.value(value))
            value = path[0].inputs[0]
        return path

    def _weight(self, layer: LayerId, bits: int | None) -> Tensor:
        """At `bits`, with the net's own clip at the base's width; None: not rounded."""
        clip = self.net.tensor(f"{layer}.weight_clip")
        old = clip.clone()
        if bits is not None and bits != self.base.weight[layer]:
            clip.fill_(1.0)
            clip.fill_(best_clip(self.net.normalised_weight(layer)[0], ODD, bits))
        z, scale = self.net.normalised_weight(layer)
        clip.copy_(old)
        if bits is not None:
            n = steps(ODD, bits)
            z = 2 * torch.round((z.clamp(-1, 1) + 1) / 2 * n) / n - 1
        return (scale * z).float()

    def _clip(self, layer: LayerId, bits: int, x: Tensor) -> Tensor:
        """Of an activation, as `_weight` takes those of weights; from the first images."""
        clip = f"{layer}.act_clip"
        if bits == self.base.act[layer]:
            return self.net.tensor(clip).abs()
        if (layer, bits) not in self.clips:
            self.clips[layer, bits] = torch.tensor(best_clip(x, self.net.domains[clip], bits), device=x.device)
        return self.clips[layer, bits]

    def add(self, seen: Mapping[str, Tensor], values: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
        """One batch: layers' inputs before rounding, outputs and ends of groups, and their gradients."""
        for layer in self.layers:
            self._add_layer(layer, seen[layer].float(), values[layer].float(), grads[layer].float())
        for group, end in self.ends.items():
            moved = _per_channel(grads[end] * (values[end] - values[end].mean(_over(values[end]), keepdim=True)))
            gate = self.net.space.gates[GroupId(group)]
            each = moved.reshape(len(moved), gate.channels, -1).sum(2)
            each = torch.stack([part.sum(1) for part in torch.split(each, list(gate.sizes), 1)], 1).double()
            self.parts[group] = self.parts.get(group, 0) + (each**2).sum(0) / 2

    def _add_layer(self, layer: LayerId, x: Tensor, out: Tensor, grad: Tensor) -> None:
        node, w, a = self.net.graph.value(layer), self.base.weight[layer], self.base.act[layer]
        domain = self.net.domains[f"{layer}.act_clip"]

        def through(inputs: Tensor, weight: Tensor) -> Tensor:
            """What the layer, linear as it is, makes of a difference."""
            return TORCH_OPS[node.op](node, {"weight": weight}, inputs)

        def read(values: Tensor) -> Tensor:
            for step in self.paths[layer]:
                values = self.net.compute(step, [values])
            return values

        moved = _moved(out, grad, normed=self._normed(node))
        acts = {b: read(clipped(x, self._clip(layer, b, x), b, domain)) for b in {*self.net.space.widths, a}}
        here, there = acts[a], self.rounded[layer, w]
        free_w, free_a = moved(through(here, self.whole[layer] - there)), moved(through(read(x) - here, there))
        for bits in self.net.space.widths:
            by_w = moved(through(here, self.rounded[layer, bits] - there)) if bits != w else 0.0
            by_a = moved(through(acts[bits] - here, there)) if bits != a else 0.0
            for key, change in ((f"{layer}.w{bits}", by_w - free_w), (f"{layer}.a{bits}", by_a - free_a)):
                self.widths[key] = self.widths.get(key, 0.0) + float((change.double() ** 2).sum()) / 2

    def _normed(self, node: Node) -> bool:
        return any(n.op == "batch_norm" and n.inputs[0] == node.name for n in self.net.graph.nodes)

    def harms(self, images: int) -> Harms:
        """Means."""
        parts = {g: (sums / images).tolist() for g, sums in self.parts.items()}
        return Harms({key: value / images for key, value in self.widths.items()}, parts)


def _over(x: Tensor) -> tuple[int, ...]:
    """All axes but the channels'."""
    return (0, *range(2, x.dim()))


def _per_channel(x: Tensor) -> Tensor:
    """[N, C, ...] -> sums [N, C]."""
    return x.flatten(2).sum(2) if x.dim() > 2 else x


def _moved(out: Tensor, grad: Tensor, *, normed: bool) -> Callable[[Tensor], Tensor]:
    """Change d of the outputs `out` -> g d of each image; a norm behind takes shifts and scales of channels away."""
    total, before = _per_channel(grad), _per_channel(grad * out)
    mean, std = out.mean(_over(out)), out.std(_over(out))

    def moved(change: Tensor) -> Tensor:
        by = _per_channel(grad * change)
        if not normed:
            return by.sum(1)
        after = out + change
        ratio = std / after.std(_over(out)).clamp_min(1e-12)
        return ((before + by - after.mean(_over(out)) * total) * ratio - (before - mean * total)).sum(1)

    return moved
