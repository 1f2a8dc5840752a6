"""Fields of a byte to int8 operands of a dot product, each small step by itself; the families are made of these.

Plain Triton gives the values and is what the interpreter runs. On NVIDIA the fields of four bytes are taken apart by
32-bit inline assembly (`ASM`): shifts of int8 are split by LLVM into single bytes, which makes a loop of 128x128x128
two to three times as long. Knows no tiles, no devices and no layers.

A signed field stays in the top bits of its byte, so that its sign costs nothing: the operand is 16 (4 bits) or 64
(2 bits) times the level. On an odd grid, level = 2 * field + 1, a constant half step is OR-ed below the field by the
same LOP3, and the operand is 8 or 32 times the level. Unsigned fields are shifted down and are the level itself. Sums
of operands are exact in int32 (kernels/gpu/layout.py proves it per row), and the epilogue shifts them back.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def top4(b, HALF: tl.constexpr, ASM: tl.constexpr):
    """int8 bytes of two signed 4-bit fields -> two int8 tensors, 16 * field + HALF; HALF: 0, or 8 on an odd grid."""
    if ASM:
        if HALF == 0:
            q0, q1 = tl.inline_asm_elementwise(
                "{ .reg .b32 t; shl.b32 t, $2, 4; and.b32 $0, t, 0xF0F0F0F0; and.b32 $1, $2, 0xF0F0F0F0; }",
                "=r,=r,r", [b], dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
            )  # fmt: skip
        else:
            q0, q1 = tl.inline_asm_elementwise(
                "{ .reg .b32 t; shl.b32 t, $2, 4; lop3.b32 $0, t, 0xF0F0F0F0, 0x08080808, 0xEA;"
                " lop3.b32 $1, $2, 0xF0F0F0F0, 0x08080808, 0xEA; }",
                "=r,=r,r", [b], dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
            )  # fmt: skip
    else:
        q0 = (b << 4) | HALF
        q1 = (b & -16) | HALF
    return q0, q1


@triton.jit
def top2(b, HALF: tl.constexpr, ASM: tl.constexpr):
    """int8 bytes of four signed 2-bit fields -> four int8 tensors, 64 * field + HALF; HALF: 0, or 32 on an odd grid."""
    if ASM:
        if HALF == 0:
            q0, q1, q2, q3 = tl.inline_asm_elementwise(
                "{ .reg .b32 t; shl.b32 t, $4, 6; and.b32 $0, t, 0xC0C0C0C0;"
                " shl.b32 t, $4, 4; and.b32 $1, t, 0xC0C0C0C0;"
                " shl.b32 t, $4, 2; and.b32 $2, t, 0xC0C0C0C0; and.b32 $3, $4, 0xC0C0C0C0; }",
                "=r,=r,=r,=r,r", [b], dtype=(tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4,
            )  # fmt: skip
        else:
            q0, q1, q2, q3 = tl.inline_asm_elementwise(
                "{ .reg .b32 t; shl.b32 t, $4, 6; lop3.b32 $0, t, 0xC0C0C0C0, 0x20202020, 0xEA;"
                " shl.b32 t, $4, 4; lop3.b32 $1, t, 0xC0C0C0C0, 0x20202020, 0xEA;"
                " shl.b32 t, $4, 2; lop3.b32 $2, t, 0xC0C0C0C0, 0x20202020, 0xEA;"
                " lop3.b32 $3, $4, 0xC0C0C0C0, 0x20202020, 0xEA; }",
                "=r,=r,=r,=r,r", [b], dtype=(tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4,
            )  # fmt: skip
    else:
        q0 = (b << 6) | HALF
        q1 = ((b << 4) & -64) | HALF
        q2 = ((b << 2) & -64) | HALF
        q3 = (b & -64) | HALF
    return q0, q1, q2, q3


@triton.jit
def low4(b, ASM: tl.constexpr):
    """int8 bytes of two unsigned 4-bit fields -> two int8 tensors, the fields."""
    if ASM:
        q0, q1 = tl.inline_asm_elementwise(
            "{ .reg .b32 t; shr.u32 t, $2, 4; and.b32 $0, $2, 0x0F0F0F0F; and.b32 $1, t, 0x0F0F0F0F; }",
            "=r,=r,r", [b], dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        q0 = b & 15
        q1 = (b >> 4) & 15
    return q0, q1


@triton.jit
def low2(b, ASM: tl.constexpr):
    """int8 bytes of four unsigned 2-bit fields -> four int8 tensors, the fields."""
    if ASM:
        q0, q1, q2, q3 = tl.inline_asm_elementwise(
            "{ .reg .b32 t; and.b32 $0, $4, 0x03030303; shr.u32 t, $4, 2; and.b32 $1, t, 0x03030303;"
            " shr.u32 t, $4, 4; and.b32 $2, t, 0x03030303; shr.u32 t, $4, 6; and.b32 $3, t, 0x03030303; }",
            "=r,=r,=r,=r,r", [b], dtype=(tl.int8, tl.int8, tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        q0 = b & 3
        q1 = (b >> 2) & 3
        q2 = (b >> 4) & 3
        q3 = (b >> 6) & 3
    return q0, q1, q2, q3


@triton.jit
def operands(b, BITS: tl.constexpr, SIGNED: tl.constexpr, HALF: tl.constexpr, ASM: tl.constexpr):
    """int8 bytes -> tuple of the 8 / BITS int8 operands in them, field 0 (lowest bits) first; whole bytes stay."""
    tl.static_assert(BITS == 8 or BITS == 4 or BITS == 2)
    if BITS == 8:
        q = (b,)
    elif BITS == 4:
        q = top4(b, HALF, ASM) if SIGNED else low4(b, ASM)
    else:
        q = top2(b, HALF, ASM) if SIGNED else low2(b, ASM)
    return q


@triton.jit
def words(w, S: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr, HALF: tl.constexpr):
    """int32 words of four bytes -> the operands in field S of each, four to a word. 32-bit shifts need no assembly."""
    if BITS == 8:
        q = w
    elif BITS == 4:
        q = ((w << (4 - 4 * S)) & -252645136) | (HALF * 16843009) if SIGNED else (w >> (4 * S)) & 252645135
    else:
        q = ((w << (6 - 2 * S)) & -1061109568) | (HALF * 16843009) if SIGNED else (w >> (2 * S)) & 50529027
    return q


@triton.jit
def dot4(a, b, acc, ASM: tl.constexpr):
    """acc + the four products of the signed bytes of the int32 words `a` and `b`."""
    if ASM:
        acc = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, acc], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        for i in tl.static_range(4):
            acc += ((a << (24 - 8 * i)) >> 24) * ((b << (24 - 8 * i)) >> 24)
    return acc


@triton.jit
def multiply(w, a, acc, SWAP: tl.constexpr):
    """acc + the product of a tile of weights and one of activations: w @ a where SWAP, else a @ w; int32."""
    if SWAP:  # noqa: SIM108
        acc = tl.dot(w, a, acc, out_dtype=tl.int32)
    else:
        acc = tl.dot(a, w, acc, out_dtype=tl.int32)
    return acc
