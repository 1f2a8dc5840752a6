"""Fused Graph -> Program: steps in order, buffers planned in one arena, proof that a kernel row fits each step.

A flatten is no step: the buffer keeps its [C, H, W], and a linear layer is a convolution as large as its input. A
layer that holds several widths is several steps that write their channels in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..core.encoding import parse
from ..core.errors import UnsupportedError
from ..core.graph import Graph, Node
from ..kernels.kernel import FEW_LEVELS, Kernel, Problem, tiles
from ..kernels.registry import baseline
from .container import aligned
from .pack import Packed, unflattened
from .program import Buffer, Epilogue, Program, Step

Choose = Callable[[Problem], Kernel]


def lower(graph: Graph, packed: Packed, *, mean: np.ndarray, std: np.ndarray, choose: Choose = baseline) -> Program:
    """Program of a fused graph, without labels, golden sample and metadata.

    `mean`, `std` float32 [C]: normalisation of the input. `choose`: row whose name each step gets as a hint.
    UnsupportedError names the layer for which there is no row, or a value that the flat form cannot hold.
    """
    lowering = _Lowering(graph, packed, choose)
    for node in graph.nodes:
        _RULES[node.op](lowering, node)
    output = lowering.places[graph.outputs[0]]
    buffers, arena = plan_memory(lowering.buffers, lowering.steps, output)
    steps = tuple(lowering.hinted(step) for step in lowering.steps)
    return Program(steps, buffers, 0, output, arena, mean.astype(np.float32), std.astype(np.float32))


def problem_of(step: Step, buffers: Sequence[Buffer]) -> Problem:
    """What the step asks of a kernel."""
    storage = buffers[step.inputs[0]].storage
    c, h, w = buffers[step.output].shape
    few = step.weight is not None and step.weight.encoding.bits <= 4
    return Problem(
        op=step.op,
        w=step.weight.encoding if step.weight is not None else None,
        a=storage if storage == "f32" else parse(storage),
        rows=step.weight.shape[0] if step.weight is not None else c,
        depth=step.weight.shape[1] if step.weight is not None else step.kernel[0] * step.kernel[1],
        pixels=h * w,
        groups=step.groups,
        tiles=tiles((h, w), step.kernel, step.stride, step.dilation) if step.op == "conv2d" else 0,
        largest=step.weight.largest if step.weight is not None and step.weight.encoding.bits == 8 else 0,
        reach=(step.kernel[0] - 1) * step.dilation[0] + 1,
        digits=step.weight.digits / math.prod(step.weight.shape) if few and step.weight is not None else 0.0,
        by_law=step.op == "conv2d" and not _few_levels(step, buffers[step.output].storage),
    )


def _few_levels(step: Step, storage: str) -> bool:
    """Levels so few that comparing with where they step is faster than the law (csrc/kernels/dispatch.cc)."""
    bounds = step.epilogue
    near = bounds is not None and bounds.hi - bounds.lo <= FEW_LEVELS
    return near and storage != "f32" and len(step.inputs) == 1 and step.out_channels is None


def plan_memory(buffers: Sequence[Buffer], steps: Sequence[Step], output: int) -> tuple[tuple[Buffer, ...], int]:
    """Buffers with offsets, and the arena's bytes: largest first, each into the tightest gap that is free in its time.

    Buffer 0 is the caller's input. A buffer lives from the first step that writes it to the last that reads it.
    """
    born: dict[int, int] = {}
    dies: dict[int, int] = {}
    for at, step in enumerate(steps):
        born.setdefault(step.output, at)
        for number in (*step.inputs, step.output):
            dies[number] = at
    dies[output] = len(steps)
    offsets: dict[int, int] = {}
    for number in sorted(born, key=lambda n: (-buffers[n].bytes, n)):
        size = aligned(buffers[number].bytes)
        taken = sorted(
            (offsets[n], offsets[n] + aligned(buffers[n].bytes))
            for n in offsets
            if born[n] <= dies[number] and born[number] <= dies[n]
        )
        offsets[number] = _tightest(taken, size)
    arena = max((offsets[n] + aligned(buffers[n].bytes) for n in offsets), default=0)
    return tuple(replace(b, offset=offsets.get(n, 0)) for n, b in enumerate(buffers)), arena


def _tightest(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Offset of the smallest gap of at least `size` bytes between the ascending `taken` ranges; else their end."""
    best, end = None, 0
    for start, stop in taken:
        if start - end >= size and (best is None or start - end < best[0]):
            best = start - end, end
        end = max(end, stop)
    return end if best is None else best[1]


class _Lowering:
    """Steps and buffers so far; `places`: value -> its buffer."""

    def __init__(self, graph: Graph, packed: Packed, choose: Choose) -> None:
        self.graph, self.packed, self.choose = graph, packed, choose
        (source,) = graph.inputs
        c, h, w = source.shape
        self.buffers = [Buffer(source.name, (c, h, w), "f32", 0, 4 * c * h * w)]
        self.places = {source.name: 0}
        self.steps: list[Step] = []

    def buffer(self, node: Node) -> int:
        """New buffer for the value of `node`; its number."""
        shape = unflattened(self.graph, node.name)
        size = math.prod(shape) * (4 if node.dtype == "f32" else 1)
        self.buffers.append(Buffer(node.name, shape, node.dtype, 0, size))
        self.places[node.name] = len(self.buffers) - 1
        return self.places[node.name]

    def inputs(self, node: Node) -> tuple[int, ...]:
        """Buffers that `node` reads."""
        return tuple(self.places[i] for i in node.inputs)

    def hinted(self, step: Step) -> Step:
        """The step with the name of a row that fits it; UnsupportedError names the layer if none does."""
        try:
            row = self.choose(problem_of(step, self.buffers))
        except UnsupportedError as error:
            raise UnsupportedError(f"{step.layer or step.name}: {error}") from error
        return replace(step, hint=row.name)

    def epilogue(self, node: Node, rows: Sequence[int] | None = None) -> Epilogue:
        """Multiplier, shift and bounds of `node`, of some of its channels."""
        m, b = (self.per_channel(node, role) for role in ("m", "b"))
        if rows is not None:
            m, b = m[list(rows)], b[list(rows)]
        lo, hi = node.attrs.get("lo", -math.inf), node.attrs.get("hi", math.inf)
        return Epilogue(m, b, float(lo), float(hi), float(node.attrs.get("m_r", 0.0)))

    def per_channel(self, node: Node, role: str) -> np.ndarray:
        """A constant [F] as one number per channel of the buffer; behind a flatten each channel spreads over pixels."""
        values = self.graph.consts[node.consts[role]].astype(np.float32)
        table = values.reshape(self.buffers[self.places[node.name]].shape[0], -1)
        if (table != table[:, :1]).any():
            raise UnsupportedError(f"{node.name}: {role} differs between the pixels of a channel behind a flatten")
        return np.ascontiguousarray(table[:, 0])


def _quantize(low: _Lowering, node: Node) -> None:
    inputs, out = low.inputs(node), low.buffer(node)
    c = low.buffers[out].shape[0]
    m = np.full(c, node.attrs["m"], np.float32)
    epilogue = Epilogue(m, np.zeros(c, np.float32), float(node.attrs["lo"]), float(node.attrs["hi"]))
    low.steps.append(Step("quantize", node.name, inputs, out, epilogue=epilogue))


def _requantize(low: _Lowering, node: Node) -> None:
    inputs, out = low.inputs(node), low.buffer(node)
    op = "product" if node.op == "product_q" else "quantize" if inputs[0] == 0 else "requantize"
    low.steps.append(Step(op, node.name, inputs, out, epilogue=low.epilogue(node)))


def _layer(low: _Lowering, node: Node) -> None:
    inputs, out = low.inputs(node), low.buffer(node)
    data, rows = low.buffers[inputs[0]], low.buffers[out].shape[0]
    groups = node.attrs.get("groups", 1)
    depthwise = groups > 1 and groups == data.shape[0] == rows
    kernel = data.shape[1:] if node.op == "linear_q" else low.graph.consts[node.consts["weight"]].shape[2:]
    segments = low.packed[node.name]
    if len(segments) > 1 and groups > 1 and not depthwise:
        raise UnsupportedError(
            f"{node.attrs['layer']}: a convolution in {groups} groups cannot hold {len(segments)} widths; give its "
            "filters one"
        )
    for i, segment in enumerate(segments):
        whole = len(segments) == 1
        low.steps.append(
            Step(
                op="depthwise_conv2d" if depthwise else "conv2d",
                name=node.name if whole else f"{node.name}#{i}",
                inputs=inputs,
                output=out,
                kernel=(kernel[0], kernel[1]),
                stride=node.attrs.get("stride", (1, 1)),
                padding=node.attrs.get("padding", (0, 0, 0, 0)),
                dilation=node.attrs.get("dilation", (1, 1)),
                groups=groups,
                weight=segment.weight,
                epilogue=low.epilogue(node, segment.places),
                out_channels=None if whole else np.array(segment.places, np.int32),
                layer=node.attrs["layer"],
            )
        )


def _pool(low: _Lowering, node: Node) -> None:
    inputs, out = low.inputs(node), low.buffer(node)
    window: dict[str, Any] = {k: tuple(node.attrs[k]) for k in ("kernel", "stride", "padding")}
    if node.op == "max_pool2d":
        low.steps.append(Step("max_pool2d", node.name, inputs, out, **window))
    else:
        low.steps.append(Step("sum_pool2d", node.name, inputs, out, **window, epilogue=low.epilogue(node)))


def _lookup(low: _Lowering, node: Node) -> None:
    inputs, out = low.inputs(node), low.buffer(node)
    table = low.graph.consts[node.consts["table"]]
    low.steps.append(Step("lookup", node.name, inputs, out, table=table))


def _gather(low: _Lowering, node: Node) -> None:
    inputs = low.inputs(node)
    _whole(low, node)
    out = low.buffer(node)
    attrs: dict[str, Any] = {k: tuple(node.attrs[k]) for k in ("stride", "padding")}
    channels = np.array(node.attrs["channels"], np.int32)
    low.steps.append(Step("gather", node.name, inputs, out, **attrs, channels=channels))


def _concat(low: _Lowering, node: Node) -> None:
    inputs = low.inputs(node)
    _whole(low, node)
    out, start = low.buffer(node), 0
    for i, number in enumerate(inputs):
        channels = np.arange(low.buffers[number].shape[0], dtype=np.int32)
        name = f"{node.name}#{i}"
        low.steps.append(Step("gather", name, (number,), out, channels=channels, out_channels=channels + start))
        start += len(channels)


def _whole(low: _Lowering, node: Node) -> None:
    """Moving single features of a flattened value has no step."""
    for number in low.inputs(node):
        if len(node.shape) == 1 and low.buffers[number].shape[1:] != (1, 1):
            raise UnsupportedError(f"{node.name}: {node.op} of a flattened value with more than one pixel a channel")


def _flatten(low: _Lowering, node: Node) -> None:
    low.places[node.name] = low.places[node.inputs[0]]


_RULES: Mapping[str, Callable[[_Lowering, Node], None]] = {
    "quantize": _quantize,
    "requantize": _requantize,
    "affine": _requantize,
    "conv2d_q": _layer,
    "linear_q": _layer,
    "sum_pool2d_q": _pool,
    "product_q": _requantize,
    "lookup": _lookup,
    "max_pool2d": _pool,
    "gather": _gather,
    "concat": _concat,
    "flatten": _flatten,
}
