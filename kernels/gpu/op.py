"""`bitpress::layer`, a layer as one operator of torch: opaque to its compilers, with shapes for them, on CPU and GPU.

On the CPU numpy computes it (kernels/gpu/exact.py), on a GPU the Triton families, and both give the same bits. It has
no gradient. All that is no tensor travels as plain values, so that exported programs hold it.
"""
# ruff: noqa: ARG001 - every implementation has the operator's signature

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from ...core.encoding import parse
from ...core.errors import UsageError
from . import exact
from .layout import Form, Storage, form_of, parse_storage
from .window import Window

NAME = "bitpress::layer"
FLOATS, SUMS, NONE = "f32", "i32", "none"


def spell(form: Form, out: Storage | str, residual: Storage | str | None) -> str:
    """A layer without its tensors: weights, activations, rows, taps, channels, output, residual."""
    shape = f"{form.rows} {form.taps} {form.channels}"
    return f"{form.encoding.name} {form.act} {shape} {out} {NONE if residual is None else residual}"


@lru_cache(maxsize=1024)
def read(spec: str) -> tuple[Form, Storage | str, Storage | str | None]:
    """Inverse of `spell`; UsageError where it is none."""
    words = spec.split()
    try:
        weight, act, rows, taps, channels, out, residual = words
        form = form_of((int(rows), int(taps), int(channels)), parse(weight), parse_storage(act))
    except ValueError as error:
        raise UsageError(
            f"{spec!r} is no layer: weights, activations, rows, taps, channels, output, residual"
        ) from error
    kept = None if residual == NONE else residual if residual == FLOATS else parse_storage(residual)
    return form, out if out in (FLOATS, SUMS) else parse_storage(out), kept


def geometry(window: Sequence[int]) -> Window:
    """The ten numbers of a window: kernel, stride, padding (top, left, bottom, right), dilation."""
    k0, k1, s0, s1, top, left, bottom, right, d0, d1 = window
    return Window((k0, k1), (s0, s1), (top, left, bottom, right), (d0, d1))


def numbers(window: Window) -> list[int]:
    """Inverse of `geometry`."""
    return [*window.kernel, *window.stride, *window.padding, *window.dilation]


@torch.library.custom_op(NAME, mutates_args=(), device_types="cpu")
def layer(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    fields: torch.Tensor,
    correction: torch.Tensor,
    m: torch.Tensor,
    b: torch.Tensor,
    spec: str,
    window: Sequence[int],
    m_r: float,
    lo: float,
    hi: float,
) -> torch.Tensor:
    """x as the layer stores it, [..., K] or [N, H, W, C] -> the result as it stores that; see kernels/gpu/call.py."""
    form, out, kept = read(spec)
    shape = _shape(x, form, geometry(window))
    _check(x, residual, form, kept, shape)
    held = None
    if residual is not None:
        held = kept.load(residual.numpy(), form.rows) if isinstance(kept, Storage) else residual.numpy()
    acc = exact.sums(x.numpy(), form, fields.numpy(), geometry(window))
    made = exact.finish(acc, out, m.numpy(), b.numpy(), lo=lo, hi=hi, residual=held, m_r=m_r)
    return torch.from_numpy(np.ascontiguousarray(made))


@layer.register_fake
def _(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    fields: torch.Tensor,
    correction: torch.Tensor,
    m: torch.Tensor,
    b: torch.Tensor,
    spec: str,
    window: Sequence[int],
    m_r: float,
    lo: float,
    hi: float,
) -> torch.Tensor:
    form, out, _ = read(spec)
    shape = _shape(x, form, geometry(window))
    if isinstance(out, Storage):
        return x.new_empty((*shape[:-1], out.bytes(form.rows)), dtype=torch.int8)
    return x.new_empty(tuple(shape), dtype=torch.float32 if out == FLOATS else torch.int32)


def by_triton(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    fields: torch.Tensor,
    correction: torch.Tensor,
    m: torch.Tensor,
    b: torch.Tensor,
    spec: str,
    window: Sequence[int],
    m_r: float,
    lo: float,
    hi: float,
) -> torch.Tensor:
    """The op by the Triton families, on a GPU or in the interpreter; EnvironmentMissing without triton."""
    from . import conv2d, linear, need

    need()
    from . import call

    form, out, kept = read(spec)
    end = call.Epilogue(out, kept, m, b, m_r, lo, hi, width=form.rows)
    made = call.Layer(form, end, fields, correction, call.fill(form, x.device), ones=call.ones(form, x.device))
    geo = geometry(window)
    if geo == Window():
        return linear(x, made, residual=residual)
    return conv2d(x, made, geo, residual=residual)


layer.register_kernel("cuda")(by_triton)


def _shape(x: torch.Tensor, form: Form, window: Window) -> Sequence[int]:
    """Of the result in channels."""
    if window == Window():
        return (*x.shape[:-1], form.rows)
    if x.ndim != 4:
        raise UsageError(f"x has {x.ndim} dimensions; a convolution takes [N, H, W, C]")
    return (x.shape[0], *window.out(x.shape[1], x.shape[2]), form.rows)


def _check(
    x: torch.Tensor, residual: torch.Tensor | None, form: Form, kept: Storage | str | None, shape: Sequence[int]
) -> None:
    """What call.check does on a GPU, as far as numpy would not notice."""
    if x.dtype != torch.int8 or x.shape[-1] != form.act.bytes(form.channels):
        want = f"int8 [..., {form.act.bytes(form.channels)}]"
        raise UsageError(f"x is {str(x.dtype).removeprefix('torch.')} {list(x.shape)}, the layer takes {want}")
    if (residual is None) != (kept is None):
        given = "without" if residual is None else "with"
        raise UsageError(f"the layer was made with residual {kept}, and x comes {given} one")
    if residual is not None and tuple(residual.shape) != tuple(shape):
        raise UsageError(f"residual is {list(residual.shape)}, the layer takes {list(shape)}")
