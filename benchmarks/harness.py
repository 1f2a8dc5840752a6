"""Times several callables against one another on a machine that is not quiet. Knows nothing of networks or kernels.

Blocks of calls are interleaved, so that a busy neighbour slows every candidate alike; what is compared are the medians
of blocks that lie side by side in time. Calls inside a block are not independent: no comparison is drawn from them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 20  # aimed at; more where calls are so short that a block fills up before its time
MIN_ROUNDS = 3  # also where one round takes longer than the time asked for
MAX_CALLS = 200  # per block: bounds the number of samples
WARM_UP_SECONDS = 0.2
# Pause before blocks of threaded candidates. Idle workers of the one before spin on: onnxruntime 1.32 for about 50 ms,
# torch 2.13 (GNU OpenMP) for 9 ms, seen as CPU time of a sleeping process (2 cores of an AMD EPYC, November 2026).
SETTLE_SECONDS = 0.06


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one candidate: every call, and the median of every block."""

    samples: tuple[float, ...]
    blocks: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of all calls."""
        return float(np.median(self.samples))

    @property
    def min(self) -> float:
        """Fastest call."""
        return min(self.samples)

    def percentile(self, percent: float) -> float:
        """Percentile of all calls."""
        return float(np.percentile(self.samples, percent))


def ratio(other: Timing, base: Timing) -> float:
    """Time of `other` / time of `base`: the median of the ratios of neighbouring blocks of one `measure`.

    >>> ratio(Timing((4, 8), (4, 8)), Timing((2, 4), (2, 4)))
    2.0
    """
    return float(np.median([b / a for a, b in zip(base.blocks, other.blocks, strict=True)]))


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    settle: float = 0.0,
    warm_up: float = WARM_UP_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    took: Callable[[str, float, Any], float] = lambda _name, milliseconds, _result: milliseconds,
    observe: Callable[[str, object], None] = lambda _name, _result: None,
    progress: Callable[[float], None] = lambda _share: None,
) -> dict[str, Timing]:
    """Name -> Timing, from interleaved rounds that take about `seconds` in all (warm-up and pauses apart).

    In every round each candidate gets one block: one call that is not counted (it fetches caches, wakes threads), then
    as many as fit. The order rotates. `settle`: pause before each block; `warm_up`: seconds for each candidate before
    the first round. `took`: from a name, the milliseconds of a call and what it returned, to the milliseconds that
    count, where a call does more than what is measured. `observe` is given the name and what a counted call returned;
    `progress` the share done, 0..1.
    """
    calls = {name: _calls(fn, seconds / ROUNDS / len(candidates), warm_up, clock) for name, fn in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    blocks: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    spent, done = 0.0, 0
    while done < MIN_ROUNDS or spent < seconds:
        turn = done % len(names)
        for name in (*names[turn:], *names[:turn]):
            if settle:
                time.sleep(settle)
            begin = clock()
            candidates[name]()
            block = []
            for _ in range(calls[name]):
                start = clock()
                result = candidates[name]()
                block.append(took(name, (clock() - start) * 1e3, result))
                observe(name, result)
            spent += clock() - begin
            samples[name] += block
            blocks[name].append(float(np.median(block)))
        done += 1
        progress(min(1.0, spent / seconds, done / MIN_ROUNDS))
    return {name: Timing(tuple(samples[name]), tuple(blocks[name])) for name in names}


def _calls(fn: Callable[[], object], block_seconds: float, warm_up: float, clock: Callable[[], float]) -> int:
    """Warms `fn` up; how many calls of it fill a block."""
    begin = clock()
    fn()
    times = [clock() - begin]
    while len(times) < 3 or (clock() - begin < warm_up and len(times) < 10 * MAX_CALLS):
        start = clock()
        fn()
        times.append(clock() - start)
    one = max(float(np.median(times[1:])), 1e-9)
    return int(np.clip(block_seconds / one, 1, MAX_CALLS))


@contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Binds this thread, and the threads it starts, to `threads` CPUs on different cores; gives their numbers.

    Empty, and nothing is bound, where the system cannot or has fewer CPUs. The earlier binding is restored.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    before = os.sched_getaffinity(0)
    chosen = _cpus(before, threads)
    if len(chosen) < threads:
        yield ()
        return
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def _cpus(allowed: set[int], count: int) -> tuple[int, ...]:
    """`count` of the allowed CPUs, siblings of a core last; the last ones first, since interrupts prefer CPU 0."""
    cores: dict[str, list[int]] = {}
    for cpu in sorted(allowed, reverse=True):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(path.read_text() if path.exists() else str(cpu), []).append(cpu)
    depth = max(map(len, cores.values()), default=0)
    order = [siblings[level] for level in range(depth) for siblings in cores.values() if level < len(siblings)]
    return tuple(order[:count])
