"""The harness counts, interleaves and compares as it says; nothing here depends on how fast the machine is."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from bitpress.benchmarks.harness import MIN_ROUNDS, Timing, measure, pinned, ratio


class Clock:
    """Time that passes only where a candidate says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, *milliseconds: float) -> Callable[[], None]:
        turn = iter(range(10**9))

        def run() -> None:
            self.order.append(name)
            self.now += milliseconds[next(turn) % len(milliseconds)] / 1e3

        return run


def test_times_are_milliseconds_of_single_calls() -> None:
    clock = Clock()
    timing = measure({"a": clock.candidate("a", 2.0)}, seconds=0.1, clock=clock)["a"]
    assert timing.median == pytest.approx(2.0) and timing.min == pytest.approx(2.0)
    assert timing.percentile(90) == pytest.approx(2.0)
    assert sum(timing.samples) / 1e3 <= 0.2


def test_ratio_is_paired() -> None:
    clock = Clock()
    timings = measure(
        {"us": clock.candidate("us", 1.0), "peer": clock.candidate("peer", 2.5)}, seconds=0.5, clock=clock
    )
    assert ratio(timings["peer"], timings["us"]) == pytest.approx(2.5)
    # a neighbour that doubles every time in half of the rounds does not change a paired ratio
    slow = Timing((), (1.0, 2.0, 1.0, 2.0)), Timing((), (3.0, 6.0, 3.0, 6.0))
    assert ratio(slow[1], slow[0]) == 3.0


def test_blocks_are_interleaved_and_order_rotates() -> None:
    clock = Clock()
    names = ("a", "b", "c")
    timings = measure({n: clock.candidate(n, 100.0) for n in names}, seconds=2.0, clock=clock)
    timed = clock.order[-len(names) * 2 * len(timings["a"].blocks) :]  # one uncounted and one counted call a block
    rounds = ["".join(timed[i : i + 6 : 2]) for i in range(0, len(timed), 6)]
    assert rounds[:4] == ["abc", "bca", "cab", "abc"]
    assert all(len(t.blocks) == len(t.samples) for t in timings.values())


def test_slow_candidates_still_get_rounds() -> None:
    clock = Clock()
    shares: list[float] = []
    timing = measure({"a": clock.candidate("a", 5000.0)}, seconds=0.1, clock=clock, progress=shares.append)["a"]
    assert len(timing.blocks) == MIN_ROUNDS
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_first_call_of_a_block_is_not_counted() -> None:
    clock = Clock()
    counts = {"calls": 0}

    def cold_after_other() -> None:
        counts["calls"] += 1
        clock.now += 9.0 if clock.order and clock.order[-1] == "other" else 1.0
        clock.order.append("us")

    timings = measure({"us": cold_after_other, "other": clock.candidate("other", 1000.0)}, seconds=1.0, clock=clock)
    assert set(timings["us"].samples) == {1000.0}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot bind threads to CPUs")
def test_pinned_binds_and_restores() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cpus:
        assert len(cpus) == 1 and os.sched_getaffinity(0) == set(cpus)
    with pinned(10**6) as cpus:
        assert cpus == () and os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before
