"""The records inside the sections of a `.bpk` (docs/format.md 2): strings, buffers, steps and what steps refer to.

Turns values into fixed-width little-endian records and back. Refuses what cannot be spelled or referred to; whether
the program makes sense is the business of `check.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..core.encoding import FIELD_BITS, parse
from ..kernels.packed import PackedTensor, field_bytes
from .check import row_sums, rows_of
from .container import FormatError
from .program import STEP_OPS, Buffer, Epilogue, Program, Step

NONE = 0xFFFFFFFF
MAX_META = 16 << 20
OUT_CHANNELS, CHANNELS, EPILOGUE, WEIGHTS, TABLE = 1, 2, 4, 8, 16  # flags of a step

PROGRAM = np.dtype([("arena_bytes", "<u8"), ("input", "<u4"), ("output", "<u4"), ("c", "<u4"), ("reserved", "<u4")])
BUFFER = np.dtype([
    ("name", "<u2"), ("reserved", "<u2"), ("storage", "S4"), ("c", "<u4"), ("h", "<u2"), ("w", "<u2"),
    ("offset", "<u8"), ("bytes", "<u8"),
])  # fmt: skip
STEP = np.dtype([
    ("op", "u1"), ("flags", "u1"), ("name", "<u2"), ("layer", "<u2"), ("hint", "<u2"), ("weight", "S4"),
    ("data", "<u4"), ("residual", "<u4"), ("output", "<u4"),
    ("kernel", "<u2", 2), ("stride", "<u2", 2), ("padding", "<u2", 4), ("dilation", "<u2", 2),
    ("groups", "<u4"), ("rows", "<u4"), ("depth", "<u4"), ("constants", "<u4"), ("indices", "<u4"), ("weights", "<u4"),
    ("lo", "<f4"), ("hi", "<f4"), ("m_r", "<f4"),
])  # fmt: skip
# op -> flags that it must have, flags that it may have
FLAGS = {
    "quantize": (EPILOGUE, EPILOGUE),
    "conv2d": (EPILOGUE | WEIGHTS, EPILOGUE | WEIGHTS | OUT_CHANNELS),
    "depthwise_conv2d": (EPILOGUE | WEIGHTS, EPILOGUE | WEIGHTS | OUT_CHANNELS),
    "requantize": (EPILOGUE, EPILOGUE),
    "max_pool2d": (0, 0),
    "sum_pool2d": (EPILOGUE, EPILOGUE),
    "gather": (CHANNELS, CHANNELS | OUT_CHANNELS),
    "lookup": (TABLE, TABLE),
    "product": (EPILOGUE, EPILOGUE),
}
STORED_WEIGHTS = tuple(f"{family}{bits}" for family in "uio" for bits in FIELD_BITS if family == "u" or bits > 1)
WEIGHT_NAMES = (*STORED_WEIGHTS, "b1", "t2")
STORAGE_NAMES = ("f32", *(f"u{b}" for b in range(1, 9)), *(f"i{b}" for b in range(2, 9)))


def encode_strings(strings: Iterable[str]) -> bytes:
    """String table: u32 count, u32 end[count], UTF-8."""
    blobs = [s.encode() for s in strings]
    ends = np.cumsum([len(b) for b in blobs], dtype=np.uint64).astype("<u4")
    return np.uint32(len(blobs)).astype("<u4").tobytes() + ends.tobytes() + b"".join(blobs)


def decode_strings(data: bytes, section: str) -> list[str]:
    """Inverse of `encode_strings`; FormatError SizeMismatch or BadText."""
    count = int.from_bytes(data[:4], "little")
    start = 4 + 4 * count
    if len(data) < 4 or start > len(data):
        raise FormatError("SizeMismatch", f"{section}: {len(data)} bytes cannot hold {count} strings")
    ends = [0, *np.frombuffer(data, "<u4", count, 4).tolist()]
    if any(a > b for a, b in pairwise(ends)):
        raise FormatError("BadText", f"{section}: the strings' ends do not ascend")
    if start + ends[-1] != len(data):
        raise FormatError("SizeMismatch", f"{section}: strings end at byte {start + ends[-1]} of {len(data)}")
    try:
        return [data[start + a : start + b].decode() for a, b in pairwise(ends)]
    except UnicodeDecodeError as error:
        raise FormatError("BadText", f"{section}: not UTF-8 at byte {error.start} of a string") from error


def encode_meta(meta: Mapping[str, object]) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII."""
    try:
        return json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise FormatError("BadMeta", f"metadata is not plain JSON: {error}") from error


def decode_meta(data: bytes) -> dict[str, object]:
    """The metadata object; FormatError BadMeta unless it is canonical JSON, TooLarge above 16 MiB."""
    if len(data) > MAX_META:
        raise FormatError("TooLarge", f"meta has {len(data)} bytes, at most {MAX_META} are allowed")
    try:
        meta = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise FormatError("BadMeta", f"meta is not JSON: {error}") from error
    if not isinstance(meta, dict) or encode_meta(meta) != data:
        raise FormatError("BadMeta", "meta is not one JSON object in canonical form")
    return meta


class Names:
    """Strings by number, in order of first use; number 0 is the empty one."""

    def __init__(self) -> None:
        self.strings = [""]
        self._numbers = {"": 0}

    def number(self, text: str) -> int:
        """Number of `text`, a new one if it was not met before."""
        if text not in self._numbers:
            if len(self.strings) > 0xFFFF:
                raise FormatError("TooLarge", "more than 65535 names")
            self._numbers[text] = len(self.strings)
            self.strings.append(text)
        return self._numbers[text]


class Pools:
    """What steps take from the shared sections, one after another and completely."""

    def __init__(self, constants: np.ndarray, indices: np.ndarray, weights: list[bytes]) -> None:
        self._pools = {"constants": constants, "indices": indices}
        self._at = {"constants": 0, "indices": 0, "weights": 0}
        self._weights = weights

    def take(self, pool: str, start: int, count: int, step: str) -> np.ndarray:
        """The next `count` elements of `constants` or `indices`; FormatError unless they begin at `start`."""
        self._expect(pool, start, step)
        at, size = self._at[pool], len(self._pools[pool])
        if count > size - at:
            raise FormatError("SizeMismatch", f"step {step} takes {pool} {at}..{at + count}, there are {size}")
        self._at[pool] += count
        return self._pools[pool][at : at + count]

    def take_weights(self, index: int, step: str) -> bytes:
        """The next weights section; FormatError unless it is number `index`."""
        self._expect("weights", index, step)
        if index >= len(self._weights):
            raise FormatError("BadReference", f"step {step} takes weights {index}, there are {len(self._weights)}")
        self._at["weights"] += 1
        return self._weights[index]

    def finish(self) -> None:
        """FormatError if something is left over."""
        sizes = {name: len(pool) for name, pool in self._pools.items()} | {"weights": len(self._weights)}
        for name, size in sizes.items():
            if self._at[name] != size:
                raise FormatError("SizeMismatch", f"the steps take {self._at[name]} of {size} {name}")

    def _expect(self, pool: str, start: int, step: str) -> None:
        if start != self._at[pool]:
            raise FormatError("BadReference", f"step {step} takes {pool} from {start}, next is {self._at[pool]}")


def encode_step(record: np.void, step: Step, program: Program, names: Names) -> None:
    """Fills all of `record` but its references into constants, indices and weights."""
    flags = (
        (OUT_CHANNELS, step.out_channels), (CHANNELS, step.channels), (EPILOGUE, step.epilogue), (TABLE, step.table),
    )  # fmt: skip
    record["op"] = STEP_OPS.index(step.op)
    record["flags"] = sum(bit for bit, x in (*flags, (WEIGHTS, step.weight)) if x is not None)
    record["name"], record["layer"], record["hint"] = map(names.number, (step.name, step.layer, step.hint))
    record["data"], record["output"] = step.inputs[0], step.output
    record["residual"] = step.inputs[1] if len(step.inputs) > 1 else NONE
    record["kernel"], record["stride"], record["padding"] = step.kernel, step.stride, step.padding
    record["dilation"], record["groups"], record["rows"] = step.dilation, step.groups, rows_of(step, program.buffers)
    if step.weight:
        record["weight"], record["depth"] = step.weight.encoding.name, step.weight.shape[1]
    if step.table is not None:
        record["depth"] = len(step.table)
    if step.epilogue:
        record["lo"], record["hi"], record["m_r"] = step.epilogue.lo, step.epilogue.hi, step.epilogue.m_r


def append(pool: list[np.ndarray], arrays: Iterable[np.ndarray], dtype: str) -> int:
    """Adds arrays to a pool; number of its first element there, NONE if there is no array."""
    start = sum(a.size for a in pool)
    added = [np.ascontiguousarray(a, dtype) for a in arrays]
    pool += added
    return start if added else NONE


def floats(array: np.ndarray | None) -> bytes:
    """float32 bytes, none for None."""
    return b"" if array is None else np.ascontiguousarray(array, "<f4").tobytes()


def split(data: bytes, dtype: np.dtype[Any], section: str) -> np.ndarray:
    """Elements of a section; FormatError SizeMismatch if the last one is cut."""
    if len(data) % dtype.itemsize:
        raise FormatError("SizeMismatch", f"{section}: {len(data)} bytes are no multiple of {dtype.itemsize}")
    return np.frombuffer(data, dtype)


def encode_head(program: Program) -> bytes:
    """Program section: arena, input, output, mean and std."""
    head = np.zeros((), PROGRAM)
    head["arena_bytes"], head["input"], head["output"] = program.arena_bytes, program.input, program.output
    head["c"] = len(program.mean)
    return head.tobytes() + floats(program.mean) + floats(program.std)


def encode_buffer(record: np.void, buffer: Buffer, names: Names) -> None:
    """Fills `record`."""
    record["name"], record["storage"] = names.number(buffer.name), buffer.storage
    record["c"], record["h"], record["w"] = buffer.shape
    record["offset"], record["bytes"] = buffer.offset, buffer.bytes


def decode_head(data: bytes) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """Program section -> arena_bytes, input, output; mean; std."""
    if len(data) < PROGRAM.itemsize:
        raise FormatError("SizeMismatch", f"program: {len(data)} bytes, at least {PROGRAM.itemsize} are needed")
    head = {name: int(np.frombuffer(data, PROGRAM, 1)[name][0]) for name in PROGRAM.names or ()}
    if head["reserved"]:
        raise FormatError("NonZeroPadding", "program: reserved bytes are not zero")
    if len(data) != PROGRAM.itemsize + 8 * head["c"]:
        raise FormatError(
            "SizeMismatch", f"program: {len(data)} bytes do not hold mean and std of {head['c']} channels"
        )
    mean, std = np.frombuffer(data, "<f4", 2 * head["c"], PROGRAM.itemsize).reshape(2, -1)
    return head, mean, std


def decode_buffer(record: np.void, names: Sequence[str]) -> Buffer:
    """One buffer; FormatError BadReference, BadEnum or NonZeroPadding."""
    name = _name(record["name"], names, "buffer")
    if record["reserved"]:
        raise FormatError("NonZeroPadding", f"buffer {name}: reserved bytes are not zero")
    return Buffer(
        name=name,
        shape=(int(record["c"]), int(record["h"]), int(record["w"])),
        storage=_word(record["storage"], STORAGE_NAMES, f"buffer {name}: storage"),
        offset=int(record["offset"]),
        bytes=int(record["bytes"]),
    )


def decode_step(record: np.void, names: Sequence[str], buffers: Sequence[Buffer], pools: Pools) -> Step:
    """One step with its arrays; FormatError if it is not spelled right or refers to what is not there."""
    name = _name(record["name"], names, "step")
    op, flags, rows = int(record["op"]), int(record["flags"]), int(record["rows"])
    if op >= len(STEP_OPS):
        raise FormatError("BadEnum", f"step {name}: op {op}, known are 0..{len(STEP_OPS) - 1}")
    needed, allowed = FLAGS[STEP_OPS[op]]
    if flags & needed != needed or flags & ~allowed:
        raise FormatError("BadEnum", f"step {name}: flags {flags:#x} do not fit {STEP_OPS[op]}")
    for bits, field in ((EPILOGUE | TABLE, "constants"), (OUT_CHANNELS | CHANNELS, "indices"), (WEIGHTS, "weights")):
        if not flags & bits and record[field] != NONE:
            raise FormatError("BadReference", f"step {name}: refers to {field} that its flags do not announce")
    indices: dict[int, np.ndarray] = {}
    at = int(record["indices"])
    for bit in (OUT_CHANNELS, CHANNELS):
        if flags & bit:
            indices[bit] = pools.take("indices", at, rows, name)
            at += rows
    residual = int(record["residual"])
    step = Step(
        op=STEP_OPS[op],
        name=name,
        inputs=(int(record["data"]), *(() if residual == NONE else (residual,))),
        output=int(record["output"]),
        kernel=_pair(record["kernel"]),
        stride=_pair(record["stride"]),
        padding=tuple(record["padding"].tolist()),
        dilation=_pair(record["dilation"]),
        groups=int(record["groups"]),
        weight=_decode_weight(record, flags, name, pools),
        epilogue=_decode_epilogue(record, flags, name, pools),
        out_channels=indices.get(OUT_CHANNELS),
        channels=indices.get(CHANNELS),
        table=pools.take("constants", int(record["constants"]), int(record["depth"]), name) if flags & TABLE else None,
        layer=_name(record["layer"], names, f"layer of step {name}"),
        hint=_name(record["hint"], names, f"hint of step {name}"),
    )
    if step.output < len(buffers) and rows != rows_of(step, buffers):
        raise FormatError("BadShape", f"step {name}: {rows} rows, its output has {rows_of(step, buffers)} channels")
    return step


def _decode_weight(record: np.void, flags: int, name: str, pools: Pools) -> PackedTensor | None:
    depth, rows = int(record["depth"]), int(record["rows"])
    if not flags & WEIGHTS:
        if record["weight"] or (depth and not flags & TABLE):
            raise FormatError("BadEnum", f"step {name}: has a weight encoding or depth, but no weights")
        return None
    encoding = parse(_word(record["weight"], WEIGHT_NAMES, f"step {name}: weight encoding"))
    fields = pools.take_weights(int(record["weights"]), name)
    if len(fields) != rows * field_bytes(depth, encoding.bits):
        raise FormatError(
            "SizeMismatch",
            f"step {name}: {rows} rows of {depth} {encoding} weights take "
            f"{rows * field_bytes(depth, encoding.bits)} bytes, the section has {len(fields)}",
        )
    table = np.frombuffer(fields, np.uint8).reshape(rows, -1)
    sums, _ = row_sums(encoding, table, depth)
    return PackedTensor(encoding, (rows, depth), table, sums.astype(np.int32))


def _decode_epilogue(record: np.void, flags: int, name: str, pools: Pools) -> Epilogue | None:
    bounds = [float(record[field]) for field in ("lo", "hi", "m_r")]
    if not flags & EPILOGUE:
        if bounds != [0, 0, 0]:
            raise FormatError("BadEpilogue", f"step {name}: has bounds, but no epilogue")
        return None
    at, rows = int(record["constants"]), int(record["rows"])
    m = pools.take("constants", at, rows, name)
    return Epilogue(m, pools.take("constants", at + rows, rows, name), *bounds)


def _name(number: np.integer[Any], names: Sequence[str], what: str) -> str:
    if number >= len(names):
        raise FormatError("BadReference", f"{what}: name {int(number)}, there are {len(names)}")
    return names[int(number)]


def _word(word: bytes, known: Sequence[str], what: str) -> str:
    text = word.decode("latin-1")
    if text not in known:
        raise FormatError("BadEnum", f"{what} {text!r}, known are {' '.join(known)}")
    return text


def _pair(values: np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])
