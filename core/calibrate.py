"""Ranges from data: post-training quantisation of a float graph under a plan, without any training.

Weights get one clip a filter, activations one a stored value; how they are chosen is `core.ranges`' business, what is
rounded where `core.storage`'s, and what the ranges become `core.integer`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .encoding import Encoding, twos
from .errors import CorruptError, UnsupportedError, UsageError
from .graph import Graph, Node
from .groups import is_depthwise
from .integer import shift_name, weight_clip, weight_levels
from .magnitudes import Magnitudes
from .plan import BitConfig, CompressionPlan, LayerId, Segment
from .quant import act_bounds, act_scale
from .ranges import Ranges
from .storage import LAYERS, Point, Storage, Stored, act_encoding, analyse
from .supernet import FloatNet

WEIGHT_BITS = (2, 4, 8)  # what the format packs and the search knows
END_BITS = 8
WEIGHT_FRACTIONS = {  # of a filter's largest weight; above 1: two's complement reaches further below zero than above
    4: np.linspace(0.4, 1.2, 41, dtype=np.float32),
    2: np.linspace(0.2, 1.2, 51, dtype=np.float32),
}
REDUCED = 63  # largest level of an 8-bit weight within seven bits: 2 * 63 * 255 fits int16
POWERS = {"lp": 6, "mse": 2}
BATCH_VALUES = 1 << 21  # numbers in the images that go through the network at once, at most: 13 of ImageNet's size
SHIFT_IMAGES = 256  # for means these are plenty
DEFAULT = Ranges()  # the defaults, which benchmarks/results/ptq.md compares with the others


def calibrate(
    graph: Graph,
    images: np.ndarray,
    *,
    weight_bits: int,
    act_bits: int,
    residual: str = "int8",
    ends8: bool = True,
    ranges: Ranges = DEFAULT,
    progress: Callable[[float], None] | None = None,
) -> tuple[CompressionPlan, dict[str, np.ndarray]]:
    """Plan with the same widths everywhere (first and last layer at 8 bits if `ends8`), and all its tensors, float32.

    Errors: as `check` and `tensors_for`; UnsupportedError for a width without kernels.
    """
    check(graph, images)
    plan = uniform_plan(graph, weight_bits, act_bits, residual=residual, ends8=ends8)
    return plan, tensors_for(graph, plan, images, ranges=ranges, progress=progress)


def tensors_for(
    graph: Graph,
    plan: CompressionPlan,
    images: np.ndarray,
    *,
    ranges: Ranges = DEFAULT,
    progress: Callable[[float], None] | None = None,
) -> dict[str, np.ndarray]:
    """Constants, clips and corrections of biases, float32, with which `core.integer` derives the codes of a plan.

    `graph`: float, constants filled, equalised already where that is wanted. `images`: normalised, float32
    [n, C, H, W]. `progress` is told the share done. The plan's filters have one width a layer and none is removed.
    """
    storage = analyse(graph, {layer: bits.act for layer, bits in plan.bits.items()}, plan.residual)
    told = progress or (lambda _share: None)
    first = 0.4 if ranges.correct else 1.0  # of the time; two networks run side by side behind it
    tensors = {name: np.asarray(values, np.float32) for name, values in graph.consts.items()}
    for node in graph.nodes:
        if node.op in LAYERS:
            dense = not is_depthwise(node, graph.value(node.inputs[0]).shape[0])  # no other kernel gains by it
            weight = tensors[node.consts["weight"]]
            tensors |= weight_clips(node, weight, ranges.weight, reduce=ranges.reduce and dense)
    tensors |= act_clips(graph, images, storage.points, ranges, lambda share: told(first * share))
    if ranges.correct:
        tensors |= shifts(graph, plan, storage, tensors, images, lambda share: told(first + (1 - first) * share))
    tensors["golden_input"] = np.asarray(images[:1], np.float32)
    return tensors


def uniform_plan(
    graph: Graph, weight_bits: int, act_bits: int, *, residual: str = "int8", ends8: bool = True
) -> CompressionPlan:
    """Every filter at `weight_bits` (two's complement), every layer input at `act_bits`, nothing pruned.

    UnsupportedError: widths without kernels, or a network without a layer.
    """
    if weight_bits not in WEIGHT_BITS:
        raise UnsupportedError(f"weights of {weight_bits} bits: kernels have {', '.join(map(str, WEIGHT_BITS))}")
    if not 1 <= act_bits <= END_BITS:
        raise UnsupportedError(f"activations of {act_bits} bits: kernels have 1 to {END_BITS}")
    layers = [n for n in graph.nodes if n.op in LAYERS]
    if not layers:
        raise UnsupportedError("the network has no convolution and no linear layer")
    bits = {}
    for node in layers:
        end = ends8 and node in (layers[0], layers[-1])
        w, a = (END_BITS, END_BITS) if end else (weight_bits, act_bits)
        segment = Segment(twos(w), tuple(range(node.shape[0])))
        bits[LayerId(node.name)] = BitConfig((segment,), act_encoding(graph, node.name, a))
    return CompressionPlan(graph.fingerprint(), bits, residual=residual)


def weight_clips(node: Node, weight: np.ndarray, by: str = "lp", *, reduce: bool = False) -> dict[str, np.ndarray]:
    """ "{layer}.weight_clip" (the largest magnitude), by "lp" and "mse" ".4" and ".2" too, float32 [O] each.

    Those are of least error to the power of `POWERS` (Nahshan et al. 2019, Loss Aware Post-Training Quantization). All
    are there whatever the plan says, so that its bits may be edited afterwards; 8 bits have the first, or with `reduce`
    ".8", which ends so far beyond the largest magnitude that levels stay within +-`REDUCED`.
    """
    table = np.ascontiguousarray(weight.reshape(len(weight), -1), np.float32)
    rows = np.abs(table).max(axis=1)
    out = {f"{node.name}.weight_clip": rows}
    if reduce:
        out[f"{node.name}.weight_clip.8"] = rows * np.float32(twos(8).hi / REDUCED)
    shares = table / np.where(rows > 0, rows, np.float32(1))[:, None]  # so that powers stay in range
    for bits, fractions in WEIGHT_FRACTIONS.items() if by in POWERS else ():
        best, least = np.ones(len(rows), np.float32), np.full(len(rows), np.inf, np.float32)
        for fraction in fractions:
            error = _weight_error(shares, fraction, twos(bits), POWERS[by])
            best, least = np.where(error < least, fraction, best), np.minimum(error, least)
        out[f"{node.name}.weight_clip.{bits}"] = rows * best
    return out


def _weight_error(table: np.ndarray, clip: np.float32, encoding: Encoding, power: int) -> np.ndarray:
    """Error of every filter to an even power, float32 [O]: enough for a choice. Their largest weights are 1."""
    scale = clip / np.float32(encoding.hi)
    levels = np.rint(table / scale)
    np.clip(levels, encoding.lo, encoding.hi, out=levels)
    levels *= scale
    levels -= table
    np.square(levels, out=levels)
    return (levels ** (power // 2)).sum(axis=1)


def act_clips(
    graph: Graph, images: np.ndarray, points: Sequence[Point], ranges: Ranges, progress: Callable[[float], None]
) -> dict[str, np.ndarray]:
    """Clip tensor -> float32 [], chosen from all values that it serves."""
    seen = magnitudes(graph, images, points, progress)
    encodings = {p.clip: p.encoding for p in points}
    return {name: np.array(found.clip(encodings[name], ranges), np.float32) for name, found in seen.items()}


def magnitudes(
    graph: Graph, images: np.ndarray, points: Sequence[Point], progress: Callable[[float], None]
) -> dict[str, Magnitudes]:
    """Clip tensor -> what the values that it serves look like on the images, in one pass of the float network."""
    net = FloatNet(graph).eval()
    by_value: dict[str, list[str]] = {}
    for point in points:
        by_value.setdefault(point.value, []).append(point.clip)
    seen = {point.clip: Magnitudes() for point in points}
    for share, x in batches(images):
        with torch.no_grad():
            for name, value in net.walk(x):
                for clip in by_value.get(name, ()):
                    seen[clip].add(value)
        progress(share)
    return seen


def shifts(
    graph: Graph,
    plan: CompressionPlan,
    storage: Storage,
    tensors: Mapping[str, np.ndarray],
    images: np.ndarray,
    progress: Callable[[float], None],
) -> dict[str, np.ndarray]:
    """ "{layer}.shift.{bits}", float32 [O]: what a layer's mean lacks, channel by channel, once everything is rounded.

    Rounded weights move the mean of a channel, and the moves add up from layer to layer. The float and the rounded net
    run side by side, and each layer of the rounded one is set right before the next one reads it (bias correction by
    data: Nagel et al. 2019, Data-Free Quantization, section 4.2).
    """
    net, rounded = FloatNet(graph).eval(), _Rounded(graph, plan, storage, tensors).eval()
    images = images[:SHIFT_IMAGES]
    for share, x in batches(images):
        with torch.no_grad():
            beside = rounded.walk(x)
            for name, value in net.walk(x):
                if name in rounded.sums:
                    rounded.wanted = channel_means(value)
                next(beside)
        progress(share)
    widths = {name: plan.bits[LayerId(name)].weight[0].encoding.bits for name in rounded.sums}
    return {
        shift_name(name, widths[name]): (total / len(images)).numpy().astype(np.float32)
        for name, total in rounded.sums.items()
    }


class _Rounded(FloatNet):
    """The float net with weights and stored values rounded, its layers' means set right as they come.

    `wanted`: channel means that the next layer should have. `sums`: layer -> corrections, summed over images.
    """

    def __init__(
        self, graph: Graph, plan: CompressionPlan, storage: Storage, tensors: Mapping[str, np.ndarray]
    ) -> None:
        layers = [n for n in graph.nodes if n.op in LAYERS]
        consts = dict(graph.consts)
        for node in layers:
            weight, encoding = consts[node.consts["weight"]], plan.bits[LayerId(node.name)].weight[0].encoding
            clip = tensors[weight_clip(tensors, node.name, encoding.bits)]
            levels, scale = weight_levels(node, weight, encoding, clip, weight)
            consts[node.consts["weight"]] = levels * scale.reshape(-1, *(1,) * (weight.ndim - 1))
        super().__init__(graph.with_nodes(graph.nodes, consts))
        self.ends = {graph.inputs[0].name, *(c.end for c in storage.chains)}
        self.storage, self.ranges = storage, tensors
        self.sums = {n.name: torch.zeros(n.shape[0], dtype=torch.float64) for n in layers}
        self.wanted = torch.zeros(0)

    def entered(self, x: Tensor) -> Tensor:
        """The image as it is stored."""
        return self._round(x, self.storage.stored[self.graph.inputs[0].name])

    def read(self, node: Node, ins: list[Tensor]) -> list[Tensor]:
        """Rounded again where a layer or pool holds its input otherwise."""
        held = self.storage.reads.get(node.name)
        return ins if held is None else [self._round(ins[0], held), *ins[1:]]

    def left(self, node: Node, value: Tensor) -> Tensor:
        """A layer with its means set right; rounded where a chain ends."""
        if node.name in self.sums:
            shift = self.wanted - channel_means(value)
            self.sums[node.name] += shift.double() * len(value)
            value = value + shift.view(1, -1, *(1,) * (value.dim() - 2))
        return self._round(value, self.storage.stored[node.name]) if node.name in self.ends else value

    def _round(self, x: Tensor, held: Stored) -> Tensor:
        if held.encoding is None:
            return x
        scale = act_scale(float(self.ranges[held.clip]), held.encoding)
        lo, hi = act_bounds(held.encoding)
        return torch.clamp(torch.round(x / scale), lo, hi) * scale


def channel_means(value: Tensor) -> Tensor:
    """[N, C, ...] -> [C]."""
    return value.transpose(0, 1).flatten(1).mean(dim=1)


def batches(images: np.ndarray) -> Iterator[tuple[float, Tensor]]:
    """(share of the images done after it, batch), as many at once as memory comfortably holds."""
    batch = max(1, min(128, BATCH_VALUES // int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), batch):
        x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch], np.float32))
        yield min(1.0, (start + batch) / len(images)), x


def check(graph: Graph, images: np.ndarray) -> None:
    """UsageError: no images, or of another shape, or with NaN or infinity; CorruptError: such constants."""
    shape = graph.inputs[0].shape
    if not len(images) or images.shape[1:] != shape:
        raise UsageError(f"calibration images are {list(images.shape)}, the network takes [n, {list(shape)}], n > 0")
    if not np.isfinite(images).all():
        raise UsageError("calibration images hold NaN or infinity")
    for name, values in graph.consts.items():
        if not np.isfinite(values).all():
            raise CorruptError(f"{name}: {int((~np.isfinite(values)).sum())} values are NaN or infinite")
