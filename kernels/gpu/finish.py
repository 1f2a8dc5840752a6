"""The epilogue: sums of operands -> stored values, by docs/numerics.md 5, each float32 operation rounded on its own.

Kernels are compiled with `enable_fp_fusion=False`: a fused multiply-add rounds once where the law rounds twice. Knows
nothing of how a sum came about.
"""

from __future__ import annotations

import triton
import triton.language as tl

# 1.5 * 2**23: adding and taking it away rounds a float32 of magnitude below 2**22 to the nearest integer, ties to even.
ROUND = tl.constexpr(12582912.0)
# What becomes of a sum: itself (int32), a float32, an int8 byte, or fields of 4 or 2 bits.
SUMS, FLOATS, BYTES, FIELDS = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def finish(
    acc, rows, pixels, o, m, b, correction, windows, columns, residual, m_r, lo, hi, N, M, WIDTH,
    ZERO: tl.constexpr, SHIFT: tl.constexpr, DOUBLED: tl.constexpr,
    OUT: tl.constexpr, OUT_ZERO: tl.constexpr, OUT_BITS: tl.constexpr, OUT_RUN: tl.constexpr,
    RESIDUAL: tl.constexpr, RESIDUAL_ZERO: tl.constexpr, SCATTERED: tl.constexpr, SWAP: tl.constexpr,
):  # fmt: skip
    """Stores the block `acc` of sums of operands, int32 [rows, pixels] where SWAP, else [pixels, rows].

    `rows` int32 [BN], `pixels` int32 [BM]: numbers of the block's output channels and pixels, of N and M in all. Output
    and residual are [M, N], channels contiguous; FIELDS are int8 [M, blocks * OUT_RUN], see kernels/gpu/layout.py.
    Where SCATTERED they are [M, WIDTH], and row r is channel columns[r] of them, int32 [N]; never with FIELDS.
    m, b float32 [N]; correction int32 [N]; windows int32 [M], read where DOUBLED; bounds and m_r float32. Steps 5 and 6
    of the law change places, as it allows. `acc` may be float32 where there is nothing to shift or correct.
    """
    if SWAP:
        r, p = rows[:, None], pixels[None, :]
    else:
        r, p = rows[None, :], pixels[:, None]
    known = r < N
    inside = known & (p < M)
    if SCATTERED:  # noqa: SIM108
        at = p * WIDTH + tl.load(columns + r, mask=known, other=0)
    else:
        at = p * N + r
    if DOUBLED:
        sums = acc * 2 + tl.load(windows + p, mask=p < M, other=0)
    elif SHIFT != 0:
        sums = acc >> SHIFT
    else:
        sums = acc
    if ZERO != 0:
        sums += tl.load(correction + r, mask=known, other=0)
    if OUT == SUMS:
        tl.store(o + at, sums, mask=inside)
    else:
        t = sums.to(tl.float32) * tl.load(m + r, mask=known, other=0.0)
        t = t + tl.load(b + r, mask=known, other=0.0)
        if RESIDUAL:
            kept = tl.load(residual + at, mask=inside, other=0)
            if RESIDUAL_ZERO != 0:
                kept = kept.to(tl.int32) + RESIDUAL_ZERO
            t = t + kept.to(tl.float32) * m_r
        t = tl.minimum(tl.maximum(t, lo), hi)
        if OUT == FLOATS:
            tl.store(o + at, t, mask=inside)
        else:
            level = ((t + ROUND) - ROUND).to(tl.int32)
            if OUT == BYTES:
                tl.store(o + at, (level - OUT_ZERO).to(tl.int8), mask=inside)
            else:
                pack(tl.where(known, level, 0), rows, pixels, o, N, M, OUT_BITS, OUT_RUN, SWAP)


@triton.jit
def pack(level, rows, pixels, o, N, M, BITS: tl.constexpr, RUN: tl.constexpr, SWAP: tl.constexpr):
    """Stores levels, 0 past the last channel, as BITS-bit fields in slices of RUN channels.

    Field s of byte j holds channel s * RUN + j of its block, so the tile is cut along its channels and the parts are
    joined: once per output, behind the loop.
    """
    PARTS: tl.constexpr = 8 // BITS
    BLOCK: tl.constexpr = PARTS * RUN
    BN: tl.constexpr = rows.shape[0]
    BM: tl.constexpr = pixels.shape[0]
    BLOCKS: tl.constexpr = BN // BLOCK
    tl.static_assert(BN % BLOCK == 0, "a tile holds whole blocks of the output's channels")
    part = tl.arange(0, PARTS) * BITS
    stride = (N + BLOCK - 1) // BLOCK * RUN
    byte = tl.min(rows, 0) // PARTS + tl.arange(0, BLOCKS * RUN)
    code = level & ((1 << BITS) - 1)
    if SWAP:
        code = tl.reshape(code, (BLOCKS, PARTS, RUN, BM)) << part[None, :, None, None]
        joined = tl.reshape(tl.sum(code, 1), (BLOCKS * RUN, BM))
        at, inside = pixels[None, :] * stride + byte[:, None], (pixels < M)[None, :] & (byte < stride)[:, None]
    else:
        code = tl.reshape(code, (BM, BLOCKS, PARTS, RUN)) << part[None, None, :, None]
        joined = tl.reshape(tl.sum(code, 2), (BM, BLOCKS * RUN))
        at, inside = pixels[:, None] * stride + byte[None, :], (pixels < M)[:, None] & (byte < stride)[None, :]
    tl.store(o + at, joined.to(tl.int8), mask=inside)
