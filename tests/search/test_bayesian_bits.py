"""Bayesian Bits through the door of all methods: what moves, what is held, what the log tells, that budgets hold."""

from __future__ import annotations

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
from bitpress.core.supernet_bits import BitsNet
from bitpress.core.train_annealed import Annealing
from bitpress.core.train_bits import Prior

from . import whole_way
from .test_methods import BITS, _events, _is_what_the_integers_say
from .test_search import NETS, QUICK, _quick


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(("model", "residual"), [("chain", "int8"), ("block", "float32"), ("signed", "int8")])
def test_a_search_leaves_a_run_of_symmetric_grids_within_its_budget(tmp_path: Path, model: str, residual: str) -> None:
    reads = len(datasets.test_reads)
    result = _quick(tmp_path / "run", model, **BITS, residual=residual)
    assert len(datasets.test_reads) == reads + 1
    assert result["bops"] <= 0.03 * result["bops_fp32"]
    run = load_run(tmp_path / "run")
    rows = count(run.graph, run.plan).layers
    assert {rows[0].w_bits, rows[0].a_bits, rows[-1].w_bits, rows[-1].a_bits} == {8}
    assert {s.encoding.name for bits in run.plan.bits.values() for s in bits.weight} <= {"i2", "i4", "i8"}
    _is_what_the_integers_say(run, result)
    x = np.asarray(datasets.load(QUICK["data"]).test().images[:50])
    document = verify(artifact.encode(compile_run(run)), run, batches=(50,), threads=(1,), data=x)
    assert document["exact"]
    assert max(document["training_forward"].values()) < 0.02


def test_the_log_tells_how_likely_each_gate_is(tmp_path: Path) -> None:
    _quick(tmp_path / "run", **BITS)
    (start,), (end,) = _events(tmp_path / "run", "start"), _events(tmp_path / "run", "gates")
    assert start["layers"].keys() == end["layers"].keys() == {"body.3", "body.7"}
    moved = []
    for layer, sides in end["layers"].items():
        for side, found in sides.items():
            before = start["layers"][layer][side]
            assert before["p4"] == before["p8"] == pytest.approx(0.9734, abs=1e-4)
            assert before["bits"] == 8
            assert found["bits"] == (2 if found["p4"] <= 0.66 else 4 if found["p8"] <= 0.66 else 8)
            assert end["weight" if side == "w" else "act"][layer] == found["bits"]
            moved += [found["p4"] < before["p4"], found["p8"] < before["p8"]]
    assert any(moved)
    assert {group: len(p) for group, p in end["p_parts"].items()} == {"body.0": 8, "body.3": 16}  # one a channel
    for group, chances in end["p_parts"].items():
        assert end["parts"][group] == [i for i, p in enumerate(chances) if p > 0.66]
    assert end["free_figures"]["bops"] != end["figures"]["bops"]


@pytest.mark.parametrize("budget", ["bops=1.5%", "size=6%"])
def test_what_the_gates_left_above_the_budget_is_projected_below(
    tmp_path: Path, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prior, "reach", {"gates": 1.0})  # too slow to get anywhere
    result = _quick(tmp_path / "run", **BITS | {"budgets": [budget], "epochs_search": 1})
    kind, share = budget.split("=")
    figure, whole = ("bops", "bops_fp32") if kind == "bops" else ("weight_bytes", "fp32_bytes")
    assert result[figure] <= float(share[:-1]) / 100 * result[whole]
    assert _events(tmp_path / "run", "projection")


def test_filters_that_went_too_far_come_back_until_most_of_the_budget_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths that no longer fit, filters all but gone: those nearest to their threshold return."""

    def gone(net: BitsNet) -> None:
        with torch.no_grad():
            for group, gate in net.space.open.items():
                net.tensor(f"{group}.phi").fill_(6.0)[: gate.removable] = -1.5
            for layer in net.space.searched:
                net.tensor(f"{layer}.phi_w").copy_(torch.tensor([6.0, -3.0]))
                net.tensor(f"{layer}.phi_a").copy_(torch.tensor([6.0, 6.0]))
        net.eval()

    monkeypatch.setattr(BitsNet, "hold", gone)
    result = _quick(tmp_path / "run", **BITS | {"budgets": ["bops=1.6%"], "epochs_search": 1})
    before, after = _events(tmp_path / "run", "gates")[0], _events(tmp_path / "run", "choice")[0]
    assert not _events(tmp_path / "run", "projection")
    assert {step["side"] for step in _events(tmp_path / "run", "fill")} == {"restore"}
    assert sum(map(len, after["parts"].values())) > sum(map(len, before["parts"].values()))
    assert 0.83 < result["bops"] / (0.016 * result["bops_fp32"]) <= 0.92


def test_filters_share_a_gate_where_somebody_says(tmp_path: Path) -> None:
    _quick(tmp_path / "run", **BITS | {"epochs_search": 1, "group_size": 4})
    (start,) = _events(tmp_path / "run", "start")
    assert {group: len(p) for group, p in start["p_parts"].items()} == {"body.0": 2, "body.3": 4}
    assert all(len(kept) % 4 == 0 for kept in load_run(tmp_path / "run").plan.keep.values())


def test_widths_alone_are_searched_where_nothing_may_be_pruned(tmp_path: Path) -> None:
    result = _quick(tmp_path / "run", **BITS | {"max_pruning_ratio": 0.0})
    assert not load_run(tmp_path / "run").plan.keep
    assert result["bops"] <= 0.03 * result["bops_fp32"]


def test_ends_are_searched_where_their_bits_are_counted(tmp_path: Path) -> None:
    """As published: the image at 8 bits, the first and the last layer like the others."""
    result = _quick(tmp_path / "run", "block", **BITS | {"convention": "djpq", "budgets": ["bops=0.5%"]})
    run = load_run(tmp_path / "run")
    counted = count(run.graph, run.plan, convention="djpq")
    assert (result["bops"], result["bops_convention"]) == (counted.totals.bops, "djpq")
    assert result["bops"] <= 0.005 * result["bops_fp32"]
    (end,) = _events(tmp_path / "run", "gates")
    assert set(end["layers"]["stem"]) == {"w"} and set(end["layers"]["fc"]) == {"w", "a"}
    assert run.plan.bits["stem"].act.bits == 8  # type: ignore[index]
    assert min(counted.layers[0].w_bits or 8, counted.layers[-1].w_bits or 8, counted.layers[-1].a_bits or 8) < 8
    x = np.asarray(datasets.load(QUICK["data"]).test().images[:20])
    assert verify(artifact.encode(compile_run(run)), run, batches=(20,), threads=(1,), data=x)["exact"]


@pytest.mark.parametrize("name", ["body.4.bias", "body.3.phi_w"])
def test_a_loss_of_nan_stops_the_search_and_names_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begin = Annealing.begin

    def poisoned(self: Annealing) -> None:
        begin(self)
        with torch.no_grad():
            self.net.tensor(name).fill_(float("nan"))

    monkeypatch.setattr(Annealing, "begin", poisoned)
    layer = name.rpartition(".")[0]
    with pytest.raises(CheckFailed, match=rf"search: the loss is nan; layer {layer} is the first"):
        _quick(tmp_path / "run", **BITS)
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_search_is_a_function_of_its_options(tmp_path: Path) -> None:
    """The same seed gives the same bytes, draws and all; another gives others."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        search(f"{NETS}:chain", out=tmp_path / name, **QUICK | BITS | {"epochs_search": 1, "seed": seed})
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b != c


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_digits_under_two_percent_are_pruned_and_mixed_and_every_way_gives_the_same_digest(
    tmp_path: Path, seed: int
) -> None:
    """One command from network to RUN; the RUN and the compiled program agree on every image."""
    options = ("--method", "bayesian-bits", "--budget", "bops=2%", "--seed", str(seed))
    result, rows = whole_way.digits(tmp_path, *options)
    assert 0.9 * 0.02 * result["bops_fp32"] <= result["bops"] <= 0.02 * result["bops_fp32"]
    assert len({(row["w_bits"], row["a_bits"]) for row in rows[1:-1]}) >= 2
    assert {row["w_bits"] for row in rows} | {row["a_bits"] for row in rows} <= {2, 4, 8}
