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
from . import MAX_INDEX, finish, tuned
from . import name as gpu_name
from .layout import RUNS, Form, Storage, Weights, arrange
from .tiles import Tile, chip
from .window import Window

F32, I32 = "f32", "i32"
INTERPRETED = bool(triton.knobs.runtime.interpret)

Out = Storage | str


@dataclass(frozen=True, slots=True)
class Epilogue:
    """Constants of docs/numerics.md 5 on one device, and where results go.

    `out`: how the result is stored, levels, "f32", or "i32" (the sums themselves); `residual`: how a residual is
    stored, int8 levels or "f32", None without. m, b float32 [rows]; `width`: channels of the result;
    columns int32 [rows]: which of them each row is, None where rows are all channels in order.
    """

    out: Out
    residual: Out | None
    m: torch.Tensor
    b: torch.Tensor
    m_r: float
    lo: float
    hi: float
    width: int
    columns: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights and epilogue on one device.

    fields int8, correction int32 [rows]; fill int8 [128]: level 0 as the input stores it; `ones`: one row of weights 1,
    whose result is the windows' sums, where the form is doubled.
    """

    form: Form
    epilogue: Epilogue
    fields: torch.Tensor
    correction: torch.Tensor
    fill: torch.Tensor
    ones: Layer | None = None

    @property
    def channels(self) -> int:
        """Of the input: a depthwise layer reads the channel that it writes."""
        return self.epilogue.width if self.form.depthwise else self.form.channels


def load(weights: Weights, *, device: torch.device | str, **constants: Any) -> Layer:
    """Weights and the constants of `settle` on `device`."""
    form = weights.form
    return Layer(
        form=form,
        epilogue=settle(form.rows, device=device, **constants),
        fields=torch.from_numpy(np.array(weights.fields)).to(device),
        correction=torch.from_numpy(np.array(weights.correction)).to(device),
        fill=fill(form, torch.device(device)),
        ones=ones(form, torch.device(device)),
    )


def settle(
    rows: int,
    *,
    device: torch.device | str,
    out: Out = I32,
    m: np.ndarray | None = None,
    b: np.ndarray | None = None,
    lo: float = -np.inf,
    hi: float = np.inf,
    residual: Out | None = None,
    m_r: float = 0.0,
    columns: np.ndarray | None = None,
    width: int = 0,
) -> Epilogue:
    """The epilogue of so many rows on `device`; m, b float32 [rows].

    `columns` (integers [rows], with `width`): the channels that the rows are of a result which several layers write.
    UsageError: constants of another shape, an epilogue without m and b, bounds that `out` cannot hold, columns that are
    none or that fields of less than a byte would have to be scattered over.
    """
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
    if columns is not None:
        _check_columns(np.asarray(columns), rows, width, out)
    one = np.ones(rows, np.float32)  # never read: sums have no epilogue

    def place(array: np.ndarray, dtype: type) -> torch.Tensor:
        return torch.from_numpy(np.array(array, dtype)).to(device)

    return Epilogue(
        out=out,
        residual=residual,
        m=place(one if m is None else m, np.float32),
        b=place(one if b is None else b, np.float32),
        m_r=float(m_r),
        lo=float(lo),
        hi=float(hi),
        width=rows if columns is None else width,
        columns=None if columns is None else place(columns, np.int32),
    )


def _check_columns(columns: np.ndarray, rows: int, width: int, out: Out) -> None:
    known = columns.shape == (rows,) and len(set(columns.tolist())) == rows
    if not known or columns.min() < 0 or columns.max() >= width:
        raise UsageError(f"columns are not {rows} different channels of the {width} that the result has")
    if isinstance(out, Storage) and out.packed:
        raise UsageError(f"columns of {_name(out)} share bytes, and layers cannot write parts of one: store bytes")


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


def constants(form: Form, target: str, *, assembly: bool) -> dict[str, Any]:
    """Compile-time arguments that weights and activations decide, shared by all families of layers."""
    nvidia = not target.startswith("gfx")
    return {
        "W_BITS": form.encoding.bits, "A_BITS": form.act.bits, "A_SIGNED": form.act.signed,
        "HALF": form.half, "ZERO": form.act.zero, "SHIFT": form.shift, "DOUBLED": form.doubled, "RUN": form.run,
        "SWAP": nvidia, "ASM": nvidia and assembly,
    }  # fmt: skip


def result(epilogue: Epilogue) -> dict[str, Any]:
    """Compile-time arguments that the epilogue decides."""
    out, residual = epilogue.out, epilogue.residual
    stored = out if isinstance(out, Storage) else None
    kinds = {F32: finish.FLOATS, I32: finish.SUMS}
    kind = kinds[out] if isinstance(out, str) else finish.FIELDS if out.packed else finish.BYTES
    return {
        "OUT": kind.value, "OUT_ZERO": stored.zero if stored else 0, "OUT_BITS": stored.bits if stored else 8,
        "OUT_RUN": stored.run if stored and stored.packed else 32,
        "RESIDUAL": residual is not None, "RESIDUAL_ZERO": residual.zero if isinstance(residual, Storage) else 0,
        "SCATTERED": epilogue.columns is not None,
    }  # fmt: skip


def arguments(epilogue: Epilogue, out: torch.Tensor, residual: torch.Tensor | None) -> dict[str, Any]:
    """Arguments of a launch that the epilogue reads; what it will not read is some tensor."""
    return {
        "m": epilogue.m, "b": epilogue.b, "m_r": epilogue.m_r, "lo": epilogue.lo, "hi": epilogue.hi,
        "columns": epilogue.m if epilogue.columns is None else epilogue.columns,
        "residual": out if residual is None else residual, "WIDTH": epilogue.width,
    }  # fmt: skip


def options(tile: Tile) -> dict[str, Any]:
    """Options of a launch; products and sums are never fused."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False}


@lru_cache(maxsize=1024)
def tuned_tile(family: str, form: Form, pixels: int, device: torch.device) -> Tile | None:
    """What the device's table of timed tiles says, None without one or without a row near by."""
    return None if device.type == "cpu" else tuned.best(tuned.table(gpu_name(device.type)), family, form, pixels)


def fit(tile: Tile, out: Out, *, scattered: bool = False) -> Tile:
    """The tile with as many rows as a block of a packed output has, where it has fewer.

    `scattered`: results go to chosen channels, whose addresses take registers, so that the tile is at most 64 pixels.
    """
    if scattered:
        tile = replace(tile, pixels=min(tile.pixels, 64))
    block = out.run * 8 // out.bits if isinstance(out, Storage) and out.packed else 1
    return tile if tile.rows % block == 0 else replace(tile, rows=block)


def expect_window(x: torch.Tensor, form: Form, window: Window) -> None:
    """UsageError unless `x` holds images and the window has the layer's taps."""
    if x.ndim != 4 or window.taps != form.taps:
        raise UsageError(
            f"x has {x.ndim} dimensions and the window {window.kernel} {window.taps} taps; "
            f"a convolution takes [N, H, W, C], and this layer has {form.taps} taps"
        )


def check(
    x: torch.Tensor, layer: Layer, residual: torch.Tensor | None, shape: Sequence[int], *, depthwise: bool = False
) -> str:
    """Refuses what a kernel would misread; else the target, such as "sm90" or "gfx942".

    `shape`: of the result in channels, [..., width], which a residual has too.
    """
    if layer.form.depthwise != depthwise:
        raise UsageError("depthwise layers go through depthwise2d, all others through linear or conv2d")
    return check_all(x, layer.form.act, layer.channels, layer.epilogue, residual, shape, layer.fields.numel())


def check_all(
    x: torch.Tensor,
    source: Out,
    channels: int,
    epilogue: Epilogue,
    residual: torch.Tensor | None,
    shape: Sequence[int],
    fields: int = 0,
) -> str:
    """`check` for what has perhaps no weights; `source`: how x is stored, levels or "f32"."""
    device = epilogue.m.device
    expect("x", x, source, (*x.shape[:-1], channels), device)
    if (residual is None) != (epilogue.residual is None):
        want = _name(epilogue.residual)
        raise UsageError(f"the layer was loaded with residual {want}, and x comes {_given(residual)}")
    if residual is not None and epilogue.residual is not None:
        expect("residual", residual, epilogue.residual, shape, device)
    check_index(x, shape, fields)
    return target_of(x.device)


def check_index(x: torch.Tensor, shape: Sequence[int], fields: int = 0) -> None:
    """UnsupportedError where x, a result of `shape` or so many bytes of fields leave int32."""
    if max(x.numel(), fields, int(np.prod(shape))) > MAX_INDEX:
        raise UnsupportedError(
            f"x {list(x.shape)}, {fields} bytes of weights, result {list(shape)}: GPU kernels take tensors of at most "
            f"{MAX_INDEX} elements; split the batch"
        )


def expect(name: str, x: torch.Tensor, kind: Out, shape: Sequence[int], device: torch.device) -> None:
    """UsageError unless `x` is `shape` [..., channels] stored as `kind`, dense, and on `device`."""
    dtype = torch.float32 if kind == F32 else torch.int32 if kind == I32 else torch.int8
    last = kind.bytes(shape[-1]) if isinstance(kind, Storage) else shape[-1]
    if x.dtype != dtype or tuple(x.shape) != (*shape[:-1], last):
        how = "" if isinstance(kind, str) else f": [..., bytes of {shape[-1]} channels as {_name(kind)}]"
        raise UsageError(
            f"{name} is {_dtype(x.dtype)} {list(x.shape)}, the layer takes {_dtype(dtype)} {[*shape[:-1], last]}{how}"
        )
    if x.device != device:
        raise UsageError(f"{name} is on {x.device}, the layer on {device}: move one of them")
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


def output(kind: Out, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Uninitialised result [..., channels] stored as `kind`."""
    if isinstance(kind, Storage):
        return torch.empty((*shape[:-1], kind.bytes(shape[-1])), dtype=torch.int8, device=device)
    return torch.empty(tuple(shape), dtype=torch.float32 if kind == F32 else torch.int32, device=device)


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU, which programs are spread over; of an H100 in the interpreter."""
    return 132 if INTERPRETED else int(torch.cuda.get_device_properties(device).multi_processor_count)


def destination(epilogue: Epilogue, shape: Sequence[int], into: torch.Tensor | None) -> torch.Tensor:
    """`into`, the result that a layer with columns shares with others, else a new one."""
    if (into is None) != (epilogue.columns is None):
        what = "its whole result" if epilogue.columns is None else f"some of {epilogue.width} channels"
        given = "without" if into is None else "with"
        raise UsageError(f"the layer was loaded to write {what}, and is called {given} `into`")
    if into is None:
        return output(epilogue.out, shape, epilogue.m.device)
    expect("into", into, epilogue.out, shape, epilogue.m.device)
    return into


def _name(storage: Out | None) -> str:
    if isinstance(storage, Storage):
        e = storage.encoding.name
        return f"{e} fields in runs of {storage.run}" if storage.packed else f"{e} bytes"
    return str(storage)


def _given(residual: torch.Tensor | None) -> str:
    return "without one" if residual is None else "with one"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
