"""Fused Graph -> packed weights: one dense PackedTensor per layer and width, K in the order (ky, kx, c)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..core.encoding import FIELD_BITS, parse
from ..core.errors import UnsupportedError
from ..core.graph import Graph, Node
from ..kernels.packed import PackedTensor
from ..kernels.packed import pack as pack_levels
from .prune import kept_of

LAYERS = ("conv2d_q", "linear_q")


@dataclass(frozen=True, slots=True)
class Rows:
    """Filters of one width: their places in the layer's output (ascending) and their weights [rows, K]."""

    places: tuple[int, ...]
    weight: PackedTensor


Packed = Mapping[str, tuple[Rows, ...]]  # fused node -> its filters by width, in the plan's order


def pack(graph: Graph) -> Packed:
    """Every weight of a fused graph, packed. UnsupportedError names a layer whose width does not pack."""
    return {node.name: _pack_layer(graph, node) for node in graph.nodes if node.op in LAYERS}


def _pack_layer(graph: Graph, node: Node) -> tuple[Rows, ...]:
    levels = _in_order(graph, node)
    place = {number: i for i, number in enumerate(kept_of(node))}
    widths: dict[str, list[int]] = {}
    for name, filters in node.attrs["segments"]:
        widths.setdefault(name, []).extend(place[f] for f in filters)
    out = []
    for name, places in widths.items():
        encoding = parse(name)
        if encoding.bits not in FIELD_BITS:
            raise UnsupportedError(
                f"{node.attrs['layer']}: weights {name} do not pack, the format has fields of "
                f"{', '.join(map(str, FIELD_BITS))} bits"
            )
        places = sorted(places)
        out.append(Rows(tuple(places), pack_levels(levels[places], encoding)))
    return tuple(out)


def _in_order(graph: Graph, node: Node) -> np.ndarray:
    """Weights as rows [O, K], K in the order (ky, kx, c); behind a flatten a linear layer is a convolution."""
    weight = graph.consts[node.consts["weight"]]
    if node.op == "linear_q":
        weight = weight.reshape(len(weight), *unflattened(graph, node.inputs[0]))
    return weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)


def unflattened(graph: Graph, value: str) -> tuple[int, int, int]:
    """[C, H, W] of a value as it lies in memory: what stands before its flatten; a flat one is [F, 1, 1]."""
    node = graph.value(value)
    while len(node.shape) == 1 and node.op in ("flatten", "requantize", "affine", "lookup", "product_q"):
        node = graph.value(node.inputs[0])
    if len(node.shape) == 1:
        return node.shape[0], 1, 1
    c, h, w = node.shape
    return c, h, w
