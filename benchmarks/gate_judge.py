"""What the study of the gate found: the verb's rule on recorded pairs, resampled, and the page about all of it.

Measures nothing: what it reads is stored by gate_study.py.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..cli.progress import Progress
from ..cli.tables import Column, Table, to_markdown
from ..core.host import write_text
from ..core.rundir import read_json
from . import gate
from .gate import FAIL, INCONCLUSIVE, PASS, Pair, Rule

SAME = "same"
COMMAND = "python -m bitpress.benchmarks.gate_study"
STEPS = ("record", "judge", "live", "table")
ARMS: Mapping[str, float] = {SAME: 1.0, **{f"slow{round(100 * r - 100)}": r for r in gate.PLANTED}}  # NEW / BASE
STRETCH = Rule().most  # recorded pairs that a resampled decision takes one after another: a whole batch
TRIALS = 600  # resampled decisions of an arm
VISIBLE = 200  # of those that plant what the decision before called detectable
SEED = 0
MOST_FALSE, LEAST_SEEN, LEAST_LARGE, MOST_SECONDS = 1 / 60, 0.8, 0.95, 180.0  # what is asked of the rule


def recorded(store: Path) -> dict[str, dict[str, Any]]:
    """The documents of all arms; UsageError where one is missing."""
    return {arm: read_json(store / f"{arm}.json") for arm in ARMS}


def pairs_of(document: Mapping[str, Any]) -> list[Pair]:
    """All pairs of an arm, in the order in which they were drawn."""
    return [(base, new) for block in document["blocks"] for base, new in block["pairs"]]


def resampled(pairs: Sequence[Pair], rng: np.random.Generator, stretch: int = STRETCH) -> Iterator[Pair]:
    """Pairs without end, in stretches of `stretch` that were drawn one after another: drift within a batch stays.

    A stretch begins at any pair in which BASE ran first, and reads on at the beginning where the record ends.
    """
    while True:
        start = 2 * int(rng.integers(0, len(pairs) // 2))
        for i in range(start, start + stretch):
            yield pairs[i % len(pairs)]


def exchanged(pairs: Sequence[Pair]) -> list[Pair]:
    """BASE as NEW and NEW as BASE: of the same build twice, as good a record as the other."""
    return [(new, base) for base, new in pairs]


def judge(store: Path, *, trials: int = TRIALS, visible: int = VISIBLE, rule: Rule | None = None) -> None:
    """Puts the verb's rule to resampled pairs of every arm, and stores how often it said what."""
    rule = rule or Rule()
    rng = np.random.default_rng(SEED)
    found: dict[str, Any] = {"trials": trials, "stretch": STRETCH, "seed": SEED, "arms": {}}
    every = {arm: pairs_of(document) for arm, document in recorded(store).items()}
    with Progress(quiet=False) as progress:
        work = len(ARMS) * trials + 4 * visible  # a decision with its figures takes several times as long
        done = iter(range(work))

        def step(what: str, units: int = 1) -> None:
            for _ in range(units):
                progress(f"judge, {what}", next(done) / work)

        for arm, pairs in every.items():
            sides = (pairs, exchanged(pairs)) if arm == SAME else (pairs,)
            found["arms"][arm] = _judge_arm(arm, sides, trials, rule, rng, step)
        found["detectable"] = _judge_detectable(every[SAME], visible, rule, rng, step)
    write_text(store / "judged.json", json.dumps(found, indent=1) + "\n")
    print(f"{store / 'judged.json'} written")


def _judge_arm(
    arm: str, sides: Sequence[Sequence[Pair]], trials: int, rule: Rule, rng: np.random.Generator,
    step: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    verdicts, lengths = [], []
    for i in range(trials):
        step(arm)
        source = resampled(sides[i % len(sides)], rng)
        verdict, batches = gate.gated(partial(next, source), rule, rng)
        verdicts.append(verdict)
        lengths.append(sum(map(len, batches)))
    times = np.array(sides[0])
    whole = gate.interval(np.log(times[:, 1] / times[:, 0]), rule.level, rule.resamples // 10, rng)
    return {
        "recorded": len(times), "base": float(np.median(times[:, 0])), "ratio": math.exp(whole.centre),
        "ci": [math.exp(whole.lo), math.exp(whole.hi)], "pairs": median(lengths),
        **{verdict: verdicts.count(verdict) / trials for verdict in (FAIL, INCONCLUSIVE, PASS)},
    }  # fmt: skip


def _judge_detectable(
    pairs: Sequence[Pair], trials: int, rule: Rule, rng: np.random.Generator, step: Callable[[str, int], None]
) -> dict[str, Any]:
    """How often a slow-down of the size that a decision on equal builds called detectable, 10 % at least, is caught."""
    said, caught = [], 0
    for _ in range(trials):
        step("detectable", 4)
        before, after = resampled(pairs, rng), resampled(pairs, rng)
        said.append(gate.decide(partial(next, before), rule, rng).detectable)
        ratio = max(gate.PLANTED[0], said[-1])
        slower = ((base, ratio * new) for base, new in after)
        caught += gate.gated(partial(next, slower), rule, rng)[0] == FAIL
    return {"trials": trials, "median": median(said), "highest": max(said), "caught": caught / trials}


def page(store: Path) -> str:
    """The whole page."""
    documents, judged, run = recorded(store), read_json(store / "judged.json"), read_json(store / "live.json")
    recordings = to_markdown(Table("", RECORDED, [_recorded_row(arm, row) for arm, row in judged["arms"].items()]))
    live = to_markdown(Table("", LIVE, [_live_row(arm, run["runs"]) for arm in ARMS]))
    asked = to_markdown(Table("", ASKED, list(_asked(judged, run["runs"]))))
    parts = [
        "# How often the gate errs",
        *_said(documents, judged),
        recordings.rstrip(),
        _detectable(judged["detectable"]),
        f"`bitpress compare` itself, from {run['runs'][0]['at']} to {run['runs'][-1]['at']}:",
        live.rstrip(),
        "What is asked of the rule, and what was found:",
        asked.rstrip(),
        "Again, on another host with another `--store`:",
        "\n".join(f"    {COMMAND} {step}" for step in STEPS),
    ]
    return "\n\n".join(parts) + "\n"


def _said(documents: Mapping[str, Mapping[str, Any]], judged: Mapping[str, Any]) -> Iterator[str]:
    """What was recorded, and how it was resampled."""
    first = documents[SAME]
    times = sorted(block["at"] for document in documents.values() for block in document["blocks"])
    slow = ", ".join(f"{document['delay']:g} % (`{arm}`)" for arm, document in documents.items() if arm != SAME)
    yield _filled(
        f"Written by `{COMMAND} table` from the documents in [gate/](gate). The rule is that of `bitpress compare` "
        "with its defaults, [docs/gate.md](../../docs/gate.md)."
    )
    yield _filled(
        f"{first['network']}, random weights, in `bitpress-run`: {first['seconds']:g} s a process, 1 thread, pinned. "
        f"{first['cpu']}, {first['isa']}; {times[0]} to {times[-1]}. NEW is the same build as BASE (`{SAME}`), or one "
        f"whose convolutions take longer by {slow}."
    )
    yield _filled(
        f"`{first['command']}` drew pairs of processes as the verb does, the arms in turns of "
        f"{len(first['blocks'][0]['pairs'])} pairs. A resampled decision is `gate.gated` on stretches of "
        f"{judged['stretch']} pairs that were recorded one after another, so that drift stays in it; each stretch "
        f"begins at random. {judged['trials']} decisions an arm; in every second one of `{SAME}`, BASE is NEW and NEW "
        "is BASE."
    )


def _detectable(found: Mapping[str, Any]) -> str:
    return _filled(
        f"{found['trials']} decisions on `{SAME}` said how small a slow-down they could see: {found['median']:.3f} "
        f"(median), {found['highest']:.3f} at most. One of that size, {gate.PLANTED[0]:g} at least, was planted into "
        f"other pairs of `{SAME}`: {_percent(found['caught'])} were caught."
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


RECORDED = (
    Column("arm", "arm"), Column("recorded", "pairs", "int"), Column("base", "BASE ms", "ms"),
    Column("ratio", "NEW / BASE"), Column("fail", "fail"), Column("inconclusive", "inconclusive"),
    Column("pass", "pass"), Column("pairs", "pairs of a decision, median", "float"),
)  # fmt: skip
LIVE = (
    Column("arm", "arm"), Column("runs", "runs", "int"), Column("fail", "fail", "int"),
    Column("inconclusive", "inconclusive", "int"), Column("pass", "pass", "int"), Column("ratio", "ratio, median"),
    Column("detectable", "detectable, median"), Column("pairs", "pairs, median", "float"),
    Column("seconds", "s, median"), Column("longest", "s, longest"),
)  # fmt: skip
ASKED = (Column("what", "asked"), Column("found", "resampled"), Column("live", "live"), Column("holds", ""))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _recorded_row(arm: str, row: Mapping[str, Any]) -> dict[str, Any]:
    lo, hi = row["ci"]
    shares = {verdict: _percent(row[verdict]) for verdict in (FAIL, INCONCLUSIVE, PASS)}
    return {**row, "arm": arm, "ratio": f"{row['ratio']:.3f} ({lo:.3f} to {hi:.3f})", **shares}


def _live_row(arm: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = [run for run in runs if run["arm"] == arm]
    middle = {key: median(run[key] for run in own) for key in ("ratio", "detectable", "pairs", "seconds")}
    return {
        "arm": arm, "runs": len(own), **{v: _count(own, v) for v in (FAIL, INCONCLUSIVE, PASS)},
        "ratio": f"{middle['ratio']:.3f}", "detectable": f"{middle['detectable']:.3f}", "pairs": middle["pairs"],
        "seconds": f"{middle['seconds']:.1f}", "longest": f"{max(run['seconds'] for run in own):.1f}",
    }  # fmt: skip


def _count(runs: Sequence[Mapping[str, Any]], verdict: str) -> int:
    return sum(run["verdict"] == verdict for run in runs)


def _asked(judged: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the rule must do, each with what was found. Live runs that could not see 10 % need not have caught it."""
    same, small, large = ([run for run in runs if run["arm"] == arm] for arm in ARMS)
    small = [run for run in small if run["detectable"] <= gate.PLANTED[0]]
    alarms, seen = judged["arms"][SAME][FAIL], judged["detectable"]["caught"]
    big = judged["arms"][list(ARMS)[-1]][FAIL]
    slow = f"{100 * gate.PLANTED[0] - 100:.0f} %"
    yield _row("false alarms of the same build: 1 in 60 at most", alarms, alarms <= MOST_FALSE, same)
    yield _row(f"{slow}, or `detectable` where more, caught: {_percent(LEAST_SEEN)}", seen, seen >= LEAST_SEEN, small)
    yield _row(f"{100 * gate.PLANTED[1] - 100:.0f} % caught: {_percent(LEAST_LARGE)}", big, big >= LEAST_LARGE, large)
    longest = max(run["seconds"] for run in runs)
    yield {
        "what": f"a decision in {MOST_SECONDS:.0f} s", "live": f"{longest:.1f} s at most",
        "holds": _holds(longest < MOST_SECONDS),
    }  # fmt: skip


def _row(what: str, share: float, holds: bool, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    live = f"{_count(runs, FAIL)} of {len(runs)}"
    return {"what": what, "found": _percent(share), "live": live, "holds": _holds(holds)}


def _holds(found: bool) -> str:
    return "holds" if found else "FAILS"
