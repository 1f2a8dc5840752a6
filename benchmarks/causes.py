"""Why a layer takes longer than its bound: parts of its time, counted or measured, and one sentence. Prints nothing.

What a kernel pads is counted from its row of kernels.def. What does not grow with K (requantisation, above all) is
measured: the same kernel on the layer alone, with all and with half of its input channels, gives two points of a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from ..compiler import artifact
from ..compiler.program import Program, Step
from ..core.encoding import parse
from ..kernels.kernel import Kernel
from ..kernels.registry import ROWS
from .harness import measure
from .roofline import Bound, Roofs, bound, work
from .shapes import CONV, Shape, program, session

AT_BOUND = 0.95  # share of its bound from which a layer needs no explanation: below, times differ by as much
SECONDS, WARM_UP_SECONDS = 0.04, 0.005  # for the two points of one layer


@dataclass(frozen=True, slots=True)
class Padded:
    """What a kernel really multiplies and reads: `rows` of `depth` products a pixel, `weight_bytes` once."""

    rows: int
    depth: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Parts:
    """Milliseconds of one step. `arithmetic` and `memory` make the bound; the others come on top of it.

    `padding`: products that the kernel adds, at the peak. `expansion`: weights wider than they are stored, at the read
    rate, as far as products do not hide it. `fixed`: measured, does not grow with K; None where it was not measured.
    """

    arithmetic: float
    memory: float
    padding: float = 0.0
    expansion: float = 0.0
    fixed: float | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """The parts of a step and the sentence about them, "" where there is nothing to explain."""

    parts: Parts
    why: str


def padded(step: Step, in_shape: tuple[int, int, int], kernel: Kernel) -> Padded:
    """`step` on an input of that shape as `kernel` computes it, by the layouts of csrc/runtime/bound.cc.

    Bit slices have lists of what is added: no row and no product is padded, and what lists take depends on the values.
    """
    assert step.weight is not None
    rows, depth = step.weight.shape
    if kernel.family == "bitsliced":
        return Padded(rows, depth, int(step.weight.fields.nbytes))
    each = -(-rows // step.groups)
    rows = step.groups * -(-each // kernel.lanes) * kernel.lanes
    if kernel.family.startswith("winograd"):
        channels = -(-(in_shape[0] // step.groups) // kernel.group) * kernel.group
        return Padded(rows, 9 * channels, rows * channels * 16 * (2 if _wide(kernel) else 1))
    joined = step.kernel[1] if step.dilation[1] == 1 else 1  # the taps of a row of the kernel follow one another
    run = in_shape[0] // step.groups * joined
    if step.kernel == in_shape[1:] and step.groups == 1 and not any(step.padding):
        run = depth  # the whole input is the window
    if kernel.family == "bitserial":
        depth = -(-depth // kernel.group) * kernel.group
        return Padded(rows, depth, rows * depth * step.weight.encoding.bits // 8)
    if kernel.family == "gemv":
        bits = step.weight.encoding.bits
        chunk = 32 * kernel.lanes // bits  # elements of a vector of fields, four bytes a lane
        depth = -(-depth // chunk) * chunk
        return Padded(rows, depth, rows * depth * bits // 8)
    if kernel.family.startswith("depthwise"):
        return Padded(rows, depth, 4 * rows * depth)
    depth = depth // run * -(-run // kernel.group) * kernel.group
    if kernel.family == "lut":
        return Padded(rows, depth, rows * depth // kernel.group)
    return Padded(rows, depth, rows * depth * (2 if _wide(kernel) else 1))


def fixed_parts(
    native: ModuleType, flat: Program, kernels: Sequence[str], *, batch: int, threads: int
) -> Mapping[int, float]:
    """Step -> milliseconds that do not grow with K, for the matrix products of `flat` bound to `kernels`.

    Absent where K cannot be halved: grouped and depthwise layers, and those with one input channel.
    """
    known: dict[Any, float] = {}
    out = {}
    for i, (step, kernel) in enumerate(zip(flat.steps, kernels, strict=True)):
        shape = _shape(step, flat)
        if shape is None or step.weight is None:
            continue
        encodings = step.weight.encoding, parse(flat.buffers[step.inputs[0]].storage)
        key = (shape, encodings, kernel)
        if key not in known:
            halves = (shape, replace(shape, in_shape=(shape.in_shape[0] // 2, *shape.in_shape[1:])))
            candidates = {}
            for half in halves:
                alone, x = program(half, *encodings)
                bound_to = session(native, artifact.encode(alone), kernel, threads)
                candidates[str(half)] = partial(bound_to.profile, np.repeat(x, batch, axis=0))
            timings = measure(
                candidates, seconds=SECONDS, warm_up=WARM_UP_SECONDS, took=lambda _n, _ms, result: float(result[CONV])
            )
            known[key] = _intercept(*((half.depth, timings[str(half)].median) for half in halves))
        out[i] = known[key]
    return out


def _shape(step: Step, flat: Program) -> Shape | None:
    """The layer of `step` alone; None where its K cannot be halved by halving its channels."""
    in_shape = flat.buffers[step.inputs[0]].shape
    if step.op != "conv2d" or step.groups > 1 or in_shape[0] < 2 or step.weight is None:
        return None
    return Shape(in_shape, step.weight.shape[0], step.kernel, step.stride, step.padding, step.dilation)


def _intercept(whole: tuple[int, float], half: tuple[int, float]) -> float:
    """Where the line through two points (K, milliseconds) meets K = 0; within 0 and the time of the whole.

    >>> _intercept((8, 5.0), (4, 3.0))
    1.0
    """
    slope = (whole[1] - half[1]) / (whole[0] - half[0])
    return min(max(whole[1] - slope * whole[0], 0.0), whole[1])


def cause(
    step: Step, flat: Program, kernel: str, median: float, roofs: Roofs, *, batch: int, fixed: float | None
) -> Cause | None:
    """Why `step`, bound to `kernel`, takes `median` milliseconds on `batch` images; None where no bound is known."""
    row = next(one for one in ROWS if one.name == kernel)
    job = work(step, flat)
    least = bound(job, kernel, row.isa, roofs, batch)
    if least is None or roofs.bytes_per_second is None:
        return None
    if step.weight is None:
        parts = Parts(least.arithmetic, least.memory)
        return Cause(parts, _values(step, flat, least, median, batch))
    real = padded(step, flat.buffers[step.inputs[0]].shape, row)
    times = real.rows * real.depth / (step.weight.shape[0] * step.weight.shape[1])
    products = least.arithmetic * times
    memory = 1e3 * (real.weight_bytes + batch * job.value_bytes) / roofs.bytes_per_second
    parts = Parts(
        least.arithmetic, least.memory, max(0.0, products - least.least),
        max(0.0, memory - max(products, least.least)), None if fixed is None else min(fixed, median),
    )  # fmt: skip
    return Cause(parts, _sentence(step, row, real, parts, least, median, batch * job.macs // step.weight.shape[1]))


def _values(step: Step, flat: Program, least: Bound, median: float, batch: int) -> str:
    """Of a step without products."""
    if least.least >= AT_BOUND * median:
        return ""
    values = batch * int(np.prod(flat.buffers[step.output].shape))
    return (
        f"{step.op} multiplies nothing: its bytes take {_us(least.memory)} of {_us(median)} us, which are "
        f"{1e6 * median / values:.2f} ns for each of {values:,} values"
    )


def _sentence(step: Step, row: Kernel, real: Padded, parts: Parts, least: Bound, median: float, outputs: int) -> str:
    """The largest part above the bound, with its figures."""
    if least.least >= AT_BOUND * median or step.weight is None:
        return ""
    fixed = parts.fixed or 0.0
    rest = median - least.least - parts.padding - parts.expansion - fixed
    stored, bits = int(step.weight.fields.nbytes), step.weight.encoding.bits
    spent = f"{_us(parts.arithmetic)} of {_us(median - fixed)} us"
    share = _share(parts.arithmetic, median - fixed)
    slow = f"the part that grows with K{_form(step, row)} runs at {share} of the peak ({spent})"
    if parts.fixed is None:
        depth = step.weight.shape[1]
        slow = f"{step.op}: {outputs:,} outputs of {depth} products, {1e6 * median / outputs:.2f} ns each"
    said = (
        (parts.padding, _padding(step, real) + f", {_us(parts.padding)} us more at the peak"),
        (parts.expansion, f"{stored:,} bytes of {bits}-bit weights are {real.weight_bytes:,} to {row.name}, "
                          f"{_us(parts.expansion)} us more to read"),
        (fixed, f"{_us(fixed)} us do not grow with K (requantising {outputs:,} outputs), by the time at half of K"),
        (rest, slow),
    )  # fmt: skip
    bound_by = "memory-bound, its bytes" if least.limit == "bytes" else "its products at the peak"
    return f"{bound_by} take {_us(least.least)} of {_us(median)} us; {max(said)[1]}"


def _form(step: Step, row: Kernel) -> str:
    """How kernels that multiply whole bytes see narrower weights, or bytes as int16; "" where neither is so."""
    if not row.family.startswith(("i8dot", "s8dot")) or step.weight is None:
        return ""
    wide = _wide(row)
    if step.weight.encoding.bits == 8 and not wide:
        return ""
    return f", {step.weight.encoding.bits}-bit weights as {'int16' if wide else 'bytes'},"


def _wide(row: Kernel) -> bool:
    """Whether a kernel of whole bytes widens them to int16: its instructions take fewer than four."""
    return row.group < 4


def _padding(step: Step, real: Padded) -> str:
    """What is padded from what to what, and how many times the products that makes."""
    assert step.weight is not None
    rows, depth = step.weight.shape
    sides = (("M", rows, real.rows), ("K", depth, real.depth))
    said = " and ".join(f"{name} padded {before} -> {after}" for name, before, after in sides if after != before)
    return f"{said}: {real.rows * real.depth / (rows * depth):.2f} times the products"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole > 0 else "-"


def _us(milliseconds: float) -> str:
    return f"{1e3 * milliseconds:.2f}"
