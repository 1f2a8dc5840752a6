"""What GPU kernels are compared with: exact sums in int64, fields spelled out bit by bit, and cases by kind of risk.

Written from docs/gpu.md and shared by the suites; takes from the package only what a caller would (storage, layout).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from bitpress.core.encoding import parse
from bitpress.kernels.gpu.layout import Storage, Weights, arrange, packed

from ..kernels.oracle import Window

# (weights, activations, packed): every pair of widths, every kind of grid on both sides.
KINDS = (
    ("i8", "u8", False), ("i8", "i8", False), ("o8", "u8", False), ("o8", "i8", False), ("i8", "u4", False),
    ("i4", "u8", False), ("o4", "u8", False), ("o4", "i8", False), ("i4", "i4", False),
    ("i2", "u8", False), ("o2", "u8", False), ("t2", "i8", False), ("o2", "u2", False),
    ("i4", "u4", True), ("o4", "u4", True), ("i4", "i4", True), ("o4", "i4", True),
    ("i2", "u2", True), ("o2", "u2", True), ("o2", "i2", True), ("t2", "i2", True),
)  # fmt: skip
# One of each pair of widths.
PAIRS = (("i8", "u8", False), ("o4", "u8", False), ("o2", "u8", False), ("o4", "i4", True), ("i2", "u2", True))


def name(kind: object) -> str:
    """For pytest: "o4-u8", "o4-u4-packed", and everything else as `str` has it."""
    return "-".join((*kind[:2], *(["packed"] if kind[2] else []))) if isinstance(kind, tuple) else str(kind)


@dataclass(frozen=True)
class Case:
    """Levels of one layer and its input, both int64, and the exact sums."""

    w: np.ndarray  # [rows, taps, channels]
    x: np.ndarray  # [..., channels]
    act: Storage
    weights: Weights
    sums: np.ndarray  # [..., rows]


def storage(encoding: str, channels: int, fields: bool) -> Storage:
    """How such activations lie."""
    return packed(parse(encoding), channels) if fields else Storage(parse(encoding))


def levels(rng: np.random.Generator, encoding: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random ones, the extremes first and last."""
    known = np.sort(parse(encoding).levels())
    out = known[rng.integers(0, len(known), shape)].astype(np.int64)
    out.flat[0], out.flat[-1] = known[-1], known[0]
    return out


def product(kind: tuple[str, str, bool], m: int, n: int, k: int) -> Case:
    """A matrix product x [m, k], w [n, 1, k]; the first row of w is all the highest level, the last all the lowest."""
    rng = np.random.default_rng(zlib.crc32(repr((kind, m, n, k)).encode()))
    w, x = levels(rng, kind[0], (n, 1, k)), levels(rng, kind[1], (m, k))
    w[0], w[-1] = parse(kind[0]).hi, parse(kind[0]).lo
    act = storage(kind[1], k, kind[2])
    return Case(w, x, act, arrange(w, parse(kind[0]), act), x @ w[:, 0].T)


def convolution(kind: tuple[str, str, bool], shape: tuple[int, int, int, int], n: int, g: Window) -> Case:
    """x [N, H, W, C], w [n, taps, C]; border and padding count, so the sums are taken tap by tap."""
    rng = np.random.default_rng(zlib.crc32(repr((kind, shape, n, g)).encode()))
    channels = shape[-1]
    w, x = levels(rng, kind[0], (n, g.kernel[0] * g.kernel[1], channels)), levels(rng, kind[1], shape)
    act = storage(kind[1], channels, kind[2])
    sums = sum(there @ w[:, tap].T for tap, there in enumerate(seen(x, g)))
    return Case(w, x, act, arrange(w, parse(kind[0]), act), sums)


def depthwise(kind: tuple[str, str, bool], shape: tuple[int, int, int, int], g: Window) -> Case:
    """x [N, H, W, C], w [C, taps, 1]."""
    rng = np.random.default_rng(zlib.crc32(repr((kind, shape, g)).encode()))
    w, x = levels(rng, kind[0], (shape[-1], g.kernel[0] * g.kernel[1], 1)), levels(rng, kind[1], shape)
    act = storage(kind[1], shape[-1], kind[2])
    sums = sum(there * w[:, tap, 0] for tap, there in enumerate(seen(x, g)))
    return Case(w, x, act, arrange(w, parse(kind[0]), act, depthwise=True), sums)


def seen(x: np.ndarray, g: Window, outside: int = 0) -> list[np.ndarray]:
    """What every tap of the window sees at every output pixel, [N, H', W', C] each."""
    high, wide = g.out(*x.shape[1:3])
    top, left, bottom, right = g.padding
    framed = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=outside)
    views = []
    for tap in range(g.kernel[0] * g.kernel[1]):
        y, z = tap // g.kernel[1] * g.dilation[0], tap % g.kernel[1] * g.dilation[1]
        rows = framed[:, y : y + (high - 1) * g.stride[0] + 1 : g.stride[0]]
        views.append(rows[:, :, z : z + (wide - 1) * g.stride[1] + 1 : g.stride[1]])
    return views


def spelled(codes: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Codes [rows, channels] -> bytes, one at a time: field s of byte j of block t is channel t*P*run + s*run + j."""
    parts, (rows, channels) = 8 // bits, codes.shape
    blocks = -(-channels // (parts * run))
    out = np.zeros((rows, blocks * run), np.uint8)
    for row in range(rows):
        for channel in range(channels):
            block, rest = divmod(channel, parts * run)
            field, j = divmod(rest, run)
            out[row, block * run + j] |= int(codes[row, channel]) << (bits * field)
    return out


def assert_same(expected: np.ndarray, actual: np.ndarray) -> None:
    """Equal, or the first index that differs with both values."""
    assert expected.shape == actual.shape, f"shape {actual.shape}, expected {expected.shape}"
    wrong = np.argwhere(expected != actual)
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise AssertionError(f"{len(wrong)} of {expected.size} differ, first at {at}: {actual[at]}, not {expected[at]}")
