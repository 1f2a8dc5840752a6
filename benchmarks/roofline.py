"""How fast a step could be on this host at most, from rates measured in the same run. Knows no names of layers.

The bound of a step is the larger of two times: its multiply-accumulates at the peak of its kernel family's innermost
instructions, and the bytes that it must touch at the read rate of a block as large as the network's working set.
Peaks are registers only (csrc/bench/peaks.cc); none is a promise that a kernel can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from ..compiler.program import Program, Step
from ..core.encoding import parse

FAMILIES = ("i8dot", "i8dot16", "bitserial", "bitsliced", "lut")
INSIDE = {"winograd16": "i8dot", "winograd8": "i8dot16", "gemv": "i8dot16"}  # whose instructions are their innermost
WINOGRAD = 4 / 9  # products of a tile, 16, over those of its four windows
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MOST_READ = 1 << 29  # bytes: more than four times the last cache of most hosts
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
    bit_additions: int  # digits of weights that are not 0 x activation bits x pixels
    weight_bytes: int
    value_bytes: int  # inputs, residual and output


def work(step: Step, program: Program) -> Work:
    """Counts of a step of `program`, without any padding that a kernel adds."""
    output = program.buffers[step.output]
    data = [program.buffers[number] for number in step.inputs]
    rows, macs, bits, additions, weights = output.shape[0], 0, 0, 0, 0
    if step.weight is not None:
        rows, depth = step.weight.shape
        pixels, act_bits = output.shape[1] * output.shape[2], parse(data[0].storage).bits
        macs = rows * depth * pixels
        bits = step.weight.encoding.bits * act_bits
        additions = step.weight.digits * act_bits * pixels
        weights = int(step.weight.fields.nbytes)
    written = output.bytes * rows // output.shape[0]
    return Work(macs, macs * bits, additions, weights, sum(b.bytes for b in data) + written)


def family(kernel: str) -> str:
    """Family whose innermost instructions a kernel row has, by its name; depthwise rows multiply as int8 dots do."""
    name = kernel.split("_")[0]
    return INSIDE.get(name, name if name in FAMILIES else "i8dot")


@dataclass(frozen=True, slots=True)
class Bound:
    """Least milliseconds of a step: by its multiply-accumulates, by its bytes."""

    arithmetic: float
    memory: float

    @property
    def least(self) -> float:
        """The larger one: both go on at the same time, at best."""
        return max(self.arithmetic, self.memory)

    @property
    def limit(self) -> str:
        """Which of the two it is: "arithmetic" or "bytes"."""
        return "arithmetic" if self.arithmetic >= self.memory else "bytes"


def bound(job: Work, kernel: str, isa: str, roofs: Roofs, batch: int) -> Bound | None:
    """Bound of a step on `batch` images; None where a rate that it needs is unknown."""
    if roofs.bytes_per_second is None:
        return None
    memory = 1e3 * (job.weight_bytes + batch * job.value_bytes) / roofs.bytes_per_second
    if not job.macs:
        return Bound(0.0, memory)
    rate = roofs.operations.get((family(kernel), isa))
    if rate is None:
        return None
    return Bound(1e3 * batch * operations_of(job, kernel) / rate, memory)


def operations_of(job: Work, kernel: str) -> float:
    """What the rate of a kernel row's family counts."""
    if kernel.startswith("winograd"):
        return WINOGRAD * job.macs
    return {"bitserial": job.bit_products, "bitsliced": job.bit_additions}.get(family(kernel), job.macs)


def measure(native: ModuleType | None, kernels: Iterable[tuple[str, str]], program: Program, threads: int) -> Roofs:
    """Roofs for the (kernel name, isa) pairs in use, `threads` threads at once; all unknown without native code.

    Bytes are read from a block of the size of all that `program` holds.
    """
    if native is None:
        return Roofs({}, None)
    held = program.arena_bytes + sum(s.weight.fields.nbytes for s in program.steps if s.weight is not None)
    return Roofs(operations(native, kernels, threads), reading(native, max(4096, held // threads), threads))


def operations(native: ModuleType, kernels: Iterable[tuple[str, str]], threads: int) -> Mapping[tuple[str, str], float]:
    """(family, isa) -> operations per second, for those of the (kernel name, isa) pairs whose peak is known."""
    keys = sorted({(family(name), isa) for name, isa in kernels})
    rates = {key: _together(threads, lambda key=key: native.peak_rate(*key, SECONDS)) for key in keys}  # type: ignore[misc]
    return {key: rate for key, rate in rates.items() if rate > 0}


def per_cycle(native: ModuleType, keys: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], float]:
    """The same for `keys`, per cycle of one core, whose clock depends on what it does, and on its neighbours."""
    return {key: float(native.peak_per_cycle(*key, SECONDS / 4)) for key in keys}


def reading(native: ModuleType, block: int, threads: int) -> float | None:
    """Bytes per second of `threads` threads that each read their own `block` bytes over and over; None if unknown."""
    return _together(threads, lambda: native.read_rate(block, SECONDS)) or None


@dataclass(frozen=True, slots=True)
class Level:
    """A cache or the memory behind all. `bytes`: what all threads together can keep there, None for the memory.

    `block`: what each thread read to measure it; `bytes_per_second`: of all of them.
    """

    name: str
    bytes: int | None
    block: int
    bytes_per_second: float | None


def levels(native: ModuleType, threads: int) -> tuple[Level, ...]:
    """Read rate of every cache of a core and of the memory, nearest first; none where the system names no cache."""
    out, nearest = [], 4096
    sizes = cache_sizes()
    for number, (size, shared) in sizes.items():
        block = max(nearest, size // 2 // (threads if shared else 1))
        out.append(Level(f"L{number}", size * (1 if shared else threads), block, reading(native, block, threads)))
        nearest = 2 * block
    if sizes:
        block = min(MOST_READ, 4 * max(size for size, _ in sizes.values())) // threads
        out.append(Level("memory", None, block, reading(native, block, threads)))
    return tuple(out)


def cache_sizes(folder: Path = CACHES) -> dict[int, tuple[int, bool]]:
    """Level -> bytes, and whether it is the last one, which cores share; of data, nearest first, by Linux's account."""
    found = {}
    for index in sorted(folder.glob("index*")):
        kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            found[int(level)] = int(size.removesuffix("K")) << 10
    return {level: (found[level], level == max(found) > 2) for level in sorted(found)}


def rate_for(held: int, at: Sequence[Level]) -> float | None:
    """Bytes per second of the nearest level that keeps `held` bytes; None where no level is known."""
    return next((one.bytes_per_second for one in at if one.bytes is None or held <= one.bytes), None)


def _together(threads: int, rate: Callable[[], float]) -> float:
    """Sum of the rates of `threads` threads that measure at the same time; `rate` releases the interpreter lock."""
    with ThreadPoolExecutor(threads) as pool:
        return float(np.sum(list(pool.map(lambda _: rate(), range(threads)))))
