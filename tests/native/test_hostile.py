"""Files that were damaged or made to do damage: one sentence, exit code 4 for a .bpk and 2 for a .npy, never a crash.

Once with the tool as it is shipped, once (slow) with a build under address and undefined-behaviour sanitizers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bitpress.compiler import artifact
from bitpress.core.errors import CorruptError

from ..format import malformed
from ..runtime import samples
from .conftest import Sample, Tree, run, sanitized
from .fuzz_reader import kept, verdict

_native = pytest.importorskip("bitpress._native", reason="the native module is not built")
pytestmark = pytest.mark.native
GOOD = artifact.encode(samples.straight("i4", "u4", channels=3))
SHAPE = (2, 3, 9, 11)  # of images for the sample "everything"


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0), size: int | None = None) -> bytes:
    """A .npy with any header; `size` is what it says of the header's length."""
    text = header.encode("latin-1")
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text) if size is None else size)
    return b"\x93NUMPY" + bytes(version) + length + text + data


def header(descr: str = "'<f4'", order: str = "False", shape: str = str(SHAPE)) -> str:
    """As numpy writes it."""
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def hostile_npy() -> Iterator[tuple[str, bytes, str]]:
    """(name, bytes, what the refusal says)."""
    data = np.zeros(SHAPE, np.float32).tobytes()
    good = npy(header(), data)
    yield "empty", b"", "does not begin"
    yield "no magic", b"NUMPY" + good[5:], "does not begin"
    yield "magic only", good[:6], "does not begin"
    yield "cut in the length", good[:9], "too short"
    yield "cut in the header", good[:30], "too short"
    yield "version 0", npy(header(), data, (0, 0)), "version is 0.0"
    yield "version 9", npy(header(), data, (9, 0)), "version is 9.0"
    yield "version 1.7", npy(header(), data, (1, 7)), "version is 1.7"
    yield "header of 4 GB", npy(header(), data, (2, 0), 0xFFFFFFF0), "at most 65536"
    yield "header longer than the file", npy(header(), b"", (1, 0), 60000), "too short"
    yield "one value missing", good[:-4], "bytes of numbers"
    yield "one byte more", good + b"\0", "bytes of numbers"
    yield "no dictionary", npy("[1, 2]", data), "no {"
    yield "open dictionary", npy("{'descr': '<f4'", data), "no }"
    yield "open string", npy("{'descr", data), "no string"
    yield "a key twice", npy("{'shape': (1, 2), 'shape': (1, 2), }", data), "one twice"
    yield "a key too many", npy(header()[:-3] + "'x': 1}", data), "unknown key"
    yield "a key missing", npy("{'descr': '<f4', 'shape': (2, 3, 9, 11)}", data), "lacks"
    yield "code behind it", npy(header() + "; import os", data), "goes on behind"
    yield "objects", npy(header("'|O'"), data), "'|O'"
    yield "double", npy(header("'<f8'"), data * 2), "'<f8'"
    yield "big endian", npy(header("'>f4'"), data), "'>f4'"
    yield "fields", npy(header("[('a', '<f4')]"), data), "no string"
    yield "Fortran order", npy(header(order="True"), data), "ascontiguousarray"
    yield "order that is no word", npy(header(order="0"), data), "no True"
    yield "negative length", npy(header(shape="(-2, 3, 9, 11)"), data), "no number"
    yield "length of 30 digits", npy(header(shape=f"({'9' * 30}, 3, 9, 11)"), data), "is above"
    yield "product above 2**64", npy(header(shape=f"({2**62}, {2**62}, 9, 11)"), data), "too many elements"
    yield "product that wraps to the file's size", npy(header(shape=f"({2**62}, 4, 1, 1)")), "too many elements"
    yield "shape that is no tuple", npy(header(shape="(2)"), data), "no tuple"
    yield "1000 axes", npy(header(shape=f"({'1, ' * 1000})"), data), "more than 32 axes"
    yield "three axes", npy(header(shape="(6, 9, 11)"), data), "the network takes"
    yield "other channels", npy(header(shape="(3, 2, 9, 11)"), data), "the network takes"
    yield "bytes as floats are laid out", npy(header("'|u1'"), data[: len(data) // 4]), "the network takes"
    yield "no images of another size", npy(header(shape="(0, 3, 9, 12)")), "the network takes"
    bad = np.zeros(SHAPE, np.float32)
    bad[1, 0, 0, 5] = np.nan
    yield "NaN", npy(header(), bad.tobytes()), "value 5 of image 1"
    bad[1, 0, 0, 5] = -np.inf
    yield "infinity", npy(header(), bad.tobytes()), "value 5 of image 1"


def refuses_npy(tool: Path, file: Path, folder: Path, **environment: str) -> None:
    source, target = folder / "x.npy", folder / "y.npy"
    for name, data, says in hostile_npy():
        source.write_bytes(data)
        done = run([tool, file, "--input", source, "--output", target], code=None, **environment)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, (name, done)
        assert sorted(p.name for p in folder.iterdir()) == ["x.npy"], f"{name}: something was left behind"


def refuses_bpk(tool: Path, folder: Path, **environment: str) -> None:
    file = folder / "damaged.bpk"
    cases = malformed.cases(*(artifact.encode(make()) for make in (samples.everything, samples.deep, samples.gates)))
    damaged = [(case.id, case.error, case.data) for case in cases]
    damaged += [(f"first {size}", "", GOOD[:size]) for size in range(1, len(GOOD), len(GOOD) // 20)]
    for at in range(0, len(GOOD), len(GOOD) // 40):
        flipped = bytearray(GOOD)
        flipped[at] ^= 1 << at % 8
        damaged.append((f"byte {at}", "", bytes(flipped)))
    for name, error, data in damaged:
        file.write_bytes(data)
        done = run([tool, file, "--verify"], code=None, **environment)
        assert done.returncode == 4 and error in done.stderr and done.stderr.count("\n") == 1, (name, done)


def test_npy_files(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    refuses_npy(tree.tool, programs["everything"].file, tmp_path)


def test_every_version_of_the_header_is_read(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    sample = programs["everything"]
    data = sample.x[:2].tobytes()
    found = set()
    for version in ((1, 0), (2, 0), (3, 0)):
        (tmp_path / "x.npy").write_bytes(npy(header().replace("'", '"'), data, version))
        run([tree.tool, sample.file, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy"])
        found.add((tmp_path / "y.npy").read_bytes())
    assert len(found) == 1


def test_damaged_artifacts(tree: Tree, tmp_path: Path) -> None:
    refuses_bpk(tree.tool, tmp_path)


@pytest.mark.parametrize("read", [_native.check, artifact.decode], ids=["native", "python"])
def test_every_flipped_byte_is_refused(read: Callable[[bytes], object]) -> None:
    """Each byte of a small file, one after another, all of its bits turned over.

    Any other change of one byte is found as well: sections, table and header lie under CRC-32, which finds every change
    within four neighbouring bytes, and what lies between them must be zero.
    """
    flipped = bytearray(GOOD)
    passed = []
    for at in range(len(GOOD)):
        flipped[at] ^= 0xFF
        try:
            read(bytes(flipped))
            passed.append(at)
        except CorruptError:
            pass
        flipped[at] ^= 0xFF
    assert not passed, f"of {len(GOOD)} bytes, these may be anything: {passed[:10]}"


def test_both_readers_agree_on_the_corpus_of_the_fuzzer() -> None:
    """Good or not, and by which rule first; metadata is read by Python alone, early."""
    files = kept()
    assert len(files) > 200
    for name, data in files:
        said, other = verdict(artifact.decode, data), verdict(_native.check, data)
        assert said in (other, "BadMeta"), (name, said, other)


@pytest.mark.slow
def test_under_sanitizers(programs: dict[str, Sample], tmp_path: Path) -> None:
    """The same files, and good ones on every instruction set, with every memory access and overflow watched."""
    tool = sanitized("address,undefined", "bitpress-run").tool
    watched = {"ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1:max_allocation_size_mb=512"}
    for part in ("npy", "bpk", "good"):
        (tmp_path / part).mkdir()
    refuses_npy(tool, programs["everything"].file, tmp_path / "npy", **watched)
    refuses_bpk(tool, tmp_path / "bpk", **watched)
    for sample in programs.values():
        for isa in _native.cpu_isas():
            for kind in ("x", "u8"):
                np.save(tmp_path / "good" / "x.npy", getattr(sample, kind))
                arguments = ["--input", tmp_path / "good" / "x.npy", "--output", tmp_path / "good" / "y.npy"]
                run([tool, sample.file, *arguments, "--threads", 2], BITPRESS_FORCE_ISA=isa, **watched)
