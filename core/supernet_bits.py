"""The super-net of Bayesian Bits: hard-concrete gates over chained residuals of 2, 4, 8 bits and over channels (A.4).

While it trains every gate is drawn anew in each forward; in evaluation it is on or off by its probability. `fold` makes
the ranges clips of symmetric grids, so that what is left is an ordinary `SuperNet`. The objective is `core.train_bits`'
business, phase and budgets are `core.train_annealed`'s.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .cost import END_BITS, WIDTHS, Space
from .graph import Graph
from .plan import GroupId, LayerId
from .supernet import SuperNet, gated_bits
from .supernet_rounding import (
    EVEN,
    TINY,
    UNIT,
    clipped,
    clipped_by_gates,
    nested,
    nested_clip,
    rounded_to,
    split,
    steps,
)

BETA, ZETA, GAMMA = 2 / 3, 1.1, -0.1  # of the hard concrete distribution
SHIFT = BETA * math.log(-GAMMA / ZETA)  # P(gate > 0) = sigmoid(phi - SHIFT)
OFF_FROM = 0.34  # P(gate = 0) from which a gate is off once it is drawn no more
PHI_ON = SHIFT + math.log((1 - OFF_FROM) / OFF_FROM)  # the same in phi
PHI_MOST = 6.0  # where the paper starts, for 300 epochs; all but always on
PHI_START = 2.0  # ours, for tens of epochs: from 6 no gate says anything for the first quarter, and no filter goes
PHI_OFF = -2.0  # a gate that has come down to it is off, and opens no more
LEVELS = tuple(float(b) for b in WIDTHS)  # what a gate of each width pays, per MAC


def probability(phi: Tensor) -> Tensor:
    """P(gate > 0); 0 for gates that are off for good."""
    return torch.where(phi <= PHI_OFF, torch.zeros_like(phi), torch.sigmoid(phi - SHIFT))


def hard_concrete(phi: Tensor, u: Tensor) -> Tensor:
    """Gates within [0, 1], given `u` uniform within (0, 1) of the same shape; differentiable in phi.

    The concrete distribution of temperature `BETA`, stretched to [`GAMMA`, `ZETA`] and clamped: exactly 0 and exactly 1
    each have a share of it.
    """
    soft = torch.sigmoid((torch.logit(u) + phi) / BETA)
    return torch.where(phi <= PHI_OFF, torch.zeros_like(phi), torch.clamp(soft * (ZETA - GAMMA) + GAMMA, 0, 1))


def drawn(phi: Tensor) -> Tensor:
    """`hard_concrete` of torch's own generator, on the CPU wherever `phi` is: a seed draws the same on all devices."""
    ends = torch.finfo(torch.float32).eps
    return hard_concrete(phi, torch.rand(phi.shape).clamp(ends, 1 - ends).to(phi.device))


class BitsNet(SuperNet):
    """A super-net on grids that nest around zero, whose gates of widths and channels are drawn while it trains."""

    def __init__(self, graph: Graph, space: Space, *, residual: str = "int8") -> None:
        super().__init__(graph, space, residual=residual, grid=EVEN)

    def _hold_gates(self) -> None:
        for layer in self.space.searched:
            self._hold(f"{layer}.phi_w", torch.full((2,), PHI_START), learnt=True)
            self._hold(f"{layer}.phi_a", torch.full((2,), PHI_START), learnt=layer in self.space.acts)
        for group, gate in self.space.open.items():
            self._hold(f"{group}.phi", torch.full((len(gate.sizes),), PHI_START), learnt=True)

    def kind(self, name: str) -> str:
        """`gates` beside the kinds of every super-net."""
        leaf = name.rpartition(".")[2]
        return "gates" if name not in self.graph.consts and leaf in ("phi", "phi_w", "phi_a") else super().kind(name)

    def start(self, source: SuperNet) -> None:
        """Ranges: the clips of `source` where nothing is signed; where it is, 8 bits reach the clips."""
        most = max(WIDTHS)
        with torch.no_grad():
            for name, signed in self._ranges():
                if signed:
                    self.tensor(name).copy_(source.tensor(name).abs() / nested_clip(torch.ones(()), most))

    def _ranges(self) -> list[tuple[str, bool]]:
        """(clip, whether what it rounds has a sign) of every searched tensor."""
        weights = [(f"{layer}.weight_clip", True) for layer in self.space.searched]
        return weights + [(name, self.domains[name] != UNIT) for name in (f"{g}.act_clip" for g in self.space.acts)]

    # -- quantisers ---------------------------------------------------------------------------------------------

    def searched_weight(self, layer: LayerId) -> Tensor:
        """z_2 + g_4 (e_4 + g_8 e_8) of drawn gates; in evaluation the grid of the width they choose."""
        weight = self.tensor(self.graph.value(layer).consts["weight"])
        v = self.tensor(f"{layer}.weight_clip").abs() + TINY
        if self.training:
            gates = self.last.weight[layer] = self._drawn(f"{layer}.phi_w")
            return clipped_by_gates(weight, v, gates, nested(weight, v), EVEN)
        bits = self.searched_bits(layer)[0]
        clip = nested_clip(v.double(), bits)
        return (clip * rounded_to(torch.clamp(weight.double() / clip, -1.0, 1.0), steps(EVEN, bits))).float()

    def searched_act(self, layer: LayerId, x: Tensor, v: Tensor, domain: str) -> Tensor:
        """As weights; without a sign on the grids of SBS. The network's input as the ends are."""
        if layer in self.space.image:
            return clipped(x, v, END_BITS, domain)
        if not self.training:
            bits = self.searched_bits(layer)[1]
            return clipped(x, v if domain == UNIT else nested_clip(v, bits), bits, domain)
        gates = self.last.act[layer] = self._drawn(f"{layer}.phi_a")
        parts = split(x, v, UNIT)[0] if domain == UNIT else nested(x.float(), v)
        return clipped_by_gates(x, v, gates, parts, domain)

    # -- gates --------------------------------------------------------------------------------------------------

    def _drawn(self, name: str) -> tuple[Tensor, Tensor]:
        g = drawn(self.tensor(name))
        return g[0], g[1]

    def entered(self, x: Tensor) -> Tensor:
        """As every super-net; while it trains the gates of channels are drawn."""
        x = super().entered(x)
        if self.training:
            self.last.prune |= {str(g): drawn(self.tensor(f"{g}.phi")) for g in self.space.open}
        return x

    def part_gates(self, group: str) -> Tensor:
        """1 where a part stays, without a gradient; no more go than the space allows."""
        if GroupId(group) in self.space.cut:
            return super().part_gates(group)
        phi = self.tensor(f"{group}.phi").detach()
        least = phi.sort().values[self.space.gates[GroupId(group)].removable]
        return ((phi > PHI_ON) | (phi >= least)).to(phi.dtype)

    def searched_bits(self, layer: LayerId) -> tuple[int, int]:
        """Widths that the probabilities choose: 8 only where 4 is on."""
        weight, act = (gated_bits((on[0], on[1])) for on in (self.tensor(f"{layer}.phi_{s}") > PHI_ON for s in "wa"))
        return weight, END_BITS if layer in self.space.image else act

    def clamp(self) -> None:
        """Gates within their bounds; of each group as many parts that stay as the space wants."""
        with torch.no_grad():
            for layer in self.space.searched:
                for side in "wa":
                    self.tensor(f"{layer}.phi_{side}").clamp_(PHI_OFF - 1, PHI_MOST)
            for group, gate in self.space.open.items():
                phi = self.tensor(f"{group}.phi").clamp_(PHI_OFF - 1, PHI_MOST)
                stay = phi.sort(descending=True, stable=True).indices[: len(phi) - gate.removable]
                phi[stay] = phi[stay].clamp(min=PHI_ON)

    # -- figures ------------------------------------------------------------------------------------------------

    def chances(self, layer: LayerId, side: str) -> tuple[Tensor, Tensor]:
        """(P_4, P_4 P_8) of a searched layer, float64: that a width is reached."""
        p = probability(self.tensor(f"{layer}.phi_{side}").double())
        return p[0], p[0] * p[1]

    def part_chances(self, group: str) -> Tensor:
        """P of each part, float64; of a group that is decided, 0 and 1."""
        if GroupId(group) in self.space.cut:
            return self.tensor(f"{group}.parts").double()
        return probability(self.tensor(f"{group}.phi").double())

    def widths(self, layer: LayerId) -> tuple[Tensor, Tensor]:
        """Expected bits, 2 + 2 P_4 + 4 P_4 P_8: what the figures count."""
        weight, act = (2 + 2 * four + 4 * eight for four, eight in (self.chances(layer, side) for side in "wa"))
        return weight, torch.full_like(act, END_BITS) if layer in self.space.image else act

    def _count(self, group: str, whole: int) -> Tensor:
        if GroupId(group) not in self.space.gates:
            return super()._count(group, whole)
        sizes = torch.tensor(self.space.gates[GroupId(group)].sizes, dtype=torch.float64, device=self.place.device)
        return (self.part_chances(group) * sizes).sum()

    # -- out ----------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Once it has trained: gates are drawn no more."""
        self.eval()

    def fold(self) -> None:
        """Ranges -> clips of the widths that were chosen; computes the same."""
        with torch.no_grad():
            for layer in self.space.searched:
                weight, act = self.searched_bits(layer)
                bits = {f"{layer}.weight_clip": weight, f"{layer}.act_clip": act}
                for name, signed in self._ranges():
                    if signed and name in bits:
                        self.tensor(name).copy_(nested_clip(self.tensor(name).abs(), bits[name]))

    def document(self) -> dict[str, Any]:
        """For the log: P(on) of each gate, and the widths that they choose."""
        with torch.no_grad():
            layers: dict[str, dict[str, Any]] = {}
            for layer in self.space.searched:
                bits = dict(zip("wa", self.searched_bits(layer), strict=True))
                for side in "wa" if layer in self.space.acts else "w":
                    p4, p8 = probability(self.tensor(f"{layer}.phi_{side}")).tolist()
                    layers.setdefault(layer, {})[side] = {"p4": p4, "p8": p8, "bits": bits[side]}
            return {"layers": layers, "p_parts": {g: self.part_chances(g).tolist() for g in self.space.open}}
