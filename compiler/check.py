"""What a Program must satisfy before it is written or run (docs/format.md 3), each rule by its error's name.

`csrc/runtime/program.cc` checks the same, in the same order. Knows no bytes of the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..core.encoding import INT32_MAX, Encoding, parse
from ..core.ops import window_out
from ..core.quant import act_bounds
from ..kernels.packed import field_bytes
from .container import ALIGN, FormatError
from .program import Buffer, Program, Step

MAX_ARENA = 1 << 30  # bytes per image
MAX_SIDE = 0xFFFF
MAX_COUNT = 0xFFFFFFFF
CONVOLUTIONS = ("conv2d", "depthwise_conv2d")
POOLS = ("max_pool2d", "sum_pool2d")
WITH_RESIDUAL = ("requantize", "sum_pool2d", *CONVOLUTIONS)
OF_LEVELS = ("sum_pool2d", "lookup", "product", *CONVOLUTIONS)  # what reads no floats


def check(program: Program) -> None:
    """FormatError if `program` breaks any rule of docs/format.md 3."""
    _check_head(program)
    written: list[set[int] | None] = [set() for _ in program.buffers]  # channels; None: all of them
    written[program.input] = None
    for step in program.steps:
        _check_references(step, program)
        _check_shape(step, program.buffers)
        _check_storage(step, program.buffers)
        _check_indices(step, program.buffers)
        _check_epilogue(step, program.buffers)
        _check_table(step, program.buffers)
        _check_weights(step)
        _check_range(step, program.buffers)
        for number in step.inputs:
            _check_written(written[number], program.buffers[number], step.name)
        before = written[step.output]
        numbers = step.out_channels
        written[step.output] = None if before is None or numbers is None else before | set(numbers.tolist())
    _check_written(written[program.output], program.buffers[program.output], "the caller")
    _check_facts(program)


def rows_of(step: Step, buffers: Sequence[Buffer]) -> int:
    """Number of output channels that the step computes."""
    if step.weight is not None:
        return step.weight.shape[0]
    if step.channels is not None:
        return len(step.channels)
    if step.epilogue is not None:
        return len(step.epilogue.m)
    return buffers[step.output].shape[0]


def row_sums(encoding: Encoding, fields: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Per row, int64 [rows]: sum of offset-free levels, sum of |level|, of packed `fields` [rows, bytes]."""
    per_byte = 8 // encoding.bits
    codes = (np.arange(256)[:, None] >> (encoding.bits * np.arange(per_byte))) & (2**encoding.bits - 1)
    levels = encoding.decode(codes).astype(np.int64)
    tail = fields.shape[1] * per_byte - depth  # unused fields hold code 0
    sums = (levels - encoding.offset).sum(axis=1)[fields].sum(axis=1)
    magnitudes = np.abs(levels).sum(axis=1)[fields].sum(axis=1) - tail * abs(int(encoding.levels()[0]))
    return sums, magnitudes


def _fail(name: str, step: Step, detail: str) -> FormatError:
    return FormatError(name, f"step {step.name} ({step.op}): {detail}")


def _check_head(program: Program) -> None:
    if not program.arena_bytes <= MAX_ARENA:
        raise FormatError(
            "ArenaOverflow", f"the arena has {program.arena_bytes} bytes, at most {MAX_ARENA} are allowed"
        )
    for number in (program.input, program.output):
        if not 0 <= number < len(program.buffers):
            raise FormatError("BadReference", f"program: buffer {number}, there are {len(program.buffers)}")
    if program.input == program.output:
        raise FormatError("BadReference", "program: input and output are the same buffer")
    for number, buffer in enumerate(program.buffers):
        _check_buffer(buffer, program.arena_bytes, external=number == program.input)
    for number in (program.input, program.output):
        if program.buffers[number].storage != "f32":
            raise FormatError("BadEnum", "program: input and output must be f32")
    _check_unique([b.name for b in program.buffers], "buffers")
    _check_unique([s.name for s in program.steps], "steps")


def _check_unique(names: list[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            raise FormatError("DuplicateName", f"{what}: name {name!r} is empty or occurs twice")
        seen.add(name)


def _check_buffer(buffer: Buffer, arena_bytes: int, *, external: bool) -> None:
    label = f"buffer {buffer.name}"
    c, h, w = buffer.shape
    if not (1 <= c <= MAX_COUNT and 1 <= h <= MAX_SIDE and 1 <= w <= MAX_SIDE):
        raise FormatError("BadShape", f"{label}: shape {buffer.shape}, each must be at least 1 and sides below 65536")
    size = c * h * w * (4 if buffer.storage == "f32" else 1)
    if buffer.bytes != size:
        raise FormatError("SizeMismatch", f"{label}: {buffer.bytes} bytes, shape {buffer.shape} needs {size}")
    if buffer.offset % ALIGN:
        raise FormatError("BadAlignment", f"{label}: offset {buffer.offset} is no multiple of {ALIGN}")
    end, cap = buffer.offset + size, MAX_ARENA if external else arena_bytes
    if end > cap or (external and buffer.offset):
        raise FormatError("ArenaOverflow", f"{label}: bytes {buffer.offset}..{end} lie outside of {cap}")


def _check_references(step: Step, program: Program) -> None:
    for number in (*step.inputs, step.output):
        if not 0 <= number < len(program.buffers):
            raise _fail("BadReference", step, f"buffer {number}, there are {len(program.buffers)}")
    if step.op == "product" and len(step.inputs) != 2:
        raise _fail("BadReference", step, "has no second factor")
    if len(step.inputs) > 1 and step.op not in (*WITH_RESIDUAL, "product"):
        raise _fail("BadReference", step, "has a residual")
    if step.output == program.input or step.output in step.inputs:
        raise _fail("BadReference", step, "writes the input or a buffer that it reads")
    if (step.op == "quantize") != (step.inputs[0] == program.input) or program.input in step.inputs[1:]:
        raise _fail("BadReference", step, "quantize reads the program's input, and no other step does")


def _check_shape(step: Step, buffers: Sequence[Buffer]) -> None:
    (c, h, w), (out_c, out_h, out_w) = buffers[step.inputs[0]].shape, buffers[step.output].shape
    rows = rows_of(step, buffers)
    (kh, kw), (sh, sw), (dh, dw) = step.kernel, step.stride, step.dilation
    top, left, bottom, right = step.padding
    if min(kh, kw, sh, sw, dh, dw, step.groups, rows) < 1:
        raise _fail("BadShape", step, "kernel, stride, dilation, groups and rows must be at least 1")
    plain = (kh, kw) == (1, 1) and (step.op == "gather" or ((sh, sw) == (1, 1) and step.padding == (0, 0, 0, 0)))
    if step.op not in (*CONVOLUTIONS, *POOLS) and not plain:
        raise _fail("BadShape", step, f"kernel {step.kernel}, stride {step.stride}, padding {step.padding} do not fit")
    if step.op not in CONVOLUTIONS and ((dh, dw) != (1, 1) or step.groups != 1):
        raise _fail("BadShape", step, f"dilation {step.dilation} or groups {step.groups} do not fit")
    sides = window_out(h, kh, sh, top + bottom, dh), window_out(w, kw, sw, left + right, dw)
    if sides != (out_h, out_w):
        raise _fail("BadShape", step, f"makes {sides[0]} x {sides[1]}, its output is {out_h} x {out_w}")
    if rows > out_c or (step.out_channels is None and rows != out_c):
        raise _fail("BadShape", step, f"{rows} rows, its output has {out_c} channels")
    if not _channels_fit(step, c, out_c, rows):
        raise _fail("BadShape", step, f"{c} channels in, {out_c} out, {step.groups} groups, {rows} rows do not fit")
    if step.op == "max_pool2d" and (max(top, bottom) >= kh or max(left, right) >= kw):
        raise _fail("BadShape", step, f"padding {step.padding} is not smaller than kernel {step.kernel}")
    shapes = ((out_c, out_h, out_w), (out_c, 1, 1)) if step.op == "product" else ((out_c, out_h, out_w),)
    if len(step.inputs) > 1 and buffers[step.inputs[1]].shape not in shapes:
        raise _fail("BadShape", step, f"residual is {buffers[step.inputs[1]].shape}, output {(out_c, out_h, out_w)}")


def _channels_fit(step: Step, c: int, out_c: int, rows: int) -> bool:
    area = step.kernel[0] * step.kernel[1]
    depth = step.weight.shape[1] if step.weight is not None else 0
    if step.op == "conv2d":
        whole = c % step.groups == 0 and rows % step.groups == 0
        return whole and depth == area * (c // step.groups) and (step.groups == 1 or step.out_channels is None)
    if step.op == "depthwise_conv2d":
        return step.groups == c == out_c and depth == area
    return step.op == "gather" or c == out_c


def _check_storage(step: Step, buffers: Sequence[Buffer]) -> None:
    source, target = buffers[step.inputs[0]].storage, buffers[step.output].storage
    factor = buffers[step.inputs[1]].storage if step.op == "product" else source
    if step.op in OF_LEVELS and "f32" in (source, factor):
        raise _fail("BadEnum", step, "reads floats, but works on levels")
    if step.op in ("max_pool2d", "gather") and source != target:
        raise _fail("BadEnum", step, f"reads {source} and writes {target}")


def _check_indices(step: Step, buffers: Sequence[Buffer]) -> None:
    limits = (
        (step.out_channels, 0, buffers[step.output].shape[0]),
        (step.channels, -1, buffers[step.inputs[0]].shape[0]),
    )
    for numbers, low, limit in limits:
        if numbers is not None and (numbers.min() < low or numbers.max() >= limit):
            raise _fail("BadIndices", step, f"channel {int(numbers.min())} or {int(numbers.max())} of {limit}")
    if step.out_channels is not None and len(np.unique(step.out_channels)) != len(step.out_channels):
        raise _fail("BadIndices", step, "writes a channel twice")


def _check_epilogue(step: Step, buffers: Sequence[Buffer]) -> None:
    e = step.epilogue
    if e is None:
        return
    if not (np.isfinite(e.m).all() and np.isfinite(e.b).all() and math.isfinite(e.m_r)):
        raise _fail("NonFinite", step, "m, b or m_r is NaN or infinite")
    if math.isnan(e.lo) or math.isnan(e.hi):
        raise _fail("NonFinite", step, f"bounds {e.lo} .. {e.hi}")
    if e.lo > e.hi or (e.m_r != 0 and (len(step.inputs) == 1 or step.op == "product")):
        raise _fail("BadEpilogue", step, f"bounds {e.lo} .. {e.hi}, residual multiplier {e.m_r}")
    storage = buffers[step.output].storage
    if storage == "f32":
        return
    low, high = act_bounds(parse(storage))
    if e.lo < low or e.hi > high or e.lo != int(e.lo) or e.hi != int(e.hi):
        raise _fail("BadEpilogue", step, f"bounds {e.lo} .. {e.hi} are not levels of {storage} ({low} .. {high})")


def _check_table(step: Step, buffers: Sequence[Buffer]) -> None:
    if step.table is None:
        return
    storage, codes = buffers[step.output].storage, 2 ** parse(buffers[step.inputs[0]].storage).bits
    if len(step.table) != codes:
        raise _fail("BadTable", step, f"has {len(step.table)} entries, its input {codes} codes")
    if not np.isfinite(step.table).all():
        raise _fail("NonFinite", step, "an entry of the table is NaN or infinite")
    if storage == "f32":
        return
    low, high = act_bounds(parse(storage))
    if not ((step.table >= low) & (step.table <= high) & (step.table == np.trunc(step.table))).all():
        raise _fail("BadTable", step, f"an entry of the table is no level of {storage} ({low} .. {high})")


def _check_weights(step: Step) -> None:
    w = step.weight
    if w is None:
        return
    needed = (w.shape[0], field_bytes(w.shape[1], w.encoding.bits))
    if w.fields.shape != needed:
        raise _fail("SizeMismatch", step, f"weights are {w.fields.shape} bytes, {w.shape} {w.encoding} need {needed}")
    used = w.shape[1] * w.encoding.bits % 8
    if used and (w.fields[:, -1] >> used).any():
        raise _fail("NonZeroPadding", step, "unused bits at the end of a row are not zero")


def _check_range(step: Step, buffers: Sequence[Buffer]) -> None:
    storage = buffers[step.inputs[0]].storage
    if storage == "f32":
        return
    top = act_bounds(parse(storage))[1]
    largest = 0
    if step.op == "sum_pool2d":
        largest = step.kernel[0] * step.kernel[1] * top
    if step.weight is not None:
        sums, magnitudes = row_sums(step.weight.encoding, step.weight.fields, step.weight.shape[1])
        largest = max(int(np.abs(sums).max()), int(magnitudes.max()) * top)
    if largest > INT32_MAX:
        raise _fail("AccumulatorOverflow", step, f"a sum can reach {largest}, int32 ends at {INT32_MAX}")


def _check_written(written: set[int] | None, buffer: Buffer, reader: str) -> None:
    if written is not None and len(written) != buffer.shape[0]:
        raise FormatError(
            "UnwrittenRead",
            f"{reader} reads {buffer.name}, of which {len(written)} of {buffer.shape[0]} channels have been written",
        )


def _check_facts(program: Program) -> None:
    channels = program.buffers[program.input].shape[0]
    if len(program.mean) != channels or len(program.std) != channels:
        raise FormatError("SizeMismatch", f"mean and std of {len(program.mean)} channels, the input has {channels}")
    if not (np.isfinite(program.mean).all() and np.isfinite(program.std).all()):
        raise FormatError("NonFinite", "mean or std is NaN or infinite")
    if not (program.std > 0).all():
        raise FormatError("BadScale", "a std is not above 0")
    outputs = math.prod(program.buffers[program.output].shape)
    if program.labels and len(program.labels) != outputs:
        raise FormatError("SizeMismatch", f"{len(program.labels)} labels, the output has {outputs} values")
    if (program.golden_input is None) != (program.golden_output is None):
        raise FormatError("MissingSection", "golden_input and golden_output must come together")
    for golden, number in ((program.golden_input, program.input), (program.golden_output, program.output)):
        if golden is None:
            continue
        if golden.size != math.prod(program.buffers[number].shape):
            raise FormatError("SizeMismatch", f"golden sample of {golden.shape} for {program.buffers[number].shape}")
        if not np.isfinite(golden).all():
            raise FormatError("NonFinite", "the golden sample holds NaN or infinity")
