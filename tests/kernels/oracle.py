"""What a step must give, in loops of int64 written from docs/format.md 3. Shares no code with the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution; padding is top, left, bottom, right."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def out(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output."""
        top, left, bottom, right = self.padding
        tall = height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1
        wide = width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1
        return tall // self.stride[0] + 1, wide // self.stride[1] + 1


def convolve(x: np.ndarray, w: np.ndarray, g: Window) -> np.ndarray:
    """x int64 [N, C, H, W], w int64 [rows, kh, kw, C / groups] -> exact sums, int64 [N, rows, OH, OW]."""
    images, _, height, width = x.shape
    rows, kh, kw, per_group = w.shape
    out = np.zeros((images, rows, *g.out(height, width)), np.int64)
    for oy in range(out.shape[2]):
        for ox in range(out.shape[3]):
            for ky in range(kh):
                for kx in range(kw):
                    iy = oy * g.stride[0] - g.padding[0] + ky * g.dilation[0]
                    ix = ox * g.stride[1] - g.padding[1] + kx * g.dilation[1]
                    if not (0 <= iy < height and 0 <= ix < width):
                        continue
                    for row in range(rows):
                        first = row // (rows // g.groups) * per_group
                        for n in range(images):
                            pixel = x[n, first : first + per_group, iy, ix]
                            out[n, row, oy, ox] += int(np.sum(w[row, ky, kx] * pixel))
    return out


def store(acc: np.ndarray, m: np.ndarray, b: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """The epilogue onto levels: float32 multiply, add, half to even, clamp; acc [N, rows, ...]."""
    t = acc.astype(np.int32).astype(np.float32)
    for row in range(acc.shape[1]):
        t[:, row] = (t[:, row] * np.float32(m[row])).astype(np.float32)
        t[:, row] = (t[:, row] + np.float32(b[row])).astype(np.float32)
    whole = np.floor(t)
    rest = t.astype(np.float64) - whole
    up = (rest > 0.5) | ((rest == 0.5) & (np.mod(whole, 2) == 1))
    return np.clip(whole + up, lo, hi).astype(np.int64)
