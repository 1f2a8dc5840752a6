"""AJPQ: two controllers learn, by reward, how many channels of a layer stay and how wide each filter is (methods A.3).

`--precision mixed` lets filters of a layer differ, `fixed:N` holds one width and searches sparsity alone. Only the
abstract of the paper was found: what the docs mark as reconstruction is ours.
"""

from __future__ import annotations

from dataclasses import replace

from ..cost import Space
from ..errors import UnsupportedError, UsageError
from ..plan import WEIGHT_BITS
from ..supernet import SuperNet
from ..train import Job
from ..train_gates import finetuned

MIXED, FIXED = "mixed", "fixed"


def search(job: Job) -> SuperNet:
    """The net at the best plan that the controllers made, fine-tuned."""
    from ..train_agents import allotted  # which needs the extra [rl]

    return finetuned(job, allotted(job), before=0)


def space(space: Space, precision: str) -> Space:
    """The widths of `precision`; UsageError for a word that is none, UnsupportedError for a width without a kernel."""
    if precision == MIXED:
        if not space.searched and not space.open:
            raise UnsupportedError("--method ajpq: between its two ends this network has nothing to decide")
        return space
    word, _, bits = precision.partition(":")
    if word != FIXED or not bits.isdecimal():
        raise UsageError(f"--precision {precision!r} is none of {MIXED}, {FIXED}:N, for example {FIXED}:4")
    if int(bits) not in WEIGHT_BITS:
        widths = ", ".join(map(str, WEIGHT_BITS))
        raise UnsupportedError(f"--precision {precision}: weights of {bits} bits have no kernel; there are {widths}")
    if not space.open:
        raise UnsupportedError(
            f"--precision {precision} searches which channels stay, and this network has none that may be removed, or "
            f"the pruning ratio allows none; --method uniform --bits w{bits}a{bits} trains that"
        )
    return replace(space, widths=(int(bits),))
