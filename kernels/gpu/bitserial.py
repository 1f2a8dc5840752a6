"""Bit-serial matrix product, w2a2 and w4a4: o[M, N] = finish(x[M, K] @ w[N, K]^T) by AND and popcount, bit by bit.

A product of a bits by b bits is a * b products of planes, 32 channels an instruction. Fields lie as kernels/gpu/gemm.py
reads them, and planes are made of them in registers: bit p of the fields of 8 / b words side by side is one word of
plane p, the same channels on both sides. Bound by popcount, 16 lanes a clock: 32 bytes of 2-bit weights, more than
memory gives; but 128 products of w2a2 a clock, where tensor cores do 4096. So `linear` never takes it: it is here to be
measured, and for chips whose int8 is slow.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from ...core.errors import UnsupportedError
from . import call
from .call import Layer
from .finish import finish
from .layout import Form
from .tiles import SERIAL, Tile


@triton.jit
def popcount(v, ASM: tl.constexpr):
    """Ones of every int32; ASM: "", "nvidia" or "amd".

    LLVM makes one instruction of the plain form, but not of all of them where an AND stands before.
    """
    if ASM == "":
        u = v.to(tl.uint32, bitcast=True)
        u = u - ((u >> 1) & 0x55555555)
        u = (u & 0x33333333) + ((u >> 2) & 0x33333333)
        u = (u + (u >> 4)) & 0x0F0F0F0F
        n = ((u * 0x01010101) >> 24).to(tl.int32, bitcast=True)
    elif ASM == "amd":
        n = tl.inline_asm_elementwise("v_bcnt_u32_b32 $0, $1, 0", "=v,v", [v], dtype=tl.int32, is_pure=True, pack=1)
    else:
        n = tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [v], dtype=tl.int32, is_pure=True, pack=1)
    return n


@triton.jit
def plane(words, P: tl.constexpr, BITS: tl.constexpr):
    """Bit P of every field of BITS words: field i of the result is of word i."""
    LOW: tl.constexpr = 0x55555555 if BITS == 2 else 0x11111111
    bits = (words[0] >> P) & LOW
    for i in tl.static_range(1, BITS):
        bits |= ((words[i] >> P) & LOW) << i
    return bits


@triton.jit
def load(words, BITS: tl.constexpr):
    """BITS words side by side, a tuple."""
    w0, w1 = tl.load(words), tl.load(words + 1)
    return (w0, w1) if BITS == 2 else (w0, w1, tl.load(words + 2), tl.load(words + 3))


@triton.jit
def worth(P: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr):
    """What bit P of a field counts in two's complement, or unsigned."""
    return -(1 << P) if SIGNED and P == BITS - 1 else 1 << P


@triton.jit
def bitserial(
    x, w, o, m, b, columns, residual, m_r, lo, hi, M, N, K, WIDTH,
    BITS: tl.constexpr, A_SIGNED: tl.constexpr, ODD: tl.constexpr, RUN: tl.constexpr,
    OUT: tl.constexpr, OUT_ZERO: tl.constexpr, OUT_BITS: tl.constexpr, OUT_RUN: tl.constexpr,
    RESIDUAL: tl.constexpr, RESIDUAL_ZERO: tl.constexpr, SCATTERED: tl.constexpr,
    ASM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """x words of fields, int32 [M, bytes / 4]; w the same [N, bytes / 4]; ODD: level = 2 * field + 1.

    Fields past K are 0 in x, so what lies there in w does not count.
    """
    across = tl.cdiv(M, BM)
    rows = tl.program_id(0) // across * BN + tl.arange(0, BN)
    pixels = tl.program_id(0) % across * BM + tl.arange(0, BM)
    stride = tl.cdiv(K, RUN * 8 // BITS) * (RUN // 4)
    wp = w + tl.minimum(rows, N - 1)[None, :] * stride
    xp = x + tl.minimum(pixels, M - 1)[:, None] * stride
    acc = tl.zeros((BM, BN), tl.int32)
    total = tl.zeros((BM, 1), tl.int32)  # of the levels of x
    for first in range(0, stride, BITS):
        ws, xs = load(wp + first, BITS), load(xp + first, BITS)
        for q in tl.static_range(BITS):
            a = plane(xs, q, BITS)
            if ODD:
                total += popcount(a, ASM) * worth(q, BITS, A_SIGNED)
            for p in tl.static_range(BITS):
                acc += popcount(a & plane(ws, p, BITS), ASM) * (worth(p, BITS, True) * worth(q, BITS, A_SIGNED))
    if ODD:
        acc = acc * 2 + total
    finish(
        acc, rows, pixels, o, m, b, columns, columns, columns, residual, m_r, lo, hi, N, M, WIDTH,
        0, 0, False, OUT, OUT_ZERO, OUT_BITS, OUT_RUN, RESIDUAL, RESIDUAL_ZERO, SCATTERED, False,
    )  # fmt: skip


SCALARS = {"M": "i32", "N": "i32", "K": "i32", "WIDTH": "i32"}


def constants(form: Form, tile: Tile) -> dict[str, Any]:
    """Compile-time arguments of the family beside those of `call.result`."""
    return {
        "BITS": form.act.bits, "A_SIGNED": form.act.signed, "ODD": form.half != 0, "RUN": form.run,
        "BM": tile.pixels, "BN": tile.rows,
    }  # fmt: skip


def assembler(target: str) -> str:
    """Whose assembly a target has."""
    return "amd" if target.startswith("gfx") else "nvidia"


def launch(
    x: torch.Tensor,
    layer: Layer,
    *,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x as layer.form.act stores it, [..., K] -> [..., rows] as the epilogue stores it, equal to gemm.launch.

    UnsupportedError where activations are no fields, or the layer has more than one tap; others: see `call.check`.
    """
    form = layer.form
    if form.taps != 1 or not form.act.packed:
        raise UnsupportedError(
            f"a bit-serial product takes one tap and fields of 2 or 4 bits, not {form.taps} taps and bytes: use linear"
        )
    shape = (*x.shape[:-1], layer.epilogue.width)
    target = call.check(x, layer, residual, shape)
    out = call.destination(layer.epilogue, shape, into)
    pixels = math.prod(shape[:-1])
    if pixels == 0:
        return out
    tile = call.fit(tile or SERIAL, layer.epilogue.out)
    bitserial[(triton.cdiv(pixels, tile.pixels) * triton.cdiv(form.rows, tile.rows),)](
        x.view(torch.int32), layer.fields.view(torch.int32), out, M=pixels, N=form.rows, K=form.channels,
        **call.arguments(layer.epilogue, out, residual), **call.result(layer.epilogue),
        **constants(form, tile), ASM="" if call.INTERPRETED else assembler(target), **call.options(tile),
    )  # fmt: skip
    return out
