"""(float Graph, plan, tensors) -> integer Graph: the only place that derives codes, multipliers and biases.

Both the torch semantics and the compiler read the result, so neither can disagree with the other. Everything is
float64, rounded once to float32; sums whose order a host could choose go through `math.fsum`. Where values are
rounded is `core.storage`'s business, what rounding means `core.quant`'s. Knows no kernels and no files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import quant
from .curves import CURVES
from .encoding import INT32_MAX, Encoding
from .errors import CorruptError, UnsupportedError
from .graph import Graph, Node, verify
from .groups import channel_group, groups
from .plan import BitConfig, CompressionPlan, GroupId, LayerId
from .storage import LAYERS, PASS, POOLS, Chain, Storage, Stored, analyse

Tensors = Mapping[str, np.ndarray]
ODD = "ob"  # families of encodings on the mid-rise grid: o2..o8 and b1


def integer(graph: Graph, plan: CompressionPlan, tensors: Tensors) -> Graph:
    """Integer graph (stage "integer") with full channel counts; pruned channels hold code 0 everywhere.

    `graph`: float, constants filled. `tensors`: clips and ranges by the names of `core.storage`. Nodes bear the names
    of the float values that they store; "{layer}.acc" are accumulators, "{layer}.input" extra requantisations,
    "{input}.q" the quantised input. Attrs: `kept` (channels that survive, where some do not); on accumulators of
    layers `layer` and `segments` ((encoding, original filter numbers), ...).
    CorruptError: tensors missing, NaN, infinite or zero clips, a plan that does not fit. UnsupportedError: an op or
    layer that has no integer form, or sums beyond int32.
    """
    verify(graph, "float")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UnsupportedError(f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs: one of each is supported")
    for layer, bits in plan.bits.items():
        if bits.act.name[0] not in "ui":
            raise UnsupportedError(f"{layer}: activations {bits.act} are not supported, u1..u8 and i2..i8 are")
    storage = analyse(graph, {layer: bits.act for layer, bits in plan.bits.items()}, plan.residual)
    _check_tensors(graph, plan, storage, tensors)
    kept = kept_channels(graph, plan.keep)
    builder = _Builder(graph, plan, tensors, storage, kept)
    chains = {c.end: c for c in storage.chains}
    builder.input()
    for node in graph.nodes:
        if node.name in chains:
            builder.chain(chains[node.name])
        elif node.op in PASS or node.op == "concat":
            builder.passed(node)
    out = Graph(graph.inputs, tuple(builder.nodes), tuple(builder.held(o) for o in graph.outputs), builder.consts)
    verify(out, "integer")
    return out


def level_values(graph: Graph, plan: CompressionPlan, tensors: Tensors) -> dict[str, float]:
    """Value of the integer graph -> real value of one of its levels, for every value that holds levels."""
    storage = analyse(graph, {layer: bits.act for layer, bits in plan.bits.items()}, plan.residual)
    builder = _Builder(graph, plan, tensors, storage, {})
    named = {builder.held(value): stored for value, stored in storage.stored.items()}
    named |= {f"{layer}.input": stored for layer, stored in storage.reads.items()}
    return {name: builder.scale(stored) for name, stored in named.items() if stored.encoding is not None}


def kept_channels(graph: Graph, keep: Mapping[GroupId, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Value -> surviving channels (features behind a flatten), for the values that lose some.

    CorruptError names a group that does not exist, cannot be pruned, or would be emptied.
    """
    known = {g.id: g for g in groups(graph)}
    for name, channels in keep.items():
        if name not in known:
            raise CorruptError(f"plan: there is no group {name!r}; a plan fits the graph it was made for")
        group, found = known[name], set(channels)
        if not found or not found <= set(range(group.channels)) or len(found) != len(channels):
            raise CorruptError(f"plan: group {name} keeps {len(channels)} of {group.channels} channels, or wrong ones")
        if len(found) < group.channels and not group.prunable:
            raise CorruptError(f"plan: group {name} cannot be pruned ({group.why}), but loses channels")
    out = {}
    for value, name in channel_group(graph).items():
        if name not in known or len(keep.get(name, range(known[name].channels))) == known[name].channels:
            continue
        group = known[name]
        spread = graph.value(value).shape[0] // group.channels
        out[value] = tuple(c * spread + i for c in sorted(keep[name]) for i in range(spread))
    return out


def weight_clip(tensors: Tensors, layer: str, bits: int) -> str:
    """Name of the clip tensor of a layer's weights at `bits` bits."""
    special = f"{layer}.weight_clip.{bits}"
    return special if special in tensors else f"{layer}.weight_clip"


def shift_name(layer: str, bits: int) -> str:
    """Name of the optional correction float32 [O] that is added to the bias of filters at `bits` bits."""
    return f"{layer}.shift.{bits}"


def zero_name(clip: str) -> str:
    """Name of the optional level float32 [] that stands for zero where the clip `clip` gives the range; 0 without."""
    return f"{clip}.zero"


def weight_levels(
    node: Node, weight: np.ndarray, encoding: Encoding, clip: np.ndarray, part: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [O, ...] of a conv or linear -> levels int32 [O, ...], real value of one level float64 [O].

    `clip`: float32 [] or [O]. `part`: the unpruned weights (any shape), over which convolutions on the odd grid are
    standardised: mean removed, divided by the population's standard deviation.
    """
    size = np.broadcast_to(np.abs(clip.astype(np.float64)).reshape(-1), (len(weight),))
    column = size.reshape(-1, *(1,) * (weight.ndim - 1))
    if encoding.name[0] not in ODD:
        scale = size / encoding.hi
        steps = np.where(scale > 0, scale, 1.0).reshape(column.shape)  # a filter of zeros has clip 0
        return quant.quantize_weight(weight, steps, encoding), scale
    if not size.all():
        raise CorruptError(f"{node.name}: a weight clip is 0, and the odd grid of {encoding} has no zero")
    wide = weight.astype(np.float64)
    std = 1.0
    if node.op == "conv2d":
        mean, std = moments(part)
        if std == 0:
            raise CorruptError(f"{node.name}: all its {part.size} weights are equal and cannot be standardised")
        wide = (wide - mean) / std
    return quant.quantize_odd(wide / column, encoding.bits), std * size / (2**encoding.bits - 1)


def moments(part: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation, float64, the same on every host."""
    flat = part.astype(np.float64).ravel()
    mean = math.fsum(flat.tolist()) / flat.size
    rest = flat - mean
    return mean, math.sqrt(math.fsum((rest * rest).tolist()) / flat.size)


@dataclass(frozen=True, slots=True)
class _Sum:
    """An accumulator and what one of its units is worth: value = acc * factor + shift, float64 [C]."""

    name: str
    factor: np.ndarray
    shift: np.ndarray


class _Builder:
    """The nodes and constants of the integer graph so far."""

    def __init__(
        self,
        graph: Graph,
        plan: CompressionPlan,
        tensors: Tensors,
        storage: Storage,
        kept: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.graph, self.plan, self.tensors, self.storage, self.kept = graph, plan, tensors, storage, kept
        self.nodes: list[Node] = []
        self.consts: dict[str, np.ndarray] = {}

    def held(self, value: str) -> str:
        """Name in the integer graph of a stored value of the float graph."""
        return f"{value}.q" if any(value == n.name for n in self.graph.inputs) else value

    def scale(self, stored: Stored) -> float:
        """Real value of one level, 1 where floats are stored."""
        if stored.encoding is None:
            return 1.0
        return quant.act_scale(float(self.tensors[stored.clip]), stored.encoding)

    def zero(self, stored: Stored) -> float:
        """Level that stands for zero; 0 but in networks of imported files."""
        return float(self.tensors.get(zero_name(stored.clip), 0.0))

    def taken(self, name: str, stored: Stored, channels: int, *, window: int = 1) -> _Sum:
        """The sum `name` of `window` levels of a stored value as its mean."""
        factor = np.full(channels, self.scale(stored) / window)
        return _Sum(name, factor, np.full(channels, -self.scale(stored) * self.zero(stored)))

    def no_border(self, node: Node, stored: Stored) -> None:
        """UnsupportedError where a node pads with level 0, and that is not zero."""
        borders = node.attrs.get("padding", ()), *node.attrs.get("pads", ())
        if self.zero(stored) and any(n for border in borders for n in border):
            raise UnsupportedError(
                f"{node.name}: pads with zeros, and zero is level {self.zero(stored):g} of its input, where kernels "
                "know level 0 alone: quantise activations symmetrically (onnxruntime: activation_type=QInt8, "
                "extra_options={'ActivationSymmetric': True}), or compile the float model with --quantize"
            )

    def add(self, op: str, name: str, inputs: tuple[str, ...], like: str, dtype: str, **attrs: Any) -> None:
        """Appends a node with the shape and the kept channels of the float value `like`."""
        if like in self.kept:
            attrs["kept"] = self.kept[like]
        self.nodes.append(Node(op, name, inputs, self.graph.value(like).shape, dtype, attrs))

    def input(self) -> None:
        """Float network input -> levels (or floats, where an input is a float32 stream)."""
        (node,) = self.graph.inputs
        stored = self.storage.stored[node.name]
        if stored.encoding is None or self.zero(stored):
            one = np.ones(node.shape[0])
            self.epilogue(_Sum(node.name, one, 0 * one), self.held(node.name), node.name, stored, (), None)
            return
        lo, hi = quant.act_bounds(stored.encoding)
        m = np.float32(1.0 / self.scale(stored))
        self.add("quantize", self.held(node.name), (node.name,), node.name, stored.dtype, m=float(m), lo=lo, hi=hi)

    def passed(self, node: Node) -> None:
        """Max pool, flatten, slice, pad, concat: codes as they are."""
        inputs, stored = tuple(self.held(i) for i in node.inputs), self.storage.stored[node.name]
        if node.op == "pad":
            self.no_border(node, stored)
        shift = _shift(node, self.graph.value(node.inputs[0]).shape)
        if shift is None or stored.encoding is None:
            self.add(node.op, node.name, inputs, node.name, stored.dtype, **node.attrs)
            return
        (top, left), stride = shift
        acc, const, c = f"{node.name}.acc", f"{node.name}.levels", node.shape[0]
        attrs = {"stride": stride, "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": c, "layer": ""}
        rows = self.kept.get(node.name, tuple(range(c)))
        self.add("conv2d_int", acc, inputs, node.name, "i32", **attrs, segments=(("u1", rows),))
        self.nodes[-1] = replace(self.nodes[-1], consts={"weight": const})
        self.consts[const] = np.zeros((c, 1, top + 1, left + 1), np.int16)
        self.consts[const][:, :, top, left] = 1
        self.epilogue(self.taken(acc, stored, c), node.name, node.name, stored, (), None)

    def chain(self, chain: Chain) -> None:
        """All nodes of one chain, up to its stored value."""
        if chain.start and self.graph.value(chain.start).op in CURVES:
            self.curve(self.graph.value(chain.start))
            return
        acc = self.start(chain)
        for name in chain.norms:
            acc = self.norm(acc, self.graph.value(name))
        acts = tuple(self.graph.value(a) for a in chain.acts)
        self.epilogue(acc, chain.end, chain.end, self.storage.stored[chain.end], acts, chain.residual or None)

    def start(self, chain: Chain) -> _Sum:
        """The accumulator of a chain: a layer's, a pool's, or a stored value itself."""
        if not chain.start:
            channels = self.graph.value(chain.source).shape[0]
            return self.taken(self.held(chain.source), self.storage.stored[chain.source], channels)
        node = self.graph.value(chain.start)
        if node.op == "mul":
            return self.product(node)
        want = self.storage.reads[chain.start]
        data = self.read(node.name, chain.source, want)
        return self.pool(node, data, want) if node.op in POOLS else self.layer(node, data, want)

    def read(self, layer: str, source: str, want: Stored) -> str:
        """The input of a layer, requantised where it is stored otherwise; its name.

        Equal encodings with equal clips are the same levels: nothing to do, whatever the clips' names.
        """
        stored = self.storage.stored[source]
        same = self.scale(stored) == self.scale(want) and self.zero(stored) == self.zero(want)
        if stored.encoding == want.encoding and same:
            return self.held(source)
        acc = self.taken(self.held(source), stored, self.graph.value(source).shape[0])
        self.epilogue(acc, f"{layer}.input", source, want, (), None)
        return f"{layer}.input"

    def pool(self, node: Node, data: str, want: Stored) -> _Sum:
        """Sum of levels over a window; the mean's divisor is the whole window, padding included."""
        attrs = dict(node.attrs)
        if node.op == "global_avg_pool":
            _, h, w = self.graph.value(node.inputs[0]).shape
            attrs = {"kernel": (h, w), "stride": (1, 1), "padding": (0, 0, 0, 0)}
        window = attrs["kernel"][0] * attrs["kernel"][1]
        assert want.encoding is not None, "storage never hands floats to a pool"
        _check_range(node.name, window, quant.act_bounds(want.encoding)[1])
        name = f"{node.name}.acc"
        self.add("sum_pool2d", name, (data,), node.name, "i32", **attrs)
        self.no_border(node, want)
        return self.taken(name, want, node.shape[0], window=window)

    def product(self, node: Node) -> _Sum:
        """Products of the levels of two values, the second perhaps of one pixel."""
        stored = [self.storage.stored[name] for name in node.inputs]
        if any(s.encoding is None for s in stored):
            raise UnsupportedError(
                f"{node.name}: multiplies a float32 stream, and products are of levels: use --residual int8"
            )
        if any(self.zero(s) for s in stored):
            raise UnsupportedError(
                f"{node.name}: multiplies values whose zero is another level than 0: quantise activations "
                "symmetrically, or compile the float model with --quantize"
            )
        name = f"{node.name}.acc"
        self.add("product", name, tuple(self.held(i) for i in node.inputs), node.name, "i32")
        factor = np.full(node.shape[0], self.scale(stored[0]) * self.scale(stored[1]))
        return _Sum(name, factor, np.zeros(node.shape[0]))

    def curve(self, node: Node) -> None:
        """A table, code by code: the activation of what a code stands for, rounded as it is stored."""
        want, stored = self.storage.reads[node.name], self.storage.stored[node.name]
        assert want.encoding is not None, "storage never hands floats to a table"
        data = self.read(node.name, node.inputs[0], want)
        levels = want.encoding.levels().astype(np.float64)
        table = CURVES[node.op].exact((levels - self.zero(want)) * self.scale(want))
        if stored.encoding is not None:
            lo, hi = quant.act_bounds(stored.encoding)
            table = np.clip(np.rint(table / self.scale(stored)) + self.zero(stored), lo, hi)
        self.add("lookup", node.name, (data,), node.name, stored.dtype)
        self.nodes[-1] = replace(self.nodes[-1], consts={"table": f"{node.name}.table"})
        self.consts[f"{node.name}.table"] = table.astype(np.float32)

    def layer(self, node: Node, data: str, want: Stored) -> _Sum:
        """Integer convolution or linear layer with levels of every segment."""
        bits = self.plan.bits[LayerId(node.name)]
        levels, steps = self.levels(node, bits)
        assert want.encoding is not None, "storage never hands floats to a layer"
        _check_range(node.name, int(np.abs(levels).reshape(len(levels), -1).sum(axis=1).max()), want.encoding.hi)
        name, const = f"{node.name}.acc", f"{node.name}.levels"
        segments = tuple((s.encoding.name, s.filters) for s in bits.weight if s.filters)
        self.add(f"{node.op}_int", name, (data,), node.name, "i32", **node.attrs, layer=node.name, segments=segments)
        self.nodes[-1] = replace(self.nodes[-1], consts={"weight": const})
        self.consts[const] = levels.astype(np.int16)
        self.no_border(node, want)
        factor, rows = steps * self.scale(want), levels.reshape(len(levels), -1).sum(axis=1)
        return _Sum(name, factor, self.bias(node, bits) - factor * rows * self.zero(want))

    def bias(self, node: Node, bits: BitConfig) -> np.ndarray:
        """Bias of a layer, float64 [O], with the correction that calibration found for each filter's width, if any."""
        out = np.zeros(node.shape[0])
        if "bias" in node.consts:
            out += self.graph.consts[node.consts["bias"]]
        for segment in bits.weight:
            shift = self.tensors.get(shift_name(node.name, segment.encoding.bits))
            if shift is not None:
                rows = list(segment.filters)
                out[rows] += shift.astype(np.float64)[rows]
        return out

    def levels(self, node: Node, bits: BitConfig) -> tuple[np.ndarray, np.ndarray]:
        """Levels int32 [O, ...], 0 where pruned, and real value of a level float64 [O]."""
        weight = self.graph.consts[node.consts["weight"]]
        rows, columns = self.survivors(node, weight)
        if sorted(f for s in bits.weight for f in s.filters) != sorted(rows):
            raise CorruptError(
                f"plan: the segments of {node.name} hold {sum(len(s.filters) for s in bits.weight)} filters, "
                f"its group keeps {len(rows)} of {len(weight)}, and they must be the same"
            )
        part = weight[rows][:, columns]
        out, steps = np.zeros(weight.shape, np.int32), np.zeros(len(weight))
        for segment in bits.weight:
            mine = list(segment.filters)
            clip = self.tensors[weight_clip(self.tensors, node.name, segment.encoding.bits)]
            levels, scale = weight_levels(node, weight, segment.encoding, clip, part)
            for row in mine:
                out[row, columns] = levels[row, columns]
            steps[mine] = scale[mine]
        return out, steps

    def survivors(self, node: Node, weight: np.ndarray) -> tuple[list[int], list[int]]:
        """Kept rows and columns of a weight; a depthwise layer has one column, grouped ones are whole."""
        rows = list(self.kept.get(node.name, range(len(weight))))
        whole = range(weight.shape[1])
        columns = self.kept.get(node.inputs[0], whole) if node.attrs.get("groups", 1) == 1 else whole
        return rows, list(columns)

    def norm(self, acc: _Sum, node: Node) -> _Sum:
        """Batch norm absorbed: a scale and a shift per channel."""
        gamma, beta, mean, var = (
            self.graph.consts[node.consts[role]].astype(np.float64) for role in ("weight", "bias", "mean", "var")
        )
        scale = gamma / np.sqrt(var + node.attrs["eps"])
        return _Sum(acc.name, acc.factor * scale, (acc.shift - mean) * scale + beta)

    def epilogue(
        self, acc: _Sum, name: str, like: str, stored: Stored, acts: tuple[Node, ...], residual: str | None
    ) -> None:
        """requantize (affine where floats are stored): the end of every chain."""
        out = self.scale(stored)
        m, b = acc.factor / out, acc.shift / out + self.zero(stored)
        if like in self.kept:
            gone = np.setdiff1d(np.arange(len(m)), self.kept[like])
            m[gone] = b[gone] = 0.0
        attrs: dict[str, Any] = {}
        inputs: tuple[str, ...] = (acc.name,)
        if residual is not None:
            inputs = (acc.name, self.held(residual))
            ratio = self.scale(self.storage.stored[residual]) / out
            attrs["m_r"] = float(np.float32(ratio))
            b = b - ratio * self.zero(self.storage.stored[residual])
        attrs |= _bounds(stored, acts, out, self.zero(stored))
        self.add("affine" if stored.encoding is None else "requantize", name, inputs, like, stored.dtype, **attrs)
        self.nodes[-1] = replace(self.nodes[-1], consts={"m": f"{name}.m", "b": f"{name}.b"})
        for role, values in (("m", m), ("b", b)):
            with np.errstate(over="ignore"):
                rounded = values.astype(np.float32)
            if not np.isfinite(rounded).all():
                raise CorruptError(f"{name}: multiplier or bias of channel {_first_bad(rounded)} is beyond float32")
            self.consts[f"{name}.{role}"] = rounded


def _bounds(stored: Stored, acts: Iterable[Node], scale: float, zero: float) -> dict[str, float | int]:
    """Attrs lo and hi: in levels, half to even; in floats only where an activation asks for them."""
    lo, hi = (-math.inf, math.inf) if stored.encoding is None else quant.act_bounds(stored.encoding)
    for act in acts:
        low, high = (act.attrs["lo"], act.attrs["hi"]) if act.op == "clip" else (0.0, math.inf)
        if stored.encoding is None:
            low, high = float(np.float32(low)), float(np.float32(high))
        else:
            low, high = float(np.rint(low / scale) + zero), float(np.rint(high / scale) + zero)
        lo, hi = min(max(lo, low), high), min(max(hi, low), high)
    if stored.encoding is not None:
        return {"lo": int(lo), "hi": int(hi)}
    return {k: v for k, v in (("lo", lo), ("hi", hi)) if math.isfinite(v)}


def _shift(node: Node, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """First pixel and step of a slice that takes every n-th pixel from a later one than the first, else None.

    Programs can only gather from the first pixel on; a depthwise window with a single 1 in its far corner picks the
    others exactly.
    """
    if (
        node.op != "slice"
        or len(shape) != 3
        or len(range(*slice(*node.attrs["slices"][0]).indices(shape[0]))) != shape[0]
    ):
        return None
    rows, columns = (range(*slice(*s).indices(d)) for s, d in zip(node.attrs["slices"][1:], shape[1:], strict=True))
    whole = all(r.step > 0 and r == range(r.start, d, r.step) for r, d in zip((rows, columns), shape[1:], strict=True))
    if not whole or (rows.start, columns.start) == (0, 0):
        return None
    return (rows.start, columns.start), (rows.step, columns.step)


def _check_range(layer: str, weights: int, top: int) -> None:
    if weights * top > INT32_MAX:
        raise UnsupportedError(
            f"{layer}: a sum can reach {weights * top}, int32 ends at {INT32_MAX}; give it fewer bits"
        )


def _check_tensors(graph: Graph, plan: CompressionPlan, storage: Storage, tensors: Tensors) -> None:
    """CorruptError for clips that are missing, NaN, infinite or 0, and for constants that are NaN or infinite."""
    clips = {p.clip for p in storage.points}
    for node in graph.nodes:
        if node.op in LAYERS:
            wanted = {weight_clip(tensors, node.name, s.encoding.bits) for s in plan.bits[LayerId(node.name)].weight}
            clips |= wanted
            for name in wanted & set(tensors):
                if tensors[name].size not in (1, node.shape[0]):
                    raise CorruptError(f"{name}: {tensors[name].size} clips for {node.shape[0]} filters")
            for segment in plan.bits[LayerId(node.name)].weight:
                shift = tensors.get(name := shift_name(node.name, segment.encoding.bits))
                if shift is not None and (shift.shape != (node.shape[0],) or not np.isfinite(shift).all()):
                    raise CorruptError(f"{name}: must be {node.shape[0]} finite numbers")
    missing = sorted(clips - set(tensors))
    if missing:
        raise CorruptError(f"{len(missing)} tensors are missing: {', '.join(missing[:8])}{' ...' * (len(missing) > 8)}")
    for name in sorted(clips):
        if not np.isfinite(tensors[name]).all():
            raise CorruptError(f"{name}: NaN or infinite")
        if name.rpartition(".")[2] in ("act_clip", "clip") and not (tensors[name].size == 1 and tensors[name].all()):
            raise CorruptError(f"{name}: a clip must be one number that is not 0")
    for node in graph.nodes:
        for role, name in node.consts.items():
            if not np.isfinite(graph.consts[name]).all():
                bad = int((~np.isfinite(graph.consts[name])).sum())
                raise CorruptError(f"{name}: {bad} of {graph.consts[name].size} values are NaN or infinite ({role})")


def _first_bad(values: np.ndarray) -> int:
    return int(np.argmax(~np.isfinite(values)))
