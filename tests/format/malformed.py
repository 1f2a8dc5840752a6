"""One malformed file, at least, for each named error of docs/format.md. Both readers are run on all of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitpress.compiler import artifact, container, records
from bitpress.compiler.program import STEP_OPS

FORMAT_MD = Path(__file__).parents[2] / "docs" / "format.md"
Sections = dict[tuple[str, int], bytearray]


@dataclass(frozen=True)
class Case:
    """A file, and the error that it must be refused with."""

    error: str
    what: str
    data: bytes

    @property
    def id(self) -> str:
        """Readable and unique."""
        return f"{self.error}-{self.what.replace(' ', '-')}"


def documented_errors() -> set[str]:
    """Names in the table of section 5."""
    text = FORMAT_MD.read_text(encoding="utf-8").split("## 5. Errors")[1].split("## 6.")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")][2:]
    return {name.strip() for row in rows for name in row.split(",")}


def seal(data: bytes) -> bytes:
    """The file with the checksum of header and table made right."""
    count = struct.unpack_from("<I", data, 32)[0]
    out = bytearray(data)
    out[36:40] = bytes(4)
    struct.pack_into("<I", out, 36, zlib.crc32(out[: 64 + 32 * count]))
    return bytes(out)


def _poke(data: bytes, layout: str, at: int, value: int) -> bytes:
    out = bytearray(data)
    struct.pack_into(layout, out, at, value)
    return seal(bytes(out))


def _split(data: bytes) -> Sections:
    return {(s.kind, s.index): bytearray(data[s.offset : s.offset + s.bytes]) for s in container.split(data)}


def _drop_golden(sections: Sections) -> None:
    """Its size depends on input and output, and would be noticed first."""
    del sections["golden_input", 0], sections["golden_output", 0]


def _join(sections: Sections, features: int = 0) -> bytes:
    return container.join([(kind, index, bytes(piece)) for (kind, index), piece in sections.items()], features)


def _container_cases(good: bytes) -> Iterator[Case]:
    yield Case("BadMagic", "text mode", good.replace(b"\r\n", b"\n", 1))
    yield Case("BadMagic", "short text", b"hello")
    yield Case("Truncated", "empty", b"")
    yield Case("Truncated", "half a header", good[:40])
    yield Case("Truncated", "one byte missing", good[:-1])
    yield Case(
        "Truncated", "table beyond the end", _poke(good[:64], "<Q", 16, 64)[:32] + struct.pack("<I", 9) + good[36:64]
    )
    yield Case("TrailingBytes", "one byte more", good + b"\0")
    yield Case("TrailingBytes", "one byte more, announced", _poke(good + b"\0", "<Q", 16, len(good) + 1))
    yield Case("UnsupportedVersion", "version 2", _poke(good, "<I", 8, 2))
    yield Case("UnsupportedVersion", "version 0", _poke(good, "<I", 8, 0))
    yield Case("UnknownFeature", "last bit", _poke(good, "<I", 12, 1 << 31))
    yield Case("TooLarge", "sections", _poke(good[:36] + bytes(len(good) - 36), "<I", 32, 65536))
    yield Case("BadChecksum", "table", good[:70] + bytes([good[70] ^ 1]) + good[71:])
    yield Case("BadChecksum", "header's reserved byte", good[:50] + b"\1" + good[51:])
    yield Case("BadChecksum", "last byte", good[:-1] + bytes([good[-1] ^ 0x80]))
    yield Case("NonZeroPadding", "reserved byte of header", _poke(good, "<B", 50, 1))
    yield Case("NonZeroPadding", "reserved word of a record", _poke(good, "<I", 64 + 28, 1))
    first, second = (struct.unpack_from("<Q", good, 64 + 32 * i + 8)[0] for i in (0, 1))
    size = struct.unpack_from("<Q", good, 64 + 16)[0]
    yield Case("NonZeroPadding", "between sections", good[: first + size] + b"\1" + good[first + size + 1 :])
    yield Case("SectionHole", "table moved", _poke(good, "<Q", 24, 128))
    yield Case("SectionHole", "64 bytes skipped", _poke(good, "<Q", 64 + 8, first + 64))
    yield Case("SectionHole", "offset near 2^64", _poke(good, "<Q", 64 + 8, 2**64 - 64))
    yield Case("SectionOverlap", "second upon first", _poke(good, "<Q", 64 + 32 + 8, first))
    yield Case("SectionOverlap", "first upon header", _poke(good, "<Q", 64 + 8, 0))
    yield Case("BadAlignment", "offset plus 8", _poke(good, "<Q", 64 + 32 + 8, second + 8))
    yield Case("Truncated", "section beyond the end", _poke(good, "<Q", 64 + 16, len(good)))
    yield Case("Truncated", "size near 2^64", _poke(good, "<Q", 64 + 16, 2**64 - 1))
    yield Case("SizeMismatch", "empty section", _poke(good, "<Q", 64 + 16, 0))
    yield Case("UnknownSection", "kind 0", _poke(good, "<I", 64, 0))
    yield Case("UnknownSection", "kind 12", _poke(good, "<I", 64, 12))
    yield Case("SectionOrder", "kind twice", _poke(good, "<I", 64 + 32, 1))
    yield Case("SectionOrder", "index of a single", _poke(good, "<I", 64 + 4, 1))
    yield Case("SectionOrder", "kinds descend", _poke(good, "<I", 64, 4))


def _section_cases(good: bytes) -> Iterator[Case]:
    for kind in (*container.REQUIRED, "golden_output"):
        yield Case("MissingSection", kind, _join({k: v for k, v in _split(good).items() if k[0] != kind}))

    def edited(error: str, what: str, kind: str, edit: Callable[[bytearray], bytes | None], index: int = 0) -> Case:
        sections = _split(good)
        result = edit(sections[kind, index])
        if kind == "program":
            _drop_golden(sections)
        if result is not None:
            sections[kind, index] = bytearray(result)
        return Case(error, what, _join(sections))

    def put(layout: str, at: int, value: float) -> Callable[[bytearray], None]:
        return lambda piece: struct.pack_into(layout, piece, at, value)

    yield edited("SizeMismatch", "program too short", "program", lambda p: p[:20])
    yield edited("SizeMismatch", "mean of other length", "program", put("<I", 16, 2**31))
    yield edited("NonZeroPadding", "program reserved", "program", put("<I", 20, 1))
    yield edited("ArenaOverflow", "arena above the cap", "program", put("<Q", 0, 2**30 + 64))
    yield edited("ArenaOverflow", "arena too small", "program", put("<Q", 0, 64))
    yield edited("BadReference", "input out of range", "program", put("<I", 8, 99))
    yield edited("BadReference", "input is output", "program", lambda p: p[:12] + p[8:12] + p[16:])
    yield edited("BadEnum", "output of levels", "program", put("<I", 12, 1))
    yield edited("UnwrittenRead", "output never written", "program", put("<I", 12, _spare(good)))
    yield edited("NonFinite", "mean", "program", put("<f", 24, float("nan")))
    yield edited("BadScale", "std 0", "program", put("<f", 24 + 12, 0.0))
    yield edited("BadScale", "std negative", "program", put("<f", 24 + 12, -0.2))

    yield edited("SizeMismatch", "no room for the strings", "names", put("<I", 0, 2**32 - 1))
    yield edited("SizeMismatch", "strings end early", "names", lambda p: p + b"x")
    yield edited("BadText", "ends descend", "names", put("<I", 4, 99))
    yield edited("BadText", "not UTF-8", "names", lambda p: p[:-1] + b"\xff")
    yield edited("BadText", "overlong UTF-8", "names", lambda p: p[:-2] + b"\xc0\x80")
    yield edited("BadText", "surrogate in UTF-8", "names", lambda p: p[:-3] + b"\xed\xa0\x80")
    yield edited("BadText", "cut UTF-8", "names", lambda p: p[:-1] + b"\xc3")
    yield edited("DuplicateName", "a string twice", "names", lambda _: records.encode_strings(["", "a", "b", "a"]))
    yield edited("DuplicateName", "string 0 not empty", "names", lambda _: records.encode_strings(["a", "b"]))
    yield edited("SizeMismatch", "too few labels", "labels", lambda _: records.encode_strings(["one"]))
    yield edited("BadText", "label", "labels", lambda p: p[:-1] + b"\x80")

    yield edited("SizeMismatch", "constants cut", "constants", lambda p: p[:-1])
    yield edited("SizeMismatch", "constants missing", "constants", lambda p: p[:-4])
    yield edited("SizeMismatch", "constants left over", "constants", lambda p: p + bytes(4))
    yield edited("SizeMismatch", "indices missing", "indices", lambda p: p[:-4])
    yield edited("SizeMismatch", "weights short", "weights", lambda p: p[:-1])
    yield edited("SizeMismatch", "weights long", "weights", lambda p: p + bytes(1), index=3)
    yield edited("SizeMismatch", "golden input", "golden_input", lambda p: p[:-4])
    yield edited("SizeMismatch", "golden output", "golden_output", lambda p: p + bytes(4))
    yield edited("NonFinite", "golden input", "golden_input", put("<f", 0, float("inf")))
    yield edited("NonFinite", "m", "constants", put("<f", 0, float("nan")))
    yield edited("NonFinite", "m infinite", "constants", put("<f", 8, float("-inf")))
    yield edited("BadIndices", "output channel too large", "indices", put("<i", 0, 20))
    yield edited("BadIndices", "output channel negative", "indices", put("<i", 0, -1))
    yield edited("BadIndices", "output channel twice", "indices", put("<i", 0, 3))
    yield edited("BadIndices", "gathered channel too large", "indices", lambda p: p[:-4] + struct.pack("<i", 20))
    yield edited("BadIndices", "gathered channel below -1", "indices", lambda p: p[:-4] + struct.pack("<i", -2))
    yield edited("UnwrittenRead", "channel written by no segment", "indices", _move_channel)
    yield edited("TooLarge", "meta", "meta", lambda _: b'{"a":"' + b" " * (16 << 20) + b'"}')
    extra = _split(good) | {("weights", len([k for k in _split(good) if k[0] == "weights"])): bytearray(b"\0")}
    yield Case("SizeMismatch", "weights left over", _join(extra))


def _move_channel(piece: bytearray) -> None:
    """Segment 0 writes channel 1, which segment 1 writes too, instead of channel 0."""
    struct.pack_into("<i", piece, 0, 1)


def _spare(good: bytes) -> int:
    """Number of an f32 buffer that no step writes."""
    program = artifact.decode(good)
    written = {step.output for step in program.steps}
    return next(i for i, b in enumerate(program.buffers) if b.storage == "f32" and i not in {*written, program.input})


def _record_cases(good: bytes) -> Iterator[Case]:
    program = artifact.decode(good)
    step_of = {step.name: i for i, step in enumerate(program.steps)}
    buffer_of = {buffer.name: i for i, buffer in enumerate(program.buffers)}

    def step(error: str, what: str, target: str, /, **fields: object) -> Case:
        sections = _split(good)
        table = np.frombuffer(sections["steps", 0], records.STEP)  # writable: the bytearray's own memory
        for field, value in fields.items():
            table[step_of[target]][field] = value
        return Case(error, what, _join(sections))

    def buffer(error: str, what: str, target: str, /, **fields: object) -> Case:
        sections = _split(good)
        table = np.frombuffer(sections["buffers", 0], records.BUFFER)
        for field, value in fields.items():
            table[buffer_of[target]][field] = value
        if target == "image":
            _drop_golden(sections)
        return Case(error, what, _join(sections))

    yield buffer("BadReference", "name of a buffer", "stream", name=9999)
    yield buffer("DuplicateName", "empty name of a buffer", "stream", name=0)
    yield buffer("NonZeroPadding", "buffer reserved", "stream", reserved=1)
    yield buffer("BadEnum", "storage unknown", "stream", storage=b"q8")
    yield buffer("BadEnum", "storage odd", "stream", storage=b"o8")
    yield buffer("BadEnum", "storage i1", "stream", storage=b"i1")
    yield buffer("BadEnum", "storage u9", "stream", storage=b"u9")
    yield buffer("BadEnum", "storage with a tail", "stream", storage=b"i8\0x")
    yield buffer("BadShape", "no channels", "stream", c=0)
    yield buffer("BadShape", "no height", "stream", h=0)
    yield buffer("SizeMismatch", "buffer bytes", "stream", bytes=7)
    yield buffer("SizeMismatch", "shape beyond 2^64", "stream", c=2**32 - 1, h=65535, w=65535, storage=b"f32")
    yield buffer("BadAlignment", "buffer offset", "stream", offset=32)
    yield buffer("ArenaOverflow", "buffer outside", "stream", offset=2**40)
    yield buffer("ArenaOverflow", "buffer offset near 2^64", "stream", offset=2**64 - 64)
    yield buffer("ArenaOverflow", "input in the arena", "image", offset=64)
    yield buffer("ArenaOverflow", "huge input", "image", c=2**26, h=9, w=11, bytes=2**26 * 9 * 11 * 4)

    yield step("BadEnum", "op", "stem", op=len(STEP_OPS))
    yield step("BadEnum", "flag unknown", "stem", flags=0x1C)
    yield step("BadEnum", "flag missing", "stem", flags=records.WEIGHTS)
    yield step("BadEnum", "flag not for the op", "max", flags=records.EPILOGUE)
    yield step("BadReference", "name of a step", "stem", name=9999)
    yield step("BadReference", "layer of a step", "stem", layer=9999)
    yield step("BadReference", "hint of a step", "stem", hint=9999)
    yield step("DuplicateName", "empty name of a step", "stem", name=0)
    yield step("BadEnum", "weight encoding unknown", "stem", weight=b"i3")
    yield step("BadEnum", "weight encoding f32", "stem", weight=b"f32")
    yield step("BadEnum", "weight encoding without weights", "stream", weight=b"i8")
    yield step("BadReference", "data", "stem", data=99)
    yield step("BadReference", "residual", "stream", residual=99)
    yield step("BadReference", "output", "stem", output=records.NONE)
    yield step("BadReference", "residual of a gather", "short", residual=buffer_of["mixed"])
    yield step("BadReference", "writes what it reads", "stem", output=buffer_of["image.q"])
    yield step("BadReference", "writes the input", "stem", output=buffer_of["image"])
    yield step("BadReference", "reads the image", "stream", data=buffer_of["image"])
    yield step("BadReference", "residual is the image", "stream", residual=buffer_of["image"])
    yield step("BadReference", "quantize of a stream", "image.q", data=buffer_of["stream"])
    yield step("BadReference", "constants elsewhere", "stem", constants=0)
    yield step("BadReference", "indices elsewhere", "mixed#1", indices=0)
    yield step("BadReference", "weights elsewhere", "stem", weights=1)
    yield step("BadReference", "weights not announced", "stream", weights=0)
    yield step("BadReference", "indices not announced", "stream", indices=0)
    yield step("BadShape", "kernel 0", "stem", kernel=(0, 3))
    yield step("BadShape", "stride 0", "stem", stride=(1, 0))
    yield step("BadShape", "dilation 0", "stem", dilation=(0, 1))
    yield step("BadShape", "groups 0", "stem", groups=0)
    yield step("BadShape", "no rows", "max", rows=0)
    yield step("BadShape", "rows of a pool", "max", rows=19)
    yield step("BadShape", "stride of a requantize", "stream", stride=(2, 2))
    yield step("BadShape", "kernel of a gather", "short", kernel=(2, 2))
    yield step("BadShape", "dilation of a pool", "max", dilation=(2, 2))
    yield step("BadShape", "other height", "stem", padding=(2, 1, 1, 1))
    yield step("BadShape", "window larger than its input", "stem", dilation=(99, 99))
    yield step("BadShape", "groups do not divide", "stem", groups=2)
    yield step("BadShape", "kernel and depth differ", "stem", kernel=(3, 1), padding=(1, 0, 1, 0))
    yield step("BadShape", "depthwise groups", "dw", groups=10)
    yield step("BadShape", "max pool of padding only", "max", padding=(3, 1, 0, 1), stride=(3, 2))
    yield step("BadShape", "residual of other shape", "join", residual=buffer_of["image.q"])
    yield step("BadEnum", "convolution of floats", "dw", data=buffer_of["block2.out"])
    yield step("SizeMismatch", "depth", "stem", depth=28)
    yield step("SizeMismatch", "rows beyond the file", "stem", rows=2**31)
    yield step("BadEpilogue", "lo above hi", "stem", lo=3, hi=2)
    yield step("BadEpilogue", "hi beyond the encoding", "stem", hi=16)
    yield step("BadEpilogue", "lo below the symmetric range", "stream", lo=-128)
    yield step("BadEpilogue", "half a level", "stem", lo=0.5)
    yield step("BadEpilogue", "m_r without residual", "stem", m_r=0.5)
    yield step("BadEpilogue", "bounds without epilogue", "max", hi=1)
    yield step("NonFinite", "lo is NaN", "stem", lo=float("nan"))
    yield step("NonFinite", "m_r infinite", "join", m_r=float("inf"))
    yield step("UnwrittenRead", "reads ahead", "stem", data=buffer_of["ahead"])
    yield buffer("BadEnum", "gather to other storage", "short", storage=b"u5")


def _gate_cases(gates: bytes) -> Iterator[Case]:
    """Tables and products of the sample `gates`."""
    program = artifact.decode(gates)
    step_of = {step.name: i for i, step in enumerate(program.steps)}
    buffer_of = {buffer.name: i for i, buffer in enumerate(program.buffers)}
    start = {s.name: int(records_of(gates)[i]["constants"]) for i, s in enumerate(program.steps)}

    def step(error: str, what: str, target: str, /, **fields: object) -> Case:
        sections = _split(gates)
        table = np.frombuffer(sections["steps", 0], records.STEP)
        for field, value in fields.items():
            table[step_of[target]][field] = value
        return Case(error, what, _join(sections, container.LATER_OPS))

    def entry(error: str, what: str, target: str, value: float) -> Case:
        sections = _split(gates)
        struct.pack_into("<f", sections["constants", 0], 4 * (start[target] + 5), value)
        return Case(error, what, _join(sections, container.LATER_OPS))

    yield Case("BadFeature", "later ops unannounced", _join(_split(gates)))
    yield entry("BadTable", "level above the range", "up", 256.0)
    yield entry("BadTable", "level below the symmetric range", "narrow", -128.0)
    yield entry("BadTable", "half a level", "down", 0.5)
    yield entry("NonFinite", "entry of levels", "up", float("nan"))
    yield entry("NonFinite", "entry of floats", "last", float("-inf"))
    yield step("SizeMismatch", "table beyond the file", "last", depth=2**32 - 1)
    yield step("BadReference", "table elsewhere", "down", constants=start["up"])
    yield step("BadTable", "codes and entries differ", "narrow", data=buffer_of["up"])
    yield step("BadEnum", "table not announced", "up", flags=0)
    yield step("BadEnum", "table of a product", "scaled", flags=records.TABLE)
    yield step("BadEnum", "table of weights", "up", weight=b"i8")
    yield step("BadEnum", "table of floats", "up", data=buffer_of["floats"])
    yield step("BadEpilogue", "bounds of a table", "up", hi=1)
    yield step("BadReference", "second input of a table", "up", residual=buffer_of["stem.out"])
    yield step("BadShape", "rows of a table", "up", rows=18)
    yield step("BadShape", "stride of a table", "up", stride=(2, 1))
    yield step("BadReference", "product of one value", "scaled", residual=records.NONE)
    yield step("BadReference", "product with the image", "scaled", residual=buffer_of["image"])
    yield step("BadReference", "product into its factor", "scaled", output=buffer_of["gate"])
    yield step("BadEnum", "product of floats", "crossed", data=buffer_of["floats"])
    yield step("BadEnum", "product with floats", "crossed", residual=buffer_of["floats"])
    yield step("BadEpilogue", "m_r of a product", "scaled", m_r=0.5)
    yield step("BadShape", "product with other channels", "scaled", residual=buffer_of["image.q"])
    yield step("BadShape", "product of a pixel with a map", "signed", data=buffer_of["gate"])
    yield step("UnwrittenRead", "product reads ahead", "scaled", residual=buffer_of["signed"])


def records_of(data: bytes) -> np.ndarray:
    """Step records of a file."""
    return np.frombuffer(_split(data)["steps", 0], records.STEP)


def _tail_case(good: bytes) -> Case:
    """A set bit behind the last weight of a row: 27 o4 weights of 4 bits leave half a byte."""
    program = artifact.decode(good)
    index = [s.name for s in program.steps if s.weight is not None].index("tail")
    sections = _split(good)
    sections["weights", index][-1] |= 0x80
    return Case("NonZeroPadding", "bits behind a row", _join(sections))


def _overflow_case(deep: bytes) -> Case:
    """182 x 182 weights of 255 against levels of 255: 33124 x 65025 is above 2^31."""
    sections = _split(deep)
    sections["weights", 0][:] = b"\xff" * len(sections["weights", 0])
    return Case("AccumulatorOverflow", "deep sum", _join(sections))


def cases(good: bytes, deep: bytes, gates: bytes) -> list[Case]:
    """All of them, made from the good files of `tests/runtime/samples.py`: `everything`, `deep` and `gates`."""
    return [
        *_container_cases(good),
        *_section_cases(good),
        *_record_cases(good),
        Case("BadFeature", "later ops announced in vain", _join(_split(good), container.LATER_OPS)),
        *_gate_cases(gates),
        _tail_case(good),
        _overflow_case(deep),
    ]


def python_only(good: bytes) -> list[Case]:
    """Metadata that the C++ reader does not look at."""
    sections = _split(good)
    texts = {
        "not JSON": b"{",
        "not an object": b"[]",
        "spaces": b'{"a": 1}',
        "unsorted": b'{"b":1,"a":1}',
        "NaN": b'{"a":NaN}',
        "not ASCII": '{"a":"ä"}'.encode(),
        "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    }
    return [Case("BadMeta", what, _join(sections | {("meta", 0): bytearray(text)})) for what, text in texts.items()]
