"""SBS: joint pruning and bit-widths by gates on a single path (methods A.1), steered to a budget.

One search phase over what the mode leaves open (joint: all; bits: nothing is pruned; prune: widths are given), then
fine-tuning. Gates, objective and controller are those of `core.train_gates`.
"""

from __future__ import annotations

from ..supernet import SuperNet
from ..train import Job
from ..train_gates import finetuned, searched


def search(job: Job) -> SuperNet:
    """The super-net, frozen within its budgets and fine-tuned."""
    net = SuperNet(job.graph, job.space, residual=job.settings.residual)
    searched(job, net, name="search", epochs=job.settings.schedule.epochs_search, budgets=job.budgets)
    return finetuned(job, net)
