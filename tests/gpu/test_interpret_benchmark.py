"""The GPU benchmark rehearsed in triton's interpreter: it checks, times, resumes and prints; its times mean nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in a process of its own, where TRITON_INTERPRET=1: make test-gpu", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed: pip install 'bitpress[gpu]'")

import torch

from bitpress.benchmarks import gpu, gpu_layers, gpu_networks, gpu_tiles
from bitpress.benchmarks.gpu_layers import Made, Problem, unfolded
from bitpress.core.errors import CheckFailed, UsageError
from bitpress.kernels.gpu import gemv, tuned
from bitpress.kernels.gpu.layout import restore

from ..schema.schemas import check

pytestmark = pytest.mark.triton_interpret

KINDS = (*gpu_layers.PAIRS.values(), *gpu_layers.GRIDS)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_random_bytes_are_the_levels_that_the_layout_says(kind: tuple[str, str, bool]) -> None:
    for side, channels in ((0, 128), (2, 128), (2, 64)):
        made = Made(Problem(kind, 2, 5, channels, side), "cpu")
        levels = restore(made.form, made.weights.fields)
        assert np.array_equal(unfolded(made.form, torch.from_numpy(made.weights.fields)), levels.reshape(5, -1))
        again = gpu_layers.gpu.arrange(levels, made.form.encoding, made.form.act)
        assert channels < 128 or np.array_equal(again.fields, made.weights.fields)
        assert np.array_equal(again.correction, made.weights.correction)


def test_a_wrong_sum_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(gpu_layers.PAIRS["w4a8"], 3, 40, 128)
    assert gpu_layers.check(problem, "cpu", 0.0)["exact"]
    right = gpu_layers.gpu.linear

    def wrong(*given: object) -> torch.Tensor:
        out = right(*given)
        out[-1, -1] += 1
        return out

    monkeypatch.setattr(gpu_layers.gpu, "linear", wrong)
    found = gpu_layers.timed(problem, "cpu", 0.0, goal=1.0, dry=True)
    assert found == {"exact": False, "mismatches": found["mismatches"]} and found["mismatches"] >= 1


def test_rows_are_made_once_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--dry", "--part", "gemm,conv", "-o", str(tmp_path)]
    assert gpu.main([*args, "--seconds", "0"]) == 0
    assert "3 of 3 rows are left" in capsys.readouterr().err
    assert gpu.main(args) == 0
    path = tmp_path / "gpu_dry.json"
    document = json.loads(path.read_text())
    rows = {row["name"]: row for row in document["rows"]}
    row = rows["gemm w4a8 M=3, N=K=128"]
    assert len(rows) == 3 and row["exact"] and row["macs"] == 3 * 128**2 and row["weight_bytes"] == 128**2 // 2
    assert row["peers"]["bf16"]["ratio"] > 0 and "not installed" in row["left_out"]["gemlite"]
    before = path.read_bytes()
    assert gpu.main(args) == 0 and path.read_bytes() == before
    capsys.readouterr()
    assert gpu.main(["table", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "| M=3, N=K=128 | w4a8 |" in printed and "Left out: gemlite" in printed


def test_checks_go_through_every_family(tmp_path: Path) -> None:
    assert gpu.main(["--dry", "--part", "check", "-o", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "gpu_dry.json").read_text())["rows"]
    assert len(rows) == len(KINDS) + 2 and all(row["exact"] and row["elements"] for row in rows)


@pytest.mark.parametrize("family", ["depthwise2d", "max_pool", "average_pool", "global_average_pool"])
def test_a_wrong_value_of_a_window_is_seen(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(gpu_layers.gpu, family)
    monkeypatch.setattr(gpu_layers.gpu, family, lambda *a: right(*a) + 1)
    assert not gpu_layers.check_planar("i4", (1, 3, 3, 5), "cpu", 0.0)["exact"]


def test_tiles_are_timed_once_and_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tiles, "STEPS", {name: steps[:2] for name, steps in gpu_tiles.STEPS.items()})
    path = tmp_path / "tiles.json"
    made = check(gpu_tiles.profile(output=path, seconds=0.0, dry=True))
    assert [row["family"] for row in made["rows"]] == ["gemv", "gemm"] and made["table"] == str(path)
    rows = tuned.parse(json.loads(path.read_text()))
    form = Made(Problem(gpu_layers.PAIRS["w8a8"], 2, 128, 128), "cpu").form
    assert tuned.best(rows, "gemm", form, 2) == rows[1].tile
    before = path.read_bytes()
    monkeypatch.setattr(gpu_tiles, "tune", lambda *_: pytest.fail("made twice"))
    gpu_tiles.profile(output=path, dry=True)
    assert path.read_bytes() == before
    path.write_text(path.read_text().replace("triton's interpreter", "another"))
    with pytest.raises(UsageError, match="table of another"):
        gpu_tiles.profile(output=path, dry=True)


def test_a_tile_that_is_not_exact_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gemv.launch
    monkeypatch.setattr(gpu_tiles, "STEPS", dict.fromkeys(gpu_tiles.STEPS, (16,)))
    monkeypatch.setattr(gemv, "launch", lambda *a, tile=None, **k: -right(*a, **k) if tile else right(*a, **k))
    with pytest.raises(CheckFailed, match="not exact with Tile"):
        gpu_tiles.tune(gemv, Problem(gpu_layers.PAIRS["w8a8"], 1, 16, 128), "cpu", 0.0)


def test_a_network_is_compared_and_timed() -> None:
    row = gpu_networks.timed("digits_cnn", "w4a8", 1, "cpu", 0.0, goal=None, dry=True)
    assert row["exact"] and row["torch_steps"] == 0 and list(row["peers"]) == [gpu_networks.PEER]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--part", "speed"], "valid: check, gemm, conv, networks"), (["table"], "`table FILE`"),
        (["table", "/dev/null"], "no file of this script"), (["-o", "/nowhere"], "no folder"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(args) == 2
    assert says in capsys.readouterr().err


def test_rows_of_other_versions_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpu_dry.json").write_text('{"schema": "bitpress.gpu", "versions": {}, "bitpress": "0", "rows": []}')
    assert gpu.main(["--dry", "-o", str(tmp_path)]) == 2
    assert "other versions" in capsys.readouterr().err
