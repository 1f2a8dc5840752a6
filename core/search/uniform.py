"""Uniform: quantisation-aware training at one pair of widths, nothing searched, nothing pruned; the baseline.

The quantisers, the 8-bit ends, the losses and the schedule of fine-tuning are those of the searches, so that points of
equal total epochs compare (methods F).
"""

from __future__ import annotations

from ..cost import largest
from ..job import Schedule
from ..supernet import SuperNet
from ..supernet_starts import fit
from ..train import Job
from ..train_gates import FINETUNE_COST, finetuned, settled


def search(job: Job) -> SuperNet:
    """The net at the only point of its space, trained."""
    net, loop = SuperNet(job.graph, job.space, residual=job.settings.residual), job.loop
    if "uniform" in loop.carry:
        net.load_state_dict(loop.carry["uniform"])
    else:
        fit(net, job.calibration())
        settled(job, net, largest(job.space))
        loop.finish("uniform", net.state_dict())
    return finetuned(job, net)


def agenda(schedule: Schedule) -> tuple[tuple[str, int, float], ...]:
    """(phase, epochs, relative price of a step) after the float network."""
    return (("finetune", schedule.epochs_finetune, FINETUNE_COST),)
