"""The rule on synthetic pairs: it does not cry wolf, sees what it says it can see, stops early. No clock is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bitpress.benchmarks import gate
from bitpress.benchmarks.gate import FAIL, FINE, INCONCLUSIVE, OPEN, PASS, SLOWER, Pair, Rule

RULE = Rule(most=24, resamples=400)
Scatter = Callable[[np.random.Generator], float]
# How the log ratio of two neighbouring processes scatters: a quiet host, a busy one, one with strays, one that a
# neighbour takes the processor from in every fourth pair, whichever half it hits.
NOISE: dict[str, Scatter] = {
    "quiet": lambda rng: rng.normal(0, 0.02),
    "busy": lambda rng: rng.normal(0, 0.1),
    "strays": lambda rng: 0.05 * rng.standard_t(2),
    "robbed": lambda rng: rng.normal(0, 0.02) + (rng.choice((-0.7, 0.7)) if rng.random() < 0.25 else 0.0),
}


def source(scatter: Scatter, slowdown: float, rng: np.random.Generator, base: float = 1.0) -> Callable[[], Pair]:
    """Pairs of a NEW that is `slowdown` times as slow, on a host whose speed drifts: both halves feel that alike."""
    count = iter(range(10**6))

    def pair() -> Pair:
        speed = base * (1 + 0.5 * math.sin(next(count) / 7))
        return speed, speed * slowdown * math.exp(scatter(rng))

    return pair


def verdicts(scatter: Scatter, slowdown: float, trials: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [gate.gated(source(scatter, slowdown, rng), RULE, rng)[0] for _ in range(trials)]


@pytest.mark.parametrize("name", NOISE)
def test_the_same_network_never_fails_more_than_once_in_sixty(name: str) -> None:
    found = verdicts(NOISE[name], 1.0, 60, seed=1)
    assert found.count(FAIL) <= 1


@pytest.mark.parametrize("name", NOISE)
def test_what_is_called_detectable_is_caught(name: str) -> None:
    rng = np.random.default_rng(2)
    visible, caught = [], 0
    for _ in range(20):  # a host is judged by a self-check of its own each time, so that its error takes part
        pairs = [source(NOISE[name], 1.0, rng)() for _ in range(2 * RULE.most)]
        visible.append(max(1.1, gate.describe(PASS, [pairs], RULE, rng).detectable))
        caught += gate.gated(source(NOISE[name], visible[-1], rng), RULE, rng)[0] == FAIL
    assert caught >= 16, f"{caught} of 20 at {np.median(visible):.3f}"


def test_a_quiet_host_needs_one_look_and_a_slow_network_two_batches() -> None:
    rng = np.random.default_rng(3)
    same = gate.decide(source(NOISE["quiet"], 1.0, rng), RULE, rng)
    assert same.verdict == PASS and [len(b) for b in same.batches] == [gate.LEAST]
    slow = gate.decide(source(NOISE["quiet"], 1.25, rng), RULE, rng)
    assert slow.verdict == FAIL and [len(b) for b in slow.batches] == [gate.LEAST, gate.LEAST]
    assert slow.ratio == pytest.approx(1.25, rel=0.03) and slow.ci[0] < slow.ratio < slow.ci[1]
    assert "twice" in slow.why and "16 pairs" in slow.why
    assert gate.decide(source(NOISE["quiet"], 0.8, rng), RULE, rng).verdict == PASS


def test_a_noisy_host_is_inconclusive_and_says_what_it_cannot_see() -> None:
    rng = np.random.default_rng(4)
    found = gate.decide(source(lambda r: r.normal(0, 0.5), 1.0, rng), RULE, rng)
    assert found.verdict == INCONCLUSIVE and [len(b) for b in found.batches] == [RULE.most]
    assert found.detectable > 1.2 and f"below {found.detectable:.3f} cannot be seen" in found.why


def test_one_slow_batch_is_not_enough() -> None:
    rng = np.random.default_rng(5)
    slow = iter([(1.0, 1.5)] * gate.LEAST + [(1.0, 1.0)] * 100)
    found = gate.decide(lambda: next(slow), RULE, rng)
    assert found.verdict == INCONCLUSIVE and "does not confirm" in found.why


def test_below_the_floor_nothing_is_slow() -> None:
    rng = np.random.default_rng(6)
    tiny = replace(RULE, floor=0.01)
    found = gate.decide(source(NOISE["quiet"], 1.3, rng, base=0.005), tiny, rng)
    assert found.verdict == PASS and "floor of 10.0 us" in found.why
    assert found.detectable >= 2.5  # 0.01 ms on top of at most 0.0075
    assert gate.decide(source(NOISE["quiet"], 1.3, rng, base=5), tiny, rng).verdict == FAIL


def test_looks_before_the_end_are_stricter() -> None:
    rng = np.random.default_rng(7)
    some = [(1.0, 1.1 * math.exp(x)) for x in np.linspace(-0.08, 0.08, 12)]
    assert gate.look(some[: gate.LEAST - 1], RULE, rng) == OPEN
    assert gate.look(some, RULE, rng) == OPEN
    assert gate.look(some, replace(RULE, most=12), rng) == SLOWER
    assert gate.look([(1.0, 1.0)] * 8, RULE, rng) == FINE


def test_the_interval_covers() -> None:
    rng = np.random.default_rng(8)
    inside = 0
    for _ in range(200):
        found = gate.interval(rng.normal(0.3, 0.1, 12), 0.95, 400, rng)
        assert found.lo <= found.centre <= found.hi
        inside += found.lo <= 0.3 <= found.hi
    assert inside >= 178  # 0.95 * 200 less four standard deviations of a count
    again = [gate.interval(np.arange(9.0), 0.95, 400, np.random.default_rng(0)) for _ in range(2)]
    assert again[0] == again[1]


def test_one_stray_does_not_move_the_centre() -> None:
    x = np.array([0.0, 0.01, -0.01, 0.02, -0.02, 0.0, 0.01, 5.0])
    assert abs(gate.centre(x)) < 0.02 < np.mean(x)


def test_a_self_check_plants_slowdowns_into_its_own_noise() -> None:
    rng = np.random.default_rng(9)
    pairs = [source(NOISE["quiet"], 1.2, rng)() for _ in range(48)]
    scatter = gate.noise(pairs)
    assert abs(gate.centre(scatter)) < 1e-12  # what the pairs have in common is no noise
    assert gate.share_failed(scatter, 1.0, RULE, rng, trials=20) == 0.0
    assert gate.share_failed(scatter, 1.25, RULE, rng, trials=20) == 1.0


def test_budgets_are_intervals_where_there_are_enough_processes() -> None:
    rng = np.random.default_rng(10)
    times = list(np.linspace(0.9, 1.1, 11))
    assert [gate.budget(times, limit, RULE, rng)[0] for limit in (0.8, 1.0, 1.2)] == [FAIL, INCONCLUSIVE, PASS]
    assert [gate.budget([1.0], limit, RULE, rng)[0] for limit in (0.9, 1.0)] == [FAIL, PASS]
