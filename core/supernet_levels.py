"""Filters of one layer brought to one range, where a batch norm follows and undoes it.

Weights have one clip a layer and width, which a few wide filters set for all: in the first layer of the public
MobileNetV1 ranges lie from 1e-13 to 1, and its norm divides by what is left. In front of a norm the range is free.
"""

from __future__ import annotations

import torch

from .graph import Graph, Node
from .storage import LAYERS
from .supernet import FloatNet

MOST = 1e12  # that a filter grows by; smaller ones are nothing, and their norm has next to no weight


def level(net: FloatNet) -> None:
    """Every filter in front of a batch norm gets the largest |w| of its layer; the network computes what it did.

    With s the factor of a filter: mean s, variance s^2, and the norm's weight times
    sqrt(s^2 var + eps) / (s sqrt(var + eps)), so that statistics taken anew find the same norm.
    """
    with torch.no_grad():
        for layer, norm in normed(net.graph):
            _level(net, layer, norm)


def normed(graph: Graph) -> list[tuple[Node, Node]]:
    """Layers whose values a batch norm alone reads, with that."""
    read = [name for node in graph.nodes for name in node.inputs] + list(graph.outputs)
    pairs = ((graph.value(node.inputs[0]), node) for node in graph.nodes if node.op == "batch_norm")
    return [(layer, norm) for layer, norm in pairs if layer.op in LAYERS and read.count(layer.name) == 1]


def _level(net: FloatNet, layer: Node, norm: Node) -> None:
    own, after = ({role: net.tensor(name) for role, name in node.consts.items()} for node in (layer, norm))
    weight = own["weight"].double()
    ranges = weight.abs().flatten(1).amax(1)
    s = torch.where(ranges > 0, (ranges.max() / ranges.clamp_min(1e-300)).clamp_max(MOST), 1.0)
    eps, var = float(norm.attrs["eps"]), after["var"].double()
    own["weight"].copy_(weight * s.view(-1, *(1,) * (weight.dim() - 1)))
    if "bias" in own:
        own["bias"].copy_(own["bias"].double() * s)
    after["weight"].copy_(after["weight"].double() * torch.sqrt(s * s * var + eps) / (s * torch.sqrt(var + eps)))
    after["mean"].copy_(after["mean"].double() * s)
    after["var"].copy_(var * s * s)
