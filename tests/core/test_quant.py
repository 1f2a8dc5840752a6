"""The numeric law of docs/numerics.md: ties, order of operations, rounding after each; the grids of quantisers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitpress.core import quant
from bitpress.core.encoding import odd, parse

TIES = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 126.5, 254.5]
EVEN = [-2, -2, 0, 0, 2, 2, 4, 126, 254]


def float32(x: Fraction) -> Fraction:
    """Nearest float32 of a rational, ties to even, by integers alone; no overflow, no subnormals."""
    if x == 0:
        return x
    exponent = 0
    while abs(x) / Fraction(2) ** exponent >= 2**24:
        exponent += 1
    while abs(x) / Fraction(2) ** exponent < 2**23:
        exponent -= 1
    return Fraction(round(x / Fraction(2) ** exponent)) * Fraction(2) ** exponent  # round(Fraction): half to even


def law(acc: int, m: float, b: float, r: int | None = None, m_r: float = 0.0) -> Fraction:
    """The affine part of the law in exact arithmetic, rounded to float32 after each operation."""
    t = float32(float32(Fraction(acc)) * Fraction(m))
    t = float32(t + Fraction(b))
    return t if r is None else float32(t + float32(float32(Fraction(r)) * Fraction(m_r)))


def test_half_goes_to_even() -> None:
    for dtype in (np.float32, np.float64):
        rounded = quant.round_half_even(np.array(TIES, dtype))
        assert rounded.dtype == dtype and rounded.tolist() == EVEN


def test_half_goes_to_even_in_torch() -> None:
    torch = pytest.importorskip("torch", reason="the extra `search` is not installed")
    assert torch.round(torch.tensor(TIES)).tolist() == EVEN


def test_requantisation_ties() -> None:
    acc = np.array([-5, -3, -1, 1, 3, 5, 7], np.int32)
    half, none = np.float32(0.5), np.float32(0)
    assert quant.requantize(acc, half, none, lo=-8, hi=7).tolist() == [-2, -2, 0, 0, 2, 2, 4]
    assert quant.requantize(acc, half, np.float32(0.5), lo=-8, hi=7).tolist() == [-2, -1, 0, 1, 2, 3, 4]
    got = quant.requantize(acc, half, none, lo=-8, hi=7, residual=np.full(7, 3, np.int32), m_r=0.25)
    assert got.tolist() == [-2, -1, 0, 1, 2, 3, 4]  # + 0.75: no ties left
    got = quant.requantize(acc, half, none, lo=-8, hi=7, residual=np.full(7, 4, np.int32), m_r=0.25)
    assert got.tolist() == [-2, 0, 0, 2, 2, 4, 4]


def test_requantisation_ties_in_torch() -> None:
    torch = pytest.importorskip("torch", reason="the extra `search` is not installed")
    rng = np.random.default_rng(5)
    acc = rng.integers(-(2**25), 2**25, (4, 6, 50)).astype(np.int32)
    acc[0] = 2 * rng.integers(-200, 200, (6, 50)) + 1  # times 0.5: ties
    m = np.float32([0.5, 0.5, 3e-4, 1e-5, 7e-6, 0.1]).reshape(6, 1)
    b = np.float32([0, 0.5, 1.25, -3, 0.1, 1e3]).reshape(6, 1)
    r = rng.integers(-128, 128, acc.shape).astype(np.int32)
    want = quant.requantize(acc, m, b, lo=-127, hi=127, residual=r, m_r=np.float32(0.3))
    t = torch.from_numpy(acc).to(torch.float32) * torch.from_numpy(m)
    t = t + torch.from_numpy(b)
    t = t + torch.from_numpy(r).to(torch.float32) * torch.tensor(0.3, dtype=torch.float32)
    assert torch.round(t).clamp(-127, 127).to(torch.int32).numpy().tolist() == want.tolist()


def test_accumulators_convert_to_the_nearest_even_float() -> None:
    acc = np.array([2**24, 2**24 + 1, 2**24 + 2, 2**24 + 3, -(2**24) - 1, 2**31 - 1], np.int32)
    got = quant.affine(acc, np.float32(1), np.float32(0))
    assert got.dtype == np.float32
    assert got.tolist() == [2.0**24, 2.0**24, 2.0**24 + 2, 2.0**24 + 4, -(2.0**24), 2.0**31]


def test_product_is_rounded_before_the_sum() -> None:
    """4097 * 4097 = 2**24 + 2**13 + 1 needs 25 bits; a fused multiply-add would keep the last one."""
    acc, m, b = np.array([4097], np.int32), np.float32(4097), np.float32(-(2**24 + 2**13))
    assert 4097 * 4097 + int(b) == 1
    assert quant.requantize(acc, m, b, lo=-8, hi=7).tolist() == [0]


def test_residual_product_is_rounded_before_the_sum() -> None:
    r = np.array([4097], np.int32)
    acc, m = np.array([-(2**24) - 2**13], np.int32), np.float32(1)
    assert quant.requantize(acc, m, np.float32(0), lo=-8, hi=7, residual=r, m_r=np.float32(4097)).tolist() == [0]


def test_bias_comes_before_the_residual() -> None:
    acc, r = np.array([2**24], np.int32), np.array([-(2**24)], np.int32)
    got = quant.requantize(acc, np.float32(1), np.float32(1), lo=-8, hi=7, residual=r, m_r=np.float32(1))
    assert got.tolist() == [0]  # (2**24 + 1 -> 2**24) - 2**24; with the residual first it would be 1


def test_activations_are_clamp_bounds() -> None:
    acc = np.array([-9, -1, 0, 3, 9], np.int32)
    one, none = np.float32(1), np.float32(0)
    assert quant.requantize(acc, one, none, lo=0, hi=3).tolist() == [0, 0, 0, 3, 3]  # relu into u2
    assert quant.requantize(acc, one, none, lo=-7, hi=7).tolist() == [-7, -1, 0, 3, 7]


FINITE = st.floats(-(2.0**10), 2.0**10, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-60)


@given(st.integers(-(2**31) + 1, 2**31 - 1), FINITE, FINITE, st.none() | st.integers(-255, 255), FINITE)
def test_the_law_in_exact_arithmetic(acc: int, m: float, b: float, r: int | None, m_r: float) -> None:
    residual = None if r is None else np.array([r], np.int32)
    got = quant.affine(np.array([acc], np.int32), np.float32(m), np.float32(b), residual=residual, m_r=np.float32(m_r))
    want = law(acc, m, b, r, m_r)
    assert Fraction(float(got[0])) == want
    level = quant.requantize(
        np.array([acc], np.int32), np.float32(m), np.float32(b), lo=-127, hi=127, residual=residual, m_r=m_r
    )
    assert level.dtype == np.int32 and level[0] == min(max(round(want), -127), 127)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_channels_have_constants_of_their_own(channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    acc = rng.integers(-5000, 5000, (2, channels, 3)).astype(np.int32)
    m, b = rng.normal(0, 0.01, channels).astype(np.float32), rng.normal(0, 5, channels).astype(np.float32)
    whole = quant.requantize(acc, m.reshape(-1, 1), b.reshape(-1, 1), lo=0, hi=15)
    for c in range(channels):
        assert np.array_equal(whole[:, c], quant.requantize(acc[:, c], m[c], b[c], lo=0, hi=15))


def test_signed_activations_are_symmetric() -> None:
    assert quant.act_bounds(parse("u4")) == (0, 15)
    assert quant.act_bounds(parse("i4")) == (-7, 7)
    x = np.float32([-9, -1, -0.5, 0, 0.5, 1, 9])
    assert quant.quantize_act(x, 1.0, parse("i4")).tolist() == [-7, -7, -4, 0, 4, 7, 7]  # 3.5 is a tie
    assert quant.quantize_act(x, -1.0, parse("u2")).tolist() == [0, 0, 0, 0, 2, 3, 3]  # clips are used as |clip|
    assert quant.dequantize(np.array([-7, 7]), quant.act_scale(1.0, parse("i4"))).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_odd_grid_is_the_equation_of_abs(bits: int) -> None:
    """w_q = v * (2 D(z, s) - 1), z = (clip(w/v, -1, 1) + 1) / 2, s = 1/(2^b - 1), D(z, s) = s round(z/s)."""
    v, top = 0.7, 2**bits - 1
    w = np.random.default_rng(bits).normal(0, 0.6, 4000)
    z = (np.clip(w / v, -1, 1) + 1) / 2
    want = v * (2 * np.rint(z * top) / top - 1)
    levels = quant.quantize_odd(w / v, bits)
    assert levels.dtype == np.int32 and set(levels.tolist()) <= set(odd(bits).levels().tolist())
    assert levels.min() == -top and levels.max() == top  # the clip was reached
    np.testing.assert_allclose(levels * v / top, want, rtol=0, atol=4 * np.finfo(np.float64).eps)


def test_odd_grid_ties() -> None:
    # 2 bits: u = (z + 1) / 2 * 3; z = 0 is u = 1.5 -> 2, level 1; z = 2/3 is u = 2.5 -> 2; z = -2/3 is u = 0.5 -> 0
    assert quant.quantize_odd(np.array([0.0, 2 / 3, -2 / 3, 1.0, -1.0, 5.0, -5.0]), 2).tolist() == [
        1, 1, -3, 3, -3, 3, -3,
    ]  # fmt: skip


def test_nested_decomposition_equals_direct_quantisation() -> None:
    """z_2, then the residual on the 4-bit grid, then on the 8-bit grid: direct quantisation except on exact ties.

    In integers, over all z = n / 2,000,000. Half to even may send a tie to the other side: by one step.
    """
    size = 2_000_000
    n = np.arange(size + 1, dtype=np.int64)

    def nearest(numerator: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """numerator / size rounded half to even, and whether it was a tie."""
        low, rest = np.divmod(numerator, size)
        tie = 2 * rest == size
        return low + ((2 * rest > size) | (tie & (low % 2 == 1))), tie

    two, _ = nearest(3 * n)
    four = 5 * two + nearest(15 * n - 5 * two * size)[0]
    eight = 17 * four + nearest(255 * n - 17 * four * size)[0]
    for chained, top in ((four, 15), (eight, 255)):
        direct, tie = nearest(top * n)
        differs = chained != direct
        assert differs.any() and not (differs & ~tie).any()
        assert (np.abs(chained - direct)[differs] == 1).all()
        levels = quant.quantize_odd(2 * (n[~tie] / size) - 1, (top + 1).bit_length() - 1)
        assert np.array_equal(levels, 2 * direct[~tie] - top)


def test_weights_on_a_grid_of_unit_steps() -> None:
    w = np.float32([-3, -0.25, 0.25, 0.75, 1.25, 9])
    assert quant.quantize_weight(w, 0.5, parse("i4")).tolist() == [-6, 0, 0, 2, 2, 7]
    per_channel = quant.quantize_weight(np.float32([[1, -1], [1, -1]]), np.array([[1.0], [0.25]]), parse("i2"))
    assert per_channel.tolist() == [[1, -1], [1, -2]]


def test_images_are_normalised_operation_by_operation() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    got = quant.normalize_u8(images, mean, std)
    assert got.dtype == np.float32
    for c in range(3):
        for value in range(256):
            x = float32(float32(Fraction(value) / 255) - Fraction(float(mean[c])))
            assert Fraction(float(got[0, c].flat[value])) == float32(x / Fraction(float(std[c])))
