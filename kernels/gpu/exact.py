"""What a layer means, in numpy on stored tensors: the slow definition beside the Triton kernels, and the op's CPU side.

Sums are exact in float64, which holds every integer below 2^53; the epilogue is core/quant.py. Knows no torch.
"""

from __future__ import annotations

import numpy as np

from ...core import quant
from .layout import Form, Storage, restore
from .window import Window


def sums(x: np.ndarray, form: Form, fields: np.ndarray, window: Window) -> np.ndarray:
    """x int8 as form.act stores it, [..., K] or with a window of several taps [N, H, W, C] -> int32 [..., rows]."""
    levels = form.act.load(x, form.channels).astype(np.float64)
    w = restore(form, fields).astype(np.float64)
    if window == Window():
        return (levels @ w[:, 0].T).astype(np.int32)
    high, wide = window.out(*x.shape[1:3])
    top, left, bottom, right = window.padding
    framed = np.pad(levels, ((0, 0), (top, bottom), (left, right), (0, 0)))
    total = np.zeros((x.shape[0], high, wide, form.rows))
    for tap in range(form.taps):
        y, z = tap // window.kernel[1] * window.dilation[0], tap % window.kernel[1] * window.dilation[1]
        rows = framed[:, y : y + (high - 1) * window.stride[0] + 1 : window.stride[0]]
        total += rows[:, :, z : z + (wide - 1) * window.stride[1] + 1 : window.stride[1]] @ w[:, tap].T
    return total.astype(np.int32)


def finish(
    acc: np.ndarray,
    out: Storage | str,
    m: np.ndarray,
    b: np.ndarray,
    *,
    lo: float,
    hi: float,
    residual: np.ndarray | None = None,
    m_r: float = 0.0,
) -> np.ndarray:
    """acc int32 [..., rows], residual levels or float32 of that shape -> as `out` stores it."""
    if out == "i32":
        return acc
    if isinstance(out, Storage):
        levels = quant.requantize(acc, m, b, lo=int(lo), hi=int(hi), residual=residual, m_r=np.float32(m_r))
        return out.store(levels)
    t = quant.affine(acc, m, b, residual=residual, m_r=np.float32(m_r))
    return np.clip(t, np.float32(lo), np.float32(hi))
