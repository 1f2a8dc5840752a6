"""Matrix product of packed weights and int8 or packed activations: o[M, N] = finish(x[M, K] @ w[N, K]^T).

Bound by the weights' bytes up to about M = 200, by the tensor cores above. On NVIDIA the operands are swapped (SWAP):
the product is w[BN, K] @ x^T[K, BM], because wgmma takes its first operand from registers, where unpacked weights are;
the obvious x @ w^T sends every unpacked byte back through shared memory. Packed activations do pay that. On AMD there
is neither gain nor 32-bit assembly: plain order.
Unpacking to one slice and interleaving (`tl.join`) was tried by others and is what makes a loop five times as long.
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
from .fields import multiply, operands
from .finish import finish
from .layout import Form
from .tiles import Tile, choose, split


@triton.jit
def gemm(
    x, w, o, m, b, correction, windows, columns, residual, m_r, lo, hi, sums, counts, M, N, K, WIDTH,
    W_BITS: tl.constexpr, A_BITS: tl.constexpr, A_SIGNED: tl.constexpr,
    HALF: tl.constexpr, ZERO: tl.constexpr, SHIFT: tl.constexpr, DOUBLED: tl.constexpr, RUN: tl.constexpr,
    OUT: tl.constexpr, OUT_ZERO: tl.constexpr, OUT_BITS: tl.constexpr, OUT_RUN: tl.constexpr,
    RESIDUAL: tl.constexpr, RESIDUAL_ZERO: tl.constexpr, SCATTERED: tl.constexpr,
    SWAP: tl.constexpr, ASM: tl.constexpr,
    EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BLOCKS: tl.constexpr, BAND: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """x int8 [M, K] or fields [M, bytes]; w fields int8 [N, bytes]; EVEN: K is a whole number of turns.

    Rows and pixels past the last read the last one again and are not stored. Past K activations are read as operand 0.
    SPLITS programs share a tile, each a part of K: they add to sums int32 [M, N], all 0 before, and the one that
    counts [tiles], all 0 too, says is the last goes on with the whole. Integer sums have no order, so neither has this.
    """
    PARTS: tl.constexpr = 8 // W_BITS
    PACKED: tl.constexpr = A_BITS < 8
    BLOCK: tl.constexpr = PARTS * RUN
    STEP: tl.constexpr = BLOCKS * RUN  # bytes of fields per turn
    # Programs go through BAND tiles of rows for every tile of pixels, so that both stay in L2.
    pid = tl.program_id(0)
    across = tl.cdiv(M, BM)
    band = pid // (BAND * across) * BAND
    height = tl.minimum(tl.cdiv(N, BN) - band, BAND)
    rows = (band + pid % (BAND * across) % height) * BN + tl.arange(0, BN)
    pixels = pid % (BAND * across) // height * BM + tl.arange(0, BM)
    known = tl.minimum(rows, N - 1)
    reads = tl.minimum(pixels, M - 1)
    j = tl.arange(0, STEP)
    stride = tl.cdiv(K, BLOCK) * RUN
    k = j if PACKED else j // RUN * BLOCK + j % RUN  # channel of field 0
    end = stride if PACKED else K
    if SWAP:
        wp = w + known[:, None] * stride + j[None, :]
        xp = x + reads[None, :] * end + k[:, None]
        acc = tl.zeros((BN, BM), tl.int32)
    else:
        wp = w + known[None, :] * stride + j[:, None]
        xp = x + reads[:, None] * end + k[None, :]
        acc = tl.zeros((BM, BN), tl.int32)
    first, last = 0, tl.cdiv(stride, STEP)
    if SPLITS > 1:
        part = tl.cdiv(last, SPLITS)
        first = tl.program_id(1) * part
        last = tl.minimum(first + part, last)
        wp += first * STEP
        xp += first * (STEP if PACKED else STEP * PARTS)
    for turn in range(first, last):
        if EVEN or BLOCKS == 1:
            fields = tl.load(wp)
        else:
            here = j < stride - turn * STEP
            fields = tl.load(wp, mask=here[None, :] if SWAP else here[:, None], other=0)
        ws = operands(fields, W_BITS, True, HALF, ASM)
        if PACKED:
            if EVEN or BLOCKS == 1:
                codes = tl.load(xp)
            else:
                here = k < end - turn * STEP
                codes = tl.load(xp, mask=here[:, None] if SWAP else here[None, :], other=0)
            xs = operands(codes, A_BITS, A_SIGNED, 0, ASM)
        for s in tl.static_range(PARTS):
            if PACKED:
                a = xs[s]
            elif EVEN:
                a = tl.load(xp + s * RUN)
            else:
                here = k < end - turn * STEP * PARTS - s * RUN
                a = tl.load(xp + s * RUN, mask=here[:, None] if SWAP else here[None, :], other=0)
            acc = multiply(ws[s], a, acc, SWAP)
        wp += STEP
        xp += STEP if PACKED else STEP * PARTS
    if SPLITS > 1:
        if SWAP:
            at, inside = pixels[None, :] * N + rows[:, None], (pixels < M)[None, :] & (rows < N)[:, None]
        else:
            at, inside = pixels[:, None] * N + rows[None, :], (pixels < M)[:, None] & (rows < N)[None, :]
        tl.atomic_add(sums + at, acc, mask=inside, sem="relaxed")
        tl.debug_barrier()  # this program's sums before its count
        if tl.atomic_add(counts + pid, 1) != SPLITS - 1:
            return
        tl.debug_barrier()
        acc = tl.load(sums + at, mask=inside, other=0, volatile=True)
    finish(
        acc, rows, pixels, o, m, b, correction, windows, columns, residual, m_r, lo, hi, N, M, WIDTH,
        ZERO, SHIFT, DOUBLED, OUT, OUT_ZERO, OUT_BITS, OUT_RUN, RESIDUAL, RESIDUAL_ZERO, SCATTERED, SWAP,
    )  # fmt: skip


BAND = 8
SCALARS = {"M": "i32", "N": "i32", "WIDTH": "i32", "K": "i32"}


def constants(form: Form, tile: Tile) -> dict[str, Any]:
    """Compile-time arguments of the family beside those of `call.constants`."""
    turn = tile.blocks * form.run
    rest = form.bytes % turn if form.act.packed else form.channels % (turn * 8 // form.encoding.bits)
    return {"EVEN": rest == 0, "BM": tile.pixels, "BN": tile.rows, "BLOCKS": tile.blocks, "BAND": BAND,
            "SPLITS": tile.splits}  # fmt: skip


def usual(form: Form, pixels: int, target: str, device: torch.device) -> Tile:
    """The tile for so many rows of x where none was timed, K split where that fills the chip."""
    tile = choose(target, pixels)
    programs = triton.cdiv(pixels, tile.pixels) * triton.cdiv(form.rows, tile.rows)
    return split(tile, programs, triton.cdiv(form.bytes, tile.blocks * form.run), call.processors(device))


def launch(
    x: torch.Tensor,
    layer: Layer,
    *,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x as layer.form.act stores it, [..., K] -> [..., rows] as the epilogue stores it.

    UsageError, EnvironmentMissing, UnsupportedError: see `call.check`.
    """
    form, end = layer.form, layer.epilogue
    shape = (*x.shape[:-1], end.width)
    target = call.check(x, layer, residual, shape)
    if form.taps != 1:
        raise UsageError(f"the layer has {form.taps} taps: it is a convolution, not a matrix product")
    out = call.destination(end, shape, into)
    pixels = math.prod(shape[:-1])
    if pixels == 0:
        return out
    windows = layer.correction if layer.ones is None else launch(x, layer.ones)
    tile = tile or call.tuned_tile("gemm", form, pixels, x.device) or usual(form, pixels, target, x.device)
    tile = call.fit(tile, end.out, scattered=end.columns is not None)
    programs = triton.cdiv(pixels, tile.pixels) * triton.cdiv(form.rows, tile.rows)
    sums = counts = layer.correction  # never touched by programs that share nothing
    if tile.splits > 1:
        sums = torch.zeros((pixels, form.rows), dtype=torch.int32, device=x.device)
        counts = torch.zeros(programs, dtype=torch.int32, device=x.device)
    gemm[(programs, tile.splits)](
        x, layer.fields, out, correction=layer.correction, windows=windows, sums=sums, counts=counts,
        M=pixels, N=form.rows, K=form.channels, **call.arguments(end, out, residual),
        **call.constants(form, target, assembly=not call.INTERPRETED), **call.result(end),
        **constants(form, tile), **call.options(tile),
    )  # fmt: skip
    return out
