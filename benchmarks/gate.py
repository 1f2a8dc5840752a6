"""Whether NEW is slower than BASE, from the times of interleaved pairs of processes. Pure: reads no clock and no file.

One observation is one pair of processes that ran next to each other; what they measured inside is one median each,
because calls within a process are not independent. The rule: docs/gate.md 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
SLOWER, FINE, OPEN = "slower", "fine", "open"
LEAST = 8  # pairs; with fewer, a bootstrap interval is too narrow to be believed
ROUND = 4  # pairs of two rounds of base, new, new, base: looks lie at multiples of it
# Share of slow-downs of the size `detectable` that both batches together see. Four of five are promised; the rest is
# kept for the error of an estimate that comes from few pairs.
CAUGHT = 0.9
BATCHES = 150  # drawn for that estimate
SUMS = 1 << 17  # of two elements, held at a time
PLANTED = (1.1, 1.25)  # slow-downs that a self-check plants

Pair = tuple[float, float]  # milliseconds: BASE, NEW


@dataclass(frozen=True, slots=True)
class Rule:
    """What decides. `tolerance`: share by which NEW may be slower; `floor`: milliseconds that are never a slow-down.

    A batch ends after `most` pairs, where an interval of `level` decides. Before, there is a look whenever the batch
    has grown by half, from the eighth pair on, with an interval of `early`: so wide that looking often costs next to
    nothing in false alarms (Haybittle and Peto's rule of stopping).

    Batches of 24 were tried: on a host whose speed jumps between two levels they caught two of three slow-downs of the
    size `detectable` (benchmarks/results/gate.md has what 96 catch).
    """

    tolerance: float = 0.05
    floor: float = 0.001
    most: int = 96
    level: float = 0.95
    early: float = 0.999
    resamples: int = 2000

    @property
    def limit(self) -> float:
        """The tolerance as a log ratio."""
        return math.log1p(self.tolerance)


@dataclass(frozen=True, slots=True)
class Interval:
    """Of log ratios: the centre, and between what its resamples lie."""

    centre: float
    lo: float
    hi: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What the pairs say. `ratio`, `ci`: NEW / BASE over all pairs; `delta`: NEW - BASE in milliseconds.

    `detectable`: smallest ratio that a run of full length catches 4 times of 5 on a host as noisy as this one was.
    """

    verdict: str
    why: str
    ratio: float
    ci: tuple[float, float]
    delta: float
    detectable: float
    batches: tuple[tuple[Pair, ...], ...]


def centre(x: np.ndarray) -> float:
    """Median of the means of all pairs of elements (Hodges and Lehmann): steady as a median, narrow as a mean.

    >>> centre(np.array([1.0, 2.0, 3.0, 100.0]))
    2.75
    """
    return float(_centres(x[None])[0])


def interval(x: np.ndarray, level: float, resamples: int, rng: np.random.Generator) -> Interval:
    """Bootstrap interval of `centre`, x float64 [n]: percentiles of resamples, widened for small n.

    A resample varies as if n were n - 1 (its variance is divided by n): hence the factor.
    """
    n = len(x)
    middle = centre(x)
    moved = (_centres(x[rng.integers(0, n, (resamples, n))]) - middle) * math.sqrt(n / (n - 1))
    lo, hi = np.quantile(moved, ((1 - level) / 2, (1 + level) / 2))
    return Interval(middle, middle + float(lo), middle + float(hi))


def _centres(x: np.ndarray) -> np.ndarray:
    """`centre` of every row of x [rows, n], some rows at a time: their sums stay in the processor's caches."""
    rows, n = x.shape
    out, ends = np.empty(rows), np.cumsum(np.arange(n, -1, -1))
    some = max(1, SUMS // int(ends[-1]))
    for start in range(0, rows, some):
        part = x[start : start + some]
        sums = np.empty((len(part), ends[-1]))
        for i in range(n):
            np.add(part[:, i : i + 1], part[:, i:], out=sums[:, ends[i] - (n - i) : ends[i]])
        out[start : start + some] = np.median(sums, axis=1, overwrite_input=True) / 2
    return out


def look(pairs: Sequence[Pair], rule: Rule, rng: np.random.Generator) -> str:
    """What a batch says so far: SLOWER, FINE or OPEN."""
    if len(pairs) < LEAST:
        return OPEN
    times = np.array(pairs, np.float64)
    level = rule.level if len(pairs) >= rule.most else rule.early
    found = interval(np.log(times[:, 1] / times[:, 0]), level, rule.resamples, rng)
    if found.hi <= rule.limit:
        return FINE
    if found.lo > rule.limit:
        return SLOWER if centre(times[:, 1] - times[:, 0]) > rule.floor else FINE
    return OPEN


def batch(pair: Callable[[], Pair], rule: Rule, rng: np.random.Generator) -> tuple[str, tuple[Pair, ...]]:
    """Draws pairs until a look says something or there are `rule.most`."""
    pairs: list[Pair] = []
    while True:
        pairs += [pair() for _ in range(min(_next_look(len(pairs)), rule.most) - len(pairs))]
        found = look(pairs, rule, rng)
        if found != OPEN or len(pairs) >= rule.most:
            return found, tuple(pairs)


def _next_look(count: int) -> int:
    """Pairs at the look after the one at `count`, half as many again.

    >>> [_next_look(count) for count in (0, 8, 12, 20, 32, 48, 72)]
    [8, 12, 20, 32, 48, 72, 108]
    """
    return max(LEAST, count + ROUND * math.ceil(count / 2 / ROUND))


def decide(pair: Callable[[], Pair], rule: Rule, rng: np.random.Generator) -> Decision:
    """Draws pairs until they say whether NEW is slower, and the figures of all of them."""
    verdict, batches = gated(pair, rule, rng)
    return describe(verdict, batches, rule, rng)


def gated(pair: Callable[[], Pair], rule: Rule, rng: np.random.Generator) -> tuple[str, list[tuple[Pair, ...]]]:
    """The verdict alone, and the pairs; a batch that says that NEW is slower must be confirmed by a second one."""
    first, pairs = batch(pair, rule, rng)
    batches = [pairs]
    second = ""
    if first == SLOWER:
        second, more = batch(pair, rule, rng)
        batches.append(more)
    return PASS if first == FINE else FAIL if second == SLOWER else INCONCLUSIVE, batches


def describe(verdict: str, batches: Sequence[Sequence[Pair]], rule: Rule, rng: np.random.Generator) -> Decision:
    """The figures of all pairs beside a verdict, and a sentence."""
    times = np.array([p for pairs in batches for p in pairs], np.float64)
    found = interval(np.log(times[:, 1] / times[:, 0]), rule.level, rule.resamples, rng)
    delta = centre(times[:, 1] - times[:, 0])
    visible = detectable(noise(times), float(np.median(times[:, 0])), rule, rng)
    ratio, ci = math.exp(found.centre), (math.exp(found.lo), math.exp(found.hi))
    said = f"ratio {ratio:.3f}, between {ci[0]:.3f} and {ci[1]:.3f}, {1e3 * delta:+.1f} us in {len(times)} pairs"
    limit = f"the tolerance {1 + rule.tolerance:.3f}"
    if verdict == FAIL:
        why = f"NEW is slower than BASE by more than {limit}, twice: {said}"
    elif verdict == PASS and found.lo > rule.limit:
        why = f"NEW is slower, but by less than the floor of {1e3 * rule.floor:.1f} us: {said}"
    elif verdict == PASS:
        why = f"NEW is not slower than {limit} allows: {said}"
    elif len(batches) > 1:
        why = f"one batch says that NEW is slower, the next does not confirm it: {said}"
    else:
        why = f"{limit} lies inside the interval: {said}; slow-downs below {visible:.3f} cannot be seen here"
    return Decision(verdict, why, ratio, ci, delta, visible, tuple(tuple(pairs) for pairs in batches))


def detectable(scatter: np.ndarray, base: float, rule: Rule, rng: np.random.Generator) -> float:
    """Smallest ratio that is caught with the probability CAUGHT on a host that scatters like this (`noise`, [n]).

    Batches of full length are drawn from the scatter; each of two must have its lower end over the tolerance, so each
    must see it with the root of CAUGHT. `base`: milliseconds of BASE, which the floor is a share of. A normal estimate
    from the error of one centre was tried: where strays are rare and large it promised too much, 6 of 10 were caught.
    """
    widened = scatter * math.sqrt(len(scatter) / (len(scatter) - 1))
    ends = [interval(draw(widened, rule.most, rng), rule.level, BATCHES, rng).lo for _ in range(BATCHES)]
    below = float(np.quantile(ends, 1 - math.sqrt(CAUGHT)))
    return max(math.exp(rule.limit - min(0.0, below)), 1 + rule.floor / base)


def draw(scatter: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the log ratios with random signs: which of two processes is the disturbed one is chance."""
    signs = rng.choice((-1.0, 1.0), count)
    out: np.ndarray = scatter[rng.integers(0, len(scatter), count)] * signs
    return out


def noise(pairs: Sequence[Pair] | np.ndarray) -> np.ndarray:
    """Log ratios float64 [n] of pairs without what they have in common: how this host scatters."""
    times = np.asarray(pairs, np.float64)
    ratios = np.log(times[:, 1] / times[:, 0])
    return ratios - centre(ratios)


def share_failed(
    scatter: np.ndarray, slowdown: float, rule: Rule, rng: np.random.Generator, *, base: float = 1.0, trials: int = 200
) -> float:
    """How often the rule fails a NEW that is `slowdown` times as slow, by resampling the scatter of real pairs."""
    failed = 0
    cheap = replace(rule, resamples=min(rule.resamples, 1000))
    for _ in range(trials):

        def pair() -> Pair:
            return base, base * slowdown * math.exp(draw(scatter, 1, rng)[0])

        failed += gated(pair, cheap, rng)[0] == FAIL
    return failed / trials


def budget(times: Sequence[float], limit: float, rule: Rule, rng: np.random.Generator) -> tuple[str, float, Pair]:
    """Verdict on an absolute budget in milliseconds from the medians of processes; their centre and its interval.

    FAIL where the interval lies above the limit, PASS where it lies below, else INCONCLUSIVE. Fewer than LEAST
    processes have no interval worth the name: the centre decides.
    """
    x = np.array(times, np.float64)
    if len(x) < LEAST:
        middle = centre(x)
        return (FAIL if middle > limit else PASS), middle, (middle, middle)
    found = interval(x, rule.level, rule.resamples, rng)
    if found.lo > limit:
        return FAIL, found.centre, (found.lo, found.hi)
    return (PASS if found.hi <= limit else INCONCLUSIVE), found.centre, (found.lo, found.hi)
