"""The page about one CPU: what is measured, what is kept, what stands on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from bitpress.benchmarks import cpu

pytestmark = pytest.mark.native


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NETWORKS": {"digits_cnn": ("w8a8", "w2a2")}, "LAYERED": "digits_cnn", "SETTINGS": ((1, 1),),
        "STACKS": {"depthwise-128x7x7": ("depthwise_128", "3,7,7")},
        "BESIDE": ("digits_cnn",), "BESIDE_BITS": ("w2a2",),
        "SECONDS": {"bench": 0.01, "gemm": 0.001}, "SHAPES": "16x36x16", "BITS": "w2a2,w8a8",
        "SPARSE_SHAPES": "16x36x16", "SPARSE_BITS": "w2a2,w8a8", "LOWER": {"generic": None},
        "PEERS": ("onnxruntime",), "SLOW_PEERS": (),
    }.items():  # fmt: skip
        monkeypatch.setattr(cpu, name, value)
    monkeypatch.setattr(cpu, "lower", lambda: ("generic",))
    monkeypatch.setattr(cpu, "host_has_vnni", lambda: False)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_page_is_made_of_commands_that_are_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    folder, page = tmp_path / "cpu", tmp_path / "page.md"
    assert cpu.main([str(folder), "-o", str(page)]) == 0
    first = page.read_text()
    rows = [line for line in first.splitlines() if line.startswith("| digits_cnn-")]
    names = [f"digits_cnn-{bits}" for bits in ("w8a8", "w2a2", "w8a8-reduced")]
    # networks, peers of the dense one, ranks, held to generic
    expected = [*names, names[0], *names, *names[:2]]
    assert [line.split()[1] for line in rows] == expected
    assert all("onnxruntime-int8" in line for line in rows[:3])
    own = [line.split("|")[3].strip() for line in rows[-2:]]
    assert own[0] == "-" and float(own[1]) > 0
    stacks = first.split("## Depthwise layers")[1].split("##")[0]
    assert stacks.count("| 128x7x7 | ") == 2 and "| 128x7x7 | generic |" in stacks and "onnxruntime-int8" in stacks
    assert "## Kernels of generic" in first and "_avx" not in first.split("## Kernels of generic")[1].split("##")[0]
    beside = first.split("## Layers held to generic")[1].split("##")[0]
    assert beside.count("| digits_cnn:") == 5 and "w2a2 62%: us" in beside and "w2a2 20%: us" in beside
    layers = [line for line in beside.splitlines() if line.startswith("| digits_cnn:")]
    assert all(len(re.findall(r"\| \d+\.\d [a-z]+[a-z0-9]* \d+\.\d\d ", line)) == 2 for line in layers)
    kernels = [line for line in first.splitlines() if line.startswith("| 16x36x16 |")]
    assert len(kernels) == 5 and kernels[1].rstrip(" |").endswith("1.00")

    def run(command: Any, environment: Any) -> None:
        raise AssertionError(command, environment)

    monkeypatch.setattr(cpu, "_run", run)
    assert cpu.main([str(folder), "-o", str(page)]) == 0
    assert page.read_text() == first
    (folder / "gemm.json").unlink()
    with pytest.raises(AssertionError, match="gemm"):
        cpu.main([str(folder), "-o", str(page)])


def test_drawn_weights_are_what_two_bits_hold(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    cpu.draw("digits_cnn", 0.2, file, 1)
    state = load_file(file)
    kernels = [value for name, value in state.items() if value.ndim == 4][1:]
    assert kernels
    for kernel in kernels:
        assert len(np.unique(np.abs(kernel))) == 2 and abs(np.count_nonzero(kernel) / kernel.size - 0.2) < 0.05


@pytest.mark.usefixtures("small")
def test_a_command_that_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "digits_cnn-w8a8.json").write_text("{}")
    (tmp_path / "digits_cnn-w2a2.json").write_text("{}")
    assert cpu.main([str(tmp_path), "--searched", f"mine={tmp_path / 'none.bpk'}"]) != 0
    assert "bitpress bench" in (said := capsys.readouterr().err) and "none.bpk" in said
    assert not (tmp_path / "mine.json").exists()
