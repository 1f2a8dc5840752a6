"""Widths layer by layer without training: how much each hurts, measured, and the choice that a budget then allows.

The harm of a width is what rounding one tensor to it, and nothing else, does to the float network's answers: the mean
over images of the Kullback-Leibler divergence of their softmax. It needs no labels, and is never negative. Harms add up
as if layers did not know of each other; the projection of `core.projection` spends the budget by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .calibrate import batches, channel_means, magnitudes, weight_clips
from .cost import Budget, Choice, Costs, Space, hold_channels, largest, search_space, to_plan
from .encoding import Encoding, twos
from .errors import UsageError
from .graph import Graph, Node
from .integer import weight_clip, weight_levels
from .latency import Target
from .plan import CompressionPlan, LayerId
from .projection import Move, check_reachable, exchange, fill, project, raising
from .quant import act_bounds, act_scale
from .ranges import Ranges
from .storage import Point, act_encoding
from .supernet import FloatNet
from .torch_ops import TORCH_OPS

IMAGES = 128  # that harms are measured on, at most; the divergence of one image tells more than its answer
LEAST_USED = 0.9  # of a budget; less is explained
Harms = Mapping[tuple[str, str, int], float]  # (side, layer, bits) -> nats; 0 at the widest


@dataclass(frozen=True)
class Mixed:
    """What was chosen. `used`: budget as written -> share; `why`: what keeps the rest from being used, "" if >= 90 %.

    `harm`: sum of the harms, nats.
    """

    plan: CompressionPlan
    harms: Harms
    harm: float
    used: Mapping[str, float]
    why: str


def mixed(
    graph: Graph,
    images: np.ndarray,
    budgets: Sequence[Budget],
    *,
    ranges: Ranges,
    residual: str = "int8",
    target: Target | None = None,
    progress: Callable[[float], None] = lambda _share: None,
) -> Mixed:
    """The plan of widths 2, 4 and 8 that hurts least within the budgets, ends at 8 bits, nothing pruned.

    `images`: as `calibrate` takes them. CheckFailed: a budget below the least that these widths reach.
    """
    if not budgets:
        raise UsageError("mixed widths need a budget, for example size=20%: without one all layers keep 8 bits")
    space = replace(hold_channels(search_space(graph)), target=target)
    check_reachable(graph, budgets, space)
    costs = Costs(graph, space)
    harms = measure(graph, space, images[:IMAGES], ranges, progress)
    choice = choose(costs, budgets, harms)
    used = {b.text: costs.figure(b.kind, choice) / b.bound(costs.whole[b.kind]) for b in budgets}
    plan = to_plan(graph, space, choice, residual=residual, weight=twos)
    return Mixed(plan, harms, total(space, harms, choice), used, _why(costs, budgets, choice, used))


def choose(costs: Costs, budgets: Sequence[Budget], harms: Harms) -> Choice:
    """The choice of least harm that projection, trades and filling find; it breaks no budget."""

    def harm(choice: Choice, move: Move) -> float:
        now = (choice.weight if move.side == "weight" else choice.act)[LayerId(move.name)]
        return harms[move.side, move.name, move.to] - harms[move.side, move.name, now]

    choice, _ = project(costs, budgets, largest(costs.space), harm)
    choice, _ = exchange(costs, budgets, choice, harm)
    return fill(costs, budgets, choice, lambda c, m: -harm(c, m))[0]


def total(space: Space, harms: Harms, choice: Choice) -> float:
    """Sum of the harms of a choice, nats."""
    weights = sum(harms["weight", name, choice.weight[name]] for name in space.searched)
    return weights + sum(harms["act", name, choice.act[name]] for name in space.acts)


def _why(costs: Costs, budgets: Sequence[Budget], choice: Choice, used: Mapping[str, float]) -> str:
    """Why less than `LEAST_USED` of every budget is used."""
    if max(used.values()) >= LEAST_USED:
        return ""
    moves = raising(costs.space, choice)
    if not moves:
        return f"all layers have {max(costs.space.widths)} bits: the budget asks for nothing"
    if all(costs.over(move.applied(choice), budgets) for move in moves):
        return "every layer that could be wider would break the budget"
    return "no wider layer changes the answers less"


def measure(
    graph: Graph, space: Space, images: np.ndarray, ranges: Ranges, progress: Callable[[float], None]
) -> dict[tuple[str, str, int], float]:
    """Harms of every width of the searched layers' weights and inputs; 0 at the widest.

    Means of channels are set right where biases are corrected. The float network runs once a batch; from each layer on,
    the rest of it once more for each width.
    """
    narrow = [bits for bits in space.widths if bits < max(space.widths)]
    encodings = {(name, bits): act_encoding(graph, name, bits) for name in space.acts for bits in narrow}
    points = [Point(graph.value(name).inputs[0], encodings[name, min(narrow)], name) for name in space.acts]
    seen = magnitudes(graph, images, points, lambda share: progress(0.1 * share))
    clips = {key: (encoding, seen[key[0]].clip(encoding, ranges)) for key, encoding in encodings.items()}
    rounding = _Rounding(graph, ranges, clips)
    harms: dict[tuple[str, str, int], float] = {
        (side, name, bits): 0.0 for side, name in _sides(space) for bits in space.widths
    }
    for start, (share, x) in _from(batches(images)):
        for done, (key, value) in enumerate(_divergences(rounding, x, space, narrow), 1):
            harms[key] += value / len(images)
            progress(0.1 + 0.9 * (start + (share - start) * done / max(1, len(harms) - len(_sides(space)))))
    for side, name in _sides(space):  # fewer bits that hurt less by chance hurt as much
        for few, more in pairwise(narrow):
            harms[side, name, few] = max(harms[side, name, few], harms[side, name, more])
    return harms


def _sides(space: Space) -> list[tuple[str, LayerId]]:
    return [("weight", name) for name in space.searched] + [("act", name) for name in space.acts]


def _from(parts: Iterator[tuple[float, Tensor]]) -> Iterator[tuple[float, tuple[float, Tensor]]]:
    """Each part with the share that was done before it."""
    before = 0.0
    for part in parts:
        yield before, part
        before = part[0]


class _Rounding(FloatNet):
    """The float network, and single layers with their weights or their input rounded."""

    def __init__(
        self, graph: Graph, ranges: Ranges, clips: Mapping[tuple[LayerId, int], tuple[Encoding, float]]
    ) -> None:
        super().__init__(graph)
        self.eval()
        self.ranges, self.clips = ranges, clips
        self.weights: dict[tuple[str, int], Tensor] = {}

    def rounded(self, node: Node, x: Tensor, side: str, bits: int) -> Tensor:
        """Output of a layer with one side at `bits`."""
        if side == "act":
            encoding, clip = self.clips[LayerId(node.name), bits]
            scale, (lo, hi) = act_scale(clip, encoding), act_bounds(encoding)
            return self.compute(node, [torch.clamp(torch.round(x / scale), lo, hi) * scale])
        return TORCH_OPS[node.op](node, {**self.consts(node), "weight": self._weight(node, bits)}, x)

    def _weight(self, node: Node, bits: int) -> Tensor:
        if (node.name, bits) not in self.weights:
            weight = self.graph.consts[node.consts["weight"]]
            clips = weight_clips(node, weight, self.ranges.weight)
            clip = clips[weight_clip(clips, node.name, bits)]
            levels, scale = weight_levels(node, weight, twos(bits), clip, weight)
            values = levels * scale.reshape(-1, *(1,) * (weight.ndim - 1))
            self.weights[node.name, bits] = torch.from_numpy(values.astype(np.float32))
        return self.weights[node.name, bits]


def _divergences(
    net: _Rounding, x: Tensor, space: Space, narrow: Sequence[int]
) -> Iterator[tuple[tuple[str, str, int], float]]:
    """((side, layer, bits), divergence summed over the images of a batch), in the order of the graph."""
    graph, ends = net.graph, _ends(net)
    with torch.no_grad():
        want = F.log_softmax(net(x).flatten(1), 1)
        values = {graph.inputs[0].name: x}
        for at, node in enumerate(graph.nodes):
            ins = [values[name] for name in node.inputs]
            values[node.name] = net.compute(node, ins)
            values = {name: value for name, value in values.items() if ends[name] > at}
            for side in ("weight", "act"):
                if (side, node.name) not in _sides(space):
                    continue
                for bits in narrow:
                    changed = net.rounded(node, ins[0], side, bits)
                    if net.ranges.correct:
                        shift = channel_means(values[node.name]) - channel_means(changed)
                        changed = changed + shift.view(1, -1, *(1,) * (changed.dim() - 2))
                    got = F.log_softmax(_rest(net, {**values, node.name: changed}, at + 1, ends).flatten(1), 1)
                    yield (side, node.name, bits), float((want.exp() * (want - got)).sum())


def _ends(net: FloatNet) -> dict[str, int]:
    """Value -> number of the last node that reads it; outputs are never done with."""
    graph = net.graph
    last = {n.name: -1 for n in (*graph.inputs, *graph.nodes)}
    last |= {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
    return last | dict.fromkeys(graph.outputs, len(graph.nodes))


def _rest(net: FloatNet, values: dict[str, Tensor], start: int, ends: Mapping[str, int]) -> Tensor:
    """The network's output from the node `start` on."""
    for at in range(start, len(net.graph.nodes)):
        node = net.graph.nodes[at]
        values[node.name] = net.compute(node, [values[name] for name in node.inputs])
        values = {name: value for name, value in values.items() if ends[name] > at}
    return values[net.graph.outputs[0]]
