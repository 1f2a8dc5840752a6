"""What a quantised ONNX file says about codes, as a plan and tensors: `core.integer` derives every code from these.

Nothing is widened: a range that our storage cannot hold, or a value that nothing rounds, is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from .cost import WIDTHS
from .encoding import BIPOLAR, Encoding, odd, twos, unsigned
from .errors import UnsupportedError
from .graph import Graph, Node, refuse_unknown
from .integer import ODD, moments, weight_clip, weight_levels, zero_name
from .onnx_graph import Codes, Imported, Rounding
from .plan import BitConfig, CompressionPlan, LayerId, Segment
from .quant import act_bounds
from .storage import ACTS, LAYERS, PASS, POSITIVE, STORED, Point, analyse, non_negative

SLACK = 1  # levels by which ours may end earlier: i8 ends at -127, the file's at -128
GRIDS = (BIPOLAR, twos(2), odd(2), twos(4), odd(4), twos(8))  # for weights, by bits


def quantised(path: str, imported: Imported) -> tuple[Graph, CompressionPlan, dict[str, np.ndarray]]:
    """The graph with roundings marked, its plan, and all tensors float32.

    UnsupportedError: an unknown op; a layer whose weights or input are not quantised; a value that must be stored and
    is not rounded; weights beyond their encoding; codes that must stay as they are and do not.
    """
    refuse_unknown(imported.graph, path)
    graph = _marked(imported)
    found = _Roundings(graph, imported.roundings)
    layers = [n for n in graph.nodes if n.op in LAYERS]
    if not layers:
        raise UnsupportedError(f"{path} has no convolution and no linear layer")
    held = {LayerId(n.name): _narrowest(n, imported.weights.get(n.name)) for n in layers}
    bits = {
        layer: BitConfig((own.segment(),), _act(graph.value(layer).inputs[0], found)) for layer, own in held.items()
    }
    graph = replace(
        graph, consts={**graph.consts, **{graph.value(k).consts["weight"]: own.weight for k, own in held.items()}}
    )
    plan = CompressionPlan(graph.fingerprint(), bits)
    tensors = {name: np.asarray(values, np.float32) for name, values in graph.consts.items()}
    tensors |= {weight_clip({}, layer, own.encoding.bits): own.clip for layer, own in held.items()}
    tensors |= _act_clips(analyse(graph, {k: b.act for k, b in bits.items()}, plan.residual).points, found)
    return graph, plan, tensors


def _marked(imported: Imported) -> Graph:
    """The graph with `STORED` on rounded values whose reader could take them unrounded, `POSITIVE` on such an input."""
    graph, consumers = imported.graph, imported.graph.consumers()
    goes_on = ACTS | {"add", "batch_norm"}

    def marked(name: str) -> bool:
        return name in imported.roundings and any(user.op in goes_on for user in consumers[name])

    nodes = tuple(replace(n, attrs={**n.attrs, STORED: True}) if marked(n.name) else n for n in graph.nodes)
    found = _Roundings(graph, imported.roundings)
    inputs = tuple(replace(n, attrs={POSITIVE: True}) if found.begins_at_zero(n.name) else n for n in graph.inputs)
    return replace(graph, inputs=inputs, nodes=nodes)


class _Roundings:
    """How each value is rounded: by its own QuantizeLinear, that behind pools and the like, or that before a relu."""

    def __init__(self, graph: Graph, own: Mapping[str, Rounding]) -> None:
        self.graph, self.own, self.positive = graph, own, non_negative(graph)
        self.consumers = graph.consumers()
        for node in graph.nodes:
            if node.op in PASS or node.op == "concat":
                self._check_passed(node.name, node.inputs)

    def __getitem__(self, name: str) -> Rounding:
        found = next(self._forwards(name), None) or next(self._backwards(name), None) or self._behind_relu(name)
        if found is None:
            raise UnsupportedError(
                f"{name} must be stored as codes, and no QuantizeLinear and DequantizeLinear say how: quantise it too, "
                "or compile the float model with --quantize and --calibrate"
            )
        return found

    def begins_at_zero(self, name: str) -> bool:
        """Whether a value has no code below zero."""
        found = next(self._forwards(name), None)
        return found is not None and found.lo >= 0

    def _forwards(self, name: str) -> Iterator[Rounding]:
        if name in self.own:
            yield self.own[name]
        for node in self.consumers[name]:
            if node.op in PASS or node.op == "concat":
                yield from self._forwards(node.name)

    def _backwards(self, name: str) -> Iterator[Rounding]:
        node = self.graph.value(name)
        if node.op in PASS or node.op == "concat":
            for source in node.inputs:
                if source in self.own:
                    yield self.own[source]
                yield from self._backwards(source)

    def _behind_relu(self, name: str) -> Rounding | None:
        """The codes from 0 on, where a relu reads codes and nothing rounds its result: it makes no others."""
        node = self.graph.value(name)
        known = self.own.get(node.inputs[0]) if node.op == "relu" else None
        return None if known is None else replace(known, lo=max(known.lo, 0))

    def _check_passed(self, name: str, inputs: tuple[str, ...]) -> None:
        """What keeps codes as they are must read and make the same codes."""
        known = {v: self.own[v] for v in (*inputs, name) if v in self.own}
        if len(set(known.values())) > 1:
            listed = "; ".join(f"{value}: {rounding}" for value, rounding in known.items())
            raise UnsupportedError(
                f"{name} ({self.graph.value(name).op}) passes codes on as they are, but the file rounds differently "
                f"around it ({listed}): give them one scale and zero point (onnxruntime: TensorQuantOverrides)"
            )


@dataclass(frozen=True, slots=True)
class _Held:
    """Weights float32 [O, ...] and clips float32 [O] of which `weight_levels` makes the file's levels."""

    encoding: Encoding
    clip: np.ndarray
    weight: np.ndarray

    def segment(self) -> Segment:
        """All filters."""
        return Segment(self.encoding, tuple(range(len(self.clip))))


def _narrowest(node: Node, codes: Codes | None) -> _Held:
    """A layer's weights in the encoding of fewest bits that holds their levels.

    Levels may be whole multiples of a step, one a filter: then they are divided by it, and their scale is multiplied.
    UnsupportedError for weights without codes, and where no encoding of the file's bits holds them.
    """
    if codes is None or codes.bits is None:
        raise UnsupportedError(
            f"{node.name}: its weights are not quantised, or not to 2, 4 or 8 bits, in a file that quantises others: "
            "quantise it too, or compile the float model with --quantize and --calibrate"
        )
    flat = codes.levels.reshape(len(codes.levels), -1)
    steps = np.maximum(np.gcd.reduce(flat, axis=1), 1)
    for encoding in (grid for grid in GRIDS if grid.bits <= codes.bits):
        for step in (np.ones_like(steps), steps):
            levels = codes.levels // step.reshape(-1, *(1,) * (codes.levels.ndim - 1))
            held = _in(encoding, node, levels, codes.per_row() * step)
            if held is not None:
                return held
    raise UnsupportedError(
        f"{node.name}: levels of its weights run from {flat.min()} to {flat.max()} around their zero point, "
        f"{twos(codes.bits)} holds {twos(codes.bits).lo} to {twos(codes.bits).hi}: quantise weights symmetrically "
        "(weight_type=QInt8)"
    )


def _in(encoding: Encoding, node: Node, levels: np.ndarray, scale: np.ndarray) -> _Held | None:
    """Levels [O, ...] worth `scale` float64 [O] each; None where the encoding lacks one.

    Convolutions on the odd grid lose their mean and are divided by their deviation: weights are moved within the cells
    of their levels so that the mean is 0, and None where the cells are too small for that.
    """
    if levels.min() < encoding.lo or levels.max() > encoding.hi or not np.isin(levels, encoding.levels()).all():
        return None
    standardised = encoding.name[0] in ODD and node.op == "conv2d"
    means = levels.reshape(len(levels), -1).mean(axis=1)
    moved = levels - (scale @ means) / scale.sum() if standardised else levels
    weight = (moved * scale.reshape(-1, *(1,) * (levels.ndim - 1))).astype(np.float32)
    spread = moments(weight)[1] if standardised else 1.0
    if spread == 0:
        return None
    clip = np.asarray(scale * encoding.hi / spread, np.float32)
    found, _ = weight_levels(node, weight, encoding, clip, weight)
    return _Held(encoding, clip, weight) if np.array_equal(found, levels) else None


def _act(value: str, found: _Roundings) -> Encoding:
    """Narrowest encoding of a layer's input."""
    rounding, plain = found[value], found.positive[value]
    least = (rounding.hi - min(rounding.lo, 0) if plain else rounding.hi - rounding.lo).bit_length()
    bits = next(width for width in WIDTHS if width >= least)
    return unsigned(bits) if plain else twos(bits)


def _act_clips(points: tuple[Point, ...], found: _Roundings) -> dict[str, np.ndarray]:
    """The clip of every stored value, checked against what its encoding can hold."""
    out: dict[str, np.ndarray] = {}
    chosen: dict[str, tuple[str, Rounding]] = {}
    for point in points:
        rounding = found[point.value]
        first, other = chosen.setdefault(point.clip, (point.value, rounding))
        if other != rounding:
            raise UnsupportedError(
                f"{first} and {point.value} are stored with one scale here, the file rounds them differently ({other}; "
                f"{rounding}): give them one scale and zero point (onnxruntime: TensorQuantOverrides)"
            )
        out[point.clip] = np.asarray(rounding.scale * point.encoding.hi, np.float32)
        if zero := _zero(point.encoding, rounding):
            out[zero_name(point.clip)] = np.asarray(zero, np.float32)
    return out


def _zero(encoding: Encoding, rounding: Rounding) -> int:
    """Level of the encoding that stands for zero; 0 wherever the file's levels fit around it.

    Where they end earlier than the encoding's, `onnx_graph` has put a relu or clip.
    """
    lo, hi = act_bounds(encoding)
    fits = rounding.lo >= lo - SLACK and rounding.hi <= hi + SLACK
    return 0 if fits or lo == 0 else encoding.lo - rounding.lo
