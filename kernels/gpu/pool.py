"""Pools, NHWC: the largest level of a window, or its sum with the epilogue of docs/numerics.md 5.

Bound by bytes. The divisor of an average is part of the multiplier, so that an average is a sum; of a window of one
pixel it is a requantisation, and from float32 the quantisation of an input. Levels come as bytes or as fields, which
every channel takes out of its byte by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ...core.encoding import INT32_MAX
from ...core.errors import UnsupportedError, UsageError
from . import call
from .call import F32, Epilogue, Out
from .finish import finish, pack
from .layout import Storage
from .taps import moved, origin
from .tiles import PLANAR, Tile
from .window import Window


@triton.jit
def levels(
    x, pixel, channel, there, N, LEAST: tl.constexpr,
    BITS: tl.constexpr, SIGNED: tl.constexpr, ZERO: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """What is stored at pixels [BM, 1] and channels [1, BN], LEAST where it is not `there`: int32, or float32.

    BITS: 8 (bytes), 4 or 2 (fields in runs of RUN), 32 (float32).
    """
    if BITS == 32:
        a = tl.load(x + (pixel * N + channel), mask=there, other=LEAST)
    elif BITS == 8:
        a = tl.load(x + (pixel * N + channel), mask=there, other=LEAST - ZERO).to(tl.int32) + ZERO
    else:
        PARTS: tl.constexpr = 8 // BITS
        stride = tl.cdiv(N, PARTS * RUN) * RUN
        at = pixel * stride + (channel // (PARTS * RUN) * RUN + channel % RUN)
        code = tl.load(x + at, mask=there, other=0).to(tl.int32) << (32 - BITS - channel // RUN % PARTS * BITS)
        a = code >> (32 - BITS) if SIGNED else (code >> (32 - BITS)) & ((1 << BITS) - 1)
        if LEAST != 0:
            a = tl.where(there, a, LEAST)
    return a


@triton.jit
def max_pool(
    x, o, IMAGES, IH, IW, OH, OW, N, TAPS,
    BITS: tl.constexpr, SIGNED: tl.constexpr, ZERO: tl.constexpr, RUN: tl.constexpr, LEAST: tl.constexpr,
    KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """x and o [pixels, N], both stored alike; padding never wins."""
    M = IMAGES * OH * OW
    across = tl.cdiv(N, BN)
    rows = tl.program_id(0) % across * BN + tl.arange(0, BN)
    pixels = tl.program_id(0) // across * BM + tl.arange(0, BM)
    known = (rows < N)[None, :]
    start, top, left = origin(pixels, M, IH, IW, OH, OW, SH, SW, TOP, LEFT)
    best = tl.full((BM, BN), LEAST, tl.float32 if BITS == 32 else tl.int32)
    for tap in range(0, TAPS):
        further, there = moved(top, left, tap, IH, IW, KW, DH, DW)
        a = levels(
            x, (start + further)[:, None], rows[None, :], there[:, None] & known, N, LEAST, BITS, SIGNED, ZERO, RUN
        )  # fmt: skip
        best = tl.maximum(best, a)
    if BITS == 4 or BITS == 2:
        pack(tl.where(known, best, 0), rows, pixels, o, N, M, BITS, RUN, False)
    else:
        made = best if BITS == 32 else (best - ZERO).to(tl.int8)
        inside = (pixels < M)[:, None] & known
        tl.store(o + (pixels[:, None] * N + rows[None, :]), made, mask=inside)


@triton.jit
def average_pool(
    x, o, m, b, columns, residual, m_r, lo, hi, IMAGES, IH, IW, OH, OW, N, TAPS, WIDTH,
    BITS: tl.constexpr, SIGNED: tl.constexpr, ZERO: tl.constexpr, RUN: tl.constexpr,
    OUT: tl.constexpr, OUT_ZERO: tl.constexpr, OUT_BITS: tl.constexpr, OUT_RUN: tl.constexpr,
    RESIDUAL: tl.constexpr, RESIDUAL_ZERO: tl.constexpr, SCATTERED: tl.constexpr,
    KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """x [pixels, N] -> finish(sums of windows); outside the image x is level 0."""
    M = IMAGES * OH * OW
    across = tl.cdiv(N, BN)
    rows = tl.program_id(0) % across * BN + tl.arange(0, BN)
    pixels = tl.program_id(0) // across * BM + tl.arange(0, BM)
    known = (rows < N)[None, :]
    start, top, left = origin(pixels, M, IH, IW, OH, OW, SH, SW, TOP, LEFT)
    acc = tl.zeros((BM, BN), tl.float32 if BITS == 32 else tl.int32)
    for tap in range(0, TAPS):
        further, there = moved(top, left, tap, IH, IW, KW, DH, DW)
        acc += levels(
            x, (start + further)[:, None], rows[None, :], there[:, None] & known, N, 0, BITS, SIGNED, ZERO, RUN
        )  # fmt: skip
    finish(
        acc, rows, pixels, o, m, b, columns, columns, columns, residual, m_r, lo, hi, N, M, WIDTH,
        0, 0, False, OUT, OUT_ZERO, OUT_BITS, OUT_RUN, RESIDUAL, RESIDUAL_ZERO, SCATTERED, False,
    )  # fmt: skip


@triton.jit
def global_average_pool(
    x, o, m, b, columns, residual, m_r, lo, hi, IMAGES, AREA, N, WIDTH,
    BITS: tl.constexpr, SIGNED: tl.constexpr, ZERO: tl.constexpr, RUN: tl.constexpr,
    OUT: tl.constexpr, OUT_ZERO: tl.constexpr, OUT_BITS: tl.constexpr, OUT_RUN: tl.constexpr,
    RESIDUAL: tl.constexpr, RESIDUAL_ZERO: tl.constexpr, SCATTERED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The same where the window is the image, of AREA pixels: they lie along the tile and are summed at the end."""
    across = tl.cdiv(N, BN)
    rows = tl.program_id(0) % across * BN + tl.arange(0, BN)
    image = tl.program_id(0) // across
    known = (rows < N)[None, :]
    part = tl.arange(0, BM)
    acc = tl.zeros((BM, BN), tl.int32)
    for first in range(0, AREA, BM):
        pixel = (image * AREA + first + part)[:, None]
        acc += levels(x, pixel, rows[None, :], (first + part < AREA)[:, None] & known, N, 0, BITS, SIGNED, ZERO, RUN)
    finish(
        tl.sum(acc, 0)[None, :], rows, image + tl.arange(0, 1), o, m, b, columns, columns, columns, residual,
        m_r, lo, hi, N, IMAGES, WIDTH,
        0, 0, False, OUT, OUT_ZERO, OUT_BITS, OUT_RUN, RESIDUAL, RESIDUAL_ZERO, SCATTERED, False,
    )  # fmt: skip


SCALARS = {
    "IMAGES": "i32", "IH": "i32", "IW": "i32", "OH": "i32", "OW": "i32", "AREA": "i32", "N": "i32", "TAPS": "i32",
    "WIDTH": "i32",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pool:
    """A sum over windows: how its input is stored, levels or "f32" (of one pixel), and what becomes of the sums."""

    source: Out
    channels: int
    epilogue: Epilogue


def load(source: Out, channels: int, *, device: torch.device | str, **constants: Any) -> Pool:
    """A pool of so many channels on `device`, its constants as of `call.settle`; m holds the divisor."""
    _check_source(source)
    if source == F32 and constants.get("out", call.I32) == call.I32:
        raise UsageError("a pool of float32 has an epilogue: give it an output other than sums, m and b")
    return Pool(source, channels, call.settle(channels, device=device, **constants))


def _check_source(source: Out) -> None:
    if not isinstance(source, Storage) and source != F32:
        raise UsageError(f"a pool reads a Storage or {F32!r}, not {source!r}")


def reading(source: Out) -> dict[str, Any]:
    """Compile-time arguments that say how x is stored."""
    if not isinstance(source, Storage):
        return {"BITS": 32, "SIGNED": True, "ZERO": 0, "RUN": 32}
    return {"BITS": source.bits, "SIGNED": source.signed, "ZERO": source.zero, "RUN": source.run or 32}


def least(source: Out) -> float | int:
    """Not above anything that x may hold."""
    if not isinstance(source, Storage):
        return -math.inf
    return source.encoding.lo if source.packed else source.zero - 128


def constants(window: Window, tile: Tile) -> dict[str, Any]:
    """Compile-time arguments that the window decides."""
    return {**window.constants(), "BM": tile.pixels, "BN": tile.rows}


def launch_max(
    x: torch.Tensor, source: Out, channels: int, window: Window, *, tile: Tile | None = None
) -> torch.Tensor:
    """x as `source` stores it, [N, H, W, channels] -> [N, H', W', channels], stored alike."""
    _check_source(source)
    _check_images(x)
    top, left, bottom, right = window.padding
    if max(top, bottom) >= window.kernel[0] or max(left, right) >= window.kernel[1]:
        raise UsageError(f"padding {window.padding} of a max pool is not smaller than its kernel {window.kernel}")
    call.expect("x", x, source, (*x.shape[:-1], channels), x.device)
    images, high, wide, _ = x.shape
    shape = (images, *window.out(high, wide), channels)
    call.check_index(x, shape)
    call.target_of(x.device)
    out = call.output(source, shape, x.device)
    pixels = math.prod(shape[:-1])
    if pixels == 0:
        return out
    tile = call.fit(tile or PLANAR, source)
    max_pool[(triton.cdiv(pixels, tile.pixels) * triton.cdiv(channels, tile.rows),)](
        x, out, images, high, wide, shape[1], shape[2], channels, window.taps,
        LEAST=least(source), **reading(source), **constants(window, tile), **call.options(tile),
    )  # fmt: skip
    return out


def launch_average(
    x: torch.Tensor,
    pool: Pool,
    window: Window,
    *,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x as pool.source stores it, [N, H, W, channels] -> [N, H', W', channels] as the epilogue stores it.

    UsageError: see `call.check`; float32 and a window of more than one pixel. UnsupportedError where sums could leave
    int32.
    """
    _check_images(x)
    images, high, wide, _ = x.shape
    shape = (images, *window.out(high, wide), pool.epilogue.width)
    out = _prepared(x, pool, window.taps, residual, into, shape)
    pixels = math.prod(shape[:-1])
    if pixels == 0:
        return out
    tile = call.fit(tile or PLANAR, pool.epilogue.out)
    average_pool[(triton.cdiv(pixels, tile.pixels) * triton.cdiv(pool.channels, tile.rows),)](
        x, out, IMAGES=images, IH=high, IW=wide, OH=shape[1], OW=shape[2], N=pool.channels, TAPS=window.taps,
        **call.arguments(pool.epilogue, out, residual), **call.result(pool.epilogue), **reading(pool.source),
        **constants(window, tile), **call.options(tile),
    )  # fmt: skip
    return out


def launch_global(
    x: torch.Tensor,
    pool: Pool,
    *,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """As launch_average with the whole image for a window: [N, H, W, channels] -> [N, 1, 1, channels]."""
    _check_images(x)
    images, high, wide, _ = x.shape
    if pool.source == F32 or high * wide == 0:
        return launch_average(x, pool, Window((high, wide)), residual=residual, into=into, tile=tile)
    shape = (images, 1, 1, pool.epilogue.width)
    out = _prepared(x, pool, high * wide, residual, into, shape)
    if images == 0:
        return out
    tile = call.fit(tile or PLANAR, pool.epilogue.out)
    global_average_pool[(images * triton.cdiv(pool.channels, tile.rows),)](
        x, out, IMAGES=images, AREA=high * wide, N=pool.channels,
        **call.arguments(pool.epilogue, out, residual), **call.result(pool.epilogue), **reading(pool.source),
        BM=tile.pixels, BN=tile.rows, **call.options(tile),
    )  # fmt: skip
    return out


def _check_images(x: torch.Tensor) -> None:
    if x.ndim != 4:
        raise UsageError(f"x has {x.ndim} dimensions; a pool takes [N, H, W, C]")


def _prepared(
    x: torch.Tensor,
    pool: Pool,
    taps: int,
    residual: torch.Tensor | None,
    into: torch.Tensor | None,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """The result, uninitialised, behind every check."""
    call.check_all(x, pool.source, pool.channels, pool.epilogue, residual, shape)
    if not isinstance(pool.source, Storage) and taps > 1:
        raise UsageError(f"an average of {taps} pixels reads levels, not float32, whose sums would have an order")
    if isinstance(pool.source, Storage) and taps * pool.source.encoding.max_abs > INT32_MAX:
        raise UnsupportedError(f"sums of {taps} levels of {pool.source.encoding.name} could leave int32")
    return call.destination(pool.epilogue, shape, into)
