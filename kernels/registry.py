"""ROWS: every kernel there is, native and reference; the choice among them, explained. No registration by import.

The native module chooses for itself when a program is loaded (csrc/kernels/dispatch.cc, by the same list); `explain`
asks it. Without it numpy runs everything, and `baseline` still says which row any host has.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType

from ..core.errors import UnsupportedError, UsageError
from . import native, reference
from .kernel import Kernel, Problem

ROWS: tuple[Kernel, ...] = (*native.rows(), *reference.ROWS)
BASELINE = "generic"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `explain` says of one row: its cost (smaller is better; None where it does not fit) and why."""

    kernel: Kernel
    cost: float | None
    why: str


def baseline(problem: Problem) -> Kernel:
    """The row that every host can run; the same on all of them, so it may be written into files.

    UnsupportedError, naming op and bits, where no row fits.
    """
    reasons = []
    for row in ROWS:
        if row.isa != BASELINE or row.op != problem.op:
            continue
        reason = row.fits(problem)
        if reason is None:
            return row
        reasons.append(f"{row.name} {reason}")
    known = "; ".join(reasons) or f"known ops are {', '.join(dict.fromkeys(row.op for row in ROWS))}"
    raise UnsupportedError(f"no kernel for {problem.op} at {problem.bits}: {known}. Choose other bits for this layer")


def explain(problem: Problem) -> tuple[Verdict, ...]:
    """Every row on this host, as BITPRESS_FORCE_ISA and BITPRESS_FORCE_KERNEL leave it, with cost or reason."""
    module = _module()
    by_name = {row.name: row for row in ROWS}
    out = []
    if module is not None:
        w, a = "" if problem.w is None else problem.w.name, str(problem.a)
        for name, cost, why in module.explain(
            problem.op, w, a, problem.rows, problem.depth, problem.pixels, problem.groups, problem.tiles,
            problem.largest, problem.reach, problem.digits, problem.by_law,
        ):  # fmt: skip
            out.append(Verdict(by_name[name], cost, why))
    for row in reference.ROWS:
        reason = row.fits(problem)
        if reason is not None:
            out.append(Verdict(row, None, reason))
        elif module is None:
            out.append(Verdict(row, 0.0, "the native module is not in use"))
        else:
            out.append(Verdict(row, None, "native rows are in use"))
    return tuple(out)


def find(problem: Problem, isa: str | None = None) -> Kernel:
    """Cheapest row on this host; UnsupportedError, with the reasons, if none fits.

    `isa`: a cap, rows of that ISA and of those it contains; UsageError where there is none of that name.
    """
    if isa == BASELINE:
        return baseline(problem)
    known = {**native.contained(), reference.REFERENCE: (reference.REFERENCE,)}
    if isa is not None and isa not in known:
        raise UsageError(f"ISA {isa!r} is unknown; valid: {', '.join(known)}")
    verdicts = [v for v in explain(problem) if isa is None or v.kernel.isa in known[isa]]
    usable = [(v.cost, i) for i, v in enumerate(verdicts) if v.cost is not None]
    if not usable:
        reasons = "; ".join(f"{v.kernel.name}: {v.why}" for v in verdicts if v.kernel.op == problem.op)
        raise UnsupportedError(f"no kernel for {problem.op} at {problem.bits} here: {reasons or 'no such op or ISA'}")
    return verdicts[min(usable)[1]].kernel


def _module() -> ModuleType | None:
    if os.environ.get("BITPRESS_NATIVE") == "0" or os.environ.get("BITPRESS_FORCE_ISA") == reference.REFERENCE:
        return None
    try:
        from .. import _native
    except ImportError:
        return None
    module: ModuleType = _native
    return module
