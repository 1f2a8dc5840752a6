"""How weights and activations lie in GPU memory, in numpy: made at load, never stored in a file.

Fields go by slices: the channels of a row are cut into blocks of 8 / bits runs of `run` channels, and field s of byte j
of a block holds channel s * run + j. Taking field s of a block's bytes then gives `run` neighbouring channels, one dot
product, with no interleaving; and a producer packs its output elementwise. A convolution's row goes tap by tap, and
with it runs of one block may belong to different taps.

An operand is the int8 number that multiplies, see kernels/gpu/fields.py: a level times a power of two, and where the
level is u8, which int8 cannot hold, the level - 128; `correction` then gives back 128 times the row's levels. Knows no
torch and no triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.encoding import INT32_MAX, Encoding, parse
from ...core.errors import UnsupportedError, UsageError

PAIRS = ((8, 8), (4, 8), (2, 8), (4, 4), (2, 2))  # bits of weights, bits of stored activations
RUNS = (32, 64, 128)  # int8 dot products of the tensor cores are 32 deep
BLOCK = 128  # channels of a block, where a row has that many


@dataclass(frozen=True, slots=True)
class Storage:
    """How a tensor of levels lies in memory: int8 bytes, or (`packed`) fields of 2 or 4 bits in runs of `run`."""

    encoding: Encoding
    packed: bool = False
    run: int = 0

    def __post_init__(self) -> None:
        e = self.encoding
        if e.offset or e.name[0] not in "ui":
            raise UnsupportedError(f"activations on the GPU are u1..u8 or i2..i8, not {e.name}")
        if self.packed and (e.bits not in (2, 4) or self.run not in RUNS):
            raise UnsupportedError(
                f"packed activations have 2 or 4 bits in runs of {RUNS}, not {e.name} and {self.run}"
            )

    @property
    def bits(self) -> int:
        """Bits that an element takes."""
        return self.encoding.bits if self.packed else 8

    @property
    def signed(self) -> bool:
        """Whether levels may be negative."""
        return self.encoding.lo < 0

    @property
    def zero(self) -> int:
        """Level that byte 0 stands for: 128 for u8."""
        return 128 if not self.packed and self.encoding.hi > 127 else 0

    @property
    def shift(self) -> int:
        """log2 of operand / level."""
        return 8 - self.bits if self.packed and self.signed else 0

    @property
    def max_operand(self) -> int:
        """Largest magnitude of an operand."""
        return self.zero or self.encoding.max_abs << self.shift

    def __str__(self) -> str:
        """ "u8", or "u4:64": packed, in runs of 64. `parse_storage` reads it."""
        return f"{self.encoding.name}:{self.run}" if self.packed else self.encoding.name

    def bytes(self, channels: int) -> int:
        """Bytes of one pixel of `channels` levels."""
        return -(-channels * self.bits // (8 * self.run)) * self.run if self.packed else channels

    def store(self, levels: np.ndarray) -> np.ndarray:
        """Levels (integers) [..., channels] -> int8 [..., bytes]; ValueError names a level that does not exist."""
        codes = self.encoding.encode(levels)
        if not self.packed:
            return (np.asarray(levels, np.int16) - self.zero).astype(np.int8)
        return slices(codes, self.bits, self.run).view(np.int8)

    def load(self, stored: np.ndarray, channels: int) -> np.ndarray:
        """Inverse of `store`: levels int32 [..., channels]."""
        if not self.packed:
            return stored.astype(np.int32) + self.zero
        return self.encoding.decode(unslice(stored.view(np.uint8), self.bits, self.run)[..., :channels])


def parse_storage(text: str) -> Storage:
    """Inverse of `str`.

    >>> parse_storage("u4:64").packed, parse_storage("i8").packed
    (True, False)
    """
    name, _, run = text.partition(":")
    return Storage(parse(name), packed=bool(run), run=int(run or 0))


def packed(encoding: Encoding, channels: int) -> Storage:
    """Fields in the run that producer and consumer of `channels` channels both choose: the smallest that holds them."""
    parts = 8 // encoding.bits
    fits = (run for run in RUNS if run * parts >= min(channels, BLOCK))
    return Storage(encoding, packed=True, run=next(fits))


def slices(codes: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Codes uint8 [..., channels] -> bytes uint8 [..., blocks * run], channels filled up with code 0.

    >>> slices(np.arange(4, dtype=np.uint8)[None], 4, 2).tolist()   # channels 0, 1 in the low fields, 2, 3 above
    [[32, 49]]
    """
    parts = 8 // bits
    fill = -codes.shape[-1] % (parts * run)
    full = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, fill)])
    fields = full.reshape(*full.shape[:-1], -1, parts, run).astype(np.uint16)
    shifts = (np.arange(parts) * bits).astype(np.uint16)
    joined = (fields << shifts[:, None]).sum(axis=-2, dtype=np.uint16)
    return joined.astype(np.uint8).reshape(*codes.shape[:-1], -1)


def unslice(stored: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Inverse of `slices`, with the fill: codes uint8 [..., blocks * run * 8 / bits]."""
    shifts = (np.arange(8 // bits) * bits).astype(np.uint8)
    blocks = stored.reshape(*stored.shape[:-1], -1, 1, run) >> shifts[:, None]
    return (blocks & np.uint8(2**bits - 1)).reshape(*stored.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class Form:
    """What the families know of a layer's weights without seeing them.

    `act`: how its input is stored; `taps`: positions of the window; `channels` per tap; `run`: channels of a run;
    `half`: half a step of an odd grid in units of the operand, else 0; `shift`: log2 of sums of operands / of levels.
    `doubled`: o8, whose levels int8 cannot hold: operands are (level - 1) / 2, and a sum of levels is twice that of
    the operands and the sum of the window's activations.
    `depthwise`: a row reads the channel that it writes, so `channels` is 1; fields lie tap by tap, the rows of a tap as
    channels do elsewhere, and operands are the levels themselves, int32: `half` is 1 on an odd grid.
    """

    encoding: Encoding
    act: Storage
    rows: int
    taps: int
    channels: int
    run: int
    half: int
    shift: int
    doubled: bool = False
    depthwise: bool = False

    @property
    def depth(self) -> int:
        """K: products in one sum."""
        return self.taps * self.channels

    @property
    def runs(self) -> int:
        """Runs per tap; packed activations fill whole blocks."""
        parts = 8 // self.act.bits
        return -(-self.channels // (self.run * parts)) * parts

    @property
    def bytes(self) -> int:
        """Bytes of one row of fields; depthwise: of one tap."""
        runs = -(-self.rows // self.run) if self.depthwise else self.taps * self.runs
        return -(-runs // (8 // self.encoding.bits)) * self.run


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of one layer as the families read them: `fields` int8 [rows, form.bytes], of a depthwise layer
    [taps, form.bytes]; `correction` int32 [rows]."""

    form: Form
    fields: np.ndarray
    correction: np.ndarray


def form_of(shape: tuple[int, int, int], encoding: Encoding, act: Storage, *, depthwise: bool = False) -> Form:
    """The form of weights [rows, taps, channels]; UnsupportedError: a pair of widths or a grid that no family has."""
    rows, taps, channels = shape
    bits = encoding.bits
    if min(shape) < 1:
        raise UsageError(f"weights are empty: [rows, taps, channels] = {list(shape)}")
    if depthwise and channels != 1:
        raise UsageError(f"a depthwise layer has weights [rows, taps, 1], not {list(shape)}")
    pairs = [(w, a) for w, a in PAIRS if a == 8 or not depthwise]
    if (bits, act.bits) not in pairs:
        known = ", ".join(f"w{w}a{a}" for w, a in pairs)
        kind = "depthwise kernel" if depthwise else "kernel"
        raise UnsupportedError(f"the GPU has no {kind} for w{bits}a{act.bits}; it has {known}")
    odd = _odd(encoding)
    if depthwise:
        return Form(encoding, act, rows, taps, channels, min(RUNS), half=odd, shift=0, depthwise=True)
    run = act.run if act.packed else _run(8 // bits, taps, channels)
    if bits == 8:
        return Form(encoding, act, rows, taps, channels, run, half=0, shift=0, doubled=odd > 0)
    up = 8 - bits - odd
    return Form(encoding, act, rows, taps, channels, run, half=odd << up, shift=up + act.shift)


def arrange(levels: np.ndarray, encoding: Encoding, act: Storage, *, depthwise: bool = False) -> Weights:
    """Levels (integers) [rows, taps, channels] -> Weights; of a depthwise layer [rows, taps, 1].

    UnsupportedError as of `form_of`, and where sums of operands could leave int32.
    """
    rows, taps, channels = levels.shape
    form = form_of((rows, taps, channels), encoding, act, depthwise=depthwise)
    bits, odd = encoding.bits, _odd(encoding)
    field = (levels.astype(np.int64) - odd) >> odd
    wide = levels.astype(np.int64)
    operand = field if form.doubled else wide << (form.shift - act.shift)
    _check_sums(np.abs(wide).sum(axis=(1, 2)), np.abs(operand).sum(axis=(1, 2)), act)
    whole = 2 * field if form.doubled else wide
    codes = (field & (2**bits - 1)).astype(np.uint8)
    if depthwise:
        codes = np.ascontiguousarray(codes[:, :, 0].T)
    else:
        codes = np.pad(codes, ((0, 0), (0, 0), (0, form.runs * form.run - channels))).reshape(rows, -1)
    fields = slices(codes, bits, form.run).view(np.int8)
    return Weights(form, fields, (act.zero * whole.sum(axis=(1, 2))).astype(np.int32))


def restore(form: Form, fields: np.ndarray) -> np.ndarray:
    """Inverse of `arrange`: levels int64 [rows, taps, channels]."""
    bits = form.encoding.bits
    kept = form.rows if form.depthwise else form.taps * form.runs * form.run
    codes = unslice(fields.view(np.uint8), bits, form.run)[:, :kept].astype(np.int64)
    field = (codes ^ 1 << (bits - 1)) - (1 << (bits - 1))
    odd = _odd(form.encoding)
    levels = (field << odd) + odd
    return levels.T[:, :, None] if form.depthwise else levels.reshape(form.rows, form.taps, -1)[:, :, : form.channels]


def _odd(encoding: Encoding) -> int:
    """1 for a grid of odd levels, 0 for one that two's complement of that width holds."""
    levels, half = encoding.levels(), 2 ** (encoding.bits - 1)
    if levels.min() >= -half and levels.max() < half:
        return 0
    if (levels % 2 != 0).all() and np.abs(levels).max() < 2 * half:
        return 1
    raise UnsupportedError(
        f"weights {encoding.name} [{encoding.lo}, {encoding.hi}] do not fit the int8 operands of the GPU: "
        f"it has i2, i4, i8, t2, o2, o4 and o8"
    )


def _run(parts: int, taps: int, channels: int) -> int:
    """Channels of a run where activations are bytes: a block of 128, of a convolution no more than it has."""
    most = BLOCK // parts
    return most if taps == 1 else next((run for run in RUNS if run >= min(channels, most)), most)


def _check_sums(levels: np.ndarray, operands: np.ndarray, act: Storage) -> None:
    """`levels`, `operands`: sum of |weight level| and of |weight operand| of each row."""
    most = act.encoding.hi if act.encoding.lo >= 0 else act.encoding.max_abs
    for what, rows, largest in (("levels", levels, most), ("operands", operands, act.max_operand)):
        worst = int(rows.max()) * largest
        if worst > INT32_MAX:
            raise UnsupportedError(
                f"sums of {what} could reach {worst} on the GPU, above int32's {INT32_MAX} (row {int(rows.argmax())}): "
                f"keep the layer on the CPU, or give it fewer bits"
            )
