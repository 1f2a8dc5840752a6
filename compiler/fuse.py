"""Pruned Graph -> fused Graph: requantisations become epilogues of what they follow. Creates no constant.

After it no bare accumulator is left: conv, linear, sum pool and product hold multiplier, shift, clamp and residual
themselves.
"""

from __future__ import annotations

from dataclasses import replace

from ..core.errors import CorruptError
from ..core.graph import Graph, Node

PRODUCERS = {"conv2d_int": "conv2d_q", "linear_int": "linear_q", "sum_pool2d": "sum_pool2d_q", "product": "product_q"}
EPILOGUES = ("requantize", "affine")
NO_PADDING = (0, 0, 0, 0)


def fuse(graph: Graph) -> Graph:
    """Graph of stage "fused" with the same values, less the accumulators; adjacent gathers are one."""
    return _join_gathers(_absorb(graph))


def _absorb(graph: Graph) -> Graph:
    consumers = graph.consumers()
    sums = {n.name: n for n in graph.nodes if n.op in PRODUCERS}
    for name in sums:
        if len(consumers[name]) != 1 or consumers[name][0].op not in EPILOGUES or name in graph.outputs:
            raise CorruptError(f"pruned graph: accumulator {name!r} must be read by one requantisation only")
    nodes = []
    for node in graph.nodes:
        if node.name in sums:
            continue
        acc = sums.get(node.inputs[0]) if node.op in EPILOGUES else None
        if acc is not None:
            node = replace(
                node,
                op=PRODUCERS[acc.op],
                inputs=(*acc.inputs, *node.inputs[1:]),
                attrs={**acc.attrs, **node.attrs},
                consts={**acc.consts, **node.consts},
            )
        nodes.append(node)
    return graph.with_nodes(tuple(nodes), graph.consts)


def _join_gathers(graph: Graph) -> Graph:
    """A gather of single pixels behind another one, which nothing else reads, picks from its input directly."""
    consumers = graph.consumers()
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        first = nodes.get(node.inputs[0])
        plain = node.op == "gather" and node.attrs["stride"] == (1, 1) and node.attrs["padding"] == NO_PADDING
        alone = first is not None and len(consumers[first.name]) == 1 and first.name not in graph.outputs
        if plain and alone and first is not None and first.op == "gather":
            del nodes[first.name]
            picked = tuple(-1 if c < 0 else first.attrs["channels"][c] for c in node.attrs["channels"])
            attrs = {**node.attrs, "channels": picked, **{k: first.attrs[k] for k in ("stride", "padding")}}
            node = replace(node, inputs=first.inputs, attrs=attrs)
        nodes[node.name] = node
    return graph.with_nodes(tuple(nodes.values()), graph.consts)
