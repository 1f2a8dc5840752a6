"""Convolution as a matrix product without the matrix: NHWC activations, windows read where they lie (implicit GEMM).

o[pixel, row] = finish(sum over taps t and channels c of w[row, t, c] * x[pixel moved by t, c]). Operands are swapped
and fields unpacked as in kernels/gpu/gemm.py. A turn of the loop takes one run of every field; with byte activations
these may be runs of different taps, so that few channels still fill a 2-bit block. Bound by the tensor cores but for
small images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from . import call
from .call import Layer
from .fields import multiply, operands
from .finish import finish
from .layout import Form
from .taps import moved, origin
from .tiles import Tile, choose
from .window import Window


@triton.jit
def conv(
    x, w, o, m, b, correction, windows, columns, residual, m_r, lo, hi, fill,
    IMAGES, IH, IW, OH, OW, N, TURNS, WIDTH,
    W_BITS: tl.constexpr, A_BITS: tl.constexpr, A_SIGNED: tl.constexpr,
    HALF: tl.constexpr, ZERO: tl.constexpr, SHIFT: tl.constexpr, DOUBLED: tl.constexpr, RUN: tl.constexpr,
    OUT: tl.constexpr, OUT_ZERO: tl.constexpr, OUT_BITS: tl.constexpr, OUT_RUN: tl.constexpr,
    RESIDUAL: tl.constexpr, RESIDUAL_ZERO: tl.constexpr, SCATTERED: tl.constexpr,
    SWAP: tl.constexpr, ASM: tl.constexpr,
    C: tl.constexpr, RUNS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    TOP: tl.constexpr, LEFT: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """x int8 [IMAGES, IH, IW, C] or fields [..., bytes]; w fields int8 [N, bytes]; RUNS: runs per tap.

    Outside the image activations are level 0, outside the layer's depth operand 0. TURNS is no constant, lest the
    loop be unrolled into thousands of instructions.
    """
    PARTS: tl.constexpr = 8 // W_BITS
    PACKED: tl.constexpr = A_BITS < 8
    BYTES: tl.constexpr = RUNS // PARTS * RUN if PACKED else C  # of one pixel
    # Whether a run may end past the channels of its tap, or past the last tap.
    RAGGED: tl.constexpr = not PACKED and (C % RUN != 0 or KH * KW * RUNS % PARTS != 0)
    M = IMAGES * OH * OW
    down = tl.cdiv(N, BN)
    rows = tl.program_id(0) % down * BN + tl.arange(0, BN)
    pixels = tl.program_id(0) // down * BM + tl.arange(0, BM)
    start, top, left = origin(pixels, M, IH, IW, OH, OW, SH, SW, TOP, LEFT)
    base = start * BYTES
    j = tl.arange(0, RUN)
    known = tl.minimum(rows, N - 1)
    if SWAP:
        wp = w + known[:, None] * (TURNS * RUN) + j[None, :]
        acc = tl.zeros((BN, BM), tl.int32)
    else:
        wp = w + known[None, :] * (TURNS * RUN) + j[:, None]
        acc = tl.zeros((BM, BN), tl.int32)
    for turn in range(0, TURNS):
        ws = operands(tl.load(wp), W_BITS, True, HALF, ASM)
        if PACKED:
            # every field of a byte belongs to the same tap
            tap = turn // (RUNS // PARTS)
            codes = window(x, fill, base, top, left, tap, turn % (RUNS // PARTS) * RUN, j, IH, IW,
                           BYTES, 0, False, BYTES, KH, KW, DH, DW, SWAP)  # fmt: skip
            xs = operands(codes, A_BITS, A_SIGNED, 0, ASM)
        for s in tl.static_range(PARTS):
            if PACKED:
                a = xs[s]
            else:
                run = turn * PARTS + s
                a = window(x, fill, base, top, left, run // RUNS, run % RUNS * RUN, j, IH, IW,
                           BYTES, ZERO, RAGGED, C, KH, KW, DH, DW, SWAP)  # fmt: skip
            acc = multiply(ws[s], a, acc, SWAP)
        wp += RUN
    finish(
        acc, rows, pixels, o, m, b, correction, windows, columns, residual, m_r, lo, hi, N, M, WIDTH,
        ZERO, SHIFT, DOUBLED, OUT, OUT_ZERO, OUT_BITS, OUT_RUN, RESIDUAL, RESIDUAL_ZERO, SCATTERED, SWAP,
    )  # fmt: skip


@triton.jit
def window(
    x, fill, base, top, left, tap, first, j, IH, IW,
    BYTES: tl.constexpr, ZERO: tl.constexpr, RAGGED: tl.constexpr, C: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """Bytes first + j of every pixel moved by `tap`: int8 [j, pixels] where SWAP, else [pixels, j].

    Copies that bypass registers can fill with 0 only. Where level 0 is another operand, pixels outside the image are
    read from `fill`, RUN bytes of it: a select of addresses instead of one of every byte.
    """
    further, there = moved(top, left, tap, IH, IW, KW, DH, DW)
    at = base + (further * BYTES + first)
    real = (first + j < C) & (tap + j * 0 < KH * KW)
    if SWAP:
        at, there, real, j = at[None, :], there[None, :], real[:, None], j[:, None]
    else:
        at, there, real, j = at[:, None], there[:, None], real[None, :], j[None, :]
    if ZERO == 0:
        a = tl.load(x + (at + j), mask=there & real if RAGGED else there, other=0)
    else:
        from_ = tl.where(there, x + (at + j), fill + j)
        a = tl.load(from_, mask=real, other=0) if RAGGED else tl.load(from_)
    return a


SCALARS = {
    "IMAGES": "i32", "IH": "i32", "IW": "i32", "OH": "i32", "OW": "i32", "N": "i32", "TURNS": "i32", "WIDTH": "i32",
}  # fmt: skip


def constants(form: Form, window: Window, tile: Tile) -> dict[str, Any]:
    """Compile-time arguments of the family beside those of `call.constants`."""
    return {
        "C": form.channels, "RUNS": form.runs, "KH": window.kernel[0], **window.constants(),
        "BM": tile.pixels, "BN": tile.rows,
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
    """x as layer.form.act stores it, [N, H, W, C] -> [N, H', W', rows] as the epilogue stores it.

    `into`: the result, of which the layer writes its channels, where it has `columns`.

    UsageError, EnvironmentMissing, UnsupportedError: see `call.check`.
    """
    form, end = layer.form, layer.epilogue
    call.expect_window(x, form, window)
    images, high, wide, _ = x.shape
    shape = (images, *window.out(high, wide), end.width)
    target = call.check(x, layer, residual, shape)
    out = call.destination(end, shape, into)
    pixels = math.prod(shape[:-1])
    if pixels == 0:
        return out
    windows = layer.correction if layer.ones is None else launch(x, layer.ones, window)
    tile = tile or call.tuned_tile("conv", form, pixels, x.device) or choose(target, pixels)
    tile = call.fit(tile, end.out, scattered=end.columns is not None)
    conv[(triton.cdiv(pixels, tile.pixels) * triton.cdiv(form.rows, tile.rows),)](
        x, layer.fields, out, correction=layer.correction, windows=windows, fill=layer.fill,
        IMAGES=images, IH=high, IW=wide, OH=shape[1], OW=shape[2], N=form.rows, TURNS=form.bytes // form.run,
        **call.arguments(end, out, residual),
        **call.constants(form, target, assembly=not call.INTERPRETED), **call.result(end),
        **constants(form, window, tile), **call.options(tile),
    )  # fmt: skip
    return out
