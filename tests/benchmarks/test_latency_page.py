"""The page about time: plans that a table predicted, and RUNs timed against their own network at w8a8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitpress.benchmarks import latency_page
from bitpress.core.capture import capture
from bitpress.core.models import load

from ..cli.test_compile import BLOBS, CHAIN
from ..cli.tool import good
from ..core import tables

CHECKS = [{"predicted": p, "measured": m} for p, m in ((1.0, 1.0), (2.2, 2.0), (3.0, 4.0))]


def _table(folder: Path, **more: Any) -> Path:
    loaded = load(CHAIN)
    path = tables.write(folder, capture(loaded.module, loaded.in_shape), **more)
    document = json.loads(path.read_text())
    document["networks"][0]["checks"] = CHECKS
    path.write_text(json.dumps(document))
    return path


def test_a_run_is_timed_against_its_network_at_w8a8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_page, "SECONDS", 0.05)
    table, run, page = _table(tmp_path), tmp_path / "run", tmp_path / "page.md"
    result = good(
        "search", CHAIN, "--data", BLOBS, "--method", "uniform", "--bits", "w2a2", "--epochs-float", "1",
        "--epochs-finetune", "1", "--latency-table", table, "--out", run, "--json", "-",
    ).document()  # fmt: skip
    assert latency_page.main([str(table), f"narrow={run}", "-o", str(page)]) == 0
    text = page.read_text()
    assert "| made_up | 3 | 10.0 % | 25.0 % | 1.00 | 1.000 to 4.000 |" in text
    predicted = 100 * result["latency"] / result["latency_table"]["w8a8"]
    row = next(line for line in text.splitlines() if line.startswith("| narrow |"))
    assert f"| {predicted:.1f} % |" in row and row.rstrip(" |").endswith("%")


def test_a_table_of_another_machine_and_a_run_without_a_time_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency_page.main([str(_table(tmp_path, cpu="Another CPU"))]) == 2
    assert "was made on Another CPU" in capsys.readouterr().err
    run = tmp_path / "run"
    good("search", CHAIN, "--data", BLOBS, "--method", "uniform", "--bits", "w4a4", "--epochs-float", "1",
         "--epochs-finetune", "1", "--out", run)  # fmt: skip
    assert latency_page.main([str(_table(tmp_path)), f"run={run}"]) == 2
    assert "searched without a budget of latency" in capsys.readouterr().err
    assert latency_page.main([str(_table(tmp_path)), "run"]) == 2
