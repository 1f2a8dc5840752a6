"""`bench gemm`: every kernel row on layers as M x K x N, beside the host's roofs and peers. Formats nothing.

A row of the result is one kernel on one shape at one pair of bits. Its output is compared with the numpy reference
before anything is timed, and its time is that of the one step, by the session's own clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import ModuleType
from typing import Any

import numpy as np

from ..cli.environment import lacks
from ..compiler import artifact
from ..compiler.model import native_module
from ..core.encoding import parse_bits
from ..core.errors import CheckFailed, EnvironmentMissing, UsageError, close
from ..core.host import head
from ..kernels import native as native_rows
from ..kernels.kernel import Kernel
from ..kernels.registry import ROWS, explain
from . import peers_gemm, roofline
from .harness import SETTLE_SECONDS, Timing, measure, pinned, ratio
from .peers import at_hand, check
from .peers_gemm import GemmPeer, Layer
from .shapes import CONV, Case, Shape, case, check_depth, encodings, session, shapes

ALL = "all"
WARM_UP_SECONDS = 0.01  # of a candidate: there are hundreds, and each block begins with a call that does not count
CYCLES = 15  # runs, with the clock behind each
TICK = 1e-6  # milliseconds: the clock's own step, so that no rate is infinite
NO_TIME: Mapping[str, Any] = {
    "kernel": None, "chosen": False, "median": None, "min": None, "gmacs": None, "peak": None, "bound": None,
    "limit": None, "efficiency": None, "cycles": None, "peak_cycles": None, "peers": [],
}  # fmt: skip


def bench_gemm(
    asked: Sequence[str],
    *,
    bits: Sequence[str],
    isas: Sequence[str] = (ALL,),
    vs: Sequence[str] | None = None,
    threads: Sequence[int] = (1,),
    seconds: float = 0.05,
    seed: int = 0,
    nonzero: float | None = None,
    progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> dict[str, Any]:
    """The `bitpress.gemm` document: times in milliseconds, one entry of `rows` per threads, shape, bits and kernel.

    `asked`: M x K x N, or networks of which every distinct layer is a shape. `isas`: kernels of these; "all": of every
    one that this host has. `vs`: names of `peers_gemm.FAMILIES`; None: those that are installed. `seconds`: for each
    kernel and peer on a shape at one pair of bits. `nonzero`: share of weights that are not 0, on grids that have a 0;
    None: as evenly drawn levels have it. UsageError: a shape, width or ISA that there is not;
    EnvironmentMissing: one that this host lacks; CheckFailed: a kernel that computes something else.
    """
    module = needed("bench gemm")
    wanted, left_out = _isas(module, isas), ""
    if vs is None:
        vs, left_out = at_hand(tuple(peers_gemm.FAMILIES), peers_gemm.FAMILIES)
    check(vs, peers_gemm.FAMILIES)
    pairs = {text: _pair(text) for text in bits}
    progress("bench gemm, shapes", 0.0)
    groups = [_group(shape, text, pair, wanted) for shape in shapes(asked) for text, pair in pairs.items()]
    rows: list[dict[str, Any]] = []
    roofs = []
    for i, count in enumerate(threads):

        def share(what: str, part: float, i: int = i, count: int = count) -> None:
            progress(f"bench gemm, {what}, {count} thread{'s' if count > 1 else ''}", (i + part) / len(threads))

        with pinned(count):
            share("roofs", 0.0)
            timer = _Timer(module, _roof(module, groups, count), tuple(vs), count, seconds, seed, nonzero)
            roofs.append(timer.roof.document())
            rows += timer.rows(groups, share)
    return {
        **head("bitpress.gemm", isa=wanted[-1], threads=max(threads)),
        "shapes": list(asked), "bits": list(pairs), "isas": list(wanted), "seed": seed, "nonzero": nonzero,
        "peers_left_out": left_out, "rows": rows, "misfits": _misfits(groups), "roofs": roofs,
    }  # fmt: skip


def needed(verb: str) -> ModuleType:
    """The native module; EnvironmentMissing where there is none for `verb` to time."""
    found = native_module()
    if found is None:
        raise EnvironmentMissing(
            f"{verb} times native kernels, and the native module is not in use: install with it, and without "
            "BITPRESS_NATIVE=0 and BITPRESS_FORCE_ISA=reference"
        )
    return found


def usable_isas(module: ModuleType) -> list[str]:
    """Those of this host that BITPRESS_FORCE_ISA leaves, the best last."""
    cap = os.environ.get("BITPRESS_FORCE_ISA")
    return [isa for isa in module.cpu_isas() if not cap or isa in native_rows.contained()[cap]]


def _isas(module: ModuleType, asked: Sequence[str]) -> tuple[str, ...]:
    """The instruction sets asked for, in the order of isa.def."""
    known, cap, usable = native_rows.isas(), os.environ.get("BITPRESS_FORCE_ISA"), usable_isas(module)
    for name in asked:
        if name not in (ALL, *known):
            raise UsageError(f"--isa {name!r} is unknown{close(name, known)}; valid: {', '.join((ALL, *known))}")
        if name not in (ALL, *usable):
            missing = ", ".join(lacks(name))
            why = f"this host lacks {missing}" if missing else f"BITPRESS_FORCE_ISA={cap} leaves it out"
            raise EnvironmentMissing(f"--isa {name}: {why}; usable here: {', '.join(usable)}")
    if not asked:
        raise UsageError(f"--isa is empty; valid: {', '.join((ALL, *known))}")
    return tuple(usable) if ALL in asked else tuple(isa for isa in usable if isa in asked)


def _pair(text: str) -> tuple[int, int]:
    try:
        return parse_bits(text)
    except ValueError as error:
        raise UsageError(f"--bits: {error}") from error


@dataclass(frozen=True, slots=True)
class _Group:
    """A shape at one pair of bits: kernels of the asked ISAs that compute it here, and why others do not.

    `idle`: asked ISAs of which no kernel does. `chosen`: the kernel that a compiled network would get here.
    """

    shape: Shape
    bits: str
    pair: tuple[int, int]
    kernels: tuple[Kernel, ...]
    misfits: Mapping[str, str]
    idle: tuple[str, ...]
    chosen: str


def _group(shape: Shape, bits: str, pair: tuple[int, int], wanted: Sequence[str]) -> _Group:
    w, a = encodings(pair)
    problem = shape.problem(w, a)
    rows = [row for row in ROWS if row.op == problem.op and row.isa in wanted]
    reasons = {row.name: row.fits(problem) or "" for row in rows}
    chosen = ""
    if "" in reasons.values():
        check_depth(shape, w, a)
        verdicts = {v.kernel.name: v for v in explain(problem)}
        reasons = {
            name: why or (verdicts[name].why if verdicts[name].cost is None else "") for name, why in reasons.items()
        }
        costs = {name: v.cost for name, v in verdicts.items() if v.cost is not None}
        chosen = min(costs, key=lambda name: costs[name], default="")
    kernels = tuple(row for row in rows if not reasons[row.name])
    idle = tuple(isa for isa in wanted if isa not in {row.isa for row in kernels})
    return _Group(shape, bits, pair, kernels, {n: why for n, why in reasons.items() if why}, idle, chosen)


def _misfits(groups: Sequence[_Group]) -> list[dict[str, str]]:
    """Kernels of the asked ISAs that cannot compute some of the bits, each once, with the reason."""
    found = {(group.shape.op, group.bits, kernel): why for group in groups for kernel, why in group.misfits.items()}
    return [{"op": op, "bits": bits, "kernel": kernel, "why": why} for (op, bits, kernel), why in found.items()]


@dataclass(frozen=True, slots=True)
class _Roof:
    """What `threads` threads of this host can do at most. `per_cycle`: of one."""

    threads: int
    operations: Mapping[tuple[str, str], float]
    levels: tuple[roofline.Level, ...]
    per_cycle: Mapping[tuple[str, str], float]

    def over(self, work: roofline.Work) -> roofline.Roofs:
        """Roofs of one layer, whose bytes lie in the nearest cache that holds them."""
        return roofline.Roofs(self.operations, roofline.rate_for(work.weight_bytes + work.value_bytes, self.levels))

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        rates = {f"{family}_{isa}": rate for (family, isa), rate in sorted(self.operations.items())}
        levels = [
            {"name": one.name, "bytes": one.bytes, "block": one.block, "bytes_per_second": one.bytes_per_second}
            for one in self.levels
        ]
        cycles = {f"{family}_{isa}": rate for (family, isa), rate in sorted(self.per_cycle.items())}
        return {
            "threads": self.threads, "operations_per_second": rates, "operations_per_cycle": cycles, "levels": levels,
        }  # fmt: skip


def _roof(module: ModuleType, groups: Sequence[_Group], threads: int) -> _Roof:
    kernels = {(row.name, row.isa) for group in groups for row in group.kernels}
    operations = roofline.operations(module, kernels, threads)
    per_cycle = roofline.per_cycle(module, operations) if threads == 1 else {}
    return _Roof(threads, operations, roofline.levels(module, threads), per_cycle)


@dataclass(frozen=True, slots=True)
class _Timer:
    """Times groups with one number of threads. `vs`: families of peers; `seconds`: for each candidate of a group."""

    module: ModuleType
    roof: _Roof
    vs: tuple[str, ...]
    threads: int
    seconds: float
    seed: int
    nonzero: float | None

    def rows(self, groups: Sequence[_Group], share: Callable[[str, float], None]) -> list[dict[str, Any]]:
        """Rows of the document. Peers are made once a shape, and timed with every pair of bits."""
        out: list[dict[str, Any]] = []
        done = 0
        for shape, same in groupby(groups, key=lambda group: group.shape):
            with ExitStack() as stack:
                peers: dict[GemmPeer, float] = {}
                for group in same:
                    share(f"{shape} {group.bits}", done / len(groups))
                    if group.kernels and not peers:
                        peers = self._peers(shape, stack)
                    out += self._timed(group, peers)
                    done += 1
        share("all shapes", 1.0)
        return out

    def _peers(self, shape: Shape, stack: ExitStack) -> dict[GemmPeer, float]:
        """Ready peers on a layer of that shape -> share of their outputs that is equal to the reference."""
        if not self.vs:
            return {}
        layer = Layer(shape, self.seed)
        made = [stack.enter_context(peers_gemm.FAMILIES[name].make(layer, self.threads)) for name in self.vs]
        return {peer: layer.matches(peer) for peer in made}

    def _timed(self, group: _Group, peers: Mapping[GemmPeer, float]) -> list[dict[str, Any]]:
        """Rows of one group: its kernels, then the ISAs that have none."""
        known = {
            "shape": str(group.shape), "op": group.shape.op, "layers": list(group.shape.layers), "bits": group.bits,
            "threads": self.threads, "macs": group.shape.macs,
        }  # fmt: skip
        idle = [{**known, **NO_TIME, "isa": isa, "why": _idle(group, isa)} for isa in group.idle]
        if not group.kernels:
            return idle
        made = case(group.shape, *encodings(group.pair), seed=self.seed, nonzero=self.nonzero)
        sessions = self._sessions(group, made)
        timings = self._timings(sessions, made, [peer for peer, matches in peers.items() if matches])
        cycles = {
            name: float(np.median([one.cycles(made.x)[CONV] for _ in range(CYCLES)]))
            for name, one in sessions.items()
            if self.threads == 1
        }
        return [
            {**known, **self._row(group, row, made, timings, cycles, peers), "why": ""} for row in group.kernels
        ] + idle

    def _sessions(self, group: _Group, made: Case) -> dict[str, Any]:
        data = artifact.encode(made.program)
        return {row.name: self._session(data, row.name, made, group) for row in group.kernels}

    def _timings(self, sessions: Mapping[str, Any], made: Case, peers: Sequence[GemmPeer]) -> dict[str, Timing]:
        """Of kernels and peers, from one interleaved run."""
        x = made.x
        candidates: dict[str, Callable[[], Any]] = {n: partial(s.profile, x) for n, s in sessions.items()}
        candidates |= {peer.name: peer.run for peer in peers}
        copies = {peer.name: peer.copies for peer in peers}

        def took(name: str, milliseconds: float, result: Any) -> float:
            return max(float(result[CONV]), TICK) if name in sessions else milliseconds / copies[name]

        settle = SETTLE_SECONDS if self.threads > 1 and peers else 0.0
        return measure(
            candidates, seconds=self.seconds * len(candidates), settle=settle, warm_up=WARM_UP_SECONDS, took=took
        )

    def _session(self, data: bytes, kernel: str, made: Case, group: _Group) -> Any:
        """The layer bound to `kernel`; CheckFailed unless it computes what numpy does, bit by bit."""
        made_session = session(self.module, data, kernel, self.threads)
        bound = made_session.steps()[CONV]["kernel"]
        off = int((made_session.run(made.x) != made.want).sum())
        if bound != kernel or off:
            raise CheckFailed(
                f"{kernel} on {group.shape} at {group.bits}: {bound} ran, and {off} of {made.want.size} outputs differ "
                "from the reference; nothing is timed"
            )
        return made_session

    def _row(
        self, group: _Group, row: Kernel, made: Case, timings: Mapping[str, Timing], cycles: Mapping[str, float],
        peers: Mapping[GemmPeer, float],
    ) -> dict[str, Any]:  # fmt: skip
        timing, macs = timings[row.name], group.shape.macs
        work = roofline.work(made.step, made.program)
        least = roofline.bound(work, row.name, row.isa, self.roof.over(work), 1)
        key = roofline.family(row.name), row.isa
        peak = self.roof.operations.get(key)
        operations = roofline.operations_of(work, row.name)
        if peak is not None:  # of multiply-accumulates; bit slices may have nothing to add
            peak = peak * work.macs / operations if operations else None
        return {
            "kernel": row.name, "isa": row.isa, "chosen": row.name == group.chosen, "median": timing.median,
            "min": timing.min, "gmacs": 1e-6 * macs / timing.median, "peak": None if peak is None else 1e-9 * peak,
            "bound": None if least is None else least.least,
            "limit": None if least is None else least.limit,
            "efficiency": None if least is None else least.least / timing.median,
            "cycles": cycles.get(row.name),
            "peak_cycles": operations / self.roof.per_cycle[key] if key in self.roof.per_cycle else None,
            "peers": [_peer(peer, matches, timings, timing) for peer, matches in peers.items()],
        }  # fmt: skip


def _idle(group: _Group, isa: str) -> str:
    reasons = [f"{row.name} {group.misfits[row.name]}" for row in ROWS if row.isa == isa and row.name in group.misfits]
    return "; ".join(reasons) or f"{isa} has no kernel for {group.shape.op}"


def _peer(peer: GemmPeer, matches: float, timings: Mapping[str, Timing], ours: Timing) -> dict[str, Any]:
    """A peer that computes something else is named, and has no time."""
    timing = timings.get(peer.name)
    return {
        "name": peer.name, "version": peer.version, "median": None if timing is None else timing.median,
        "ratio": None if timing is None else ratio(timing, ours), "output_matches": matches,
    }  # fmt: skip
