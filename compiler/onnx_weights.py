"""Weights of a layer as ONNX stores them: all its segments side by side, in integers that a container holds.

Levels w of at most 7 bits are stored as they are. Odd levels of 8 bits leave int8, and have no integer zero point: they
are stored as v with w = 2v + 1, and so are all odd ones where the container shall be as narrow as the bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.encoding import Encoding
from ..core.errors import UnsupportedError
from .execute import levels
from .program import Program, Step

CONTAINERS = (2, 4, 8)  # bits of the signed types that ONNX has
INT8 = np.iinfo(np.int8)
DEAD = 2.0**-8  # multiplier given to filters of a layer that has none but 0


@dataclass(frozen=True, slots=True)
class Filters:
    """Weights of one layer: level = `factor` * `stored` + `offset` per filter.

    `stored` int8 [C, depth, kh, kw], of `bits` bits; `factor`, `offset` float64 [C]; `m`, `b` float64 [C]: epilogue of
    the level's sums, `m` never 0.
    """

    stored: np.ndarray
    bits: int
    factor: np.ndarray
    offset: np.ndarray
    m: np.ndarray
    b: np.ndarray


def filters(program: Program, steps: Sequence[Step], *, narrow: bool) -> Filters:
    """The layer that `steps` make together. `narrow`: in the narrowest container, else in int8.

    Negative multipliers change the signs of their filters, so that scales are positive wherever the grid allows it.
    UnsupportedError for levels that int8 cannot hold, and for segments that end differently.
    """
    step, name = steps[0], steps[0].layer or steps[0].name
    if len({(s.epilogue.lo, s.epilogue.hi, s.epilogue.m_r) for s in steps if s.epilogue is not None}) != 1:
        raise UnsupportedError(f"{name}: its {len(steps)} segments are clamped differently, which ONNX cannot say")
    count, depth = program.buffers[step.output].shape[0], program.buffers[step.inputs[0]].shape[0] // step.groups
    stored = np.zeros((count, depth, *step.kernel), np.int32)
    factor, offset, m, b = np.ones(count), np.zeros(count), np.zeros(count), np.zeros(count)
    for part in steps:
        assert part.weight is not None and part.epilogue is not None, "check() has proved that convolutions have both"
        at = places(part)
        m[at], b[at] = part.epilogue.m, part.epilogue.b
        top = max(part.weight.encoding.hi, 0 if narrow else INT8.max)
        w, m[at] = _positive(levels(part, depth).astype(np.int32), m[at], top)
        halved = _is_odd(part.weight.encoding) and (narrow or part.weight.encoding.bits == max(CONTAINERS))
        stored[at] = (w - 1) // 2 if halved else w
        factor[at], offset[at] = (2, 1) if halved else (1, 0)
    dead = m == 0
    stored[dead], offset[dead] = 0, 0
    m[dead] = np.abs(m).max() or DEAD
    return Filters(stored.astype(np.int8), _bits(name, stored, narrow=narrow), factor, offset, m, b)


def places(step: Step) -> np.ndarray:
    """Channels of its output that the rows of a step are."""
    if step.out_channels is not None:
        return step.out_channels
    rows = step.weight.shape[0] if step.weight is not None else len(step.channels if step.channels is not None else ())
    return np.arange(rows)


def _positive(w: np.ndarray, m: np.ndarray, hi: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels and multipliers, both negated where a multiplier is negative and the negated levels are at most `hi`."""
    turn = (m < 0) & (-w.reshape(len(w), -1).min(axis=1) <= hi)
    return np.where(turn[:, None, None, None], -w, w), np.where(turn, -m, m)


def _is_odd(encoding: Encoding) -> bool:
    return bool((encoding.levels() % 2 != 0).all())


def _bits(name: str, stored: np.ndarray, *, narrow: bool) -> int:
    lo, hi = int(stored.min()), int(stored.max())
    fits = [bits for bits in CONTAINERS if -(2 ** (bits - 1)) <= lo and hi < 2 ** (bits - 1)]
    if not fits:
        raise UnsupportedError(f"{name}: weight levels from {lo} to {hi} do not fit into int8, and ONNX gets no other")
    return fits[0] if narrow else max(CONTAINERS)
