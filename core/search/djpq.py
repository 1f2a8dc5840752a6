"""DJPQ: pruning by noise and learned step, range and exponent of every tensor, in one training (methods A.2).

`--restrict pow2` rounds widths to powers of two while it trains, `free` at the end. Quantisers and gates are those of
`core.supernet_vib`, the phase that moves them is `core.train_vib`'s.
"""

from __future__ import annotations

from dataclasses import replace

from ..cost import Space, open_ends
from ..graph import Graph
from ..supernet import SuperNet
from ..supernet_vib import norm_of
from ..train import Job
from ..train_gates import finetuned
from ..train_vib import annealed


def search(job: Job) -> SuperNet:
    """The super-net, frozen within its budgets and fine-tuned."""
    return finetuned(job, annealed(job))


def space(graph: Graph, space: Space, convention: str) -> Space:
    """`space` with gates only where a batch norm can take their means; in convention djpq the ends are searched too."""
    norms = norm_of(graph, space)
    space = replace(space, gates={g: gate for g, gate in space.gates.items() if g in norms})
    return open_ends(graph, space) if convention == "djpq" else space
