"""Winograd's rows: the identity in whole numbers, the ranges that make it exact, and every shape that cuts tiles."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bitpress.core.encoding import parse
from bitpress.core.quant import act_bounds
from bitpress.kernels import registry
from bitpress.kernels.kernel import Problem, tiles

from . import oracle
from .oracle import Window
from .test_conformance import SAME, USABLE, case, check

G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
ROWS = [name for name in USABLE if name.startswith("winograd")]
needs_rows = pytest.mark.skipif(not ROWS, reason="no Winograd row runs on this host")


def by_tiles(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The readable definition: x [N, C, H, W] of even H and W, w [rows, 3, 3, C] -> sums [N, rows, H - 2, W - 2]."""
    n, _, h, wide = x.shape
    out = np.zeros((n, w.shape[0], h - 2, wide - 2), np.int64)
    u = np.einsum("ia,rabc,jb->rijc", G, w, G)
    for y, left in product(range(0, h - 2, 2), range(0, wide - 2, 2)):
        v = np.einsum("ia,ncab,jb->ncij", B, x[:, :, y : y + 4, left : left + 4], B)
        four = np.einsum("pi,rijc,ncij,qj->nrpq", A, u, v, A)
        assert not (four % 4).any()
        out[:, :, y : y + 2, left : left + 2] = four // 4
    return out


def test_the_identity_in_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(-7, 8, (2, 5, 8, 6)), rng.integers(-15, 16, (3, 3, 3, 5))
    np.testing.assert_array_equal(by_tiles(x, w), oracle.convolve(x, w, Window((3, 3))))


@pytest.mark.parametrize("act", ["u1", "u2", "u3", "u4", "i2", "i3", "i4"])
def test_transformed_levels_span_four_times_a_level(act: str) -> None:
    """So bytes hold them, once 2 a is added to all but the second row's second."""
    lo, hi = act_bounds(parse(act))
    top = hi - lo  # of what is made of a level before
    ends = np.array(list(product((0, top), repeat=16))).reshape(-1, 4, 4)
    v = np.einsum("ia,nab,jb->nij", B, ends, B)
    lifted = v + np.where(np.arange(16).reshape(4, 4) == 5, 0, 2 * top)
    assert lifted.min() == 0 and lifted.max() == 4 * top <= 255


WINDOWS = (
    Window((3, 3)), SAME, Window((3, 3), padding=(1, 0, 0, 1)), Window((3, 3), padding=(2, 1, 0, 3)),
    Window((3, 3), padding=(1, 1, 1, 1), groups=3),
)  # fmt: skip


@pytest.mark.native
@needs_rows
@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize(
    ("weight", "act"), [("o4", "u4"), ("i4", "i4"), ("o2", "u2"), ("t2", "i2"), ("i8", "i8"), ("u8", "u8")]
)
def test_shapes_that_cut_tiles(kernel: str, weight: str, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for g, (c, side, rows) in product(WINDOWS, ((3, (3, 5), 9), (6, (4, 4), 15), (33, (5, 8), 24), (18, (9, 3), 3))):
        if c % g.groups == rows % g.groups == 0:
            check(kernel, weight, act, case(weight, act, c, side, rows, g, batch=2), g, monkeypatch)


def drawn(weight: str, act: str, c: int, side: tuple[int, int], rows: int, spread: float) -> tuple[np.ndarray, ...]:
    """Levels like trained ones, most weights near 0: sums of nine fit a byte though nine of the largest do not."""
    rng = np.random.default_rng(3)
    lo, hi = act_bounds(parse(act))
    levels = parse(weight).levels().astype(np.int64)
    near = np.abs(rng.normal(0, spread, (rows, 3, 3, c))[..., None] - levels).argmin(axis=-1)
    x, w = rng.integers(lo, hi + 1, (1, c, *side)), levels[near]
    return x, w, by_tiles(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), w)


@pytest.mark.native
@needs_rows
@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize(("weight", "act"), [("o4", "u4"), ("o2", "u4"), ("i4", "i4"), ("o2", "u2")])
@pytest.mark.parametrize(("c", "side", "rows"), [(64, (32, 34), 17), (160, (10, 6), 40), (16, (56, 56), 16)])
def test_strips_bands_and_rests(
    kernel: str, weight: str, act: str, c: int, side: tuple[int, int], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More tiles than a strip has, more rows than a band, more steps than int16 holds."""
    for spread in (2.0, 8.0, 100.0):
        check(kernel, weight, act, drawn(weight, act, c, side, rows, spread), SAME, monkeypatch)


@pytest.mark.native
@needs_rows
@pytest.mark.parametrize("kernel", ROWS)
def test_what_a_row_refuses(kernel: str) -> None:
    def why(depth: int, near: int, weight: str = "i8", act: str = "u8") -> str:
        problem = Problem("conv2d", parse(weight), parse(act), 16, depth, 64, 1, near)
        return next(v.why for v in registry.explain(problem) if v.kernel.name == kernel)

    low = kernel.startswith("winograd8")
    assert why(144, 0, "i2", "u2") == "computes windows of 3 x 3, one pixel apart"
    most = (2**31 - 1) // (4 * 255 * 128)
    if low:
        assert why(most, 16) == "has w1..w4, not w8"
    else:
        assert why(most, 16).startswith("about ")
        assert why(most + 1, 16) == "four times the largest sum leaves int32"


def test_which_windows_have_tiles() -> None:
    near = (3, 3), (1, 1), (1, 1)
    assert tiles((8, 8), *near) == 16 and tiles((7, 5), *near) == 12 and tiles((1, 2), *near) == 1
    assert tiles((1, 1), *near) == 0  # the window is the whole input
    one = (1, 1)
    for kernel, stride, dilation in ((one, one, one), ((3, 3), (2, 2), one), ((3, 3), one, (2, 2)), ((3, 5), one, one)):
        assert tiles((8, 8), kernel, stride, dilation) == 0
