"""Budgets of time by the command line: `profile`, what `plan` says, what `search` leaves; all times are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitpress.benchmarks import latency_table
from bitpress.core.capture import capture
from bitpress.core.graph import Graph
from bitpress.core.models import load

from ..core import tables
from ..schema.schemas import check
from .test_compile import BLOBS, CHAIN
from .test_search import QUICK
from .tool import good, refused

SEARCH = ("search", CHAIN, "--data", BLOBS, *QUICK)


@pytest.fixture(scope="module")
def graph() -> Graph:
    loaded = load(CHAIN)
    return capture(loaded.module, loaded.in_shape)


@pytest.fixture
def table(graph: Graph, tmp_path: Path) -> Path:
    return tables.write(tmp_path, graph)


def test_a_made_up_table_keeps_to_the_schema_of_real_ones(table: Path) -> None:
    check(json.loads(table.read_text()))


def test_profile_writes_a_table_and_says_how_well_it_interpolates(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tables.document(graph, tables.smooth)
    document["interpolation"] = {"points": 4, "median": 0.02, "p90": 0.05, "largest": 0.09}
    document["networks"][0]["checks"] = [
        {"predicted": p, "measured": m} for p, m in ((1.1, 1.0), (2.2, 2.0), (3.3, 4.0), (4.5, 3.0))
    ]
    asked: dict[str, Any] = {}

    def profile(models: Any, **options: Any) -> dict[str, Any]:
        asked.update(options, models=models)
        return document

    monkeypatch.setattr(latency_table, "profile", profile)
    out = good("profile", CHAIN, "-o", tmp_path / "t.json", "--threads", "2", "--grid", "3").out
    assert asked["models"] == (CHAIN,) and (asked["threads"], asked["grid"]) == (2, 3)
    assert "median error 2.0 %, 90 % within 5.0 %, at most 9.0 %" in out and "14 %" in out and " 0.8 " in out
    assert good("profile", CHAIN, "-o", tmp_path / "t.json", "--json", "-").document()["schema"] == "bitpress.profile"
    assert "no folder" in refused(2, "profile", "-o", tmp_path / "none" / "t.json")


def test_plan_says_whether_a_time_can_be_reached(table: Path) -> None:
    outcome = good("plan", CHAIN, "--budget", "latency=60%", "--latency-table", table, "--json", "-")
    document = outcome.document()
    (row,) = document["budgets"]
    whole = document["latency"]["w8a8"]
    assert row["reachable"] and row["bound"] == pytest.approx(0.6 * whole)
    assert document["space"]["least"]["latency"] == row["least"] < whole == document["space"]["most"]["latency"]
    assert all(layer["faster"] and layer["bits"] == "w2a2" for layer in document["latency"]["layers"])
    said = refused(1, "plan", CHAIN, "--budget", "latency=1us", "--latency-table", table)
    assert "cannot be reached" in said and "% of the network at w8a8" in said
    assert "needs --latency-table" in refused(2, "plan", CHAIN, "--budget", "latency=1ms")


def test_plan_names_layers_where_fewer_bits_save_no_time(graph: Graph, tmp_path: Path) -> None:
    slow = tables.write(tmp_path, graph, tables.narrow_is_slow)
    outcome = good("plan", CHAIN, "--budget", "latency=95%", "--latency-table", slow)
    layers = good("plan", CHAIN, "--latency-table", slow, "--json", "-").document()["latency"]["layers"]
    assert layers and not any(row["faster"] for row in layers)
    assert f"not faster than w8a8 in {len(layers)} of {len(layers)} layers" in outcome.out


@pytest.mark.parametrize(
    "more",
    [
        (), ("--budget", "bops=9%"), ("--method", "two-stage"), ("--method", "djpq"), ("--sbs-variant", "paper"),
        ("--search", "prune", "--bits", "w8a8"),
    ],
)  # fmt: skip
def test_every_search_keeps_to_a_time(more: tuple[str, ...], table: Path, tmp_path: Path, graph: Graph) -> None:
    run = tmp_path / "run"
    args = (*SEARCH, "--budget", "latency=80%", "--latency-table", table, *more, "--out", run)
    document = good(*args, "--json", "-").document()
    on = tables.target(tables.load_table(table), graph, CHAIN, "int8")
    assert 0 < document["latency"] <= 0.8 * on.uniform() * (1 + 1e-9)
    assert document["latency_table"] == {**on.table.document(), "w8a8": on.uniform()}
    plan = json.loads((run / "plan.json").read_text())
    assert plan["target"] == on.name
    assert "ms predicted on" in good(*args).out  # a finished run prints its result
    good("compile", run, "-o", tmp_path / "x.bpk")


def test_where_bits_do_not_pay_the_search_keeps_eight(graph: Graph, tmp_path: Path) -> None:
    slow = tables.write(tmp_path, graph, tables.narrow_is_slow)
    args = ("--budget", "latency=85%", "--latency-table", slow)
    good(*SEARCH, *args, "--out", tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    widths = {segment["encoding"] for row in plan["bits"].values() for segment in row["weight"]}
    assert widths == {"o8"} and plan["keep"]


def test_another_table_is_another_run(table: Path, graph: Graph, tmp_path: Path) -> None:
    uniform = ("search", CHAIN, "--data", BLOBS, "--method", "uniform", "--bits", "w4a4", "--epochs-float", "1",
               "--epochs-finetune", "1", "--latency-table", table, "--out", tmp_path / "run")  # fmt: skip
    first = good(*uniform, "--json", "-").document()
    assert first["latency"] > 0 and first["budget"] == []  # counted though nothing bounds it
    tables.write(tmp_path, graph, tables.flat)
    assert "--latency-table" in refused(2, *uniform)


def test_a_table_of_another_machine_is_said_aloud(graph: Graph, tmp_path: Path) -> None:
    other = tables.write(tmp_path, graph, cpu="Another CPU")
    outcome = good("plan", CHAIN, "--latency-table", other)
    assert "was measured on Another CPU, this machine is" in outcome.err


def test_what_is_not_in_the_table_is_refused_with_the_command(table: Path, tmp_path: Path) -> None:
    said = refused(3, "plan", "digits_cnn", "--latency-table", table)
    assert f"bitpress profile digits_cnn -o {table}" in said
    said = refused(3, *SEARCH, "--budget", "latency=80%", "--latency-table", table, "--residual", "float32",
                   "--out", tmp_path / "run")  # fmt: skip
    assert "--residual float32" in said
    assert "bitpress profile" in refused(2, *SEARCH, "--budget", "latency=80%", "--latency-table", tmp_path / "no.json",
                                         "--out", tmp_path / "run")  # fmt: skip
    assert not (tmp_path / "run").exists()
