"""The one rounding, clamping and requantisation law (docs/numerics.md), in plain numpy float32.

Every other implementation (torch, C++, Triton) is tested against these few lines. Half to even everywhere;
each float32 operation is rounded on its own, none is fused. Knows nothing of layers or files.
"""

from __future__ import annotations

import numpy as np

from .encoding import Encoding


def round_half_even(x: np.ndarray) -> np.ndarray:
    """Nearest integer, ties to the even one; dtype kept.

    >>> round_half_even(np.float32([0.5, 1.5, 2.5, -0.5])).tolist()
    [0.0, 2.0, 2.0, -0.0]
    """
    return np.rint(x)


def affine(
    acc: np.ndarray,
    m: np.ndarray | np.float32,
    b: np.ndarray | np.float32,
    *,
    residual: np.ndarray | None = None,
    m_r: np.float32 | float = 0.0,
) -> np.ndarray:
    """float32(acc) * m + b (+ float32(residual) * m_r), each operation rounded to float32.

    `acc` int32 (or float32 where a stream is held in floats) [N, C, ...]; `m`, `b` float32 broadcastable to it;
    `residual` levels or float32, same shape as `acc`. The order of the operations is part of the law.
    """
    t = acc.astype(np.float32) * np.asarray(m, np.float32)
    t = t + np.asarray(b, np.float32)
    if residual is not None:
        t = t + residual.astype(np.float32) * np.float32(m_r)
    return t


def requantize(
    acc: np.ndarray,
    m: np.ndarray | np.float32,
    b: np.ndarray | np.float32,
    *,
    lo: int,
    hi: int,
    residual: np.ndarray | None = None,
    m_r: np.float32 | float = 0.0,
) -> np.ndarray:
    """`affine`, then half to even, then clamp to [lo, hi] -> levels, int32. ReLU and ReLU6 are clamp bounds."""
    t = round_half_even(affine(acc, m, b, residual=residual, m_r=m_r))
    return np.clip(t, np.float32(lo), np.float32(hi)).astype(np.int32)


def act_bounds(encoding: Encoding) -> tuple[int, int]:
    """Clamp bounds of an activation: unsigned 0..2**b-1, signed symmetric (clip(x/v, -1, 1))."""
    return (0, encoding.hi) if encoding.lo >= 0 else (-encoding.hi, encoding.hi)


def act_scale(clip: float, encoding: Encoding) -> float:
    """Real value of one activation level, float64: clip / hi."""
    return abs(float(clip)) / encoding.hi


def quantize_act(x: np.ndarray, clip: float, encoding: Encoding) -> np.ndarray:
    """float32 x -> activation levels, int32: the law with m = float32(1 / scale), b = 0."""
    lo, hi = act_bounds(encoding)
    return requantize(x, np.float32(1.0 / act_scale(clip, encoding)), np.float32(0), lo=lo, hi=hi)


def dequantize(levels: np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """Levels -> float32 values."""
    return levels.astype(np.float32) * np.asarray(scale, np.float32)


def quantize_odd(z: np.ndarray, bits: int) -> np.ndarray:
    """Normalised weights z in [-1, 1] -> odd levels of `o{bits}`, int32 (ABS eq 5: u = round((z+1)/2 * (2^b-1)))."""
    top = 2**bits - 1
    u = round_half_even((np.clip(z, -1.0, 1.0) + 1.0) / 2.0 * top)
    return (2 * u - top).astype(np.int32)


def quantize_weight(w: np.ndarray, scale: np.ndarray | float, encoding: Encoding) -> np.ndarray:
    """Weights / scale -> nearest level of a grid with unit steps (u, i), int32; float64 division, half to even."""
    q = round_half_even(np.asarray(w, np.float64) / scale)
    return np.clip(q, encoding.lo, encoding.hi).astype(np.int32)


def normalize_u8(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """uint8 NCHW -> float32 (x/255 - mean)/std, each operation rounded. `mean`, `std` float32 [C]."""
    shape = (1, -1, 1, 1)
    x = images.astype(np.float32) / np.float32(255)
    x = x - np.asarray(mean, np.float32).reshape(shape)
    return x / np.asarray(std, np.float32).reshape(shape)
