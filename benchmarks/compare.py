"""`compare`: whether NEW is worse than BASE. Facts first, which always decide, then times of interleaved processes.

Prints nothing. What got worse: facts.py; what slower means: gate.py; the text about both: docs/gate.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..core.errors import EnvironmentMissing, UsageError
from ..core.host import head
from . import facts, gate, stored
from .facts import Side
from .gate import FAIL, INCONCLUSIVE, PASS, Pair, Rule
from .harness import pinned
from .process import Job, Runtime, runtime

TRIALS = 100  # resampled decisions of a self-check, for each slow-down
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """How one side runs: a build of bitpress-run (None: this Bitpress), and BITPRESS_ variables on top of ours."""

    runtime: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What is compared, and how.

    `new` None: BASE under another setting, or with `self_check` under the same. `allow`: keys of `facts.KEYS`.
    `timed` False: the facts alone. `seconds`: of timing in each process. `max_ms`: milliseconds that NEW may take on
    the processor `host` (None: that of a stored BASE).
    """

    base: str
    new: str | None = None
    base_setting: Setting = Setting()
    new_setting: Setting = Setting()
    self_check: bool = False
    allow: tuple[str, ...] = ()
    timed: bool = True
    rule: Rule = field(default_factory=Rule)
    seconds: float = 0.3
    batch: int = 1
    threads: int = 1
    seed: int = 0
    max_ms: float | None = None
    host: str | None = None


def compare(request: Request, progress: Progress = lambda _what, _share: None) -> dict[str, Any]:
    """The `bitpress.compare` document.

    UsageError where the request contradicts itself or the sides are other networks; CorruptError for a damaged side;
    EnvironmentMissing where a stored side or a budget belongs to another host; CheckFailed where a side is wrong.
    """
    _check(request)
    first = _side(request, request.base, request.base_setting)
    second = first if request.self_check else _side(request, request.new or request.base, request.new_setting)
    progress("compare, facts", 0.0)
    base, new = first.read(), second.read()
    _check_hosts(request, base, new)
    rng = np.random.default_rng(request.seed)
    found = facts.checks(base, new, request.allow)
    worse = facts.failure(found)
    left_out = _left_out(request, base, new, worse)
    decision = self_check = None
    with pinned(request.threads) as cpus:
        if not left_out:
            most = 2 * request.rule.most
            pairs = Pairs(
                timer(first.live, base), timer(second.live, new),
                lambda count: progress(f"compare, pair {count + 1}", count / most),
            )  # fmt: skip
            decision, self_check = _decide(request, pairs, rng)
            timed = [pair for batch in decision.batches for pair in batch]
            base, new = _with_times(base, [b for b, _ in timed]), _with_times(new, [n for _, n in timed])
        if request.max_ms is not None and not worse:
            new = _timed_alone(new, second.live, progress)
    budget = None if request.max_ms is None or worse else _budget(request, request.max_ms, base, new, rng)
    sentences = [
        (FAIL if worse else PASS, worse or "nothing is worse in bytes, BOPs, launches, kernels and outputs"),
        *([(decision.verdict, decision.why)] if decision else ()),
        *([(budget["verdict"], budget["why"])] if budget else ()),
    ]
    verdict = next((v for v in (FAIL, INCONCLUSIVE) if v in [v for v, _ in sentences]), PASS)
    return {
        **head("bitpress.compare", isa=new.host["isa"], threads=request.threads),
        "verdict": verdict,
        "why": "; ".join(said for v, said in sentences if v == verdict),
        "ratio": decision.ratio if decision else None,
        "ci": list(decision.ci) if decision else None,
        "detectable": decision.detectable if decision else None,
        "delta": decision.delta if decision else None,
        "deterministic": facts.summary(found),
        "paired": _paired(request, decision, cpus) if decision else None,
        "left_out": left_out,
        "self_check": self_check,
        "budget": budget,
        "seed": request.seed,
        "base": base.document(),
        "new": new.document(),
    }


@dataclass(frozen=True, slots=True)
class _Source:
    """A side before it is read: a file of facts, or a runtime that finds them."""

    name: str
    live: Runtime | None

    def read(self) -> Side:
        return stored.read(self.name) if self.live is None else self.live.side()


def _side(request: Request, name: str, setting: Setting) -> _Source:
    if stored.is_stored(name):
        if setting != Setting():
            raise UsageError(f"{name} holds what was found long ago: leave out its runtime and environment")
        return _Source(name, None)
    job = Job(name, request.threads, request.batch, request.seconds, setting.environment)
    return _Source(name, runtime(setting.runtime, job))


def _check(request: Request) -> None:
    """What contradicts itself, before any work."""
    facts.check_allowed(request.allow)
    if request.rule.most < gate.LEAST:
        raise UsageError(f"--pairs {request.rule.most}: at least {gate.LEAST} are needed for an interval")
    if request.self_check:
        if request.new is not None or request.new_setting != Setting():
            raise UsageError("--self-check compares BASE with itself: leave NEW out, and all that is said of it")
        if stored.is_stored(request.base):
            raise UsageError(f"--self-check times BASE, which {request.base} does not allow: give the .bpk file")
        if not request.timed:
            raise UsageError("--self-check measures times, which --facts leaves out: give one of them")
    elif request.new is None and request.base_setting == request.new_setting:
        raise UsageError(
            "NEW is missing: give a second file, another --runtime-new or --env-new for the same one, or --self-check"
        )
    for name, setting in (("base", request.base_setting), ("new", request.new_setting)):
        for key in setting.environment:
            if not key.startswith("BITPRESS_"):
                raise UsageError(f"--env-{name} {key}=...: only variables that begin with BITPRESS_ can be set")
    if request.max_ms is not None and not request.timed:
        raise UsageError("--max-ms needs times, which --facts leaves out: give one of them")
    if request.max_ms is None and request.host is not None:
        raise UsageError("--host says where --max-ms holds: give both")
    if request.max_ms is not None and request.host is None and not stored.is_stored(request.base):
        raise UsageError(
            f"--max-ms {request.max_ms:g} holds on one kind of host only: name its processor with --host, as `bitpress "
            "doctor` does"
        )


def _check_hosts(request: Request, base: Side, new: Side) -> None:
    """Stored facts hold where they were found, and a budget where it was declared; elsewhere nothing is decided."""
    if base.stored or new.stored:
        for key, what in (("cpu", "processor"), ("isa", "ISA"), ("threads", "number of threads")):
            if base.host[key] != new.host[key]:
                raise EnvironmentMissing(
                    f"baseline of another host: the {what} of {base.source} is {base.host[key]}, that of {new.source} "
                    f"{new.host[key]}; nothing is compared. Record a baseline on this kind of host"
                )
    if request.host is not None and request.host != new.host["cpu"]:
        raise EnvironmentMissing(
            f"--max-ms {request.max_ms:g} was declared for {request.host!r}, NEW runs on {new.host['cpu']!r}: nothing "
            "is compared. Run it there, or declare a budget for this host"
        )


def _left_out(request: Request, base: Side, new: Side, worse: str) -> str:
    """Why no times are paired, "" where they are."""
    if worse:
        return "the facts have decided"
    if base.stored or new.stored:
        return "times from a file were not taken next to those of the other side"
    return "" if request.timed else "--facts"


class Pairs:
    """Draws one pair of processes a call: BASE first in even ones, NEW first in odd ones.

    `base`, `new`: milliseconds of a new process. `told`: is given the number of the pair that begins.
    """

    def __init__(
        self, base: Callable[[], float], new: Callable[[], float], told: Callable[[int], None] = lambda _count: None
    ) -> None:
        self._base, self._new, self._told, self._count = base, new, told, 0

    def __call__(self) -> Pair:
        """The next pair."""
        self._told(self._count)
        self._count += 1
        if self._count % 2:
            base = self._base()
            return base, self._new()
        new = self._new()
        return self._base(), new


def timer(live: Runtime | None, side: Side) -> Callable[[], float]:
    """Milliseconds of a new process of a side that is not stored, whose outputs must be those that `side` holds."""
    assert live is not None, "stored sides are not timed"
    return partial(live.time, str(side.networks[0].output))


def _decide(
    request: Request, draw: Callable[[], Pair], rng: np.random.Generator
) -> tuple[gate.Decision, dict[str, Any] | None]:
    """The decision; of a self-check too how often the rule errs on this host, found by resampling its pairs."""
    rule = request.rule
    if not request.self_check:
        return gate.decide(draw, rule, rng), None
    pairs = tuple(draw() for _ in range(2 * rule.most))
    rest = iter(pairs)
    verdict, _ = gate.gated(lambda: next(rest), rule, rng)
    decision = gate.describe(verdict, (pairs[: rule.most], pairs[rule.most :]), rule, rng)
    scatter, base = gate.noise(pairs), float(np.median([b for b, _ in pairs]))

    def failed(slowdown: float) -> float:
        return gate.share_failed(scatter, slowdown, rule, rng, base=base, trials=TRIALS)

    planted = sorted({*gate.PLANTED, round(decision.detectable, 3)})
    return decision, {
        "pairs": len(pairs),
        "trials": TRIALS,
        "false_alarms": failed(1.0),
        "caught": [{"ratio": ratio, "share": failed(ratio)} for ratio in planted],
    }


def _paired(request: Request, decision: gate.Decision, cpus: Sequence[int]) -> dict[str, Any]:
    rule = request.rule
    return {
        "tolerance": rule.tolerance, "floor": rule.floor, "most": rule.most, "seconds": request.seconds,
        "batch": request.batch, "pinned": list(cpus), "verdict": decision.verdict,
        "why": decision.why,
        "batches": [[[round(t, 6) for t in pair] for pair in batch] for batch in decision.batches],
    }  # fmt: skip


def _with_times(side: Side, times: Sequence[float]) -> Side:
    return replace(side, networks=(replace(side.networks[0], times=tuple(times)),))


def _timed_alone(new: Side, live: Runtime | None, progress: Progress) -> Side:
    """NEW with times, where it has none yet and can be run."""
    if live is None or new.networks[0].times:
        return new
    once, times = timer(live, new), []
    for i in range(gate.LEAST):
        progress(f"compare, process {i + 1}", i / gate.LEAST)
        times.append(once())
    return _with_times(new, times)


def _budget(request: Request, limit: float, base: Side, new: Side, rng: np.random.Generator) -> dict[str, Any]:
    """Whether NEW stays within its absolute budget on the declared host."""
    if len(new.networks) > 1:
        raise UsageError(f"--max-ms is for one network, {new.source} holds {len(new.networks)}")
    times = new.networks[0].times
    if not times:
        raise UsageError(f"--max-ms: {new.source} holds no times; record it without --facts")
    verdict, median, ci = gate.budget(times, limit, request.rule, rng)
    host = request.host or base.host["cpu"]
    relation = {FAIL: "over", PASS: "within", INCONCLUSIVE: "perhaps over"}[verdict]
    why = f"NEW takes {median:.4f} ms (between {ci[0]:.4f} and {ci[1]:.4f}), {relation} the {limit:g} ms of {host}"
    return {"max_ms": limit, "host": host, "median": median, "ci": list(ci), "verdict": verdict, "why": why}
