"""A layer in GPU memory, and what every family checks and decides before it launches. Holds no kernel.

Tensors are dense, channels last. A wrong device, dtype or shape is a UsageError, a missing GPU EnvironmentMissing, each
before anything is launched. In the interpreter (TRITON_INTERPRET=1) tensors lie on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton

from ...core.encoding import parse
from ...core.errors import EnvironmentMissing, UnsupportedError, UsageError
from . import finish
from .layout import RUNS, Form, Storage, Weights, arrange
from .tiles import Tile, chip

F32, I32 = "f32", "i32"
INTERPRETED = bool(triton.knobs.runtime.interpret)
MAX_INDEX = 2**31 - 1  # kernels index with int32

Out = Storage | str


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights and epilogue on one device.

    `out`: how the result is stored, levels, "f32", or "i32" (the sums themselves, without epilogue); `residual`: how a
    residual is stored, int8 levels or "f32", None without. fields int8, correction int32, m and b float32 [rows];
    fill int8 [128]: level 0 as the input stores it; `ones`: one row of weights 1, whose result is the windows' sums,
    where the form is doubled.
    """

    form: Form
    out: Out
    residual: Out | None
    fields: torch.Tensor
    correction: torch.Tensor
    m: torch.Tensor
    b: torch.Tensor
    fill: torch.Tensor
    m_r: float
    lo: float
    hi: float
    ones: Layer | None = None


def load(
    weights: Weights,
    *,
    device: torch.device | str,
    out: Out = I32,
    m: np.ndarray | None = None,
    b: np.ndarray | None = None,
    lo: float = -np.inf,
    hi: float = np.inf,
    residual: Out | None = None,
    m_r: float = 0.0,
) -> Layer:
    """Weights and the constants of docs/numerics.md 5 (m, b float32 [rows]) on `device`.

    UsageError: constants of another shape, an epilogue without m and b, bounds that `out` cannot hold.
    """
    rows = weights.form.rows
    for name, array in (("m", m), ("b", b)):
        if (array is None) != (out == I32) or (array is not None and array.shape != (rows,)):
            said = "none" if array is None else f"float32 {list(array.shape)}"
            want = f"float32 [{rows}]" if out != I32 else "none: sums have no epilogue"
            raise UsageError(f"{name} is {said}, a layer of {rows} rows with output {_name(out)} takes {want}")
    if isinstance(out, Storage):
        e = out.encoding
        if not (e.lo <= lo <= hi <= e.hi and float(lo).is_integer() and float(hi).is_integer()):
            raise UsageError(f"bounds {lo} .. {hi} are not levels of the output {e.name} [{e.lo}, {e.hi}] in order")
    elif out not in (F32, I32):
        raise UsageError(f"output {out!r} is unknown; valid: a Storage, {F32!r}, {I32!r}")
    if residual is not None and (out == I32 or residual == I32 or (isinstance(residual, Storage) and residual.packed)):
        raise UsageError(f"a residual is int8 levels or float32 and needs an epilogue, not {_name(residual)}")
    one = np.ones(rows, np.float32)  # never read: sums have no epilogue

    def place(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(device)

    return Layer(
        form=weights.form,
        out=out,
        residual=residual,
        fields=place(weights.fields),
        correction=place(weights.correction),
        m=place(one if m is None else m.astype(np.float32)),
        b=place(one if b is None else b.astype(np.float32)),
        fill=fill(weights.form, torch.device(device)),
        m_r=float(m_r),
        lo=float(lo),
        hi=float(hi),
        ones=ones(weights.form, torch.device(device)),
    )


@lru_cache(maxsize=64)
def fill(form: Form, device: torch.device) -> torch.Tensor:
    """int8 [128] on `device`: level 0 as the layer's input stores it."""
    return torch.full((max(RUNS),), -form.act.zero, dtype=torch.int8, device=device)


@lru_cache(maxsize=64)
def ones(form: Form, device: torch.device) -> Layer | None:
    """One row of weights 1 of that depth, where the form is doubled."""
    if not form.doubled:
        return None
    row = np.ones((1, form.taps, form.channels), np.int64)
    return load(arrange(row, parse("i8"), form.act), device=device)


def constants(form: Form, out: Out, residual: Out | None, target: str, *, assembly: bool) -> dict[str, Any]:
    """Compile-time arguments that all families share."""
    nvidia = not target.startswith("gfx")
    stored = out if isinstance(out, Storage) else None
    kinds = {F32: finish.FLOATS, I32: finish.SUMS}
    kind = kinds[out] if isinstance(out, str) else finish.FIELDS if out.packed else finish.BYTES
    return {
        "W_BITS": form.encoding.bits, "A_BITS": form.act.bits, "A_SIGNED": form.act.signed,
        "HALF": form.half, "ZERO": form.act.zero, "SHIFT": form.shift, "DOUBLED": form.doubled, "RUN": form.run,
        "OUT": kind.value, "OUT_ZERO": stored.zero if stored else 0, "OUT_BITS": stored.bits if stored else 8,
        "OUT_RUN": stored.run if stored and stored.packed else 32,
        "RESIDUAL": residual is not None, "RESIDUAL_ZERO": residual.zero if isinstance(residual, Storage) else 0,
        "SWAP": nvidia, "ASM": nvidia and assembly,
    }  # fmt: skip


def options(tile: Tile) -> dict[str, Any]:
    """Options of a launch; products and sums are never fused."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False}


def fit(tile: Tile, out: Out) -> Tile:
    """The tile with as many rows as a block of a packed output has, where it has fewer."""
    block = out.run * 8 // out.bits if isinstance(out, Storage) and out.packed else 1
    return tile if tile.rows % block == 0 else replace(tile, rows=block)


def check(x: torch.Tensor, layer: Layer, residual: torch.Tensor | None, shape: Sequence[int]) -> str:
    """Refuses what a kernel would misread; else the target, such as "sm90" or "gfx942".

    `shape`: of the result in channels, [..., rows], which a residual has too.
    """
    form = layer.form
    expect("x", x, torch.int8, (*x.shape[:-1], form.act.bytes(form.channels)), layer)
    if (residual is None) != (layer.residual is None):
        raise UsageError(f"the layer was loaded with residual {_name(layer.residual)}, and x comes {_given(residual)}")
    if residual is not None:
        expect("residual", residual, torch.float32 if layer.residual == F32 else torch.int8, shape, layer)
    if max(x.numel(), layer.fields.numel(), int(np.prod(shape))) > MAX_INDEX:
        raise UnsupportedError(
            f"x {list(x.shape)}, fields {list(layer.fields.shape)}, result {list(shape)}: GPU kernels take tensors of "
            f"at most {MAX_INDEX} elements; split the batch"
        )
    return target_of(x.device)


def expect(name: str, x: torch.Tensor, dtype: torch.dtype, shape: Sequence[int], layer: Layer) -> None:
    """UsageError unless `x` is that, dense, and where the layer is."""
    if x.dtype != dtype or tuple(x.shape) != tuple(shape):
        raise UsageError(
            f"{name} is {_dtype(x.dtype)} {list(x.shape)}, the layer takes {_dtype(dtype)} {list(shape)}: "
            f"[..., bytes of {layer.form.channels} channels as {_name(layer.form.act)}], stored by Storage.store"
        )
    if x.device != layer.fields.device:
        raise UsageError(f"{name} is on {x.device}, the layer on {layer.fields.device}: move one of them")
    if not x.is_contiguous():
        raise UsageError(f"{name} {list(x.shape)} is not dense, its strides are {list(x.stride())}: call contiguous()")


def target_of(device: torch.device) -> str:
    """ "sm90" or "gfx942"; EnvironmentMissing where `device` is no GPU, UnsupportedError where it is too old.

    In the interpreter every device is taken for an sm90.
    """
    if INTERPRETED:
        return "sm90"
    if device.type != "cuda":
        raise EnvironmentMissing(
            f"GPU kernels take tensors on a GPU, not on {device}: move layer and input to cuda, or set "
            f"TRITON_INTERPRET=1 before Python starts, which runs them on the CPU, slowly, for tests"
        )
    if torch.version.hip:
        target = str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    else:
        target = "sm{}{}".format(*torch.cuda.get_device_capability(device))
    chip(target)
    return target


def output(layer: Layer, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Uninitialised result for `shape` [..., rows]."""
    if isinstance(layer.out, Storage):
        return torch.empty((*shape[:-1], layer.out.bytes(shape[-1])), dtype=torch.int8, device=device)
    return torch.empty(tuple(shape), dtype=torch.float32 if layer.out == F32 else torch.int32, device=device)


def _name(storage: Out | None) -> str:
    if isinstance(storage, Storage):
        e = storage.encoding.name
        return f"{e} fields in runs of {storage.run}" if storage.packed else f"{e} bytes"
    return str(storage)


def _given(residual: torch.Tensor | None) -> str:
    return "without one" if residual is None else "with one"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
