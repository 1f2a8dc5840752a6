"""The loaded network: what it takes, what it refuses, and which runtime it chooses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bitpress.compiler import artifact
from bitpress.compiler.execute import execute
from bitpress.compiler.model import Model, load, native_module, thread_count
from bitpress.core import quant
from bitpress.core.errors import CorruptError, EnvironmentMissing, UsageError

from . import samples

PROGRAM = samples.everything()
DATA = artifact.encode(PROGRAM)


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setenv("BITPRESS_NATIVE", "0")
    monkeypatch.delenv("BITPRESS_FORCE_ISA", raising=False)
    return Model(DATA)


def test_floats_and_images_give_the_same(reference: Model) -> None:
    images = np.random.default_rng(5).integers(0, 256, (2, 9, 11, 3), np.uint8)
    x = quant.normalize_u8(images.transpose(0, 3, 1, 2), PROGRAM.mean, PROGRAM.std)
    expected = execute(PROGRAM, x)
    np.testing.assert_array_equal(reference(images), expected)
    np.testing.assert_array_equal(reference(x), expected)
    np.testing.assert_array_equal(reference(x[:, :, ::-1][:, :, ::-1]), expected)
    assert reference(x[:0]).shape == (0, 10)
    assert reference.labels[3] == "class 3" and reference.shape == (3, 9, 11) and reference.isa == "reference"
    assert reference.golden_check() is True


def test_torch_tensors(reference: Model) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.randn(2, 3, 9, 11)
    out = reference(x)
    assert out.dtype == torch.float32
    np.testing.assert_array_equal(out.numpy(), execute(PROGRAM, x.numpy()))


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((1, 3, 9, 10), np.float32), r"float32 \[1, 3, 9, 10\]"),
        (np.zeros((3, 9, 11), np.float32), r"\[3, 9, 11\]"),
        (np.zeros((1, 3, 9, 11)), "float64"),
        (np.zeros((1, 3, 9, 11), np.uint8), r"uint8 \[1, 3, 9, 11\]"),
        (np.full((1, 3, 9, 11), np.nan, np.float32), "297 NaN or infinite values of 297"),
    ],
)
def test_wrong_inputs_are_usage_errors(reference: Model, x: np.ndarray, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        reference(x)
    assert caught.value.exit_code == 2


def test_load_refuses_what_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "none.bpk")
    (tmp_path / "x.bpk").write_bytes(DATA[:-5])
    with pytest.raises(CorruptError, match="Truncated"):
        load(tmp_path / "x.bpk")


def test_inspect_rows_name_every_step(reference: Model) -> None:
    rows = reference.inspect_rows()
    assert [row["name"] for row in rows] == [s.name for s in PROGRAM.steps]
    assert {"name", "layer", "op", "kernel", "isa", "why"} <= set(rows[0])


def test_environment_chooses_the_runtime(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("BITPRESS_FORCE_ISA", raising=False)
    monkeypatch.setenv("BITPRESS_NATIVE", "yes")
    with pytest.raises(UsageError, match="valid values are 0 and 1"):
        native_module()
    monkeypatch.setenv("BITPRESS_NATIVE", "0")
    assert native_module() is None
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "avx2")
    with pytest.raises(EnvironmentMissing, match="forbids"):
        native_module()
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "reference")
    assert native_module() is None
    monkeypatch.delenv("BITPRESS_FORCE_ISA")
    monkeypatch.setitem(sys.modules, "bitpress._native", None)  # import fails
    monkeypatch.delattr("bitpress._native", raising=False)
    monkeypatch.setenv("BITPRESS_NATIVE", "1")
    with pytest.raises(EnvironmentMissing, match="cannot be loaded"):
        native_module()
    monkeypatch.delenv("BITPRESS_NATIVE")
    capsys.readouterr()
    assert native_module() is None
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_threads_come_from_argument_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITPRESS_NUM_THREADS", raising=False)
    assert (thread_count(), thread_count(3)) == (1, 3)
    monkeypatch.setenv("BITPRESS_NUM_THREADS", "2")
    assert (thread_count(), thread_count(3)) == (2, 3)
    for wrong in ("0", "-1", "two", "257", ""):
        monkeypatch.setenv("BITPRESS_NUM_THREADS", wrong)
        with pytest.raises(UsageError, match="1 to 256"):
            thread_count()
