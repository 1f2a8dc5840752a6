"""A fuzzer for the Python reader; tests/native/test_fuzz.py starts it in a process of its own.

Damages the corpus as csrc/fuzz/driver.cc does, and makes checksums right again most of the time. Every input must be
refused with a CorruptError or be a program; where the native module is there, both readers must say the same. Address
space is limited, so that memory by an unchecked length is a MemoryError. A failure leaves crash-input.
"""

from __future__ import annotations

import random
import resource
import struct
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from bitpress.compiler import artifact
from bitpress.core.errors import CorruptError

NUMBERS = (
    0, 1, 2, 7, 63, 64, 65, 127, 128, 255, 256, 32767, 65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7F800000,
    0x7FC00000, 1 << 62, 2**64 - 1,
)  # fmt: skip
ROOM = 512 << 20  # bytes of address space above what is in use at the start
HEADER, RECORD = 64, 32


def seal(data: bytearray) -> None:
    """Length and checksums as the container wants them, so far as there is a table."""
    if len(data) < HEADER or data[1:4] != b"BPK":
        return
    struct.pack_into("<Q", data, 16, len(data))
    sections = int.from_bytes(data[32:36], "little")
    end = HEADER + RECORD * sections
    if end > len(data):
        return
    for at in range(HEADER, end, RECORD):
        offset, size = struct.unpack_from("<QQ", data, at + 8)
        if offset <= len(data) and size <= len(data) - offset:
            struct.pack_into("<I", data, at + 24, zlib.crc32(data[offset : offset + size]))
    struct.pack_into("<I", data, 36, 0)
    struct.pack_into("<I", data, 36, zlib.crc32(data[:end]))


def once(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    """One damage."""
    at, kind = rng.randrange(len(data)), rng.randrange(7)
    if kind == 0:
        data[at] = rng.randrange(256)
    elif kind == 1:
        data[at] ^= 1 << rng.randrange(8)
    elif kind in (2, 3):  # a number of a record, where records lie
        width = 1 << rng.randrange(4)
        place = at // width * width
        if place + width <= len(data):
            data[place : place + width] = rng.choice(NUMBERS).to_bytes(8, "little")[:width]
    elif kind == 4:
        del data[at:]
    elif kind == 5:  # a piece of another file, or of this one
        other = rng.choice(corpus)
        start, to = rng.randrange(max(len(other), 1)) & ~3, at & ~3
        piece = other[start : start + rng.randrange(96)][: len(data) - to]
        data[to : to + len(piece)] = piece
    else:
        data[at:at] = bytes([rng.randrange(256)]) * (1 + rng.randrange(70))


def verdict(read: Callable[[bytes], object], data: bytes) -> str:
    """ "" for a program, else the name of the rule that is broken; any other exception gets out."""
    try:
        read(data)
    except CorruptError as error:
        return str(error).split(":")[0]
    return ""


def fuzz(corpus: Sequence[bytes], seconds: float, seed: int) -> Counter[str]:
    """How often each rule was named ("" for programs); what went wrong is raised, its input is in ./crash-input."""
    try:
        from bitpress import _native
    except ImportError:
        _native = None  # type: ignore[assignment]
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end or number < len(corpus):
        data = bytearray(corpus[number] if number < len(corpus) else rng.choice(corpus))
        if number >= len(corpus):
            for _ in range(1 + rng.randrange(4)):
                if data:
                    once(rng, data, corpus)
            if rng.randrange(8):
                seal(data)
        number += 1
        try:
            said = verdict(artifact.decode, bytes(data))
            other = said if _native is None else verdict(_native.check, bytes(data))
            agreed = bool(said) == bool(other) or (said == "BadMeta" and not other)  # C++ reads no metadata
            assert agreed, f"Python says {said or 'good'}, C++ says {other or 'good'}"
        except BaseException:
            Path("crash-input").write_bytes(data)
            raise
        found[said] += 1
    return found


def limit() -> None:
    """Address space: what is in use and ROOM more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(seconds: float, seed: int) -> None:
    """Prints what was found."""
    from .test_fuzz import corpus

    files = [data for _, data in corpus("bpk")]
    limit()
    found = fuzz(files, seconds, seed)
    total = found.total()
    rules = ", ".join(f"{name} {count}" for name, count in found.most_common() if name)
    print(f"{total} inputs from a corpus of {len(files)}, seed {seed}: {found['']} programs; {rules}")


def kept() -> list[tuple[str, bytes]]:
    """corpus.tar.xz: what libFuzzer's -merge=1 leaves of its ten minutes, covering all that they did."""
    found = []
    with tarfile.open(Path(__file__).with_name("corpus.tar.xz")) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None, member.name
            found.append((member.name, file.read()))
    return found
