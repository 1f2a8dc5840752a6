"""How an integer is spelled in bits: `level = offset + sum(coeffs[p] * bit[p])`.

The one place that knows number formats. Packing, kernels, search spaces and tests read these rows, so a new
format is a new row. Vocabulary: a *code* is the bit pattern as stored (0 .. 2**bits-1), a *level* is the integer
that it stands for, a *value* is a level times a real scale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

INT32_MAX = 2**31 - 1
FIELD_BITS = (1, 2, 4, 8)  # widths that pack into bytes without a remainder


@dataclass(frozen=True, slots=True)
class Encoding:
    """An integer spelled in bits.

    >>> parse("i4").lo, parse("i4").hi
    (-8, 7)
    >>> parse("o2").levels().tolist()   # the odd grid of SBS: no zero
    [-3, -1, 1, 3]
    """

    name: str
    coeffs: tuple[int, ...]
    offset: int = 0

    @property
    def bits(self) -> int:
        """Number of stored bits per element."""
        return len(self.coeffs)

    @property
    def lo(self) -> int:
        """Smallest level."""
        return self.offset + sum(c for c in self.coeffs if c < 0)

    @property
    def hi(self) -> int:
        """Largest level."""
        return self.offset + sum(c for c in self.coeffs if c > 0)

    @property
    def max_abs(self) -> int:
        """Largest magnitude of a level."""
        return max(abs(self.lo), abs(self.hi))

    @property
    def has_zero(self) -> bool:
        """Whether level 0 exists; padding and pruning need it in activations."""
        return bool((self.levels() == 0).any())

    def levels(self) -> np.ndarray:
        """Level of every code, int32 [2**bits], indexed by code."""
        return _levels(self)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (any integer dtype, 0 .. 2**bits-1) -> levels, int32, same shape."""
        return self.levels()[codes]

    def encode(self, levels: np.ndarray) -> np.ndarray:
        """Levels (integers) -> codes, uint8, same shape; ValueError names a level that does not exist."""
        table = np.full(self.hi - self.lo + 1, -1, np.int16)
        codes = np.arange(2**self.bits - 1, -1, -1)  # lowest code wins where two spell the same level (ternary)
        table[self.levels()[codes] - self.lo] = codes
        flat = np.asarray(levels).astype(np.int64) - self.lo
        if flat.size and (flat.min() < 0 or flat.max() > self.hi - self.lo):
            raise ValueError(
                f"level {int(levels.flat[int(np.argmax((flat < 0) | (flat > self.hi - self.lo)))])} "
                f"is outside {self.name} [{self.lo}, {self.hi}]"
            )
        out = table[flat]
        if flat.size and out.min() < 0:
            raise ValueError(f"level {int(np.asarray(levels).flat[int(np.argmin(out))])} does not exist in {self.name}")
        return out.astype(np.uint8)

    def max_depth(self, other: Encoding) -> int:
        """Largest K for which a dot product of K elements cannot overflow int32."""
        return INT32_MAX // max(1, self.max_abs * other.max_abs)

    def __str__(self) -> str:
        return self.name


@cache
def _levels(encoding: Encoding) -> np.ndarray:
    codes = np.arange(2**encoding.bits)
    out = np.full(codes.shape, encoding.offset, np.int32)
    for plane, coeff in enumerate(encoding.coeffs):
        out += coeff * ((codes >> plane) & 1).astype(np.int32)
    out.setflags(write=False)
    return out


def unsigned(bits: int) -> Encoding:
    """0 .. 2**bits-1."""
    return Encoding(f"u{bits}", tuple(1 << p for p in range(bits)))


def twos(bits: int) -> Encoding:
    """Two's complement, -2**(bits-1) .. 2**(bits-1)-1."""
    return Encoding(f"i{bits}", (*(1 << p for p in range(bits - 1)), -(1 << (bits - 1))))


def odd(bits: int) -> Encoding:
    """The mid-rise grid of SBS: odd integers -(2**bits-1) .. 2**bits-1, no zero (ABS eqs 1-6)."""
    return Encoding(f"o{bits}", tuple(2 << p for p in range(bits)), 1 - 2**bits)


BIPOLAR = Encoding("b1", (2,), -1)
TERNARY = Encoding("t2", (1, -1))

ENCODINGS: tuple[Encoding, ...] = (
    *(unsigned(n) for n in range(1, 9)),
    *(twos(n) for n in range(2, 9)),
    *(odd(n) for n in range(2, 9)),
    BIPOLAR,
    TERNARY,
)
_BY_NAME = {e.name: e for e in ENCODINGS}


def parse(name: str) -> Encoding:
    """Encoding of that name; ValueError lists the valid ones. `parse(e.name) == e`."""
    if name not in _BY_NAME:
        raise ValueError(f"unknown encoding {name!r}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def parse_bits(text: str) -> tuple[int, int]:
    """'w2a8' -> (2, 8); ValueError otherwise.

    >>> parse_bits("w2a8")
    (2, 8)
    """
    match = re.fullmatch(r"w(\d{1,2})a(\d{1,2})", text)
    if not match or not all(1 <= int(g) <= 32 for g in match.groups()):
        raise ValueError(f"bits {text!r} are not of the form w2a8 with 1..32 on both sides")
    return int(match[1]), int(match[2])
