"""The page of all networks: a row is exact or none, and every network of the zoo has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitpress.benchmarks import zoo
from bitpress.core.models import ZOO
from bitpress.core.rundir import read_json

DIGITS = zoo.Row("digits_cnn", "digits")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the row of the smallest network."""
    monkeypatch.setattr(zoo, "STORE", tmp_path)
    monkeypatch.setattr(zoo, "ROWS", (DIGITS, zoo.Row("resnet20", "cifar10", "cifar")))
    return tmp_path


def test_a_network_goes_the_whole_way_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zoo.main(["run"]) == 0
    row = read_json(store / "digits_cnn.json")
    assert row["exact"] and row["n"] == 500 and row["weights"] is None and row["agrees"] > 80
    assert {"torch", "reference"} <= {*row["stages"]}
    assert not (store / "resnet20.json").exists(), "no folder of its data was given"
    monkeypatch.setattr(zoo, "measured", lambda *_: pytest.fail("a row was made twice"))
    assert zoo.main(["run"]) == 0
    assert "| digits_cnn | random | 500 of digits, 1x8x8 |" in zoo.table(zoo.stored(store))


def test_what_differs_is_no_row(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitpress import evaluation

    honest = evaluation.evaluate
    monkeypatch.setattr(
        evaluation, "evaluate", lambda source, **kw: honest(source, **kw) | {"predictions_sha256": str(source)}
    )
    assert zoo.main(["run"]) == 1 and "digits_cnn: torch and the compiled program differ" in capsys.readouterr().err
    assert not zoo.stored(store)


def test_every_network_has_a_row() -> None:
    assert [row.model for row in zoo.ROWS] == [row.model for row in zoo.ROWS if row.model in ZOO]
    assert {row.model for row in zoo.ROWS} == {*ZOO}
