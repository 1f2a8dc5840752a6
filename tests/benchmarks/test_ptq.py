"""The page of quantisation without training: rows are made once, compared with the float network, and tabulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitpress.benchmarks import ptq
from bitpress.core.models import load
from bitpress.core.rundir import read_json

ROWS = (ptq.Row("digits_cnn", ptq.FLOAT), ptq.Row("digits_cnn", "w8a8"), ptq.Row("digits_cnn", "w4a4", ptq.PLAIN))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of rows for the network of digits with untrained weights, and images of noise."""
    from safetensors.torch import save_file

    save_file(load("digits_cnn").module.state_dict(), tmp_path / "w.safetensors")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 1, 8, 8), np.uint8)
    found = ptq.Images("noise", images[:20], images[20:], rng.integers(0, 10, 40))
    monkeypatch.setattr(ptq, "STORE", tmp_path / "ptq")
    monkeypatch.setattr(ptq, "ROWS", ROWS)
    monkeypatch.setattr(ptq, "WEIGHTS", {"digits_cnn": "w.safetensors"})
    monkeypatch.setattr(ptq, "_LOADERS", {"cifar": lambda _folder: found})
    return tmp_path


def test_rows_are_made_once_and_tabulated(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["run", "--weights", str(store), "--cifar", "DIR"]
    assert ptq.main(asked) == 0
    rows = {row.name: read_json(store / "ptq" / f"{row.name}.json") for row in ROWS}
    assert rows["digits-cnn-float"]["agrees"] is None and rows["digits-cnn-float"]["calibration"] is None
    assert rows["digits-cnn-w8a8"]["agrees"] > 90 and rows["digits-cnn-w8a8"]["n"] == 40
    plain = rows["digits-cnn-w4a4-act-range-max-weight-range-max-no-bias-correction"]
    assert plain["calibration"]["act"] == "max" and not plain["calibration"]["correct"]
    monkeypatch.setattr(ptq, "measured", lambda *_: pytest.fail("a row was made twice"))
    assert ptq.main(asked) == 0
    page = ptq.table(ptq.stored(store / "ptq"))
    assert "| w8a8 | - |" in page and "`--act-range max --weight-range max --no-bias-correction`" in page
    assert "noise: 20 to calibrate, 40 to test" in page and rows["digits-cnn-w8a8"]["date"] in page


def test_flags_are_those_of_compile() -> None:
    from bitpress.cli.compile import command

    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for row in ptq.ROWS:
        assert {word for word in row.flags.split() if word.startswith("--")} <= known
    assert len({row.name for row in ptq.ROWS}) == len(ptq.ROWS)
    assert ptq.Row("resnet20", "mixed", {"budget": ("size=10%",)}).name == "resnet20-mixed-budget-size-10"


def test_a_folder_of_weights_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert ptq.main(["run"]) == 2 and "--weights DIR" in capsys.readouterr().err
