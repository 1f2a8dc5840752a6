"""How large values get: a histogram that grows batch by batch in bounded memory, and the clips that it gives.

Bins are those of float32 itself (the exponent and the first bits of the fraction), so that one pass is enough, parts
can be added up, and a value a million times larger than the rest costs the others no resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from .encoding import Encoding
from .quant import act_bounds, round_half_even
from .ranges import Ranges

FRACTION_BITS = 9  # of a bin: neighbours differ by 0.2 %
SHIFT = 23 - FRACTION_BITS
BINS = 0x7F800000 >> SHIFT  # up to the largest finite float32; 1 MB of counts for a stored value
POINTS = 4  # stand for a bin, whose width is half a step of 8 bits near the clip
# Candidates for a clip, as shares of the largest magnitude: an outlier can be thousands of times too large.
FRACTIONS = np.concatenate([np.geomspace(2.0**-14, 0.02, 60, endpoint=False), np.linspace(0.02, 1.0, 99)])


class Magnitudes:
    """Magnitudes seen so far. `counts`: int64 [BINS], exact zeros not among them; `seen`: all; `top`: the largest."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.seen, self.top = 0, 0.0

    def add(self, values: Tensor) -> None:
        """More values, float32, any shape."""
        magnitudes = values.detach().float().abs().flatten()
        bins = magnitudes[magnitudes > 0].view(torch.int32) >> SHIFT
        self.counts += torch.bincount(bins, minlength=BINS).numpy()
        self.seen += magnitudes.numel()
        self.top = max(self.top, float(magnitudes.max()))

    def clip(self, encoding: Encoding, ranges: Ranges) -> float:
        """Where the range of `encoding` ends; 1 where nothing but zeros was seen."""
        return _CLIPS[ranges.act](self, encoding, ranges) if self.top > 0 else 1.0

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes that stand for all that were seen, ascending, and how many each stands for; float64."""
        filled = np.flatnonzero(self.counts)
        steps = (np.arange(POINTS) + 0.5) / POINTS
        low, high = _edge(filled)[:, None], _edge(filled + 1)[:, None]
        return (low + (high - low) * steps).ravel(), np.repeat(self.counts[filled] / POINTS, POINTS)


def _edge(bins: np.ndarray) -> np.ndarray:
    """Lower ends of bins, float64."""
    return (bins.astype(np.int32) << SHIFT).view(np.float32).astype(np.float64)


def _max(seen: Magnitudes, _encoding: Encoding, _ranges: Ranges) -> float:
    return seen.top


def _percentile(seen: Magnitudes, _encoding: Encoding, ranges: Ranges) -> float:
    """The magnitude that so many percent of all values, zeros too, do not exceed; the smallest where all are zeros."""
    filled = np.flatnonzero(seen.counts)
    up_to = (seen.seen - seen.counts.sum() + np.cumsum(seen.counts[filled])) / seen.seen
    at = int(np.argmax(up_to >= ranges.percentile / 100))
    return min(float(_edge(filled[at : at + 1] + 1)[0]), seen.top)


def _mse(seen: Magnitudes, encoding: Encoding, _ranges: Ranges) -> float:
    """The clip of least squared error."""
    hi = act_bounds(encoding)[1]
    points, counts = seen.points()
    errors = []
    for fraction in FRACTIONS:
        scale = seen.top * fraction / hi
        rest = np.minimum(round_half_even(points / scale), hi) * scale - points
        errors.append(float((counts * rest * rest).sum()))
    return float(seen.top * FRACTIONS[int(np.argmin(errors))])


_CLIPS: Mapping[str, Callable[[Magnitudes, Encoding, Ranges], float]] = {
    "mse": _mse, "percentile": _percentile, "max": _max,
}  # fmt: skip
