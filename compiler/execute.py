"""The numpy meaning of a Program: slow, exact, one line of thought per op. The C++ session is compared with it.

Serves as stage "program reference" of `verify` and runs artifacts where the native module is absent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..core import quant
from ..core.ops import looked_up, windows
from ..kernels.packed import unpack
from .program import Program, Step

CHUNK = 32  # images at a time, so that the windows of a layer fit in memory

Values = dict[str, np.ndarray]


def execute(program: Program, x: np.ndarray) -> np.ndarray:
    """float32 normalised images [N, C, H, W] -> float32 [N, outputs]."""
    name = program.buffers[program.output].name
    chunks = [values(program, x[i : i + CHUNK])[name] for i in range(0, len(x), CHUNK)]
    outputs = int(np.prod(program.buffers[program.output].shape))
    return np.concatenate(chunks).reshape(len(x), outputs) if chunks else np.empty((0, outputs), np.float32)


def values(program: Program, x: np.ndarray, *, given: Values | None = None) -> Values:
    """Every buffer's contents by name, in the order of the steps: levels int32 or float32, [N, C, H, W].

    `given`: contents that steps shall read in place of what other steps made of `x`.
    """
    held: list[np.ndarray | None] = [None] * len(program.buffers)
    held[program.input] = x
    for step in program.steps:
        inputs = [(given or {}).get(program.buffers[n].name, _held(held, n)) for n in step.inputs]
        if held[step.output] is None:
            buffer = program.buffers[step.output]
            held[step.output] = np.zeros((len(x), *buffer.shape), np.float32 if buffer.storage == "f32" else np.int32)
        rows = slice(None) if step.out_channels is None else step.out_channels
        _held(held, step.output)[:, rows] = _run(step, program, inputs)
    order = dict.fromkeys(step.output for step in program.steps)
    return {program.buffers[number].name: _held(held, number) for number in order}


def _held(held: list[np.ndarray | None], number: int) -> np.ndarray:
    value = held[number]
    assert value is not None, "check() has proved that every buffer is written before it is read"
    return value


def _run(step: Step, program: Program, inputs: list[np.ndarray]) -> np.ndarray:
    data, residual = inputs[0], inputs[1] if len(inputs) > 1 else None
    if step.op == "product":
        data, residual = inputs[0] * inputs[1], None
    if step.table is not None:
        return looked_up(step.table, data, program.buffers[step.output].storage)
    acc = MEANING[step.op](step, data)
    if step.epilogue is None:
        return acc
    e = step.epilogue
    m, b = e.m.reshape(1, -1, 1, 1), e.b.reshape(1, -1, 1, 1)
    if residual is not None and step.out_channels is not None:
        residual = residual[:, step.out_channels]
    with np.errstate(over="ignore"):  # infinity is a float that the clamp handles
        t = quant.affine(acc, m, b, residual=residual, m_r=np.float32(e.m_r))
    if program.buffers[step.output].storage == "f32":
        return np.clip(t, np.float32(e.lo), np.float32(e.hi))
    return np.clip(quant.round_half_even(t), np.float32(e.lo), np.float32(e.hi)).astype(np.int32)


def _attrs(step: Step) -> dict[str, tuple[int, ...]]:
    return {"kernel": step.kernel, "stride": step.stride, "padding": step.padding, "dilation": step.dilation}


def levels(step: Step, channels: int) -> np.ndarray:
    """Weight levels of a convolution, float64 [rows, channels, kh, kw]; stored in the order (ky, kx, c)."""
    assert step.weight is not None, "check() has proved that convolutions have weights"
    return unpack(step.weight).reshape(-1, *step.kernel, channels).transpose(0, 3, 1, 2).astype(np.float64)


def _conv2d(step: Step, x: np.ndarray) -> np.ndarray:
    """Exact: float64 holds every integer below 2**53."""
    per_group = x.shape[1] // step.groups
    w = levels(step, per_group).reshape(step.groups, -1, per_group, *step.kernel)
    view = windows(x, _attrs(step)).astype(np.float64)
    parts = [
        np.tensordot(view[:, g * per_group : (g + 1) * per_group], w[g], axes=([1, 4, 5], [1, 2, 3]))
        for g in range(step.groups)
    ]
    return np.concatenate(parts, axis=3).transpose(0, 3, 1, 2).astype(np.int32)


def _depthwise_conv2d(step: Step, x: np.ndarray) -> np.ndarray:
    x = x if step.out_channels is None else x[:, step.out_channels]
    view = windows(x, _attrs(step)).astype(np.float64)
    return np.einsum("ncyxhw,chw->ncyx", view, levels(step, 1)[:, 0]).astype(np.int32)


def _max_pool2d(step: Step, x: np.ndarray) -> np.ndarray:
    fill = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return windows(x, _attrs(step), fill).max(axis=(4, 5))


def _sum_pool2d(step: Step, x: np.ndarray) -> np.ndarray:
    return windows(x, _attrs(step)).sum(axis=(4, 5), dtype=np.int64).astype(np.int32)


def _gather(step: Step, x: np.ndarray) -> np.ndarray:
    assert step.channels is not None, "check() has proved that a gather has channels"
    picked = np.where((step.channels >= 0)[:, None, None], x[:, np.maximum(step.channels, 0)], x.dtype.type(0))
    return windows(picked, _attrs(step))[..., 0, 0]


MEANING: dict[str, Callable[[Step, np.ndarray], np.ndarray]] = {
    "quantize": lambda _step, x: x,
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise_conv2d,
    "requantize": lambda _step, x: x,
    "max_pool2d": _max_pool2d,
    "sum_pool2d": _sum_pool2d,
    "gather": _gather,
    "product": lambda _step, x: x,
}
