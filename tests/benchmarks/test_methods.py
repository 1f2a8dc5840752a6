"""Every method under every budget: which rows there are, what makes one fail, and that what is done is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitpress.benchmarks import methods
from bitpress.core.errors import CheckFailed, UsageError
from bitpress.core.rundir import write_tensors
from bitpress.core.search import SEARCHES
from bitpress.core.search.registry import STAGES_OF

from ..core.tables import flat, smooth, write


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("table"), methods._graph(), smooth)


def test_all_methods_meet_three_budgets_of_each_kind() -> None:
    rows = [methods._key(*case) for case in methods.cases()]
    assert len(rows) == len({*rows}) == 7 * 9
    assert {c.options["method"] for c in methods.CONTENDERS} == {*SEARCHES}
    staged = {
        c.options.get("stages_of", STAGES_OF[0]) for c in methods.CONTENDERS if c.options["method"] == "two-stage"
    }
    assert staged == {*STAGES_OF}
    assert {row.rpartition(" ")[2].partition("=")[0] for row in rows[:21]} == {*methods.KINDS}


@pytest.mark.parametrize(
    ("budget", "bits"), [("bops=2%", "w4a4"), ("bops=0.9%", "w2a4"), ("size=16%", "w4a8"), ("latency=100%", "w8a8")]
)
def test_uniform_takes_the_widest_that_fits(budget: str, bits: str, table: Path) -> None:
    assert methods.widest(budget, table) == bits
    with pytest.raises(CheckFailed, match="no uniform widths fit"):
        methods.widest(f"{budget.partition('=')[0]}=0.1%", table)


@pytest.mark.parametrize(
    ("name", "budget", "share", "kept"),
    [
        ("sbs", "bops=1%", 0.9, True), ("sbs", "bops=1%", 0.899, False), ("sbs", "size=7%", 1.0001, False),
        ("sbs", "latency=65%", 1.02, True), ("sbs", "latency=65%", 1.021, False), ("uniform", "size=7%", 0.5, True),
    ],
)  # fmt: skip
def test_a_budget_is_never_exceeded_and_used_by_what_prunes(name: str, budget: str, share: float, kept: bool) -> None:
    (contender,) = (c for c in methods.CONTENDERS if c.name == name)
    assert (methods._budget_kept(contender, budget, share) == []) == kept


def test_rows_are_checked_kept_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Path) -> None:
    """One that fails is named, does not stop the others, and is tried again; one that is done is not."""
    weights = tmp_path / "float.safetensors"
    write_tensors(weights, methods._graph().consts)
    monkeypatch.setattr(methods, "_float", lambda *_: weights)
    quick = methods.Contender("uniform", {"method": "uniform", "epochs_finetune": 0}, pruning=False)
    monkeypatch.setattr(methods, "cases", lambda: iter([(quick, "bops=2%"), (quick, "bops=0.1%")]))
    command = [str(tmp_path / "runs"), "--latency-table", str(table), "-o", str(tmp_path)]
    assert methods.main(command) == 1
    rows = _rows(tmp_path)
    done, failed = rows["uniform bops=2%"], rows["uniform bops=0.1%"]
    assert (done["failed"], done["bits"], done["w_bits"], done["a_bits"]) == ([], "w4a4", [4], [4])
    assert 0.7 < done["used"] <= 1 and done["pruned_layers"] == 0 == done["mixed_layers"]
    assert failed["failed"] == ["CheckFailed: budget bops=0.1%: no uniform widths fit"]
    page = (tmp_path / "methods.md").read_text()
    assert "| uniform w4a4 | bops=2% |" in page and "no uniform widths fit |" in page and "2 of 2 rows." in page
    tried: list[str] = []
    row = methods._row
    monkeypatch.setattr(methods, "_row", lambda c, b, *rest: tried.append(b) or row(c, b, *rest))
    assert methods.main(command) == 1
    assert tried == ["bops=0.1%"]
    assert _rows(tmp_path) == rows


def test_rows_of_other_terms_are_not_mixed(tmp_path: Path, table: Path) -> None:
    (tmp_path / "other").mkdir()
    methods._write(tmp_path, methods._document(tmp_path / "methods.json", table, 1))
    other = write(tmp_path / "other", methods._graph(), flat)
    for terms in ((other, 1), (table, 2)):
        with pytest.raises(UsageError, match="give another -o DIR"):
            methods._document(tmp_path / "methods.json", *terms)


def test_a_page_of_some_rows_says_how_many_are_left(tmp_path: Path, table: Path) -> None:
    page = methods.page(methods._document(tmp_path / "methods.json", table, 1))
    assert "0 of 63 rows; the same command makes the rest." in page


def _rows(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "methods.json").read_text())["rows"]
    return found
