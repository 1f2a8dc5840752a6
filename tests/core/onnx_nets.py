"""ONNX files for tests: exported by torch, written node by node, quantised by onnxruntime."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

Arrays = dict[str, np.ndarray]


class Residual(nn.Module):
    """Convolutions with batch norms, a sum, a max pool, a mean, a linear layer: digits' shape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.body_bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, 10]."""
        x = torch.relu(self.stem_bn(self.stem(x)))
        x = torch.relu(x + self.body_bn(self.body(x)))
        x = torch.relu(self.down(torch.max_pool2d(x, 2)))
        return torch.Tensor(self.fc(x.mean((2, 3))))


def export(module: nn.Module, path: Path, shape: Sequence[int], *, fold: bool = True) -> Path:
    """`module` as torch's exporter writes it, the batch open; without `fold` batch norms stay nodes."""
    module.eval()
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its successor, which needs one more package
        torch.onnx.export(
            module, (torch.zeros(1, *shape),), str(path), dynamo=False, input_names=["image"], training=mode,
            do_constant_folding=fold, dynamic_axes={"image": {0: "n"}}, opset_version=17,
        )  # fmt: skip
    return path


def write(
    path: Path, nodes: Sequence[Any], consts: Arrays | None = None, *, shape: Sequence[Any] = ("n", 3, 6, 7),
    opset: int = 21, outputs: Sequence[str] = ("y",), inputs: Sequence[str] = ("x",), kind: int = TensorProto.FLOAT,
) -> Path:  # fmt: skip
    """A model of `nodes` from x to y."""
    graph = helper.make_graph(
        list(nodes), "test", [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializer=[numpy_helper.from_array(np.asarray(a), n) for n, a in (consts or {}).items()],
    )  # fmt: skip
    others = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in others)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    known = onnx.shape_inference.infer_shapes(model).graph.output
    for own, found in zip(model.graph.output, known, strict=True):  # files without these shapes are not valid
        has = found.type.tensor_type.HasField("shape")
        own.CopyFrom(found if has else helper.make_tensor_value_info(own.name, TensorProto.FLOAT, [*"abcd"]))
    onnx.save(model, path)
    return path


def quantise(source: Path, target: Path, images: np.ndarray, *, form: str = "QDQ", **options: Any) -> Path:
    """`source` as onnxruntime's static quantiser makes it in the form "QDQ" or "QOperator", ranges from `images`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            name = onnx.load(source).graph.input[0].name
            self.batches: Iterator[Arrays] = iter([{name: images}])

        def get_next(self) -> Arrays | None:
            return next(self.batches, None)

    quantize_static(str(source), str(target), Reader(), quant_format=QuantFormat[form], **options)
    return target


# op that makes codes -> place of their scale among its inputs; their zero point follows
MAKERS = {
    "QuantizeLinear": 1, "QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QGemm": 7, "QLinearConcat": 0,
    "QLinearAveragePool": 3, "QLinearGlobalAveragePool": 3,
}  # fmt: skip
QONNX = "qonnx.custom_op.general"
UNSIGNED = ("Relu", "ReduceMean", "AveragePool", "GlobalAveragePool")  # means are those of relus in these networks


def code_makers(path: Path) -> list[tuple[str, float, int]]:
    """(tensor of codes, scale, zero point) of every node that rounds a computed value; of QONNX levels, not codes."""
    graph = onnx.load(path).graph
    consts = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    out = []
    for node in graph.node:
        if node.op_type in MAKERS:
            scale, zero = (consts[name] for name in node.input[MAKERS[node.op_type] :][:2])
            out.append((node.output[0], float(scale.item()), int(zero.item())))
        elif node.domain == QONNX and node.input[0] not in consts:
            out.append((f"{node.output[0]}_levels", float(consts[node.input[1]].item()), 0))
    return out


def as_defined(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with QONNX's ops as its specification defines them, in float ops that onnxruntime has."""
    consts = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.domain != QONNX:
            nodes.append(node)
            continue
        x, scale, out, attrs = *node.input[:2], node.output[0], {a.name: a.i for a in node.attribute}
        if node.op_type == "BipolarQuant":
            signs = np.where(consts[x] >= 0, 1, -1).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(signs, f"{out}_levels"))
            nodes.append(helper.make_node("Mul", [f"{out}_levels", scale], [out]))
            continue
        bits, signed, narrow = int(consts[node.input[3]]), attrs.get("signed", 1), attrs.get("narrow", 0)
        ends = (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)
        for name, end in zip(("lo", "hi"), ends, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.float32(end), f"{out}_{name}"))
        steps = [
            ("Div", [x, scale]), ("Add", ["", node.input[2]]), ("Round", [""]),
            ("Clip", ["", f"{out}_lo", f"{out}_hi"]), ("Sub", ["", node.input[2]]), ("Mul", ["", scale]),
        ]  # fmt: skip
        names = [f"{out}_{op}" for op, _ in steps[:4]] + [f"{out}_levels", out]
        for (op, inputs), before, name in zip(steps, ["", *names], names, strict=False):
            nodes.append(helper.make_node(op, [i or before for i in inputs], [name]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def annotate(source: Path, target: Path, images: np.ndarray, *, form: str, weights: int, acts: int) -> Path:
    """`source` with the roundings of a training framework, ranges from `images`.

    `form` "QONNX" as Brevitas 0.13 writes it: Quant nodes, float weights. "NNCF" as NNCF 3.4: DequantizeLinear of int8
    weights, QuantizeLinear and DequantizeLinear of values, unsigned behind a Relu, float biases.
    """
    model, values = onnx.load(source), every_value(source, images)
    consts = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    added: Arrays = {}
    sums = {name for node in model.graph.node if node.op_type == "Add" for name in node.input}

    def rounded(name: str, bits: int, *, signed: bool) -> list[Any]:
        """Nodes from `name` to `name`_r."""
        held, hi = consts.get(name), 2 ** (bits - signed) - 1
        axes = tuple(range(1, held.ndim)) if held is not None else None
        scale = np.abs(values[name] if held is None else held).max(axis=axes, keepdims=held is not None) / hi
        if form == "QONNX":
            added.update({f"{name}_s": np.float32(scale), f"{name}_z": np.float32(0), f"{name}_b": np.float32(bits)})
            inputs, attrs = [name, *(f"{name}_{k}" for k in "szb")], {"signed": int(signed), "rounding_mode": "ROUND"}
            narrow = int(held is not None)
            return [helper.make_node("Quant", inputs, [f"{name}_r"], domain=QONNX, narrow=narrow, **attrs)]
        kind = np.int8 if signed else np.uint8
        shape: tuple[int, ...] = () if held is None else (-1,)
        added[f"{name}_s"] = np.float32(scale).reshape(shape)
        added[f"{name}_z"] = np.zeros_like(added[f"{name}_s"], kind)
        ends = [f"{name}_s", f"{name}_z"]
        attrs = {} if held is None else {"axis": -held.ndim}
        pair = [helper.make_node("DequantizeLinear", [f"{name}_q", *ends], [f"{name}_r"], **attrs)]
        if held is None:
            return [helper.make_node("QuantizeLinear", [name, *ends], [f"{name}_q"]), *pair]
        added[f"{name}_q"] = np.rint(held / np.float32(scale)).astype(kind)
        return pair

    first = model.graph.input[0].name
    nodes, renamed = rounded(first, 8, signed=True), {first: f"{first}_r"}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            nodes += rounded(node.input[1], weights, signed=True)
            renamed[node.input[1]] = f"{node.input[1]}_r"
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        nodes.append(node)
        (name,) = node.output
        if (unsigned := node.op_type in UNSIGNED) or name in sums:
            signed = not unsigned
            nodes += rounded(name, 8 if signed else acts, signed=signed)
            renamed[name] = f"{name}_r"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in added.items())
    if form == "QONNX":
        model.opset_import.append(helper.make_opsetid(QONNX, 2))
    onnx.save(model, target)
    return target


def every_value(path: Path, images: np.ndarray) -> Arrays:
    """What each node of a float model makes of `images`, and the images by the input's name."""
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output]
    return {model.graph.input[0].name: images, **_run(model, images, names)}


def outputs(path: Path, images: np.ndarray, *, codes: bool = False, optimised: bool = False) -> Arrays:
    """What onnxruntime computes: the file's outputs, with `codes` also what each of `MAKERS` makes.

    Node by node as the ops are defined, unless `optimised`: its fused 8-bit kernels add pairs of products in 16 bits,
    which saturate on CPUs without VNNI unless weights keep to 7 bits (`reduce_range`).
    """
    model = as_defined(onnx.load(path))
    more = [name for name, _, _ in code_makers(path)] if codes else []
    return _run(model, images, more, optimised=optimised)


def _run(model: onnx.ModelProto, images: np.ndarray, more: Sequence[str], *, optimised: bool = False) -> Arrays:
    """The model's outputs, and the tensors `more`."""
    import onnxruntime

    known = {one.name for one in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in more if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))
