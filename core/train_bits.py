"""What Bayesian Bits adds to the annealed phase: what its gates cost, by their probabilities (methods A.4).

Quantisers and gates live in `core.supernet_bits`, the phase in `core.train_annealed`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .cost import Choice, Term
from .plan import GroupId, LayerId
from .projection import Move
from .supernet_bits import LEVELS, PHI_MOST, PHI_OFF, PHI_ON, BitsNet
from .train_annealed import Penalty, Pull
from .train_gates import LEAST_WORTH, Loss


class Prior:
    """sum of mu * (what the gates of each quantiser cost), weights and activations apart, as published.

    A quantiser pays b for each width b that its gates reach, times their probability, times its layer's share of the
    largest layer's MACs (of a budget of bytes: weights). The controller reads the figure at expected bits and channels.
    """

    reach: Mapping[str, float] = {"gates": 24.0}  # three times from the start to where a gate is off for good
    anneals = False

    def __init__(self, net: BitsNet) -> None:
        self.net = net

    def turn(self, done: int, total: int) -> str:  # noqa: ARG002
        """Nothing turns."""
        return ""

    def penalty(self, pulls: Mapping[str, Pull]) -> Penalty:
        """Of figures above their targets; one that is low enough asks for nothing: Adam would follow the least pull."""
        figures = {kind: self.net.cost(kind) for kind in pulls}
        late = [kind for kind, figure in figures.items() if float(figure.detach()) > pulls[kind].target]
        loss = sum((pulls[kind].weight * price(self.net, kind) for kind in late), torch.zeros(()))
        return Penalty(loss, figures)

    def reading(self, kind: str, figure: Tensor) -> float:  # noqa: ARG002
        """The expected figure."""
        return float(figure)

    def check(self) -> None:
        """Gates are finite where the loss is."""

    def harm(self) -> Loss:
        """By margins."""
        return margins(self.net)


def price(net: BitsNet, kind: str) -> Tensor:
    """What the gates of all quantisers cost (methods A.4), as `kind` weighs layers; float64."""
    heaviest = max(_weight(term, kind) for term in net.costs.terms)
    total = torch.zeros((), dtype=torch.float64)
    for term in net.costs.terms:
        share = _weight(term, kind) / heaviest
        searched = term.layer in net.space.searched
        stays = _stays(net, term)
        total = total + share * stays * (_reached(net, term.layer, "w") if searched else _fixed(net, term.layer))
        if searched and kind == "bops" and term.layer in net.space.acts:
            total = total + share * _reached(net, term.layer, "a")
    return total


def _weight(term: Term, kind: str) -> int:
    """MACs, or weights, of a layer that is whole."""
    return term.c_in * term.c_out * (term.unit if kind == "bops" else term.depth)


def _reached(net: BitsNet, layer: LayerId, side: str) -> Tensor:
    two, four, eight = LEVELS
    p4, p8 = net.chances(layer, side)
    return two + four * p4 + eight * p8


def _fixed(net: BitsNet, layer: LayerId) -> float:
    """Of a layer whose width is given: its filters pay for it while they stay."""
    return sum(level for level in LEVELS if level <= net.space.given(layer)[0])


def _stays(net: BitsNet, term: Term) -> Tensor:
    """Mean over a layer's filters of the probability that they stay; backward each part counts as if it were alone.

    Ours: a mean pulls a part as many times less than a width as there are parts, and while widths give way none goes.
    """
    if GroupId(term.outside) not in net.space.gates:
        return torch.ones((), dtype=torch.float64)
    sizes = torch.tensor(net.space.gates[GroupId(term.outside)].sizes, dtype=torch.float64, device=net.place.device)
    mean = (net.part_chances(term.outside) * sizes).sum() / sizes.sum()
    return mean.detach() + len(sizes) * (mean - mean.detach())


def margins(net: BitsNet) -> Loss:
    """Harm as the gates tell it: how far phi lies above where a gate is off for good, as a share of its way there.

    Wider is always worth something; a part comes back only where its gate is on: the projection took it.
    """

    def worth(phi: Tensor) -> list[float]:
        return ((phi - PHI_OFF) / (PHI_MOST - PHI_OFF)).clamp(min=0).tolist()

    with torch.no_grad():
        sides = [(layer, side) for layer in net.space.searched for side in "wa"]
        layers = {(layer, side): worth(net.tensor(f"{layer}.phi_{side}")) for layer, side in sides}
        parts = {group: worth(net.tensor(f"{group}.phi")) for group in net.space.open}
    (on,) = worth(torch.tensor([PHI_ON]))

    def harm(choice: Choice, move: Move) -> float:
        if move.side == "restore":
            found = parts[GroupId(move.name)][move.to]
            return -found if found > on else on - found
        if move.side == "prune":
            return max(parts[GroupId(move.name)][move.to], LEAST_WORTH)
        now = (choice.weight if move.side == "weight" else choice.act)[LayerId(move.name)]
        four, eight = layers[LayerId(move.name), move.side[0]]
        lost = max(four if min(now, move.to) < 4 else eight, LEAST_WORTH)
        return lost if move.to < now else -lost

    return harm
