"""What DJPQ adds to the annealed phase: information, BOPs of continuous bits, and when widths are restricted (A.2).

Quantisers and gates live in `core.supernet_vib`, the phase in `core.train_annealed`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .cost import Choice, Space, search_space
from .errors import CheckFailed
from .plan import GroupId, LayerId
from .projection import Move
from .supernet import SuperNet, inherit
from .supernet_vib import BITS_MOST, LN_RATIO_LEAST, PRUNED_ABOVE, VibNet
from .train import Job
from .train_annealed import Penalty, Pull, Stage, annealed
from .train_gates import LEAST_WORTH, Loss

GAMMA = 1e-2  # of the information, once annealed; per nat and channel
RESTRICTED_FROM = 0.5  # share of the search from which widths are powers of two, if they are restricted


def noised(job: Job, space: Space, stage: Stage, source: SuperNet | None = None) -> SuperNet:
    """A frozen net within the budgets of `stage`, searched in `space`; from the weights of `source` if there is one."""
    net = VibNet(job.graph, space, residual=job.settings.residual)
    net.restrict = job.settings.restrict == "pow2"
    if source is not None:
        inherit(net, source)
    return annealed(job, net, Information(net, stage.name), stage)


def without_norm(job: Job) -> list[str]:
    """Groups that stay whole because no norm could take the means of their gates."""
    said = job.settings
    found = search_space(job.graph, group_size=said.group_size, max_pruning_ratio=said.max_pruning_ratio)
    return [str(group) for group in found.gates if group not in job.space.gates]


class Information:
    """gamma * information + sum of beta * figure / bound.

    The penalty counts continuous bits; the controller reads the figure of the bits that are held.
    """

    # ln d, ln q_m and the gates' from one end of their range to the other, exponents less; Adam's steps are about as
    # long as its rate.
    reach: Mapping[str, float] = {"quantisers": 12.0, "gates": 12.0, "exponents": 1.0}
    anneals = True

    def __init__(self, net: VibNet, name: str) -> None:
        self.net, self.name = net, name

    def turn(self, done: int, total: int) -> str:
        """Powers of two from `RESTRICTED_FROM` on."""
        first = math.ceil(RESTRICTED_FROM * total)
        self.net.restricted = self.net.restrict and done >= first
        return "restrict" if self.net.restricted and done == first and self.net.space.searched else ""

    def penalty(self, pulls: Mapping[str, Pull]) -> Penalty:
        """Information and figures."""
        information = self.net.information()
        figures = {kind: self.net.cost(kind) for kind in pulls}
        priced = sum((pulls[k].weight * figure / pulls[k].bound for k, figure in figures.items()), torch.zeros(()))
        told = {"information": float(information.detach())}
        return Penalty(GAMMA * information + priced.to(information), figures, told)

    def reading(self, kind: str, figure: Tensor) -> float:
        """The figure of the choice once widths are restricted, before of continuous bits."""
        return float(self.net.costs.figure(kind, self.net.choice()) if self.net.restricted else figure)

    def check(self) -> None:
        """CheckFailed names a layer whose exponent got a gradient of NaN: powers of tiny weights can do that."""
        for layer in self.net.space.searched:
            grad = self.net.tensor(f"{layer}.exponent").grad
            if grad is not None and not bool(torch.isfinite(grad)):
                raise CheckFailed(
                    f"{self.name}: the gradient of {layer}'s exponent t is {float(grad)}; the last good state is kept; "
                    "lower the learning rate, or look at the weights that it started from"
                )

    def harm(self) -> Loss:
        """By margins."""
        return margins(self.net)


def margins(net: VibNet) -> Loss:
    """Harm as the quantisers and gates tell it: how far bits or a ratio lie from where they would be given up.

    Each as a share of its range. Wider is always worth something, first what lies nearest; a part comes back only where
    its gate says that it tells something.
    """
    with torch.no_grad():
        bits = {(layer, side): float(net.bits(layer, side)) for layer, side in net.sides()}
        ratios = {group: net.ln_ratios(group).tolist() for group in net.space.open}

    def harm(choice: Choice, move: Move) -> float:
        if move.side in ("prune", "restore"):
            ratio = ratios[GroupId(move.name)][move.to]
            away = (PRUNED_ABOVE - ratio) / (PRUNED_ABOVE - LN_RATIO_LEAST)
            return -away if move.side == "restore" else max(away, LEAST_WORTH)
        now = (choice.weight if move.side == "weight" else choice.act)[LayerId(move.name)]
        away = (bits[LayerId(move.name), move.side[0]] - move.to) / BITS_MOST
        return max(away, LEAST_WORTH) if move.to < now else -1 / (1 + abs(away))

    return harm
