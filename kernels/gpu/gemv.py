"""Matrix product for few rows of activations: one row of x a program, dot products of four bytes (dp4a).

Bound by the weights' bytes: at M = 1 the tensor cores would idle, and what counts is that a byte of weights costs few
instructions and no barrier. Weights are read as 32-bit words, whose fields two logical operations bring into place,
with no assembly; further rows of x find the weights in L2. popcount was weighed and lost: 16 lanes a clock.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from ...core.errors import UsageError
from . import call
from .call import Layer
from .fields import dot4, words
from .finish import finish
from .layout import Form
from .tiles import VECTOR, Tile

MAX_GRID = 65_535  # programs along the second axis
MAX_PIXELS = 2  # beyond, instructions and no longer bytes would bound 2-bit weights


@triton.jit
def gemv(
    x, w, o, m, b, correction, windows, columns, residual, m_r, lo, hi, M, N, K, WIDTH,
    W_BITS: tl.constexpr, A_BITS: tl.constexpr, A_SIGNED: tl.constexpr,
    HALF: tl.constexpr, ZERO: tl.constexpr, SHIFT: tl.constexpr, DOUBLED: tl.constexpr, RUN: tl.constexpr,
    OUT: tl.constexpr, OUT_ZERO: tl.constexpr, OUT_BITS: tl.constexpr, OUT_RUN: tl.constexpr,
    RESIDUAL: tl.constexpr, RESIDUAL_ZERO: tl.constexpr, SCATTERED: tl.constexpr,
    SWAP: tl.constexpr, ASM: tl.constexpr,  # noqa: ARG001
    EVEN: tl.constexpr, BN: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """x int32 [M, K / 4] or words of fields; w words of fields, int32 [N, bytes / 4]; EVEN: whole turns.

    SWAP changes nothing here: sums lie along rows.
    """
    PARTS: tl.constexpr = 8 // W_BITS
    PACKED: tl.constexpr = A_BITS < 8
    WORDS: tl.constexpr = RUN // 4
    STEP: tl.constexpr = BLOCKS * WORDS  # words of fields per turn
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    pixels = tl.program_id(1) + tl.arange(0, 1)
    j = tl.arange(0, STEP)[None, :]
    stride = tl.cdiv(K, RUN * PARTS) * WORDS
    end = stride if PACKED else K // 4
    k = j if PACKED else j // WORDS * (WORDS * PARTS) + j % WORDS  # word of field 0
    wp = w + tl.minimum(rows, N - 1)[:, None] * stride + j
    # A tile of the weights' shape: its layout, and not that of one row of x, decides how both are read.
    xp = x + tl.program_id(1) * end + k + tl.zeros((BN, 1), tl.int32)
    acc = tl.zeros((BN, STEP), tl.int32)
    for turn in range(0, tl.cdiv(stride, STEP)):
        if EVEN:
            fields = tl.load(wp, eviction_policy="evict_first")
        else:
            fields = tl.load(wp, mask=j < stride - turn * STEP, other=0, eviction_policy="evict_first")
        if PACKED:
            codes = tl.load(xp) if EVEN else tl.load(xp, mask=k < end - turn * STEP, other=0)
        for s in tl.static_range(PARTS):
            if PACKED:
                a = words(codes, s, A_BITS, A_SIGNED, 0)
            elif EVEN:
                a = tl.load(xp + s * WORDS)
            else:
                a = tl.load(xp + s * WORDS, mask=k < end - turn * STEP * PARTS - s * WORDS, other=0)
            acc = dot4(words(fields, s, W_BITS, True, HALF), a, acc, ASM)
        wp += STEP
        xp += STEP if PACKED else STEP * PARTS
    finish(
        tl.sum(acc, 1)[:, None], rows, pixels, o, m, b, correction, windows, columns, residual, m_r, lo, hi,
        N, M, WIDTH,
        ZERO, SHIFT, DOUBLED, OUT, OUT_ZERO, OUT_BITS, OUT_RUN, RESIDUAL, RESIDUAL_ZERO, SCATTERED, True,
    )  # fmt: skip


SCALARS = {"M": "i32", "N": "i32", "WIDTH": "i32", "K": "i32"}


def constants(form: Form, tile: Tile) -> dict[str, Any]:
    """Compile-time arguments of the family beside those of `call.constants`."""
    turn = tile.blocks * form.run
    rest = form.bytes % turn if form.act.packed else form.channels % (turn * 8 // form.encoding.bits)
    return {"EVEN": rest == 0, "BN": tile.rows, "BLOCKS": tile.blocks}


def suits(form: Form, pixels: int) -> bool:
    """Whether the family is the one to take: few rows of x, each of whole 32-bit words."""
    return pixels <= MAX_PIXELS and form.act.bytes(form.channels) % 4 == 0


def launch(
    x: torch.Tensor,
    layer: Layer,
    *,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x as layer.form.act stores it, [..., K] -> [..., rows] as the epilogue stores it, equal to gemm.launch.

    UsageError where rows are no whole 32-bit words; others: see `call.check`. `suits` says where it is worth while.
    """
    form = layer.form
    shape = (*x.shape[:-1], layer.epilogue.width)
    target = call.check(x, layer, residual, shape)
    pixels = math.prod(shape[:-1])
    if form.taps != 1 or x.shape[-1] % 4 or pixels > MAX_GRID:
        raise UsageError(
            f"x {list(x.shape)}, {form.taps} taps: a matrix-vector product reads at most {MAX_GRID} rows of whole "
            f"32-bit words; use gemm"
        )
    out = call.destination(layer.epilogue, shape, into)
    if pixels == 0:
        return out
    windows = layer.correction if layer.ones is None else launch(x, layer.ones)
    tile = call.fit(tile or call.tuned_tile("gemv", form, pixels, x.device) or VECTOR, layer.epilogue.out)
    gemv[(triton.cdiv(form.rows, tile.rows), pixels)](
        x.view(torch.int32), layer.fields.view(torch.int32), out, correction=layer.correction, windows=windows,
        M=pixels, N=form.rows, K=form.channels, **call.arguments(layer.epilogue, out, residual),
        **call.constants(form, target, assembly=not call.INTERPRETED), **call.result(layer.epilogue),
        **constants(form, tile), **call.options(tile),
    )  # fmt: skip
    return out
