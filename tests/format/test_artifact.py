"""What is written is read back, the same bytes every time, no larger than promised, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bitpress.compiler import artifact, container
from bitpress.compiler.container import FormatError
from bitpress.compiler.execute import execute
from bitpress.compiler.program import Program
from bitpress.core.errors import UsageError
from bitpress.kernels.packed import field_bytes

from ..runtime import samples

DATA = Path(__file__).parent / "data"
PROGRAMS = {
    "straight": samples.straight,
    "everything": samples.everything,
    "gates": samples.gates,
    "deep": samples.deep,
}


def assert_equal(a: object, b: object, where: str = "program") -> None:
    """Recursive equality that compares arrays by dtype, shape and content."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        np.testing.assert_array_equal(a, b, where)
    elif is_dataclass(a):
        assert type(a) is type(b), where
        for f in fields(a):
            assert_equal(getattr(a, f.name), getattr(b, f.name), f"{where}.{f.name}")
    elif isinstance(a, tuple) and isinstance(b, tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_round_trip(make: object, tmp_path: Path) -> None:
    program: Program = make()  # type: ignore[operator]
    size = artifact.write(program, tmp_path / "x.bpk")
    assert size == (tmp_path / "x.bpk").stat().st_size
    again = artifact.read(tmp_path / "x.bpk")
    assert_equal(program, again)
    assert artifact.encode(again) == (tmp_path / "x.bpk").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["x.bpk"], "nothing else is left behind"


def test_bytes_do_not_depend_on_dict_order_or_process() -> None:
    program = samples.everything()
    turned = replace(program, meta=dict(reversed(list(program.meta.items()))))
    assert artifact.encode(turned) == artifact.encode(program)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(samples.__file__).parent)!r}); import samples, hashlib;"
        "from bitpress.compiler.artifact import encode;"
        "print(hashlib.sha256(encode(samples.everything())).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(digests) == 1


def test_weight_sections_are_exactly_the_fields() -> None:
    program = samples.everything()
    sizes = [s.bytes for s in artifact.sections(artifact.encode(program)) if s.kind == "weights"]
    weights = [s.weight for s in program.steps if s.weight is not None]
    assert sizes == [w.shape[0] * field_bytes(w.shape[1], w.encoding.bits) for w in weights]


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_rest_of_the_file_is_bounded(make: object) -> None:
    """8 kB + 16 bytes a channel + 128 a step + 128 a section, without weights, golden sample and labels."""
    program: Program = make()  # type: ignore[operator]
    data = artifact.encode(program)
    sections = artifact.sections(data)
    free = sum(s.bytes for s in sections if s.kind in ("weights", "golden_input", "golden_output", "labels"))
    channels = sum(len(s.epilogue.m) if s.epilogue else 0 for s in program.steps)
    assert len(data) - free <= 8000 + 16 * channels + 128 * len(program.steps) + 128 * len(sections)


def test_parts_sum_to_the_file() -> None:
    data = artifact.encode(samples.everything())
    parts = artifact.parts(data)
    assert sum(size for _, size in parts) == len(data)
    assert ("weights:mixed#1", 504) in parts


def test_container_joins_what_it_splits() -> None:
    data = artifact.encode(samples.straight())
    pieces = [(s.kind, s.index, data[s.offset : s.offset + s.bytes]) for s in container.split(data)]
    assert container.join(reversed(pieces)) == data  # type: ignore[arg-type]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.bpk"
    artifact.write(samples.straight(), path)
    before = path.read_bytes()
    wrong = replace(samples.everything(), mean=np.full(3, np.nan, np.float32))
    with pytest.raises(FormatError, match="NonFinite"):
        artifact.write(wrong, path)

    def full_disk(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UsageError, match="No space left"):
        artifact.write(samples.everything(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unreadable_paths_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        artifact.read(tmp_path / "none.bpk")
    with pytest.raises(UsageError, match="directory"):
        artifact.read(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        artifact.write(samples.straight(), tmp_path / "nowhere" / "x.bpk")


def test_programs_that_break_a_rule_are_not_written() -> None:
    program = samples.straight()
    twice = replace(program, steps=(*program.steps, program.steps[-1]))
    with pytest.raises(FormatError, match="DuplicateName"):
        artifact.encode(twice)
    with pytest.raises(FormatError, match="BadMeta"):
        artifact.encode(replace(program, meta={"when": object()}))


@pytest.mark.parametrize("path", sorted(DATA.glob("*.bpk")), ids=lambda p: p.stem)
def test_files_of_every_released_version_load(path: Path) -> None:
    program = artifact.read(path)
    assert program.golden_input is not None and program.golden_output is not None
    np.testing.assert_array_equal(execute(program, program.golden_input), program.golden_output)
    assert artifact.encode(program) == path.read_bytes()
