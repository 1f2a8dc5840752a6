"""Batch norms of a rounded net whose statistics came with its weights: moved by what rounding changes.

Estimated anew from the few images that a short episode can afford, statistics of a million images are lost (public
MobileNetV1 x 0.75 at 128 x 128, estimated from 64 photographs: 57.5 to 50 % of 40). What is needed is the difference
that rounding and removal make, and those few show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .supernet import FloatNet
from .supernet_rounding import TINY
from .train import reestimate


@dataclass(frozen=True)
class Norms:
    """Statistics by the names of the graph's constants: a float network's `own`, and `seen`, what images give it."""

    own: Mapping[str, Tensor]
    seen: Mapping[str, Tensor]

    def move(self, net: FloatNet) -> None:
        """`net`, whose statistics come from the same images, gets its own: by the difference of means, the ratio of
        variances.
        """
        with torch.no_grad():
            for node in net.graph.nodes:
                if node.op == "batch_norm":
                    mean, var = node.consts["mean"], node.consts["var"]
                    now = net.tensor(mean), net.tensor(var)
                    ratio = torch.where(self.seen[var] > TINY, self.own[var] / self.seen[var].clamp_min(TINY), 1.0)
                    now[0].copy_(self.own[mean] + now[0] - self.seen[mean])
                    now[1].copy_(now[1] * ratio)


def norms_of(net: FloatNet, batches: Sequence[Tensor]) -> Norms:
    """Of a float network, whose statistics are afterwards those of `batches`."""
    names = [node.consts[role] for node in net.graph.nodes if node.op == "batch_norm" for role in ("mean", "var")]
    own = {name: net.tensor(name).clone() for name in names}
    reestimate(net, batches)
    return Norms(own, {name: net.tensor(name).clone() for name in names})
