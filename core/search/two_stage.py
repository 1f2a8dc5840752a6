"""Two-stage: prune at given widths, then search the widths of the pruned net; the baseline of joint search (methods C).

Gates, quantisers, controller and losses are those of SBS, and so are the epochs in all: the stages halve those of the
search. Of what ln(figure) must lose from the given widths, unpruned, to the budget, `prune_share` falls to pruning, the
rest to the widths.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..cost import Budget, Choice, Costs, Step, hold_bits, largest, project, smallest
from ..encoding import parse_bits
from ..job import Schedule
from ..supernet import SuperNet, inherit
from ..train import Job
from ..train_gates import FINETUNE_COST, SEARCH_COST, Loss, finetuned, searched


def search(job: Job) -> SuperNet:
    """The net, pruned, then narrowed within its budgets, then fine-tuned."""
    settings, share = job.settings, job.settings.prune_share
    assert share is not None, "the registry gives one to this method"
    pruning, narrowing = epochs_of(settings.schedule)
    space = hold_bits(job.graph, job.space, parse_bits(settings.bits))
    bounds = split(Costs(job.graph, space), job.budgets, share)
    notes = {
        "split": {
            "prune_share": share, "bits": settings.bits, "epochs": [pruning, narrowing],
            "prune": {b.kind: b.value for b in bounds},
        }
    }  # fmt: skip
    costs = Costs(job.graph, job.space)

    def reachable(choice: Choice, loss: Loss) -> tuple[Choice, list[Step]]:
        """Prunes on where even the least widths would not bring this choice into the budgets."""
        least = replace(smallest(job.space), parts=choice.parts)
        found, steps = project(costs, job.budgets, least, loss)
        return replace(choice, parts=found.parts), steps

    pruned = SuperNet(job.graph, space, residual=settings.residual)
    searched(job, pruned, name="prune", epochs=pruning, budgets=bounds, after=reachable, notes=notes)
    net = SuperNet(job.graph, replace(job.space, cut=dict(pruned.choice().parts)), residual=settings.residual)
    inherit(net, pruned)
    searched(job, net, name="bits", epochs=narrowing, budgets=job.budgets, before=pruning)
    return finetuned(job, net)


def agenda(schedule: Schedule) -> tuple[tuple[str, int, float], ...]:
    """(phase, epochs, relative price of a step) after the float network."""
    pruning, narrowing = epochs_of(schedule)
    return (
        ("prune", pruning, SEARCH_COST), ("bits", narrowing, SEARCH_COST),
        ("finetune", schedule.epochs_finetune, FINETUNE_COST),
    )  # fmt: skip


def epochs_of(schedule: Schedule) -> tuple[int, int]:
    """(pruning, widths): halves of the search epochs, the odd one to the widths."""
    return schedule.epochs_search // 2, schedule.epochs_search - schedule.epochs_search // 2


def split(costs: Costs, budgets: tuple[Budget, ...], share: float) -> tuple[Budget, ...]:
    """What pruning has to reach, at the widths `costs.space` holds: start * (bound / start) ** share, or its least."""
    out = []
    for budget in budgets:
        bound = budget.bound(costs.whole[budget.kind])
        start = costs.figure(budget.kind, largest(costs.space))
        least = costs.figure(budget.kind, smallest(costs.space))
        value = max(start * math.exp(share * math.log(bound / start)), least) if bound < start else bound
        out.append(Budget(budget.kind, f"{budget.text} after pruning", float(value), relative=False))
    return tuple(out)
