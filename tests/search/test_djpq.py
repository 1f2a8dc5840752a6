"""DJPQ through the door of all methods: what moves, what is held, what the log tells, and that the budget holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bitpress.compiler import artifact
from bitpress.compiler.pipeline import compile_run
from bitpress.compiler.verify import verify
from bitpress.core import data as datasets
from bitpress.core.bops import count
from bitpress.core.errors import CheckFailed
from bitpress.core.rundir import load_run
from bitpress.core.search import search
from bitpress.core.supernet_vib import LN_VAR_START
from bitpress.core.train_annealed import Annealing

from . import whole_way
from .test_methods import DJPQ, _events, _is_what_the_integers_say
from .test_search import NETS, QUICK, _quick


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("model", "restrict", "residual"),
    [("chain", "pow2", "int8"), ("chain", "free", "int8"), ("block", "pow2", "float32"), ("signed", "free", "int8")],
)
def test_a_search_leaves_a_run_of_symmetric_grids_within_its_budget(
    tmp_path: Path, model: str, restrict: str, residual: str
) -> None:
    reads = len(datasets.test_reads)
    result = _quick(tmp_path / "run", model, **DJPQ, restrict=restrict, residual=residual)
    assert len(datasets.test_reads) == reads + 1
    assert result["bops"] <= 0.03 * result["bops_fp32"]
    run = load_run(tmp_path / "run")
    rows = count(run.graph, run.plan).layers
    assert {rows[0].w_bits, rows[0].a_bits, rows[-1].w_bits, rows[-1].a_bits} == {8}
    assert {row.w_bits for row in rows} | {row.a_bits for row in rows} <= {2, 4, 8}
    assert {s.encoding.name for bits in run.plan.bits.values() for s in bits.weight} <= {"i2", "i4", "i8"}
    _is_what_the_integers_say(run, result)
    x = np.asarray(datasets.load(QUICK["data"]).test().images[:50])
    document = verify(artifact.encode(compile_run(run)), run, batches=(50,), threads=(1,), data=x)
    assert document["exact"]
    assert max(document["training_forward"].values()) < 0.02


@pytest.mark.parametrize("restrict", ["pow2", "free"])
def test_the_log_tells_steps_ranges_exponents_ratios_and_bits(tmp_path: Path, restrict: str) -> None:
    _quick(tmp_path / "run", **DJPQ, restrict=restrict)
    (start,), (end,) = _events(tmp_path / "run", "start"), _events(tmp_path / "run", "gates")
    assert start["layers"].keys() == end["layers"].keys()
    assert start["without_norm"] == []
    for layer, sides in end["layers"].items():
        for side, found in sides.items():
            before = start["layers"][layer][side]
            assert before["bits"] == pytest.approx(8, abs=1e-4)
            assert before["restricted"] == 8 and before["t"] == 1
            assert found["d"] != before["d"] and found["q_m"] != before["q_m"]
            assert (found["t"] != 1) == (side == "w")  # activations are uniform
            assert found["bits"] <= 8 + 1e-4
            assert found["restricted"] == 2 ** round(np.log2(found["bits"]))
            assert end["weight" if side == "w" else "act"][layer] == found["restricted"]
    for group, ratios in start["ln_ratios"].items():
        assert ratios == [LN_VAR_START] * len(ratios)
        assert max(end["ln_ratios"][group]) > LN_VAR_START + 1
    assert len(_events(tmp_path / "run", "restrict")) == (restrict == "pow2")
    assert end["free_figures"]["bops"] != end["figures"]["bops"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["restrict"] == restrict


@pytest.mark.parametrize("budget", ["bops=1.5%", "size=6%"])
def test_what_the_gates_left_above_the_budget_is_projected_below(tmp_path: Path, budget: str) -> None:
    result = _quick(tmp_path / "run", **DJPQ | {"budgets": [budget], "epochs_search": 1})
    kind, share = budget.split("=")
    figure, whole = ("bops", "bops_fp32") if kind == "bops" else ("weight_bytes", "fp32_bytes")
    assert result[figure] <= float(share[:-1]) / 100 * result[whole]
    assert _events(tmp_path / "run", "projection")


def test_channels_are_gated_one_by_one_where_nobody_says(tmp_path: Path) -> None:
    _quick(tmp_path / "run", **DJPQ | {"epochs_search": 1})
    (start,) = _events(tmp_path / "run", "start")
    assert {group: len(ratios) for group, ratios in start["ln_ratios"].items()} == {"body.0": 8, "body.3": 16}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["group_size"] == 1


def test_widths_alone_are_searched_where_nothing_may_be_pruned(tmp_path: Path) -> None:
    result = _quick(tmp_path / "run", **DJPQ | {"max_pruning_ratio": 0.0})
    assert not load_run(tmp_path / "run").plan.keep
    assert result["bops"] <= 0.03 * result["bops_fp32"]


def test_ends_are_learned_where_their_bits_are_counted(tmp_path: Path) -> None:
    """Convention djpq: weights of both ends and the classifier's input are searched, the image stays at 8 bits."""
    result = _quick(tmp_path / "run", "block", **DJPQ | {"convention": "djpq", "budgets": ["bops=0.5%"]})
    run = load_run(tmp_path / "run")
    counted = count(run.graph, run.plan, convention="djpq")
    assert (result["bops"], result["bops_convention"]) == (counted.totals.bops, "djpq")
    assert result["bops"] <= 0.005 * result["bops_fp32"]
    (end,) = _events(tmp_path / "run", "gates")
    assert set(end["layers"]) == {row.name for row in counted.layers}
    assert set(end["layers"]["stem"]) == {"w"} and set(end["layers"]["fc"]) == {"w", "a"}
    assert run.plan.bits["stem"].act.bits == 8  # type: ignore[index]
    assert min(counted.layers[0].w_bits or 8, counted.layers[-1].w_bits or 8, counted.layers[-1].a_bits or 8) < 8
    x = np.asarray(datasets.load(QUICK["data"]).test().images[:20])
    assert verify(artifact.encode(compile_run(run)), run, batches=(20,), threads=(1,), data=x)["exact"]


def test_an_exponent_that_turns_nan_stops_the_search_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Annealing.begin

    def poisoned(self: Annealing) -> None:
        begin(self)
        layer = self.net.space.searched[0]
        self.net.tensor(f"{layer}.exponent").register_hook(lambda grad: grad * float("nan"))

    monkeypatch.setattr(Annealing, "begin", poisoned)
    with pytest.raises(CheckFailed, match=r"the gradient of body\.3's exponent t is nan"):
        _quick(tmp_path / "run", **DJPQ)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_loss_of_nan_stops_the_search_and_names_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Annealing.begin

    def poisoned(self: Annealing) -> None:
        begin(self)
        with torch.no_grad():
            self.net.tensor("body.4.bias").fill_(float("inf"))

    monkeypatch.setattr(Annealing, "begin", poisoned)
    with pytest.raises(CheckFailed, match=r"search: the loss is .*layer body\.4"):
        _quick(tmp_path / "run", **DJPQ)


def test_runs_that_were_begun_before_its_options_were_recorded_can_still_be_read(tmp_path: Path) -> None:
    result = _quick(tmp_path / "run", epochs_search=1)
    path = tmp_path / "run" / "run.json"
    document = json.loads(path.read_text())
    del document["restrict"], document["convention"]
    path.write_text(json.dumps(document))
    assert _quick(tmp_path / "run", epochs_search=1) == result


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "restrict"), [(0, "pow2"), (1, "pow2"), (0, "free")])
def test_digits_under_two_percent_are_pruned_and_mixed_and_every_way_gives_the_same_digest(
    tmp_path: Path, seed: int, restrict: str
) -> None:
    """One command from network to RUN; the RUN and the compiled program agree on every image."""
    options = ("--method", "djpq", "--budget", "bops=2%", "--restrict", restrict, "--seed", str(seed))
    result, rows = whole_way.digits(tmp_path, *options)
    assert result["bops"] <= 0.02 * result["bops_fp32"]
    assert len({(row["w_bits"], row["a_bits"]) for row in rows[1:-1]}) >= 2
    assert {row["w_bits"] for row in rows} | {row["a_bits"] for row in rows} <= {2, 4, 8}
    out = tmp_path / "run"
    (start,), (end,) = _events(out, "start"), _events(out, "gates")
    for layer, sides in end["layers"].items():
        assert sides["w"]["t"] != start["layers"][layer]["w"]["t"]


def test_the_search_is_a_function_of_its_options(tmp_path: Path) -> None:
    """The same seed gives the same bytes, noise and all; another gives others."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        search(f"{NETS}:chain", out=tmp_path / name, **QUICK | DJPQ | {"epochs_search": 1, "seed": seed})
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b != c
