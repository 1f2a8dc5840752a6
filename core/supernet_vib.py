"""The super-net of DJPQ: learned step, range and exponent of every tensor, VIB gates over channels (methods A.2).

`VibNet` trains; `fold` writes exponents into the weights and means of gates into the batch norms, so that what is left
is an ordinary `SuperNet` on symmetric grids, which the frozen phases and `extract` know. Objective, annealing and
budget are the business of `core.train_annealed` and `core.train_vib`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import END_BITS, Space
from .graph import Graph, Node
from .groups import groups
from .parallel import processes, share
from .plan import GroupId, LayerId
from .supernet import SuperNet
from .supernet_rounding import EVEN, UNIT, clipped, stepped, steps

LN_VAR_START = -9.0  # ln sigma^2, mu = 1: as VIBNet starts
PRUNED_ABOVE = 0.0  # ln(sigma^2 / mu^2) from which a channel says nothing: VIBNet's; that of DJPQ is not known
SOFTNESS = 3.0  # of the sigmoid through which BOPs reach a gate; ours
LN_RATIO_LEAST, LN_RATIO_MOST = -12.0, 3.0  # bounds of ln(sigma^2 / mu^2): beyond, nothing changes any more
EXPONENTS = (0.5, 2.0)  # bounds of t
BITS_MOST = 8  # widths start here; more has no kernel
LEAST_RANGE = 1e-6  # of a tensor that is all zeros
KINDS = {
    "ln_d_w": "quantisers", "ln_d_a": "quantisers", "ln_q_w": "quantisers", "ln_q_a": "quantisers",
    "exponent": "exponents", "ln_mu": "gates", "ln_var": "gates",
}  # fmt: skip


def norm_of(graph: Graph, space: Space) -> dict[GroupId, str]:
    """Group -> its last batch norm, where a gate's mean folds exactly, whatever activation follows.

    A group without one is left out: there is nothing to fold into.
    """
    values = {g.id: frozenset(g.values) for g in groups(graph) if g.id in space.gates}
    norms = ((g, n.name) for n in graph.nodes if n.op == "batch_norm" for g in values if n.name in values[g])
    return dict(norms)


class VibNet(SuperNet):
    """A super-net whose searched tensors are rounded by learned d, q_m and t, and whose gates are noise.

    `restricted`: widths are rounded to 2, 4 or 8 and steps follow (methods A.2.6), else they are free; `restrict`:
    whether they will be.
    """

    def __init__(self, graph: Graph, space: Space, *, residual: str = "int8") -> None:
        self.restricted = self.restrict = False
        self.norms = norm_of(graph, space)
        self._gated = {norm: group for group, norm in self.norms.items()}
        super().__init__(graph, space, residual=residual, grid=EVEN)

    def _hold_gates(self) -> None:
        for layer, side in self.sides():
            self._hold(f"{layer}.ln_d_{side}", torch.zeros(()), learnt=True)
            self._hold(f"{layer}.ln_q_{side}", torch.zeros(()), learnt=True)
        for layer in self.space.searched:
            self._hold(f"{layer}.exponent", torch.ones(()), learnt=True)
        for group in self.space.open:
            parts = len(self.space.gates[group].sizes)
            self._hold(f"{group}.ln_mu", torch.zeros(parts), learnt=True)
            self._hold(f"{group}.ln_var", torch.full((parts,), LN_VAR_START), learnt=True)

    def kind(self, name: str) -> str:
        """`quantisers`, `exponents` and `gates` beside the kinds of every super-net."""
        leaf = name.rpartition(".")[2]
        return "network" if name in self.graph.consts else KINDS.get(leaf, super().kind(name))

    def start(self, source: SuperNet) -> None:
        """Ranges as `source` has them (weights: the largest magnitude), steps for `BITS_MOST` bits, exponents 1."""
        with torch.no_grad():
            for layer, side in self.sides():
                weight = self.tensor(self.graph.value(layer).consts["weight"])
                top = weight.abs().max() if side == "w" else source.tensor(f"{layer}.act_clip").abs()
                self.tensor(f"{layer}.ln_q_{side}").copy_(torch.log(top.clamp_min(LEAST_RANGE)))
                levels = math.log(steps(self._domain(layer, side), BITS_MOST))
                self.tensor(f"{layer}.ln_d_{side}").copy_(self.tensor(f"{layer}.ln_q_{side}") - levels)

    # -- quantisers ---------------------------------------------------------------------------------------------

    def sides(self) -> Iterator[tuple[LayerId, str]]:
        """Every (layer, "w" or "a") whose quantiser is learned."""
        for layer in self.space.searched:
            yield from ((layer, side) for side in ("wa" if layer in self.space.acts else "w"))

    def _domain(self, layer: str, side: str) -> str:
        return EVEN if side == "w" else self.domains[f"{layer}.act_clip"]

    def _sign(self, layer: str, side: str) -> int:
        """Bits that the sign takes."""
        return int(self._domain(layer, side) != UNIT)

    def ranges(self, layer: str, side: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """(q_m, q_m ** t, t), float64 scalars; no t for activations, which are uniform."""
        q = self.tensor(f"{layer}.ln_q_{side}").double().exp()
        if side == "a":
            return q, q, None
        t = self.tensor(f"{layer}.exponent").double()
        return q, q**t, t

    def bits(self, layer: str, side: str) -> Tensor:
        """log2(q_m ** t / d + 1), and 1 for the sign where there is one: continuous, float64 (methods A.2.1, A.2.2)."""
        _, top, _ = self.ranges(layer, side)
        levels = torch.log2(top / self.tensor(f"{layer}.ln_d_{side}").double().exp() + 1)
        return levels + self._sign(layer, side)

    def step_size(self, layer: str, side: str) -> Tensor:
        """d as learned; restricted: q_m ** t over the levels of 2 ** round(log2 b) bits, straight through the round."""
        if not self.restricted:
            return self.tensor(f"{layer}.ln_d_{side}").double().exp()
        _, top, _ = self.ranges(layer, side)
        octave = torch.log2(self.bits(layer, side))
        bits = 2 ** (octave + (torch.round(octave) - octave).detach())
        return top / (2 ** (bits - self._sign(layer, side)) - 1)

    def searched_weight(self, layer: LayerId) -> Tensor:
        """By step, range and exponent."""
        weight = self.tensor(self.graph.value(layer).consts["weight"]).double()
        q, _, t = self.ranges(layer, "w")
        return stepped(weight, self.step_size(layer, "w"), q, t).float()

    def searched_act(self, layer: LayerId, x: Tensor, v: Tensor, domain: str) -> Tensor:
        """By step and range; the network's input as the ends are."""
        if layer in self.space.image:
            return clipped(x, v, END_BITS, domain)
        q, _, _ = self.ranges(layer, "a")
        return stepped(x, self.step_size(layer, "a").float(), q.float())

    def widths(self, layer: LayerId) -> tuple[Tensor, Tensor]:
        """Continuous bits, restricted or not: what the penalty counts (methods A.2.4)."""
        given = torch.tensor(float(END_BITS), dtype=torch.float64)
        return self.bits(layer, "w"), given if layer in self.space.image else self.bits(layer, "a")

    def clamp(self) -> None:
        """Steps back to where bits lie within 2 and 8 (only d moves), exponents and noise within their bounds."""
        with torch.no_grad():
            for layer in self.space.searched:
                self.tensor(f"{layer}.exponent").clamp_(*EXPONENTS)
            for layer, side in self.sides():
                top = float(self.ranges(layer, side)[1].log())
                least, most = (math.log(steps(self._domain(layer, side), b)) for b in (2, BITS_MOST))
                self.tensor(f"{layer}.ln_d_{side}").clamp_(top - most, top - least)
            for group in self.space.open:
                mean = 2 * self.tensor(f"{group}.ln_mu")
                self.tensor(f"{group}.ln_var").clamp_(mean + LN_RATIO_LEAST, mean + LN_RATIO_MOST)

    # -- gates --------------------------------------------------------------------------------------------------

    def ln_ratios(self, group: str) -> Tensor:
        """ln(sigma^2 / mu^2) of each part: large where a channel says nothing."""
        return self.tensor(f"{group}.ln_var") - 2 * self.tensor(f"{group}.ln_mu")

    def part_gates(self, group: str) -> Tensor:
        """1 where a part stays, backward as a sigmoid of its ratio; no more go than the space allows."""
        if GroupId(group) in self.space.cut:
            return super().part_gates(group)
        ratios = self.ln_ratios(group)
        allowed = ratios.detach().sort(descending=True).values[self.space.gates[GroupId(group)].removable]
        soft = torch.sigmoid((PRUNED_ABOVE - ratios) / SOFTNESS)
        hard = (ratios <= torch.clamp(allowed, min=PRUNED_ABOVE)).to(soft.dtype)
        return hard - soft.detach() + soft

    def information(self) -> Tensor:
        """Sum over gated channels of ln(1 + mu^2 / sigma^2) / 2, nats: what they let through (methods A.2.3)."""
        total = torch.zeros((), device=self.place.device)
        for group, gate in self.space.open.items():
            sizes = torch.tensor(gate.sizes, dtype=torch.float32, device=self.place.device)
            total = total + (F.softplus(-self.ln_ratios(group)) * sizes).sum() / 2
        return total

    def _hides(self, value: str) -> bool:
        noisy = self.training and self._masked[value][0] in self.space.open  # there noise alone tells the gates
        return not noisy and super()._hides(value)

    def compute(self, node: Node, ins: list[Tensor]) -> Tensor:
        """One op; behind the norm of a gate its channels are multiplied by mu + sigma * noise, mu in evaluation."""
        out = super().compute(node, ins)
        group = self._gated.get(node.name)
        if group is None or group in self.space.cut:
            return out
        sizes = torch.tensor(self.space.gates[group].sizes, device=out.device)
        mu = self.tensor(f"{group}.ln_mu").exp().repeat_interleave(sizes)
        z = mu[None]
        if self.training:
            sigma = (self.tensor(f"{group}.ln_var") / 2).exp().repeat_interleave(sizes)
            noise = torch.randn(len(out) * processes(), len(mu))[share(len(out) * processes())]  # of the whole batch
            z = mu + sigma * noise.to(out.device)
        return out * z.to(out.dtype).view(*z.shape, *(1,) * (out.dim() - 2))

    # -- out ----------------------------------------------------------------------------------------------------

    def searched_bits(self, layer: LayerId) -> tuple[int, int]:
        """The nearest power of two on each side."""
        weight, act = (int(2 ** torch.round(torch.log2(bits.detach()))) for bits in self.widths(layer))
        return weight, act

    def hold(self) -> None:
        """Once it has trained: widths as they are to be held, parts that go."""
        self.restricted = self.restrict
        self.last.prune = {g: self.part_gates(g) for g in self.space.gates}

    def fold(self) -> None:
        """Exponents into the weights, ranges into the clips, means of gates into the norms; computes the same.

        |w| ** t lies on the ordinary grid of d, so that weights that hold it need no exponent; mu scales what a norm
        puts out, before any activation.
        """
        with torch.no_grad():
            for layer in self.space.searched:
                weight = self.tensor(self.graph.value(layer).consts["weight"])
                q, top, t = self.ranges(layer, "w")
                assert t is not None, "weights have one"
                weight.copy_(torch.sign(weight) * weight.double().abs().clamp(max=q) ** t)
                self.tensor(f"{layer}.weight_clip").copy_(top)
                self.tensor(f"{layer}.ln_q_w").copy_(top.log())
                self.tensor(f"{layer}.exponent").fill_(1.0)
            for layer in self.space.acts:
                self.tensor(f"{layer}.act_clip").copy_(self.ranges(layer, "a")[0])
            for group in self.space.open:
                mu = self.tensor(f"{group}.ln_mu").double().exp()
                mu = mu.repeat_interleave(torch.tensor(self.space.gates[group].sizes, device=mu.device))
                for role, name in self.graph.value(self.norms[group]).consts.items():
                    if role in ("weight", "bias"):
                        self.tensor(name).mul_(mu)
                self.tensor(f"{group}.ln_var").copy_(self.ln_ratios(group))
                self.tensor(f"{group}.ln_mu").zero_()

    def document(self) -> dict[str, Any]:
        """For the log: d, q_m, t and bits of each layer, free and restricted; ln(sigma^2 / mu^2) of each part."""
        with torch.no_grad():
            layers: dict[str, dict[str, Any]] = {}
            for layer, side in self.sides():
                layers.setdefault(layer, {})[side] = self._told(layer, side)
            return {"layers": layers, "ln_ratios": {g: self.ln_ratios(g).tolist() for g in self.space.open}}

    def _told(self, layer: LayerId, side: str) -> dict[str, float | int]:
        q, _, t = self.ranges(layer, side)
        restricted = self.searched_bits(layer)["wa".index(side)]
        return {
            "d": float(self.tensor(f"{layer}.ln_d_{side}").double().exp()), "q_m": float(q),
            "t": 1.0 if t is None else float(t), "bits": float(self.bits(layer, side)), "restricted": restricted,
        }  # fmt: skip
