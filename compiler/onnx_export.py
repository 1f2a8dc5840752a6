"""Float Graph -> ONNX model, which peers run. Knows no plan, no bits and no runtime.

One row of `_WRITERS` per op of the float stage. Opset 17, batch dimension free, weights inside the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UnsupportedError
from ..core.graph import Graph, Node, verify
from .onnx_writer import Writer

if TYPE_CHECKING:
    from onnx import ModelProto


def fold_batch_norm(graph: Graph) -> Graph:
    """The same float graph with each batch norm that alone follows a conv or linear merged into it.

    Computed in float64, rounded once. The merged node bears the batch norm's name, so that later nodes need no
    change. Other batch norms are kept.
    """
    consumers = graph.consumers()
    consts = dict(graph.consts)
    nodes: list[Node] = []
    for node in graph.nodes:
        source = next((i for i, n in enumerate(nodes) if n.name == node.inputs[0]), None) if node.inputs else None
        if (
            node.op != "batch_norm"
            or source is None
            or nodes[source].op not in ("conv2d", "linear")
            or len(consumers[node.inputs[0]]) != 1
            or node.inputs[0] in graph.outputs
        ):
            nodes.append(node)
            continue
        layer = nodes.pop(source)
        weight, bias = _folded(layer, node, consts)
        roles = {"weight": f"{node.name}.folded_weight", "bias": f"{node.name}.folded_bias"}
        consts[roles["weight"]], consts[roles["bias"]] = weight, bias
        nodes.append(replace(layer, name=node.name, consts=roles))
    used = {name for node in nodes for name in node.consts.values()}
    return graph.with_nodes(tuple(nodes), {k: v for k, v in consts.items() if k in used})


def _folded(layer: Node, norm: Node, consts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    gamma, beta, mean, var = (
        consts[norm.consts[role]].astype(np.float64) for role in ("weight", "bias", "mean", "var")
    )
    scale = gamma / np.sqrt(var + norm.attrs["eps"])
    weight = consts[layer.consts["weight"]].astype(np.float64)
    bias = consts[layer.consts["bias"]].astype(np.float64) if "bias" in layer.consts else np.zeros(len(weight))
    weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return weight.astype(np.float32), ((bias - mean) * scale + beta).astype(np.float32)


def to_onnx(graph: Graph) -> ModelProto:
    """ONNX model of a float graph; values keep their names, inputs are float32 ["N", C, H, W].

    UnsupportedError names the first op that ONNX does not get from us; EnvironmentMissing without the extra `onnx`.
    """
    verify(graph, "float")
    writer = Writer()
    for node in graph.nodes:
        if node.op not in _WRITERS:
            raise UnsupportedError(f"{node.name}: op {node.attrs.get('target', node.op)!r} has no ONNX form here")
        _WRITERS[node.op](writer, node, graph)
    used = {name for node in writer.nodes for name in node.input}
    for name, array in graph.consts.items():
        if name in used:
            writer.constant(name, array)
    outputs = [graph.value(name) for name in graph.outputs]
    return writer.model([(n.name, n.shape) for n in graph.inputs], [(n.name, n.shape) for n in outputs])


def _roles(node: Node, *roles: str) -> list[str]:
    return [node.consts[role] for role in roles if role in node.consts]


def _conv2d(out: Writer, node: Node, graph: Graph) -> None:
    kernel = graph.consts[node.consts["weight"]].shape[2:]
    out.node(
        "Conv", node.name, [node.inputs[0], *_roles(node, "weight", "bias")],
        kernel_shape=list(kernel), strides=list(node.attrs["stride"]), pads=list(node.attrs["padding"]),
        dilations=list(node.attrs["dilation"]), group=node.attrs["groups"],
    )  # fmt: skip


def _linear(out: Writer, node: Node, _graph: Graph) -> None:
    out.node("Gemm", node.name, [node.inputs[0], *_roles(node, "weight", "bias")], transB=1)


def _batch_norm(out: Writer, node: Node, _graph: Graph) -> None:
    inputs = [node.inputs[0], *_roles(node, "weight", "bias", "mean", "var")]
    out.node("BatchNormalization", node.name, inputs, epsilon=float(node.attrs["eps"]))


def _clip(out: Writer, node: Node, _graph: Graph) -> None:
    bounds = [out.constant(f"{node.name}.{role}", np.array(node.attrs[role], np.float32)) for role in ("lo", "hi")]
    out.node("Clip", node.name, [node.inputs[0], *bounds])


def _pool(kind: str, **fixed: Any) -> Callable[[Writer, Node, Graph], None]:
    def write(out: Writer, node: Node, _graph: Graph) -> None:
        out.node(
            kind, node.name, [node.inputs[0]], kernel_shape=list(node.attrs["kernel"]),
            strides=list(node.attrs["stride"]), pads=list(node.attrs.get("padding", (0, 0, 0, 0))), **fixed,
        )  # fmt: skip

    return write


def _plain(kind: str, **fixed: Any) -> Callable[[Writer, Node, Graph], None]:
    def write(out: Writer, node: Node, _graph: Graph) -> None:
        out.node(kind, node.name, list(node.inputs), **fixed)

    return write


def _slice(out: Writer, node: Node, graph: Graph) -> None:
    sizes = graph.value(node.inputs[0]).shape
    rows = [slice(*row).indices(size) for row, size in zip(node.attrs["slices"], sizes, strict=True)]
    cut = [(axis + 1, *row) for axis, (row, size) in enumerate(zip(rows, sizes, strict=True)) if row != (0, size, 1)]
    if not cut:
        out.node("Identity", node.name, list(node.inputs))
        return
    axes, starts, ends, steps = (
        out.constant(f"{node.name}.{role}", np.array(column, np.int64))
        for role, column in zip(("axes", "starts", "ends", "steps"), zip(*cut, strict=True), strict=True)
    )
    out.node("Slice", node.name, [node.inputs[0], starts, ends, axes, steps])


def _pad(out: Writer, node: Node, _graph: Graph) -> None:
    pads = node.attrs["pads"]
    amounts = [0, *(before for before, _ in pads), 0, *(after for _, after in pads)]
    out.node("Pad", node.name, [node.inputs[0], out.constant(f"{node.name}.pads", np.array(amounts, np.int64))])


def _silu(out: Writer, node: Node, _graph: Graph) -> None:
    gate = out.node("Sigmoid", f"{node.name}.sigmoid", list(node.inputs))
    out.node("Mul", node.name, [node.inputs[0], gate])


_WRITERS: Mapping[str, Callable[[Writer, Node, Graph], None]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu": _plain("Relu"),
    "clip": _clip,
    "add": _plain("Add"),
    "mul": _plain("Mul"),
    "hard_sigmoid": _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_swish": _plain("HardSwish"),
    "sigmoid": _plain("Sigmoid"),
    "silu": _silu,
    "max_pool2d": _pool("MaxPool"),
    "avg_pool2d": _pool("AveragePool", count_include_pad=1),
    "global_avg_pool": _plain("GlobalAveragePool"),
    "flatten": _plain("Flatten", axis=1),
    "slice": _slice,
    "pad": _pad,
    "concat": _plain("Concat", axis=1),
}
