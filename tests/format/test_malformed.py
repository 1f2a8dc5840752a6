"""Every malformed file is refused by its name, by both readers; no other damage gets through or crashes them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from bitpress.compiler import artifact, container
from bitpress.compiler.container import FormatError
from bitpress.core.errors import CorruptError

from ..runtime import samples
from . import malformed

try:
    from bitpress import _native
except ImportError:
    _native = None  # type: ignore[assignment]

needs_native = pytest.mark.skipif(_native is None, reason="the native module is not built")
GOOD = artifact.encode(samples.everything())
DEEP = artifact.encode(samples.deep())
GATES = artifact.encode(samples.gates())
CASES = malformed.cases(GOOD, DEEP, GATES)
PYTHON_ONLY = malformed.python_only(GOOD)


def test_every_documented_error_has_a_case() -> None:
    assert {c.error for c in (*CASES, *PYTHON_ONLY)} == malformed.documented_errors()


@pytest.mark.parametrize("case", [*CASES, *PYTHON_ONLY], ids=lambda c: c.id)
def test_python_reader_names_the_error(case: malformed.Case) -> None:
    with pytest.raises(FormatError) as caught:
        artifact.decode(case.data)
    assert caught.value.name == case.error, str(caught.value)
    assert caught.value.exit_code == 4


@needs_native
@pytest.mark.native
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_native_reader_names_the_error(case: malformed.Case) -> None:
    with pytest.raises(CorruptError) as caught:
        _native.check(case.data)
    assert str(caught.value).split(":")[0] == case.error, str(caught.value)


@needs_native
@pytest.mark.native
def test_good_files_pass_both_readers() -> None:
    for data in (GOOD, DEEP, GATES):
        artifact.decode(data)
        _native.check(data)


@pytest.mark.native
@needs_native
@pytest.mark.parametrize(("good", "trials"), [(GOOD, 1500), (GATES, 500)], ids=["everything", "gates"])
def test_both_readers_agree_on_random_damage(good: bytes, trials: int) -> None:
    """Bytes of sections replaced at random under right checksums: both accept, or both refuse by the same name."""
    rng = np.random.default_rng(7)
    differing = []
    for trial in range(trials):
        data = bytearray(good)
        sections = [s for s in container.split(good) if s.kind != "meta"]
        section = sections[rng.integers(len(sections))]
        for _ in range(rng.integers(1, 4)):
            data[section.offset + rng.integers(section.bytes)] = rng.integers(256)
        crc = zlib.crc32(data[section.offset : section.offset + section.bytes])
        struct.pack_into("<I", data, 64 + 32 * container.split(good).index(section) + 24, crc)
        verdicts = (
            _verdict(artifact.decode, malformed.seal(bytes(data))),
            _verdict(_native.check, malformed.seal(bytes(data))),
        )
        if verdicts[0] != verdicts[1]:
            differing.append((trial, section.kind, verdicts))
    assert not differing, f"seed 7: {differing[:5]}"


def _verdict(read: object, data: bytes) -> str:
    try:
        read(data)  # type: ignore[operator]
    except CorruptError as error:
        return str(error).split(":")[0]
    return "accepted"


def test_every_prefix_is_refused() -> None:
    for size in range(0, len(GOOD), 97):
        with pytest.raises(FormatError):
            artifact.decode(GOOD[:size])
