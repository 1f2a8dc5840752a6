"""A short run of the fuzz targets under sanitizers, and of the Python reader, from the corpus of malformed files and
good ones. BITPRESS_FUZZ_SECONDS makes it longer; a crash leaves crash-input in the test's folder.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from bitpress.compiler import artifact

from ..format import malformed
from ..runtime import samples
from .conftest import ROOT, run, sanitized
from .fuzz_reader import kept
from .test_hostile import hostile_npy

pytestmark = [pytest.mark.native, pytest.mark.slow]
SECONDS = int(os.environ.get("BITPRESS_FUZZ_SECONDS", "60"))


@pytest.mark.parametrize("kind", ["bpk", "npy"])
def test_no_crash(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = sanitized("address,undefined", f"fuzz_{kind}").folder / f"fuzz_{kind}"
    files = [data for _, data in corpus(kind)]
    for number, data in enumerate(files):
        (tmp_path / f"{number}.{kind}").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    seed = int.from_bytes(os.urandom(4), "little")
    sources = sorted(tmp_path.glob(f"*.{kind}"))
    watched = {"ASAN_OPTIONS": "max_allocation_size_mb=512"}
    done = run([target, SECONDS, seed, *sources], seconds=SECONDS + 300, **watched)
    print(done.stdout)
    said = re.fullmatch(r"(\d+) inputs from a corpus of (\d+), seed (\d+): none crashed\n", done.stdout)
    assert said is not None and int(said[1]) > 100 and int(said[2]) == len(files), done


def test_the_python_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seed = int.from_bytes(os.urandom(4), "little")
    code = "import sys; sys.path.append(sys.argv[1]); from tests.native import fuzz_reader as fuzzer; "
    code += f"fuzzer.main({SECONDS}, {seed})"
    done = run([sys.executable, "-P", "-c", code, ROOT], seconds=SECONDS + 300)
    print(done.stdout)
    said = re.match(rf"(\d+) inputs from a corpus of (\d+), seed {seed}: (\d+) programs; ", done.stdout)
    assert said is not None and int(said[1]) > 1000 and int(said[3]) > 0, done


def corpus(kind: str) -> list[tuple[str, bytes]]:
    """(name, bytes): every malformation that has a name, files of every op, and what libFuzzer has found to be new."""
    if kind == "npy":
        return [(name, data[10:]) for name, data, _ in hostile_npy()]  # headers, without magic and length
    good = {"everything": artifact.encode(samples.everything()), "straight": artifact.encode(samples.straight("b1"))}
    cases = malformed.cases(good["everything"], artifact.encode(samples.deep()), artifact.encode(samples.gates()))
    return [*good.items(), *((case.id, case.data) for case in cases if len(case.data) < 1 << 16), *kept()]
