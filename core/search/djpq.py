"""DJPQ: pruning by noise and learned step, range and exponent of every tensor, in one training (methods A.2).

`--restrict pow2` rounds widths to powers of two while it trains, `free` at the end. Quantisers and gates are those of
`core.supernet_vib`, what joins the loss is `core.train_vib`'s business, the phase is `core.train_annealed`'s.
"""

from __future__ import annotations

from dataclasses import replace

from ..cost import Space
from ..graph import Graph
from ..supernet import SuperNet
from ..supernet_vib import norm_of
from ..train import Job
from ..train_annealed import Stage
from ..train_gates import finetuned
from ..train_vib import noised, without_norm


def search(job: Job) -> SuperNet:
    """The super-net, frozen within its budgets and fine-tuned."""
    notes = {"without_norm": without_norm(job)}
    stage = Stage("search", job.settings.schedule.epochs_search, job.budgets, notes=notes)
    return finetuned(job, noised(job, job.space, stage))


def space(graph: Graph, space: Space) -> Space:
    """`space` with gates only where a batch norm can take their means."""
    norms = norm_of(graph, space)
    return replace(space, gates={g: gate for g, gate in space.gates.items() if g in norms})
