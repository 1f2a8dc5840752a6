"""Times calls on a GPU: as one CUDA graph over buffers that together exceed its L2 cache, candidates in turns.

In triton's interpreter, where tensors lie on the CPU, the wall clock takes the graph's place: a rehearsal, no figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from .harness import Timing, measure

Call = Callable[[], object]
BEYOND = 3  # times the L2 cache that rotating buffers take
MOST_COPIES = 64
WARM_UP_SECONDS = 0.02


def copies(size: int, device: str) -> int:
    """How many buffers of so many bytes a candidate goes through, so that none is found in L2."""
    if device == "cpu":
        return 1
    cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
    return min(MOST_COPIES, 1 + -(-BEYOND * cache // max(1, size)))


def as_graph(calls: Sequence[Call], device: str) -> Callable[[], float]:
    """A function that runs all calls as one graph and gives the milliseconds of each, on average."""
    if device == "cpu":
        return lambda: _wall(calls) / len(calls)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles kernels, and lets libraries take their memory
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]

    def run() -> float:
        assert kept, "the graph writes into what its calls gave"
        return _events(graph.replay) / len(calls)

    return run


def as_calls(call: Call, device: str) -> Callable[[], float]:
    """A function that makes the call as it is, for what brings its own graph, and gives its milliseconds."""
    return (lambda: _wall([call])) if device == "cpu" else (lambda: _events(call))


def compare(candidates: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, Timing]:
    """Name -> Timing of what the functions give, in turns for about `seconds`; with 0 each once, for a rehearsal."""
    if not seconds:
        once = {name: run() for name, run in candidates.items()}
        return {name: Timing((time_,), (time_,)) for name, time_ in once.items()}
    return measure(candidates, seconds=seconds, warm_up=WARM_UP_SECONDS, took=lambda _name, _wall, given: float(given))


def _wall(calls: Sequence[Call]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return 1e3 * (time.perf_counter() - start)


def _events(call: Call) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last))
