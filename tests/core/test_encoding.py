"""Encodings: what each code stands for, the way back, and the identity that every kernel computes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitpress.core.encoding import (
    BIPOLAR,
    ENCODINGS,
    INT32_MAX,
    TERNARY,
    Encoding,
    odd,
    parse,
    parse_bits,
    twos,
    unsigned,
)

NAMES = [e.name for e in ENCODINGS]


def spelled(encoding: Encoding, code: int) -> int:
    """Level of one code, bit by bit."""
    level = encoding.offset
    for plane, coeff in enumerate(encoding.coeffs):
        if code >> plane & 1:
            level += coeff
    return level


@pytest.mark.parametrize("encoding", ENCODINGS, ids=NAMES)
def test_levels_are_what_the_bits_say(encoding: Encoding) -> None:
    levels = [spelled(encoding, code) for code in range(2**encoding.bits)]
    assert encoding.levels().tolist() == levels
    assert (encoding.lo, encoding.hi) == (min(levels), max(levels))
    assert encoding.max_abs == max(abs(level) for level in levels)
    assert encoding.has_zero == (0 in levels)
    assert parse(encoding.name) == encoding


def test_known_grids() -> None:
    assert unsigned(4).levels().tolist() == list(range(16))
    assert sorted(twos(4).levels().tolist()) == list(range(-8, 8))
    assert odd(2).levels().tolist() == [-3, -1, 1, 3]
    assert odd(8).levels().tolist() == list(range(-255, 256, 2))
    assert BIPOLAR.levels().tolist() == [-1, 1]
    assert TERNARY.levels().tolist() == [0, 1, -1, 0]


def test_two_complement_codes_are_the_machine_s() -> None:
    levels = np.arange(-128, 128)
    assert np.array_equal(twos(8).encode(levels), levels.astype(np.int8).view(np.uint8))


def test_names_are_unique_and_unknown_ones_are_refused() -> None:
    assert len(set(NAMES)) == len(NAMES)
    with pytest.raises(ValueError, match=r"unknown encoding 'u9'; known: u1, u2"):
        parse("u9")


@given(st.sampled_from(ENCODINGS), st.data())
def test_encode_and_decode_are_inverse(encoding: Encoding, data: st.DataObject) -> None:
    levels = data.draw(st.lists(st.sampled_from(encoding.levels().tolist()), max_size=70))
    codes = encoding.encode(np.array(levels, np.int64))
    assert codes.dtype == np.uint8 and (codes < 2**encoding.bits).all()
    assert encoding.decode(codes).tolist() == levels


def test_encode_keeps_the_shape() -> None:
    levels = np.array([[-3, 3], [1, -1]])
    assert odd(2).encode(levels).tolist() == [[0, 3], [2, 1]]
    assert odd(2).encode(np.zeros((0, 5), np.int32)).shape == (0, 5)


@pytest.mark.parametrize(
    ("name", "levels", "message"),
    [
        ("u2", [0, 4], r"level 4 is outside u2 \[0, 3\]"),
        ("i4", [-9, 0], r"level -9 is outside i4 \[-8, 7\]"),
        ("o2", [1, 0], "level 0 does not exist in o2"),
        ("b1", [-1, 0, 1], "level 0 does not exist in b1"),
    ],
)
def test_a_level_that_does_not_exist_is_named(name: str, levels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(name).encode(np.array(levels))


@pytest.mark.parametrize("w", ENCODINGS, ids=NAMES)
def test_dot_product_identity(w: Encoding) -> None:
    """dot = sum of coefficient products times popcounts of ANDed planes + offsets times sums that know no offset.

    The left side is the definition in int64, the right side what a bit-serial kernel computes; no branch for any
    pair of encodings, and bits beyond K are zero on both sides without correction.
    """
    rng = np.random.default_rng(7)
    for a, depth in itertools.product(ENCODINGS, (1, 63, 64, 65, 130)):
        for w_codes, a_codes in (
            (rng.integers(0, 2**w.bits, depth), rng.integers(0, 2**a.bits, depth)),
            (np.full(depth, 2**w.bits - 1), np.full(depth, 2**a.bits - 1)),
            (np.zeros(depth, np.int64), np.full(depth, 2**a.bits - 1)),
        ):
            want = int((w.decode(w_codes).astype(np.int64) * a.decode(a_codes)).sum())
            w_planes, a_planes = planes(w, w_codes), planes(a, a_codes)
            counts = np.bitwise_count(w_planes[:, None] & a_planes[None]).sum(axis=2, dtype=np.int64)
            got = int(np.array(w.coeffs) @ counts @ np.array(a.coeffs))
            got += a.offset * offset_free_sum(w, w_planes) + w.offset * offset_free_sum(a, a_planes)
            got += depth * w.offset * a.offset
            assert got == want, f"{w} x {a}, K={depth}"


def planes(encoding: Encoding, codes: np.ndarray) -> np.ndarray:
    """Bit-planes as words, uint64 [bits, ceil(K/64)], zero behind K."""
    bits = (codes[None] >> np.arange(encoding.bits)[:, None] & 1).astype(np.uint8)
    padded = np.zeros((encoding.bits, -(-len(codes) // 64) * 64), np.uint8)
    padded[:, : len(codes)] = bits
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


def offset_free_sum(encoding: Encoding, words: np.ndarray) -> int:
    return int(np.array(encoding.coeffs) @ np.bitwise_count(words).sum(axis=1, dtype=np.int64))


@pytest.mark.parametrize(("w", "a"), [("u8", "u8"), ("o8", "u8"), ("i8", "i8"), ("b1", "b1"), ("o2", "i4")])
def test_max_depth_is_the_last_that_fits(w: str, a: str) -> None:
    largest = parse(w).max_abs * parse(a).max_abs
    depth = parse(w).max_depth(parse(a))
    assert depth * largest <= INT32_MAX < (depth + 1) * largest


def test_bits_of_a_pair() -> None:
    assert parse_bits("w2a8") == (2, 8) and parse_bits("w32a32") == (32, 32)
    for text in ("w0a8", "w8", "a8w8", "w33a8", "w8a8 ", "8,8", ""):
        with pytest.raises(ValueError, match=r"are not of the form w2a8 with 1\.\.32"):
            parse_bits(text)
