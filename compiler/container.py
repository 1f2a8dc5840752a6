"""The outer shell of a `.bpk`: header, section table, checksums, padding (docs/format.md 1). Knows no network.

Everything that can be wrong with a file has a name; the C++ reader uses the same names.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import CorruptError

MAGIC = b"\x89BPK\r\n\x1a\n"
VERSION = 1
LATER_OPS = 1  # feature bit: the file has steps that the first readers of version 1 do not know
KNOWN_FEATURES = LATER_OPS
ALIGN = 64
MAX_SECTIONS = 65535

# The kind's number is its position; part of the format.
KINDS = (
    "", "program", "names", "buffers", "steps", "constants", "indices", "weights",
    "golden_input", "golden_output", "labels", "meta",
)  # fmt: skip
REQUIRED = ("program", "names", "buffers", "steps", "meta")

HEADER = np.dtype({
    "names": ["magic", "version", "features", "file_bytes", "table_offset", "sections", "crc32", "reserved"],
    "formats": ["V8", "<u4", "<u4", "<u8", "<u8", "<u4", "<u4", "V24"],
})  # fmt: skip
RECORD = np.dtype([
    ("kind", "<u4"), ("index", "<u4"), ("offset", "<u8"), ("bytes", "<u8"), ("crc32", "<u4"), ("reserved", "<u4"),
])  # fmt: skip
CRC_AT = 36


class FormatError(CorruptError):
    """A `.bpk` breaks a rule of docs/format.md; `name` is the rule's error name, with which the message begins."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Section:
    """One section: kind (a name of `KINDS`), number among its kind, place in the file, checksum."""

    kind: str
    index: int
    offset: int
    bytes: int
    crc32: int


def aligned(size: int) -> int:
    """`size` rounded up to a multiple of 64."""
    return -(-size // ALIGN) * ALIGN


def join(parts: Sequence[tuple[str, int, bytes]], features: int = 0) -> bytes:
    """(kind, index, bytes) in any order -> the file's bytes; empty parts are left out."""
    numbered = sorted((KINDS.index(kind), index, data) for kind, index, data in parts if data)
    records = np.zeros(len(numbered), RECORD)
    body = bytearray()
    start = at = aligned(HEADER.itemsize + records.nbytes)
    for record, (kind, index, data) in zip(records, numbered, strict=True):
        body += bytes(at - start - len(body)) + data
        record["kind"], record["index"] = kind, index
        record["offset"], record["bytes"], record["crc32"] = at, len(data), zlib.crc32(data)
        at = aligned(at + len(data))
    header = np.zeros((), HEADER)
    header["magic"], header["version"], header["features"] = np.void(MAGIC), VERSION, features
    header["file_bytes"], header["table_offset"], header["sections"] = start + len(body), HEADER.itemsize, len(numbered)
    header["crc32"] = zlib.crc32(header.tobytes() + records.tobytes())
    shell = header.tobytes() + records.tobytes()
    return shell + bytes(start - len(shell)) + bytes(body)


def split(data: bytes) -> tuple[Section, ...]:
    """Sections of a file, in order; FormatError if the container breaks any rule of docs/format.md 1."""
    header = _header(data)
    count = int(header["sections"])
    end = HEADER.itemsize + count * RECORD.itemsize
    if count > MAX_SECTIONS:
        raise FormatError("TooLarge", f"{count} sections, at most {MAX_SECTIONS} are allowed")
    if end > len(data):
        raise FormatError("Truncated", f"the section table ends at byte {end}, the file has {len(data)}")
    crc = zlib.crc32(data[CRC_AT + 4 : end], zlib.crc32(bytes(4), zlib.crc32(data[:CRC_AT])))
    if crc != header["crc32"]:
        raise FormatError("BadChecksum", f"header and table have CRC {crc:08x}, {int(header['crc32']):08x} is stored")
    if any(data[CRC_AT + 4 : HEADER.itemsize]):
        raise FormatError("NonZeroPadding", "reserved bytes of the header are not zero")
    if header["table_offset"] != HEADER.itemsize:
        raise FormatError("SectionHole", f"section table at byte {int(header['table_offset'])}, not {HEADER.itemsize}")
    records = np.frombuffer(data, RECORD, count, HEADER.itemsize)
    sections = _sections(data, records, end)
    for section in sections:
        crc = zlib.crc32(memoryview(data)[section.offset : section.offset + section.bytes])
        if crc != section.crc32:
            raise FormatError(
                "BadChecksum",
                f"section {section.kind} {section.index} has CRC {crc:08x}, {section.crc32:08x} is stored",
            )
    return sections


def features(data: bytes) -> int:
    """Feature bits of a file; FormatError if its header is damaged."""
    return int(_header(data)["features"])


def _header(data: bytes) -> np.void:
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise FormatError("BadMagic", f"the file begins with {data[:8].hex(' ')}, a .bpk with {MAGIC.hex(' ')}")
    if len(data) < HEADER.itemsize:
        raise FormatError("Truncated", f"the file has {len(data)} bytes, its header alone {HEADER.itemsize}")
    header = np.frombuffer(data, HEADER, 1)[0]
    if header["version"] != VERSION:
        raise FormatError(
            "UnsupportedVersion",
            f"format version {int(header['version'])}, this Bitpress reads {VERSION}: use the Bitpress that wrote the "
            "file, or compile again",
        )
    if int(header["features"]) & ~KNOWN_FEATURES:
        raise FormatError(
            "UnknownFeature",
            f"the file needs features {int(header['features']):#x}, this Bitpress knows {KNOWN_FEATURES:#x}: upgrade, "
            "or compile again",
        )
    if header["file_bytes"] > len(data):
        raise FormatError("Truncated", f"the file has {len(data)} bytes of {int(header['file_bytes'])}")
    if header["file_bytes"] < len(data):
        raise FormatError(
            "TrailingBytes", f"the file has {len(data)} bytes and should have {int(header['file_bytes'])}"
        )
    return header


def _sections(data: bytes, records: np.ndarray, end: int) -> tuple[Section, ...]:
    out: list[Section] = []
    before = (0, 0)
    for row in records:
        kind, index, offset, size, crc, reserved = (int(v) for v in row)
        label = f"section {len(out)}"
        if not 1 <= kind < len(KINDS):
            raise FormatError("UnknownSection", f"{label} is of kind {kind}, known are 1..{len(KINDS) - 1}")
        if reserved:
            raise FormatError("NonZeroPadding", f"reserved bytes of {label} are not zero")
        expected = before[1] + 1 if kind == before[0] == KINDS.index("weights") else 0
        if kind < before[0] or (kind == before[0] and kind != KINDS.index("weights")) or index != expected:
            raise FormatError("SectionOrder", f"{label} is ({kind}, {index}) after {before}")
        _check_place(data, label, offset, size, end)
        out.append(Section(KINDS[kind], index, offset, size, crc))
        before, end = (kind, index), offset + size
    if end != len(data):
        raise FormatError("TrailingBytes", f"the last section ends at byte {end} of {len(data)}")
    for name in REQUIRED:
        if not any(s.kind == name for s in out):
            raise FormatError("MissingSection", f"there is no {name} section")
    if any(s.kind == "golden_input" for s in out) != any(s.kind == "golden_output" for s in out):
        raise FormatError("MissingSection", "golden_input and golden_output must come together")
    return tuple(out)


def _check_place(data: bytes, label: str, offset: int, size: int, end: int) -> None:
    if offset % ALIGN:
        raise FormatError("BadAlignment", f"{label} starts at byte {offset}, which is no multiple of {ALIGN}")
    if offset < end:
        raise FormatError("SectionOverlap", f"{label} starts at byte {offset}, the part before it ends at {end}")
    if offset != aligned(end):
        raise FormatError("SectionHole", f"{label} starts at byte {offset}, not at {aligned(end)}")
    if size < 1:
        raise FormatError("SizeMismatch", f"{label} is empty")
    if offset + size > len(data):
        raise FormatError("Truncated", f"{label} ends at byte {offset + size}, the file has {len(data)}")
    if any(data[end:offset]):
        raise FormatError("NonZeroPadding", f"bytes {end}..{offset} before {label} are not zero")
