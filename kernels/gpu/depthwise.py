"""Depthwise convolution: every row reads the one channel that it writes, NHWC, activations as bytes.

Bound by the activations' bytes. There is no sum over channels, so no tensor core and no dot product of four bytes: one
multiply-add in int32 for each tap, on levels themselves, channels side by side in a thread so that bytes come 16 at a
time. Weights are taken apart once for all pixels of the tile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from . import call
from .call import Layer
from .finish import finish
from .layout import Form
from .taps import moved, origin
from .tiles import PLANAR, Tile
from .window import Window


@triton.jit
def depthwise(
    x, w, o, m, b, correction, columns, residual, m_r, lo, hi, IMAGES, IH, IW, OH, OW, N, TAPS, WIDTH,
    W_BITS: tl.constexpr, HALF: tl.constexpr, ZERO: tl.constexpr, RUN: tl.constexpr,
    OUT: tl.constexpr, OUT_ZERO: tl.constexpr, OUT_BITS: tl.constexpr, OUT_RUN: tl.constexpr,
    RESIDUAL: tl.constexpr, RESIDUAL_ZERO: tl.constexpr, SCATTERED: tl.constexpr,
    KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """x int8 [IMAGES, IH, IW, WIDTH]; w fields int8 [TAPS, bytes of N rows]; outside the image x is level 0."""
    PARTS: tl.constexpr = 8 // W_BITS
    M = IMAGES * OH * OW
    across = tl.cdiv(N, BN)
    rows = tl.program_id(0) % across * BN + tl.arange(0, BN)
    pixels = tl.program_id(0) // across * BM + tl.arange(0, BM)
    known = rows < N
    channel = tl.load(columns + rows, mask=known, other=0) if SCATTERED else rows
    start, top, left = origin(pixels, M, IH, IW, OH, OW, SH, SW, TOP, LEFT)
    xp = x + (start[:, None] * WIDTH + channel[None, :])
    # Byte and place in it of every row's field, one tap further `stride` bytes on.
    stride = tl.cdiv(N, PARTS * RUN) * RUN
    wp = w + (rows // (PARTS * RUN) * RUN + rows % RUN)
    up = 32 - W_BITS - rows // RUN % PARTS * W_BITS
    acc = tl.zeros((BM, BN), tl.int32)
    for tap in range(0, TAPS):
        code = tl.load(wp + tap * stride, mask=known, other=0).to(tl.int32)
        level = (((code << up) >> (32 - W_BITS)) << HALF) | HALF
        further, there = moved(top, left, tap, IH, IW, KW, DH, DW)
        a = tl.load(xp + further * WIDTH, mask=there[:, None] & known[None, :], other=-ZERO)
        acc += a.to(tl.int32) * level[None, :]
    finish(
        acc, rows, pixels, o, m, b, correction, correction, columns, residual, m_r, lo, hi, N, M, WIDTH,
        ZERO, 0, False, OUT, OUT_ZERO, OUT_BITS, OUT_RUN, RESIDUAL, RESIDUAL_ZERO, SCATTERED, False,
    )  # fmt: skip


SCALARS = {
    "IMAGES": "i32", "IH": "i32", "IW": "i32", "OH": "i32", "OW": "i32", "N": "i32", "TAPS": "i32", "WIDTH": "i32",
}  # fmt: skip


def constants(form: Form, window: Window, tile: Tile) -> dict[str, Any]:
    """Compile-time arguments of the family beside those of `call.result`."""
    return {
        "W_BITS": form.encoding.bits, "HALF": form.half, "ZERO": form.act.zero, "RUN": form.run,
        **window.constants(), "BM": tile.pixels, "BN": tile.rows,
    }  # fmt: skip


def launch(
    x: torch.Tensor,
    layer: Layer,
    window: Window,
    *,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x as layer.form.act stores it, [N, H, W, channels] -> [N, H', W', channels] as the epilogue stores it.

    A layer with columns reads those channels of x and writes those of `into`. UsageError, EnvironmentMissing,
    UnsupportedError: see `call.check`.
    """
    form = layer.form
    call.expect_window(x, form, window)
    images, high, wide, _ = x.shape
    shape = (images, *window.out(high, wide), layer.epilogue.width)
    call.check(x, layer, residual, shape, depthwise=True)
    out = call.destination(layer.epilogue, shape, into)
    pixels = math.prod(shape[:-1])
    if pixels == 0:
        return out
    tile = call.fit(tile or PLANAR, layer.epilogue.out)
    depthwise[(triton.cdiv(pixels, tile.pixels) * triton.cdiv(form.rows, tile.rows),)](
        x, layer.fields, out, correction=layer.correction,
        IMAGES=images, IH=high, IW=wide, OH=shape[1], OW=shape[2], N=form.rows, TAPS=form.taps,
        **call.arguments(layer.epilogue, out, residual), **call.result(layer.epilogue),
        **constants(form, window, tile), **call.options(tile),
    )  # fmt: skip
    return out
