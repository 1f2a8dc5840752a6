"""Graph: a small immutable SSA form that can be checked, printed and executed at every stage.

Knows nothing of torch, plans or kernels. What an op means stands in `ops.py`. Every node makes exactly one value,
which bears the node's name; shapes leave out the batch: [C, H, W] or [F].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from .curves import CURVES
from .errors import CorruptError, UnsupportedError

GRAPH_SCHEMA = "bitpress.graph"
GRAPH_VERSION = 1

# Stage -> ops allowed there. `float` comes from capture, `integer` from core.integer, `pruned` from compiler.prune
# (slice and pad have become gathers), `fused` from compiler.fuse (no bare accumulator is left). `unknown` is only for
# `plan`, which lists it; every other verb refuses it.
# fmt: off
FLOAT_OPS = frozenset({
    "conv2d", "linear", "batch_norm", "relu", "clip", "add", "mul", "max_pool2d", "avg_pool2d", "global_avg_pool",
    "flatten", "slice", "pad", "concat", "unknown", *CURVES,
})
INTEGER_OPS = frozenset({
    "quantize", "conv2d_int", "linear_int", "sum_pool2d", "product", "requantize", "affine", "lookup",
    "max_pool2d", "flatten", "slice", "pad", "concat",
})
# fmt: on
PRUNED_OPS = INTEGER_OPS - {"slice", "pad"} | {"gather"}
FUSED_OPS = PRUNED_OPS - {"conv2d_int", "linear_int", "sum_pool2d", "product"} | {
    "conv2d_q",
    "linear_q",
    "sum_pool2d_q",
    "product_q",
}
STAGES: Mapping[str, frozenset[str]] = MappingProxyType(
    {"float": FLOAT_OPS, "integer": INTEGER_OPS, "pruned": PRUNED_OPS, "fused": FUSED_OPS}
)


@dataclass(frozen=True, slots=True)
class Node:
    """One operation and the value it makes.

    `dtype`: "f32", "i32" (exact accumulator) or the name of an activation encoding ("u4": the array holds levels).
    `consts`: role -> name in `Graph.consts` ("weight", "bias", "mean", "var", "m", "b", ...).
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str = "f32"
    attrs: Mapping[str, Any] = field(default_factory=dict)
    consts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Inputs, nodes in topological order, outputs (value names) and constants by name."""

    inputs: tuple[Node, ...]  # op "input", no inputs of their own
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    consts: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def value(self, name: str) -> Node:
        """The node (or input) that makes value `name`; KeyError if there is none."""
        return self._by_name()[name]

    def _by_name(self) -> dict[str, Node]:
        return {n.name: n for n in (*self.inputs, *self.nodes)}

    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """Value name -> nodes that read it, in order (empty tuple where none does)."""
        out: dict[str, list[Node]] = {n.name: [] for n in (*self.inputs, *self.nodes)}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                out[name].append(node)
        return {k: tuple(v) for k, v in out.items()}

    def with_nodes(self, nodes: tuple[Node, ...], consts: Mapping[str, np.ndarray]) -> Graph:
        """Same interface, other body."""
        return replace(self, nodes=nodes, consts=consts)

    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) of the structure: nodes, shapes, connections; not of the constants."""
        body = json.dumps(_to_json_body(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    def text(self) -> str:
        """Stable, diffable listing: one line a node."""
        lines = [f"input %{n.name}: {_type(n)}" for n in self.inputs]
        for n in self.nodes:
            attrs = " ".join(f"{k}={_plain(v)}" for k, v in sorted(n.attrs.items()))
            consts = " ".join(
                f"{k}:{tuple(self.consts[v].shape) if v in self.consts else '?'}" for k, v in sorted(n.consts.items())
            )
            call = f"%{n.name}: {_type(n)} = {n.op}({', '.join('%' + i for i in n.inputs)})"
            lines.append(" ".join(filter(None, (call, attrs, consts))))
        lines.append("output " + ", ".join("%" + o for o in self.outputs))
        return "\n".join(lines) + "\n"


def _type(node: Node) -> str:
    return f"{node.dtype}{list(node.shape)}".replace(" ", "")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def verify(graph: Graph, stage: str) -> None:
    """Check names, order, constants and the ops allowed at `stage`; CorruptError names the node."""
    seen: set[str] = set()
    for node in (*graph.inputs, *graph.nodes):
        if node.name in seen:
            raise CorruptError(f"{stage} graph: two nodes are named {node.name!r}")
        for name in node.inputs:
            if name not in seen:
                raise CorruptError(f"{stage} graph: {node.name!r} reads {name!r}, which is not computed before it")
        if node.op != "input" and node.op not in STAGES[stage]:
            raise CorruptError(f"{stage} graph: {node.name!r} is a {node.op!r}, which this stage does not allow")
        for role, const in node.consts.items():
            if const not in graph.consts:
                raise CorruptError(f"{stage} graph: {node.name!r} has no {role} ({const!r} is missing)")
        seen.add(node.name)
    for name in graph.outputs:
        if name not in seen:
            raise CorruptError(f"{stage} graph: output {name!r} is not computed")


def unknown_ops(graph: Graph) -> list[tuple[str, str]]:
    """(node, what the tracer called it) of every op that has no row in `core.ops`."""
    return [(n.name, str(n.attrs.get("target", n.op))) for n in graph.nodes if n.op == "unknown"]


def refuse_unknown(graph: Graph, model: str) -> None:
    """UnsupportedError naming every op of `model`'s graph that Bitpress does not know."""
    if found := unknown_ops(graph):
        names = ", ".join(f"{name} ({op})" for name, op in found)
        raise UnsupportedError(
            f"{model} has {len(found)} unsupported op{'s' * (len(found) > 1)}: {names}; `bitpress plan` shows where"
        )


def run(graph: Graph, inputs: Mapping[str, np.ndarray], *, keep: bool = False) -> dict[str, np.ndarray]:
    """Execute any stage with the numpy meaning of each op.

    `inputs`: value name -> array with batch, [N, *shape]. Returns the outputs, or with `keep` every value.
    """
    from .ops import OPS

    values: dict[str, np.ndarray] = dict(inputs)
    for node in graph.nodes:
        consts = {role: graph.consts[name] for role, name in node.consts.items()}
        values[node.name] = OPS[node.op].meaning(node, consts, *(values[i] for i in node.inputs))
    return values if keep else {o: values[o] for o in graph.outputs}


def _to_json_body(graph: Graph) -> dict[str, Any]:
    def row(n: Node) -> dict[str, Any]:
        return {
            "op": n.op,
            "name": n.name,
            "inputs": list(n.inputs),
            "shape": list(n.shape),
            "dtype": n.dtype,
            "attrs": {k: _plain(v) for k, v in sorted(n.attrs.items())},
            "consts": dict(sorted(n.consts.items())),
        }

    return {
        "inputs": [row(n) for n in graph.inputs],
        "nodes": [row(n) for n in graph.nodes],
        "outputs": list(graph.outputs),
    }


def to_json(graph: Graph) -> dict[str, Any]:
    """Structure only (constants live in model.safetensors); sorted and versioned."""
    return {"schema": GRAPH_SCHEMA, "schema_version": GRAPH_VERSION, **_to_json_body(graph)}


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def from_json(doc: Mapping[str, Any], consts: Mapping[str, np.ndarray]) -> Graph:
    """Inverse of `to_json`; CorruptError if the document is of another kind or version."""
    if doc.get("schema") != GRAPH_SCHEMA or doc.get("schema_version") != GRAPH_VERSION:
        raise CorruptError(
            f"not a {GRAPH_SCHEMA} version {GRAPH_VERSION} document "
            f"(schema {doc.get('schema')!r}, version {doc.get('schema_version')!r})"
        )

    def tup(value: Any) -> Any:
        return tuple(tup(v) for v in value) if isinstance(value, list) else value

    def text(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no name")
        return value

    def size(value: Any) -> int:
        if type(value) is not int or value < 1:
            raise TypeError(f"{value!r} is no size")
        return value

    def node(row: Mapping[str, Any]) -> Node:
        return Node(
            op=text(row["op"]),
            name=text(row["name"]),
            inputs=tuple(text(i) for i in _listed(row["inputs"])),
            shape=tuple(size(d) for d in _listed(row["shape"])),
            dtype=text(row["dtype"]),
            attrs={text(k): tup(v) for k, v in row["attrs"].items()},
            consts={text(k): text(v) for k, v in row["consts"].items()},
        )

    try:
        return Graph(
            inputs=tuple(node(r) for r in _listed(doc["inputs"])),
            nodes=tuple(node(r) for r in _listed(doc["nodes"])),
            outputs=tuple(text(o) for o in _listed(doc["outputs"])),
            consts=dict(consts),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"graph document is damaged: {error!r}") from error
