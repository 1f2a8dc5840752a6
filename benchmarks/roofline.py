"""How fast a step could be on this host at most, from rates measured in the same run. Knows no names of layers.

The bound of a step is the larger of two times: its multiply-accumulates at the peak of its kernel family's innermost
instructions, and the bytes that it must touch at the read rate of a block as large as the network's working set.
Peaks are registers only (csrc/bench/peaks.cc); none is a promise that a kernel can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ..compiler.program import Program, Step
from ..core.encoding import parse

FAMILIES = ("i8dot", "bitserial", "lut")
SECONDS = 0.04  # per rate: hundreds of windows of 0.2 ms, of which some are quiet on a shared host


@dataclass(frozen=True, slots=True)
class Roofs:
    """Rates of all threads together. `operations`: (family, isa) -> operations per second; an absent key is unknown."""

    operations: Mapping[tuple[str, str], float]
    bytes_per_second: float | None


@dataclass(frozen=True, slots=True)
class Work:
    """What one step has to do for one image; `weight_bytes` once per call."""

    macs: int
    bit_products: int  # macs x weight bits x activation bits
    weight_bytes: int
    value_bytes: int  # inputs, residual and output


def work(step: Step, program: Program) -> Work:
    """Counts of a step of `program`, without any padding that a kernel adds."""
    output = program.buffers[step.output]
    data = [program.buffers[number] for number in step.inputs]
    rows, macs, bits, weights = output.shape[0], 0, 0, 0
    if step.weight is not None:
        rows, depth = step.weight.shape
        macs = rows * depth * output.shape[1] * output.shape[2]
        bits = step.weight.encoding.bits * parse(data[0].storage).bits
        weights = int(step.weight.fields.nbytes)
    written = output.bytes * rows // output.shape[0]
    return Work(macs, macs * bits, weights, sum(b.bytes for b in data) + written)


def family(kernel: str) -> str:
    """Family of a kernel row by its name; depthwise and other rows count as int8 dots, the highest roof that fits."""
    return next((name for name in FAMILIES if kernel.startswith(f"{name}_")), "i8dot")


def bound(job: Work, kernel: str, isa: str, roofs: Roofs, batch: int) -> float | None:
    """Least milliseconds of a step on `batch` images; None where a rate that it needs is unknown."""
    if roofs.bytes_per_second is None:
        return None
    memory = (job.weight_bytes + batch * job.value_bytes) / roofs.bytes_per_second
    if not job.macs:
        return memory * 1e3
    rate = roofs.operations.get((family(kernel), isa))
    if rate is None:
        return None
    operations = job.bit_products if family(kernel) == "bitserial" else job.macs
    return max(memory, batch * operations / rate) * 1e3


def measure(native: ModuleType | None, kernels: Iterable[tuple[str, str]], program: Program, threads: int) -> Roofs:
    """Roofs for the (kernel name, isa) pairs in use, `threads` threads at once; all unknown without native code."""
    if native is None:
        return Roofs({}, None)
    held = program.arena_bytes + sum(s.weight.fields.nbytes for s in program.steps if s.weight is not None)
    block = max(4096, held // threads)
    operations = {}
    for key in sorted({(family(name), isa) for name, isa in kernels}):
        rate = _together(threads, lambda key=key: native.peak_rate(*key, SECONDS))  # type: ignore[misc]
        if rate > 0:
            operations[key] = rate
    reading = _together(threads, lambda: native.read_rate(block, SECONDS))
    return Roofs(operations, reading or None)


def _together(threads: int, rate: Callable[[], float]) -> float:
    """Sum of the rates of `threads` threads that measure at the same time; `rate` releases the interpreter lock."""
    with ThreadPoolExecutor(threads) as pool:
        return float(np.sum(list(pool.map(lambda _: rate(), range(threads)))))
