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


def outputs(path: Path, images: np.ndarray, *, codes: bool = False, optimised: bool = False) -> Arrays:
    """What onnxruntime computes: the file's outputs, with `codes` also what each of `MAKERS` makes.

    Node by node as the ops are defined, unless `optimised`: its fused 8-bit kernels add pairs of products in 16 bits,
    which saturate on CPUs without VNNI unless weights keep to 7 bits (`reduce_range`).
    """
    import onnxruntime

    model = onnx.load(path)
    if codes:
        for node in model.graph.node:
            if node.op_type in MAKERS:
                model.graph.output.append(helper.make_empty_tensor_value_info(node.output[0]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))
