"""Bayesian Bits: gates of chance over residuals of 2, 4 and 8 bits, and over channels, in one training (methods A.4).

Quantisers and gates are those of `core.supernet_bits`, what they cost is `core.train_bits`' business, the phase is
`core.train_annealed`'s; then fine-tuning with the gates fixed.
"""

from __future__ import annotations

from ..supernet import SuperNet
from ..supernet_bits import BitsNet
from ..train import Job
from ..train_annealed import Stage, annealed
from ..train_bits import Prior
from ..train_gates import finetuned


def search(job: Job) -> SuperNet:
    """The super-net, frozen within its budgets and fine-tuned."""
    net = BitsNet(job.graph, job.space, residual=job.settings.residual)
    stage = Stage("search", job.settings.schedule.epochs_search, job.budgets)
    return finetuned(job, annealed(job, net, Prior(net), stage))
