"""Tiles as data, chosen by a pure function of shapes and chip. None has been timed: they are what compiles without
spills within the shared memory of every chip, and what docs/gpu.md tells of instructions in the loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...core.errors import UnsupportedError

# Bytes of shared memory that one block may take.
SHARED = {
    "sm80": 166_912, "sm86": 101_376, "sm89": 101_376, "sm90": 232_448, "sm100": 232_448, "sm120": 101_376,
    "gfx942": 65_536,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes: `pixels` x `rows` outputs, `blocks` blocks of K per turn of its loop.

    `splits`: programs that share the K of one such tile (matrix product only).
    """

    pixels: int
    rows: int
    blocks: int
    warps: int
    stages: int
    splits: int = 1


# Families without products of matrices: pixels times channels, 16 channels a thread.
PLANAR = Tile(pixels=32, rows=64, blocks=1, warps=4, stages=1)
SERIAL = Tile(pixels=32, rows=64, blocks=1, warps=4, stages=1)
VECTOR = Tile(pixels=1, rows=16, blocks=8, warps=4, stages=3)
_NARROW = (
    Tile(pixels=16, rows=128, blocks=2, warps=4, stages=3),
    Tile(pixels=32, rows=128, blocks=2, warps=4, stages=3),
    Tile(pixels=64, rows=128, blocks=1, warps=8, stages=3),
)
_WIDE = Tile(pixels=128, rows=128, blocks=1, warps=8, stages=3)
_AMD = Tile(pixels=64, rows=128, blocks=1, warps=4, stages=2)


def chip(target: str) -> str:
    """The row of SHARED that a target is judged by: itself or the next older; UnsupportedError where there is none.

    >>> chip("sm87"), chip("gfx942")
    ('sm86', 'gfx942')
    """
    if target in SHARED:
        return target
    older = [name for name in SHARED if name.startswith("sm") and target.startswith("sm") and _cc(name) <= _cc(target)]
    if not older:
        raise UnsupportedError(f"no tiles for {target}: GPU kernels need compute capability 8.0 or later, or gfx942")
    return max(older, key=_cc)


def choose(target: str, pixels: int) -> Tile:
    """The tile for so many output pixels (of a matrix: its rows) on `target`."""
    if chip(target).startswith("gfx"):
        return _AMD
    return next((tile for tile in _NARROW if pixels <= tile.pixels), _WIDE)


def split(tile: Tile, programs: int, turns: int, processors: int) -> Tile:
    """The tile with K split so that `programs` programs of so many turns fill the chip; a part has four turns at least.

    >>> split(_NARROW[0], programs=32, turns=32, processors=132).splits
    4
    """
    return replace(tile, splits=max(1, min(processors // programs, turns // 4)))


def _cc(name: str) -> int:
    return int(name.removeprefix("sm"))
