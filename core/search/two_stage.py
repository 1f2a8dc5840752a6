"""Two-stage: prune at given widths, then search the widths of the pruned net; the baseline of joint search (methods C).

Gates, quantisers, losses and fine-tuning are those of the joint method that `--stages-of` names, and so are the epochs
in all: the stages halve those of the search. Of what ln(figure) must lose from the given widths, unpruned, to the
budget, `prune_share` falls to pruning, the rest to the widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..cost import Budget, Choice, Costs, Space, cheapest, hold_bits, hold_widths, largest
from ..encoding import parse_bits
from ..job import Schedule
from ..projection import Step, project
from ..supernet import SuperNet, inherit
from ..train import Job
from ..train_annealed import Stage
from ..train_gates import FINETUNE_COST, SEARCH_COST, Loss, finetuned, searched
from ..train_vib import noised


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
    costs, run = Costs(job.graph, job.space), STAGES[settings.stages_of]

    def reachable(choice: Choice, loss: Loss) -> tuple[Choice, list[Step]]:
        """Prunes on where even the cheapest widths would not bring this choice into the budgets."""
        done: list[Step] = []
        for budget in job.budgets:
            least = replace(cheapest(costs, budget.kind), parts=choice.parts)
            held = Costs(job.graph, hold_widths(job.space, least))
            found, steps = project(held, [budget], least, loss)
            choice, done = replace(choice, parts=found.parts), done + steps
        return choice, done

    pruned = run(job, space, Stage("prune", pruning, bounds, after=reachable, notes=notes), None)
    cut = replace(job.space, cut=dict(pruned.choice().parts))
    return finetuned(job, run(job, cut, Stage("bits", narrowing, job.budgets, before=pruning), pruned))


def _by_thresholds(job: Job, space: Space, stage: Stage, source: SuperNet | None) -> SuperNet:
    """A stage with the parts of SBS."""
    net = SuperNet(job.graph, space, residual=job.settings.residual)
    if source is not None:
        inherit(net, source)
    return searched(
        job, net, name=stage.name, epochs=stage.epochs, budgets=stage.budgets, before=stage.before, after=stage.after,
        notes=stage.notes,
    )  # fmt: skip


# By --stages-of: a stage in a space, from the float network or from the net of the stage before.
STAGES: Mapping[str, Callable[[Job, Space, Stage, SuperNet | None], SuperNet]] = {
    "sbs": _by_thresholds, "djpq": noised,
}  # fmt: skip


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
        least = costs.figure(budget.kind, cheapest(costs, budget.kind))
        value = max(start * math.exp(share * math.log(bound / start)), least) if bound < start else bound
        out.append(Budget(budget.kind, f"{budget.text} after pruning", float(value), relative=False))
    return tuple(out)
