"""The numpy executor against loops written down from docs/format.md, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from bitpress.compiler.execute import CHUNK, execute, values
from bitpress.compiler.program import Program, Step
from bitpress.kernels.packed import unpack

from . import samples


def loops(step: Step, program: Program, held: dict[int, np.ndarray], out: np.ndarray) -> None:
    """One step on one image, as the table of section 3 says it; writes into `out` [C, H, W]."""
    x = held[step.inputs[0]]
    residual = held[step.inputs[1]] if len(step.inputs) > 1 else None
    (kh, kw), (sh, sw), (dh, dw), (top, left, *_) = step.kernel, step.stride, step.dilation, step.padding
    rows = range(len(step.out_channels) if step.out_channels is not None else len(out))
    weights = unpack(step.weight) if step.weight is not None else None
    per_group = x.shape[0] // step.groups
    floats = program.buffers[step.output].storage == "f32"
    for row in rows:
        channel = int(step.out_channels[row]) if step.out_channels is not None else row
        for oy, ox in np.ndindex(out.shape[1:]):
            taps = {(ky, kx): (oy * sh - top + ky * dh, ox * sw - left + kx * dw) for ky, kx in np.ndindex(kh, kw)}
            inside = {k: yx for k, yx in taps.items() if 0 <= yx[0] < x.shape[1] and 0 <= yx[1] < x.shape[2]}
            if step.op == "conv2d":
                assert weights is not None
                first = row // (len(rows) // step.groups) * per_group
                w = weights[row].reshape(kh, kw, per_group)
                acc = sum(int(w[k] @ x[first : first + per_group, y, z]) for k, (y, z) in inside.items())
            elif step.op == "depthwise_conv2d":
                assert weights is not None
                acc = sum(int(weights[row].reshape(kh, kw)[k]) * int(x[channel, y, z]) for k, (y, z) in inside.items())
            elif step.op == "sum_pool2d":
                acc = sum(int(x[row, y, z]) for y, z in inside.values())
            elif step.op == "max_pool2d":
                acc = max(x[row, y, z] for y, z in inside.values())
            elif step.op == "product":
                assert residual is not None
                gate = residual[row, oy % residual.shape[1], ox % residual.shape[2]]
                acc = int(x[row, oy, ox]) * int(gate)
            elif step.op == "lookup":
                assert step.table is not None
                acc = step.table[int(x[row, oy, ox]) % len(step.table)]
            elif step.op == "gather":
                assert step.channels is not None
                source = int(step.channels[row])
                acc = x[source, inside[0, 0][0], inside[0, 0][1]] if source >= 0 and inside else 0
            else:
                acc = x[row, oy, ox]
            if step.epilogue is not None:
                e = step.epilogue
                t = np.float32(np.float32(acc) * e.m[row])
                t = np.float32(t + e.b[row])
                if residual is not None and step.op != "product":
                    t = np.float32(t + np.float32(np.float32(residual[channel, oy, ox]) * np.float32(e.m_r)))
                acc = min(max(t if floats else np.rint(t), np.float32(e.lo)), np.float32(e.hi))
            out[channel, oy, ox] = acc


@pytest.mark.parametrize("make", [samples.straight, samples.everything, samples.gates])
def test_executor_equals_loops(make: object) -> None:
    program: Program = make()  # type: ignore[operator]
    x = np.random.default_rng(3).normal(size=(1, *program.buffers[0].shape)).astype(np.float32)
    got = values(program, x)
    held = {program.input: x[0]}
    for step in program.steps:
        buffer = program.buffers[step.output]
        kind = np.float32 if buffer.storage == "f32" else np.int32
        out = held.setdefault(step.output, np.zeros(buffer.shape, kind))
        loops(step, program, held, out)
    for number, value in held.items():
        if number != program.input:
            np.testing.assert_array_equal(got[program.buffers[number].name][0], value, program.buffers[number].name)


def test_batches_are_independent() -> None:
    program = samples.straight("o2", "u2")
    x = np.random.default_rng(4).normal(size=(CHUNK + 3, 3, 8, 8)).astype(np.float32)
    together = execute(program, x)
    assert together.shape == (CHUNK + 3, 10) and together.dtype == np.float32
    np.testing.assert_array_equal(together, np.concatenate([execute(program, x[i : i + 1]) for i in range(len(x))]))
    assert execute(program, x[:0]).shape == (0, 10)
