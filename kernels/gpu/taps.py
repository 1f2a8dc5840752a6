"""Where a window lies in an NHWC image: the steps that convolutions and pools share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def origin(
    pixels, M, IH, IW, OH, OW, SH: tl.constexpr, SW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr
):  # fmt: skip
    """Input pixel under the first tap of output pixels, as (number, row, column), each int32 and maybe outside.

    Output pixels past the last of M count as the last.
    """
    known = tl.minimum(pixels, M - 1)
    top = known // OW % OH * SH - TOP
    left = known % OW * SW - LEFT
    return (known // (OH * OW) * IH + top) * IW + left, top, left


@triton.jit
def moved(top, left, tap, IH, IW, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr):
    """How many input pixels further `tap` lies, int32, and for which of them it is inside the image."""
    dy = tap // KW * DH
    dx = tap % KW * DW
    y, z = top + dy, left + dx
    return dy * IW + dx, (y >= 0) & (y < IH) & (z >= 0) & (z < IW)
