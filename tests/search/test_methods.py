"""The baselines and the modes, through the same door as the joint search: what moves, what is held, what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitpress.core import data as datasets
from bitpress.core import train_vib
from bitpress.core.bops import count
from bitpress.core.capture import capture
from bitpress.core.cost import Costs, largest, search_space, smallest
from bitpress.core.errors import CheckFailed, UnsupportedError, UsageError
from bitpress.core.evaluate import evaluate
from bitpress.core.integer import integer
from bitpress.core.job import SCHEDULES
from bitpress.core.models import load
from bitpress.core.projection import raising
from bitpress.core.rundir import Run, load_run
from bitpress.core.search import SEARCHES, _schedule, search
from bitpress.core.search.registry import OPTIONS, STAGES_OF, resolve
from bitpress.core.search.two_stage import STAGES
from bitpress.core.semantics import Semantics
from bitpress.core.supernet import SuperNet, differing_codes
from bitpress.core.supernet_vib import VibNet
from bitpress.core.train import FACTORS
from bitpress.core.train_annealed import Annealing

from .test_search import NETS, QUICK, _assert_same, _quick, _wait_for

UNIFORM: dict[str, Any] = {
    "method": "uniform", "bits": "w4a4", "budgets": [], "epochs_search": None, "lr_search": None, "lr_thresholds": None,
    "epochs_finetune": 2,
}  # fmt: skip
PRUNE: dict[str, Any] = {"mode": "prune", "budgets": ["bops=4.5%"]}
TWO: dict[str, Any] = {"method": "two-stage", "prune_share": 0.5}
DJPQ: dict[str, Any] = {"method": "djpq", "lr_thresholds": None}
AJPQ: dict[str, Any] = {"method": "ajpq", "lr_thresholds": None, "episodes": 6}
TWO_DJPQ: dict[str, Any] = {**TWO, "stages_of": "djpq", "lr_thresholds": None}
BITS: dict[str, Any] = {"method": "bayesian-bits", "lr_thresholds": None}
EVERY = [{"method": "sbs"}, DJPQ, AJPQ, BITS, TWO, TWO_DJPQ, UNIFORM]
NAMES = ["-".join(filter(None, (options["method"], options.get("stages_of")))) for options in EVERY]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def _is_what_the_integers_say(run: Run, result: dict[str, Any]) -> None:
    """Accuracy, figures and the training forward agree with the integer semantics of the RUN."""
    totals = count(run.graph, run.plan).totals
    assert (result["bops"], result["weight_bytes"]) == (totals.bops, totals.weight_bytes)
    test = datasets.load(QUICK["data"]).test()
    semantics = Semantics(integer(run.graph, run.plan, run.tensors))
    found = evaluate(semantics.run, test.images, test.labels)
    assert (found.top1, found.sha256) == (result["top1"], result["predictions_sha256"])
    x = np.asarray(test.images[:50])
    assert max(differing_codes(run.graph, run.plan, run.tensors, semantics.values(x), x).values()) < 0.02


# uniform


@pytest.mark.parametrize("bits", ["w4a4", "w2a8", "w8a3", "w2a1"])
@pytest.mark.parametrize("model", ["chain", "block"])
def test_uniform_trains_one_pair_between_ends_of_eight_bits(tmp_path: Path, model: str, bits: str) -> None:
    reads = len(datasets.test_reads)
    result = _quick(tmp_path / "run", model, **UNIFORM | {"bits": bits})
    assert len(datasets.test_reads) == reads + 1
    run = load_run(tmp_path / "run")
    rows = count(run.graph, run.plan).layers
    w, a = int(bits[1]), int(bits[3])
    assert [(r.w_bits, r.a_bits) for r in rows] == [(8, 8), *[(w, a)] * (len(rows) - 2), (8, 8)]
    assert not run.plan.keep
    assert result["bops"] == count(run.graph, uniform=(w, a)).totals.bops
    assert (result["method"], result["mode"], result["bits"], result["budget"]) == ("uniform", None, bits, [])
    assert result["epochs"] == {"float": 2, "finetune": 2}
    _is_what_the_integers_say(run, result)


def test_one_bit_of_a_signed_input_takes_a_second_one_for_the_sign(tmp_path: Path) -> None:
    _quick(tmp_path / "run", "signed", **UNIFORM | {"bits": "w2a1"})
    run = load_run(tmp_path / "run")
    assert str(run.plan.bits["conv1"].act) == "i2"  # type: ignore[index]
    assert str(run.plan.bits["conv2"].act) == "u1"  # type: ignore[index]


def test_uniform_learns(tmp_path: Path) -> None:
    result = _quick(tmp_path / "run", **UNIFORM | {"epochs_float": 6, "epochs_finetune": 3})
    assert result["top1"] >= result["baseline_top1"] - 5
    assert result["top1"] > 60


def test_a_budget_of_uniform_is_checked_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="with w4a4 between 8-bit ends and no pruning; raise the budget, or lower"):
        _quick(tmp_path / "run", **UNIFORM | {"budgets": ["bops=0.5%"]})
    assert not (tmp_path / "run").exists()
    result = _quick(tmp_path / "run", **UNIFORM | {"budgets": ["bops=6%", "size=30%"]})
    assert result["budget"] == ["bops=6%", "size=30%"]
    assert result["bops"] <= 0.06 * result["bops_fp32"]


def test_uniform_has_by_default_the_epochs_that_a_search_has_in_all() -> None:
    given = dict.fromkeys(("epochs_float", "epochs_search", "epochs_finetune"))
    for name in ("digits", "cifar10"):
        found = _schedule(name, given, resolve("uniform", {"bits": "w4a4"}))
        base = SCHEDULES[name]
        assert (found.epochs_search, found.epochs_finetune) == (0, base.epochs_search + base.epochs_finetune)
        assert found.lr_finetune == base.lr_finetune


# modes of sbs


@pytest.mark.parametrize("model", ["chain", "block"])
def test_search_bits_prunes_nothing(tmp_path: Path, model: str) -> None:
    result = _quick(tmp_path / "run", model, mode="bits", budgets=["bops=3.5%"])
    run = load_run(tmp_path / "run")
    assert not run.plan.keep
    assert len({(r.w_bits, r.a_bits) for r in count(run.graph, run.plan).layers}) > 1
    assert result["bops"] <= 0.035 * result["bops_fp32"]
    assert (result["mode"], result["bits"]) == ("bits", None)
    _is_what_the_integers_say(run, result)


def test_the_papers_variant_starts_open_reads_the_last_batch_and_trades_nothing(tmp_path: Path) -> None:
    """Thresholds at 0, so everything starts at 8/8; no harms are measured; the budget holds all the same."""
    result = _quick(tmp_path / "run", variant="paper")
    (start,) = _events(tmp_path / "run", "start")
    run = load_run(tmp_path / "run")
    graph = run.graph
    assert start["figures"]["bops"] == Costs(graph, search_space(graph)).bops(largest(search_space(graph)))
    assert start["harms"] == {}
    assert not _events(tmp_path / "run", "exchange")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["variant"] == "paper"
    assert 0.7 < result["bops"] / (0.03 * result["bops_fp32"]) <= 1  # four layers: widths are coarse steps
    _is_what_the_integers_say(run, result)


def test_training_images_are_drawn_by_the_seed(tmp_path: Path) -> None:
    """Fewer steps an epoch; another seed draws others, and the drawn number is part of the run."""
    _quick(tmp_path / "run", **UNIFORM | {"train_images": 64})
    assert json.loads((tmp_path / "run" / "run.json").read_text())["train_images"] == 64
    with pytest.raises(UsageError, match="--train-images: 64 there, none now"):
        _quick(tmp_path / "run", **UNIFORM)


@pytest.mark.parametrize(("bits", "budget"), [(None, "bops=4.5%"), ("w4a4", "bops=1.2%"), ("w2a3", "size=5%")])
def test_search_prune_moves_channels_alone(tmp_path: Path, bits: str | None, budget: str) -> None:
    result = _quick(tmp_path / "run", **PRUNE | {"bits": bits, "budgets": [budget], "group_size": 2})
    run = load_run(tmp_path / "run")
    rows = count(run.graph, run.plan).layers
    w, a = (int((bits or "w8a8")[i]) for i in (1, 3))
    assert all((r.w_bits, r.a_bits) == (w, a) for r in rows[1:-1])
    assert run.plan.keep
    assert result["bits"] == (bits or "w8a8")
    _is_what_the_integers_say(run, result)
    # what the budget still allows has been given back
    kind, share = budget.split("=")
    figure, whole = ("bops", "bops_fp32") if kind == "bops" else ("weight_bytes", "fp32_bytes")
    assert 0.85 < result[figure] / result[whole] / (float(share[:-1]) / 100) <= 1


def test_a_part_is_given_back_only_where_no_width_is_searched() -> None:
    graph = capture(load(f"{NETS}:chain").module, (1, 6, 6))
    space = search_space(graph)
    whole = largest(space)
    group = next(iter(space.gates))
    cut = whole.parts | {group: whole.parts[group][1:]}  # type: ignore[operator]
    choice = type(whole)(whole.weight, whole.act, cut)
    assert raising(space, choice) == []
    fixed = type(space)((), space.ends, space.gates, held={n: (4, 4) for n in space.searched})
    moves = raising(fixed, choice)
    assert [(m.side, m.name, m.to) for m in moves] == [("restore", group, 0)]
    assert moves[0].applied(choice).parts == whole.parts
    assert Costs(graph, fixed).bops(moves[0].applied(choice)) > Costs(graph, fixed).bops(choice)


# two stages


@pytest.mark.parametrize(("model", "residual"), [("chain", "int8"), ("block", "float32")])
def test_two_stage_prunes_and_then_narrows_what_is_left(tmp_path: Path, model: str, residual: str) -> None:
    result = _quick(tmp_path / "run", model, **TWO | {"residual": residual, "budgets": ["bops=3%"], "group_size": 2})
    run = load_run(tmp_path / "run")
    assert result["bops"] <= 0.03 * result["bops_fp32"]
    assert result["epochs"] == {"float": 2, "prune": 1, "bits": 2, "finetune": 1}
    assert run.plan.keep
    pruned, narrowed = _events(tmp_path / "run", "choice")
    assert (pruned["phase"], narrowed["phase"]) == ("prune", "bits")
    assert pruned["parts"] == narrowed["parts"]  # the second stage leaves channels alone
    assert set(pruned["weight"].values()) == {8}
    assert {*narrowed["weight"].values(), *narrowed["act"].values()} > {8}
    first, second = _events(tmp_path / "run", "start")
    assert (first["phase"], second["phase"]) == ("prune", "bits")
    start, budget = first["figures"]["bops"], 0.03 * result["bops_fp32"]
    assert first["bounds"]["bops"] == pytest.approx(math.sqrt(start * budget))  # half of the fall of ln BOPs
    assert first["split"]["prune_share"] == 0.5
    assert pruned["figures"]["bops"] <= first["bounds"]["bops"]
    assert second["bounds"]["bops"] == pytest.approx(budget)
    _is_what_the_integers_say(run, result)


@pytest.mark.parametrize(
    ("model", "changes"), [("chain", {}), ("block", {"restrict": "free", "convention": "djpq", "budgets": ["bops=1%"]})]
)
def test_stages_of_djpq_have_its_pruner_its_quantiser_its_fine_tuning_and_its_epochs(
    tmp_path: Path, model: str, changes: dict[str, Any]
) -> None:
    """Channels go by noise at widths that are held, then step, range and exponent are learned on what is left."""
    result = _quick(tmp_path / "run", model, **TWO_DJPQ | {"epochs_search": 4, "budgets": ["bops=2%"], **changes})
    run = load_run(tmp_path / "run")
    assert result["epochs"] == {"float": 2, "prune": 2, "bits": 2, "finetune": 1}
    joint = _schedule(QUICK["data"], {"epochs_search": 4}, resolve("djpq", {}))
    assert joint.epochs_search == result["epochs"]["prune"] + result["epochs"]["bits"]
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (recorded["stages_of"], recorded["group_size"]) == ("djpq", 1)  # DJPQ's gates are one a channel
    assert recorded["restrict"] == changes.get("restrict", "pow2")
    assert result["bops"] <= float(result["budget"][0][5:-1]) / 100 * result["bops_fp32"]
    assert run.plan.keep
    assert {s.encoding.name for bits in run.plan.bits.values() for s in bits.weight} <= {"i2", "i4", "i8"}
    first, second = _events(tmp_path / "run", "start")
    assert (first["phase"], second["phase"]) == ("prune", "bits")
    assert first["ln_ratios"] and not first["layers"] and first["split"]["prune_share"] == 0.5
    assert second["layers"] and not second["ln_ratios"]  # channels are decided
    pruned, narrowed = _events(tmp_path / "run", "choice")
    assert pruned["parts"] == narrowed["parts"]
    assert set(pruned["weight"].values()) == {8}
    assert pruned["figures"]["bops"] <= first["bounds"]["bops"]
    (end,) = (event for event in _events(tmp_path / "run", "gates") if event["phase"] == "bits")
    assert all(sides["w"]["t"] != 1 for sides in end["layers"].values())
    for layer, sides in end["layers"].items():
        assert sides["w"]["d"] != second["layers"][layer]["w"]["d"]
    if "convention" not in changes:
        _is_what_the_integers_say(run, result)


def test_the_second_stage_starts_from_the_weights_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were trained, norms that took means: the second stage goes on where the first ended."""
    seen: dict[str, list[torch.Tensor]] = {}
    annealed, begin = train_vib.annealed, Annealing.begin

    def kept(job: Any, net: VibNet, *rest: Any) -> SuperNet:
        out = annealed(job, net, *rest)
        if rest[-1].name == "prune":
            seen["pruned"] = [out.tensor(name).clone() for name in job.graph.consts]
        return out

    def noted(self: Annealing) -> None:
        begin(self)
        if self.name == "bits":
            seen["bits"] = [self.net.tensor(name).clone() for name in self.net.graph.consts]

    monkeypatch.setattr(train_vib, "annealed", kept)
    monkeypatch.setattr(Annealing, "begin", noted)
    _quick(tmp_path / "run", **TWO_DJPQ | {"epochs_search": 2})
    assert all(torch.equal(a, b) for a, b in zip(seen["pruned"], seen["bits"], strict=True))


def test_stages_begun_before_their_parts_were_recorded_are_those_of_sbs(tmp_path: Path) -> None:
    result = _quick(tmp_path / "run", **TWO | {"epochs_search": 2})
    path = tmp_path / "run" / "run.json"
    document = json.loads(path.read_text())
    assert document.pop("stages_of") == "sbs"
    path.write_text(json.dumps(document))
    assert _quick(tmp_path / "run", **TWO | {"epochs_search": 2}) == result
    with pytest.raises(UsageError, match=r"--group-size: 4 there, 1 now; .*--stages-of: sbs there, djpq now"):
        _quick(tmp_path / "run", **TWO_DJPQ | {"epochs_search": 2})


def test_pruning_goes_on_where_the_least_widths_would_not_do(tmp_path: Path) -> None:
    """Budget near the least of the joint space, hardly anything asked of pruning: it must prune all the same."""
    graph = capture(load(f"{NETS}:chain").module, (1, 6, 6))
    space = search_space(graph)
    least = Costs(graph, space).bops(smallest(space))
    result = _quick(tmp_path / "run", **TWO | {"prune_share": 0.0, "budgets": [f"bops={least}"], "epochs_search": 2})
    assert result["bops"] == least
    assert load_run(tmp_path / "run").plan.keep


# refusals


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (UNIFORM | {"bits": None}, UsageError, "needs --bits, for example --bits w4a4"),
        (UNIFORM | {"bits": "4x4"}, UsageError, "not of the form"),
        (UNIFORM | {"bits": "w3a4"}, UnsupportedError, "weights of 3 bits have no kernel; there are 2, 4, 8"),
        (UNIFORM | {"bits": "w4a9"}, UnsupportedError, "activations of 9 bits have no kernel; there are 1 to 8"),
        (UNIFORM | {"epochs_search": 3}, UsageError, "--epochs-search does nothing with --method uniform"),
        (UNIFORM | {"group_size": 4}, UsageError, "--group-size does nothing"),
        (UNIFORM | {"mode": "bits"}, UsageError, "--search bits does nothing with --method uniform; it goes with"),
        ({"bits": "w4a4"}, UsageError, "--bits does nothing with --method sbs --search joint; it goes with"),
        ({"mode": "bits", "bits": "w4a4"}, UsageError, "--bits does nothing"),
        ({"mode": "bits", "max_pruning_ratio": 0.3}, UsageError, "--max-pruning-ratio does nothing"),
        ({"mode": "prun"}, UsageError, "did you mean prune"),
        ({"variant": "papr"}, UsageError, "did you mean paper"),
        (UNIFORM | {"variant": "paper"}, UsageError, "--sbs-variant does nothing with --method uniform"),
        ({"train_images": 10**6}, UsageError, "--train-images 1000000: .* to train on"),
        ({"prune_share": 0.5}, UsageError, "--prune-share does nothing with --method sbs --search joint"),
        (PRUNE | {"bits": "w4a4", "budgets": ["bops=0.5%"]}, CheckFailed, "with w4a4 between 8-bit ends and the larg"),
        (PRUNE | {"bits": "w3a4"}, UnsupportedError, "3 bits"),
        (PRUNE | {"max_pruning_ratio": 0.0}, UnsupportedError, "no channels that may be removed"),
        (TWO | {"max_pruning_ratio": 0.0}, UnsupportedError, "--search bits searches widths alone"),
        (TWO | {"bits": "w5a4"}, UnsupportedError, "5 bits"),
        (TWO | {"prune_share": 1.5}, UsageError, "--prune-share 1.5"),
        (TWO | {"budgets": []}, UsageError, "needs a budget"),
        (TWO | {"budgets": ["bops=0.01%"]}, CheckFailed, "cannot be reached"),
        (DJPQ | {"lr_thresholds": 0.1}, UsageError, "--lr-thresholds does nothing with --method djpq"),
        (DJPQ | {"restrict": "pow3"}, UsageError, r"--restrict 'pow3' is none of pow2, free \(did you mean pow2\?\)"),
        (DJPQ | {"budgets": []}, UsageError, "needs a budget"),
        (DJPQ | {"convention": "weights-only"}, UsageError, "--convention 'weights-only' is none of sbs, djpq"),
        ({"convention": "djpq"}, UsageError, "--convention does nothing with --method sbs"),
        (BITS | {"lr_thresholds": 0.1}, UsageError, "--lr-thresholds does nothing with --method bayesian-bits"),
        (BITS | {"restrict": "free"}, UsageError, "it goes with --method djpq, --method two-stage --stages-of djpq"),
        (BITS | {"budgets": []}, UsageError, "needs a budget"),
        (BITS | {"stages_of": "sbs"}, UsageError, "--stages-of does nothing with --method bayesian-bits; it goes with"),
        (TWO | {"stages_of": "djpk"}, UsageError, r"--stages-of 'djpk' is none of sbs, djpq \(did you mean djpq\?\)"),
        (TWO_DJPQ | {"lr_thresholds": 0.1}, UsageError, "--lr-thresholds does nothing .* two-stage --stages-of djpq"),
        (TWO | {"restrict": "free"}, UsageError, "--restrict does nothing with --method two-stage --stages-of sbs"),
        ({"restrict": "free"}, UsageError, "--restrict does nothing with --method sbs --search joint; it goes with"),
    ],
)
def test_options_that_do_nothing_or_contradict_are_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        _quick(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_mode_is_refused_by_its_flag(tmp_path: Path) -> None:
    _quick(tmp_path / "run", **UNIFORM)
    with pytest.raises(UsageError, match="--bits: w4a4 there, w2a4 now"):
        _quick(tmp_path / "run", **UNIFORM | {"bits": "w2a4"})
    with pytest.raises(UsageError, match="--method"):
        _quick(tmp_path / "run")


def test_every_option_of_the_list_is_taken_by_some_method() -> None:
    taken = {key for row in SEARCHES.values() for mode in row.modes.values() for key in mode.takes}
    assert taken == OPTIONS
    assert set(STAGES) == set(STAGES_OF) <= set(SEARCHES)


# what stops every method


def test_these_are_all_methods() -> None:
    assert {options["method"] for options in EVERY} == {*SEARCHES}
    assert {options.get("stages_of", STAGES_OF[0]) for options in EVERY} == {*STAGES_OF}


# The others' tests stand in files of their own: test_djpq.py, test_ajpq.py, test_bayesian_bits.py.
@pytest.mark.parametrize(
    ("method", "rate"),
    [({}, "lr_search"), (TWO, "lr_search"), (TWO_DJPQ, "lr_search"), (UNIFORM, "lr_finetune")],
    ids=["sbs", "two-stage", "two-stage-djpq", "uniform"],
)
def test_a_loss_that_is_no_number_stops_it(tmp_path: Path, method: dict[str, Any], rate: str) -> None:
    with pytest.raises(CheckFailed, match=r"the (loss|gradient) .*is (nan|inf)|became NaN"):
        _quick(tmp_path / "run", **method | {rate: 1e30, "epochs_float": 1})
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("method", EVERY, ids=NAMES)
def test_a_data_set_that_is_not_there_is_refused_before_any_work(tmp_path: Path, method: dict[str, Any]) -> None:
    if method["method"] == "ajpq":
        pytest.importorskip("stable_baselines3", reason="the extra `rl` is not installed")
    with pytest.raises(UsageError, match="nowhere"):
        _quick(tmp_path / "run", **method | {"data": f"cifar10:{tmp_path}/nowhere"})
    assert not (tmp_path / "run").exists()


# kill -9 in each phase


SCRIPT = """
import json, os, sys, time
from bitpress.core.search import search
from bitpress.core import train, train_annealed, train_gates
options = json.loads(sys.argv[1])
phase = options.pop("phase")
kinds = [train.Training, train_gates.Searching, train_annealed.Annealing]
if options["method"] == "ajpq":
    from bitpress.core.train_agents import Episodes
    kinds.append(Episodes)
for kind in kinds:
    def slow(self, *args, step=kind.step):
        if self.name == phase:
            time.sleep(0.2)
        return step(self, *args)
    kind.step = slow
search(**options)
"""


@pytest.mark.parametrize(
    ("method", "phase"),
    [
        (UNIFORM, "finetune"), (TWO | {"epochs_search": 4}, "prune"), (TWO | {"epochs_search": 4}, "bits"),
        (DJPQ, "search"), (DJPQ | {"epochs_finetune": 2}, "finetune"), (BITS, "search"),
        (TWO_DJPQ | {"epochs_search": 4}, "prune"),
        (TWO_DJPQ | {"epochs_search": 4}, "bits"), (AJPQ, "search"), (AJPQ | {"epochs_finetune": 2}, "finetune"),
    ],
)  # fmt: skip
def test_killed_in_any_phase_and_started_again_it_ends_as_an_unbroken_run(
    tmp_path: Path, method: dict[str, Any], phase: str
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    options = {**QUICK, **method, "model": f"{NETS}:chain", "out": str(broken), "phase": phase}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SCRIPT, json.dumps(options)], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )  # fmt: skip
    _wait_for(process, broken / "events.jsonl", f'"phase": "{phase}", "epoch": 1')
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (broken / "result.json").exists()
    _quick(broken, **method)
    _quick(whole, **method)
    _assert_same(broken, whole)
    assert (broken / "events.jsonl").read_text() == (whole / "events.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({"method": "uniform", "bits": "w4a4"}, 1.5), ({"mode": "bits", "budgets": ["bops=2%"]}, 2),
        ({"mode": "prune", "budgets": ["bops=5%"]}, 1.5), ({"method": "two-stage", "budgets": ["bops=2%"]}, 3),
    ],
)  # fmt: skip
def test_digits_stay_near_the_float_net(tmp_path: Path, options: dict[str, Any], loss: float) -> None:
    result = search("digits_cnn", data="digits", out=tmp_path / "run", threads=1, **options)
    assert result["baseline_top1"] - result["top1"] <= loss


# rates


@pytest.mark.parametrize("shape", ["cosine", "step"])
@pytest.mark.parametrize("method", [{}, TWO | {"epochs_search": 4}])
def test_the_rates_of_search_and_fine_tuning_fall_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], shape: str
) -> None:
    """Along one curve over all their epochs, each at its own rate; the thresholds' are a matter of their phase."""
    taken: list[float] = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        taken.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    options = {"epochs_search": 3, "epochs_finetune": 2, "lr_search": 0.01, "lr_finetune": 0.02, "shape": shape}
    result = _quick(tmp_path / "run", **options | method)
    searched, tuned = sum(v for k, v in result["epochs"].items() if k not in ("float", "finetune")), 2
    steps = len(taken) // (result["epochs"]["float"] + searched + tuned)
    total = (searched + tuned) * steps
    want = [(0.01 if i < searched * steps else 0.02) * FACTORS[shape](i, total) for i in range(total)]
    assert taken[-total:] == pytest.approx(want)
