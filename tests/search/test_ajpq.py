"""AJPQ through the door of all methods: what the controllers decide, what the log tells, and that the budget holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitpress.cli.errors import code_of
from bitpress.compiler import artifact
from bitpress.compiler.pipeline import compile_run
from bitpress.compiler.verify import verify
from bitpress.core import data as datasets
from bitpress.core.bops import count
from bitpress.core.errors import CheckFailed, UnsupportedError, UsageError
from bitpress.core.rundir import load_run
from bitpress.core.search import search

from . import whole_way
from .test_methods import AJPQ, _events, _is_what_the_integers_say
from .test_search import NETS, QUICK, _quick

pytest.importorskip("stable_baselines3", reason="the extra `rl` is not installed")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("model", "budget", "residual"),
    [("chain", "bops=3%", "int8"), ("block", "size=16%", "float32"), ("signed", "size=13%", "int8")],
)
def test_filters_of_a_layer_differ_and_every_way_computes_the_same(
    tmp_path: Path, model: str, budget: str, residual: str
) -> None:
    reads = len(datasets.test_reads)
    result = _quick(tmp_path / "run", model, **AJPQ | {"budgets": [budget]}, residual=residual)
    assert len(datasets.test_reads) == reads + 1
    assert (result["method"], result["precision"], result["bits"]) == ("ajpq", "mixed", None)
    run = load_run(tmp_path / "run")
    rows = count(run.graph, run.plan).layers
    assert {rows[0].w_bits, rows[0].a_bits, rows[-1].w_bits, rows[-1].a_bits} == {8}
    assert any(len(row.bits_hist) > 1 for row in rows[1:-1])
    assert {bits for row in rows for bits in row.bits_hist} <= {2, 4, 8}
    _uses_its_budget(result)
    _is_what_the_integers_say(run, result)
    x = np.asarray(datasets.load(QUICK["data"]).test().images[:50])
    document = verify(artifact.encode(compile_run(run)), run, batches=(50,), threads=(1,), data=x)
    assert document["exact"]
    assert max(document["training_forward"].values()) < 0.02


def _uses_its_budget(result: dict[str, Any]) -> None:
    """Never more than all, and nine tenths at least."""
    (text,) = result["budget"]
    kind, share = text.split("=")
    figure, whole = ("bops", "bops_fp32") if kind == "bops" else ("weight_bytes", "fp32_bytes")
    assert 0.9 <= result[figure] / (float(share[:-1]) / 100 * result[whole]) <= 1


@pytest.mark.parametrize("bits", [2, 4])
def test_fixed_precision_holds_one_width_and_searches_which_channels_stay(tmp_path: Path, bits: int) -> None:
    budget = {2: "bops=0.5%", 4: "bops=1.5%"}[bits]
    result = _quick(tmp_path / "run", **AJPQ | {"precision": f"fixed:{bits}", "budgets": [budget]})
    run = load_run(tmp_path / "run")
    rows = count(run.graph, run.plan).layers
    assert [(row.w_bits, row.a_bits) for row in rows] == [(8, 8), (bits, bits), (bits, bits), (8, 8)]
    assert run.plan.keep
    assert result["precision"] == f"fixed:{bits}"
    _uses_its_budget(result)
    assert {turn["controller"] for turn in _events(tmp_path / "run", "start")[0]["turns"]} == {"layer"}


def test_the_log_tells_what_both_controllers_decided_and_by_which_importance(tmp_path: Path) -> None:
    _quick(tmp_path / "run", **AJPQ)
    (start,), episodes = _events(tmp_path / "run", "start"), _events(tmp_path / "run", "episode")
    assert [turn["controller"] for turn in start["turns"]] == ["layer", "layer", "channel", "channel"]
    assert {name: len(scores) for name, scores in start["importance"].items()} == {
        "body.3": 16, "body.7": 16, "body.0.parts": 8, "body.3.parts": 16,
    }  # fmt: skip
    assert start["importance"]["body.3"] == pytest.approx(start["importance"]["body.3.parts"])  # one criterion for both
    assert [episode["episode"] for episode in episodes] == list(range(6))
    for episode in episodes:
        assert episode["layer"].keys() == {"body.0", "body.3"}
        assert {name: len(said) for name, said in episode["channel"].items()} == {"body.3": 3, "body.7": 3}
        gained, doubted = episode["top1"] - start["float_top1"], episode["loss"] - start["float_loss"]
        assert episode["reward"] == pytest.approx(0.1 * gained - doubted + 0.2 * episode["spared"])
        assert 0 <= episode["spared"] <= 1
        assert episode["figures"]["bops"] <= start["bounds"]["bops"]
    assert len({json.dumps(episode["channel"]) for episode in episodes}) == 6
    best = [episode for episode in episodes if episode["best"]][-1]
    assert best["reward"] == max(episode["reward"] for episode in episodes)
    (choice,) = _events(tmp_path / "run", "choice")
    assert choice["figures"] == best["figures"]
    for layer, widths in choice["filters"].items():
        scores = np.array(start["importance"][layer])
        kept = [f for f in np.argsort(-scores, kind="stable") if widths[f]]
        line = [widths[f] for f in kept]
        assert line == sorted(line, reverse=True)  # who matters more is no narrower


def test_ranges_are_those_of_values_that_nothing_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 8 bits a range reaches about as far as the float network's values do, in the last layers too."""
    from bitpress.core import train_agents

    begun, found = train_agents.Episodes.begin, {}

    def watched(self: train_agents.Episodes) -> None:
        begun(self)
        plain = train_agents.FilterNet(self.job.graph, self.job.space, grid=train_agents.EVEN)
        train_agents.fit(plain, self.batches)  # of float values, at 4 bits: no further than at 8
        found.update({clip: (v, float(plain.tensor(clip).detach())) for clip, v in self.ranges[8].items()})

    monkeypatch.setattr(train_agents.Episodes, "begin", watched)
    _quick(tmp_path / "run", **AJPQ | {"episodes": 1})
    assert len(found) > 3
    assert all(at_8 > 0.9 * at_4 for at_8, at_4 in found.values()), found


def test_the_controllers_learn_what_is_rewarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no plan errs on the held-out images and the loss falls with the channels kept, the last episodes keep more
    than the first.
    """
    from bitpress.core import train_agents

    judged = train_agents.evaluate

    def by_channels(net: Any, *held: Any) -> tuple[float, float]:
        if not isinstance(net, train_agents.FilterNet):
            return judged(net, *held)
        return 100.0, 10 - 10 * sum(map(len, net.choice().parts.values())) / 24

    monkeypatch.setattr(train_agents, "evaluate", by_channels)
    _quick(tmp_path / "run", **AJPQ | {"budgets": ["bops=4.5%"], "episodes": 60, "epochs_search": 6})
    kept = [sum(row["asked"] for row in e["layer"].values()) for e in _events(tmp_path / "run", "episode")]
    assert np.mean(kept[-15:]) > np.mean(kept[:15]) + 0.2


def test_the_search_is_a_function_of_its_options(tmp_path: Path) -> None:
    """The same seed gives the same bytes, another gives others, and the caller's generators are left alone."""
    np.random.seed(7)
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        search(f"{NETS}:chain", out=tmp_path / name, **QUICK | AJPQ | {"epochs_search": 1, "seed": seed})
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr]
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b != c
    events = [(tmp_path / n / "events.jsonl").read_text() for n in "ab"]
    assert events[0] == events[1]


def test_a_loss_of_nan_stops_the_search_and_names_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitpress.core.train_agents import Episodes

    place = Episodes._place

    def poisoned(self: Episodes, choice: Any) -> None:
        place(self, choice)
        with torch.no_grad():
            self.net.tensor("body.4.bias").fill_(float("inf"))

    monkeypatch.setattr(Episodes, "_place", poisoned)
    with pytest.raises(CheckFailed, match=r"search: the loss is .*layer body\.4"):
        _quick(tmp_path / "run", **AJPQ)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_controller_that_turns_nan_stops_the_search_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitpress.core.agents import Agent

    learn = Agent.learn

    def poisoned(self: Agent, reward: float, *, steps: int, seed: int) -> None:
        learn(self, reward, steps=steps, seed=seed)
        with torch.no_grad():
            next(self.model.critic.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Agent, "learn", poisoned)
    with pytest.raises(CheckFailed, match=r"layer controller .* became NaN or infinite"):
        _quick(tmp_path / "run", **AJPQ)


@pytest.mark.parametrize("library", ["gymnasium", "stable_baselines3"])
def test_a_missing_extra_is_one_sentence_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError) as caught:
        _quick(tmp_path / "run", **AJPQ)
    assert not (tmp_path / "run").exists()
    assert code_of(caught.value) == 5
    assert "the extra [rl]: pip install 'bitpress[rl]'" in capsys.readouterr().err
    _quick(tmp_path / "other", epochs_search=1)  # other methods do without


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"precision": "fixed:3"}, UnsupportedError, "weights of 3 bits have no kernel; there are 2, 4, 8"),
        ({"precision": "fixed"}, UsageError, r"--precision 'fixed' is none of mixed, fixed:N"),
        ({"precision": "mixed,fixed:4"}, UsageError, "one of fp32 and bf16, and one of mixed and fixed:N, please"),
        ({"precision": "mixd"}, UsageError, "--precision 'mixd' is none of fp32, bf16"),
        ({"precision": "fixed:4", "max_pruning_ratio": 0.0}, UnsupportedError, "--method uniform --bits w4a4"),
        ({"precision": "fixed:8", "budgets": ["size=5%"]}, CheckFailed, "cannot be reached"),
        ({"episodes": 0}, UsageError, "--episodes 0: a search takes at least 1"),
        ({"bits": "w4a4"}, UsageError, "--bits does nothing with --method ajpq"),
        ({"lr_thresholds": 0.1}, UsageError, "--lr-thresholds does nothing with --method ajpq"),
        ({"budgets": []}, UsageError, "needs a budget"),
        ({"method": "djpq", "episodes": None, "precision": "mixed"}, UsageError, "does nothing with --method djpq"),
        ({"method": "djpq"}, UsageError, "--episodes does nothing with --method djpq; it goes with --method ajpq"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        _quick(tmp_path / "run", **AJPQ | changes)
    assert not (tmp_path / "run").exists()


def test_both_precisions_are_said_by_comma_and_recorded(tmp_path: Path) -> None:
    _quick(tmp_path / "run", **AJPQ | {"precision": "bf16, fixed:8", "budgets": ["size=20%"], "epochs_search": 1})
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (recorded["precision"], recorded["filters"], recorded["episodes"]) == ("bf16", "fixed:8", 6)
    with pytest.raises(UsageError, match=r"--precision mixed\|fixed:N: fixed:8 there, mixed now"):
        _quick(tmp_path / "run", **AJPQ | {"precision": "bf16", "budgets": ["size=20%"], "epochs_search": 1})


def test_environments_are_as_gymnasium_wants_them() -> None:
    from gymnasium.utils.env_checker import check_env

    from bitpress.core.agents import Controls

    from ..core.test_cost import chain
    from ..core.test_walk import walk

    for role in ("layer", "channel"):
        env = Controls(walk(chain, "size=0.4"), role)
        check_env(env, skip_render_check=True)
        env.reset(seed=0)
        ended, steps = False, 0
        while not ended:
            _, _, ended, _, _ = env.step(env.action_space.sample())
            steps += 1
        assert steps == sum(turn.role == role for turn in env.walk.turns)
        assert not env.walk.costs.over(env.walk.choice, env.walk.budgets)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "budget"), [("mixed", "bops=2%"), ("fixed:4", "size=9%")])
def test_digits_are_pruned_and_every_way_gives_the_same_digest(tmp_path: Path, precision: str, budget: str) -> None:
    result, rows = whole_way.digits(tmp_path, "--method", "ajpq", "--precision", precision, "--budget", budget)
    _uses_its_budget(result)
    mixed = [row for row in rows if row["w_bits"] is None]
    if precision == "mixed":
        assert any(len(row["w_bits_hist"]) >= 2 for row in mixed)
    else:
        assert not mixed and {row["w_bits"] for row in rows[1:-1]} == {4}
