"""A float Graph in the making: nodes as they are met, their names and what is dropped once the end is known.

Shared by what reads networks (`capture`, `onnx_graph`). Knows neither torch nor ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .errors import UnsupportedError
from .graph import Graph, Node, verify
from .ops import OPS

Shape = tuple[int, ...]
Pads = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass
class Drawing:
    """Nodes under provisional names, in order, the name wanted for each, and constants."""

    nodes: dict[str, Node] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    consts: dict[str, np.ndarray] = field(default_factory=dict)

    def shape(self, name: str) -> Shape:
        """Shape of a value, without batch."""
        return self.nodes[name].shape

    def label(self, op: str) -> str:
        """Readable name of a node that is no layer."""
        return op

    def emit(
        self,
        op: str,
        inputs: tuple[str, ...],
        *,
        label: str = "",
        consts: Mapping[str, str] | None = None,
        **attrs: Any,
    ) -> str:
        """Appends a node whose shape the op's rule gives; its value's provisional name."""
        consts = consts or {}
        arrays = {role: self.consts[const] for role, const in consts.items()}
        shape = OPS[op].shape(attrs, arrays, [self.nodes[i].shape for i in inputs])
        return self.append(op, inputs, shape, label=label or self.label(op), attrs=attrs, consts=consts)

    def append(
        self, op: str, inputs: tuple[str, ...], shape: Shape, *, label: str, attrs: Mapping[str, Any],
        consts: Mapping[str, str],
    ) -> str:  # fmt: skip
        """Appends a finished node; its provisional name. Final names are given once it is known what lives."""
        name = f"{len(self.nodes)}"
        self.nodes[name] = Node(op, name, inputs, shape, attrs=attrs, consts=consts)
        self.labels[name] = label
        return name

    def take_pad(self, x: str, pads: Pads, value: float) -> tuple[str, Pads]:
        """Padding of height and width in front of a window that pads with the same number becomes the window's own."""
        node = self.nodes[x]
        if node.op != "pad" or node.attrs.get("value", 0.0) != value or node.attrs["pads"][0] != (0, 0):
            return x, pads
        (top, bottom), (left, right) = node.attrs["pads"][1:]
        return node.inputs[0], (pads[0] + top, pads[1] + left, pads[2] + bottom, pads[3] + right)

    def finish(self, outputs: tuple[str, ...]) -> tuple[Graph, dict[str, str]]:
        """Drops what nobody reads, gives the final names and checks the result; the graph, provisional -> final."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes.values()):
            if node.op == "input" or node.name in needed:
                kept.append(node if "value" not in node.attrs else _infinite_pad(node))
                needed.update(node.inputs)
        kept.reverse()
        names = _names([(n, self.labels[n.name]) for n in kept])
        nodes = [replace(n, name=names[n.name], inputs=tuple(names[i] for i in n.inputs)) for n in kept]
        used = {const for node in nodes for const in node.consts.values()}
        graph = Graph(
            inputs=tuple(n for n in nodes if n.op == "input"), nodes=tuple(n for n in nodes if n.op != "input"),
            outputs=tuple(names[o] for o in outputs), consts={k: v for k, v in self.consts.items() if k in used},
        )  # fmt: skip
        if not graph.inputs:
            raise UnsupportedError("the network has no input")
        verify(graph, "float")
        return graph, names


def _infinite_pad(node: Node) -> Node:
    """Padding with minus infinity that no max-pool took: a graph's `pad` is always zeros."""
    return replace(node, op="unknown", attrs={"target": node.attrs["target"]})


def _names(wanted: list[tuple[Node, str]]) -> dict[str, str]:
    """Provisional -> final name: a number follows where a name is taken; input and layers choose first."""
    taken: set[str] = set()
    names = {}
    for first in (True, False):
        for node, label in wanted:
            if (node.op == "input" or bool(node.consts)) is not first:
                continue
            name, number = label, 2
            while name in taken:
                name, number = f"{label}_{number}", number + 1
            taken.add(name)
            names[node.name] = name
    return names
