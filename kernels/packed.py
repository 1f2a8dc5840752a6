"""PackedTensor: dense b-bit fields, the one weight format in memory and on disk; numpy pack/unpack define it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.encoding import FIELD_BITS, Encoding


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """[rows, K] codes in dense fields.

    `fields` uint8 [rows, ceil(K*bits/8)]: lowest bits first, K contiguous, tail bits zero; bits in {1, 2, 4, 8}.
    `code_sums` int32 [rows]: sum over K of the offset-free levels (sum of coeffs[p]*bit[p]).
    """

    encoding: Encoding
    shape: tuple[int, int]
    fields: np.ndarray
    code_sums: np.ndarray

    @property
    def largest(self) -> int:
        """Largest |level| there is."""
        whole = self.encoding.bits == 8  # a field is a code
        codes = np.unique(self.fields if whole else unpack_codes(self.fields, self.shape[1], self.encoding.bits))
        return int(np.abs(self.encoding.decode(codes)).max(initial=0))

    @property
    def digits(self) -> int:
        """Powers of two and their negatives, as few as can be, that the weights are sums of; odd levels w are 2 v + 1.

        A carry of v + 2 v is where two of v's bits are neighbours, so 3 v and v differ in one bit a digit.
        """
        levels = unpack(self)
        v = np.abs(levels if self.encoding.has_zero else (levels - 1) // 2)
        return int(np.bitwise_count(3 * v ^ v).sum())


def field_bytes(depth: int, bits: int) -> int:
    """Bytes of one row of `depth` elements."""
    return (depth * bits + 7) // 8


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [rows, K] -> fields uint8 [rows, ceil(K*bits/8)].

    >>> pack_codes(np.array([[1, 2, 3]], np.uint8), 2).tolist()   # 1 + 2*4 + 3*16
    [[57]]
    """
    if bits not in FIELD_BITS:
        raise ValueError(f"{bits}-bit fields do not pack; the format has {FIELD_BITS}")
    rows, depth = codes.shape
    planes = (codes[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(rows, depth * bits).astype(np.uint8), axis=1, bitorder="little")


def unpack_codes(fields: np.ndarray, depth: int, bits: int) -> np.ndarray:
    """Inverse of `pack_codes`: codes uint8 [rows, depth]."""
    planes = np.unpackbits(fields, axis=1, count=depth * bits, bitorder="little").reshape(len(fields), depth, bits)
    return (planes << np.arange(bits, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)


def pack(levels: np.ndarray, encoding: Encoding) -> PackedTensor:
    """Levels (integers) [rows, K] -> PackedTensor; ValueError if a level does not exist in `encoding`."""
    codes = encoding.encode(levels)
    sums = (levels.astype(np.int64) - encoding.offset).sum(axis=1)
    return PackedTensor(
        encoding=encoding,
        shape=(int(levels.shape[0]), int(levels.shape[1])),
        fields=pack_codes(codes, encoding.bits),
        code_sums=sums.astype(np.int32),
    )


def unpack(tensor: PackedTensor) -> np.ndarray:
    """PackedTensor -> levels, int32 [rows, K]."""
    return tensor.encoding.decode(unpack_codes(tensor.fields, tensor.shape[1], tensor.encoding.bits))
