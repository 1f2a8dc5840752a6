"""The ONNX model of a float graph computes what the graph computes."""

from __future__ import annotations

import numpy as np
import pytest

from bitpress.compiler.onnx_export import fold_batch_norm, to_onnx
from bitpress.compiler.onnx_writer import OPSET
from bitpress.core.errors import UnsupportedError
from bitpress.core.graph import FLOAT_OPS, Graph, Node, run, verify

from ..benchmarks.graphs import everything, residual, tolerance
from .nets import gated

onnx = pytest.importorskip("onnx", reason="the ONNX writer needs the extra `onnx`")
ort = pytest.importorskip("onnxruntime", reason="the check of ONNX models needs the extra `onnx`")


def onnxruntime(graph: Graph, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(to_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {graph.inputs[0].name: x})[0]


def images(graph: Graph, count: int) -> np.ndarray:
    return np.random.default_rng(7).normal(0, 1, (count, *graph.inputs[0].shape)).astype(np.float32)


@pytest.mark.parametrize("graph", [everything(), residual(), gated()], ids=["everything", "residual", "gated"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("fold", [False, True], ids=["norms", "folded"])
def test_onnxruntime_agrees_with_the_graph(graph: Graph, count: int, fold: bool) -> None:
    x = images(graph, count)
    want = run(graph, {"image": x})[graph.outputs[0]]
    got = onnxruntime(fold_batch_norm(graph) if fold else graph, x)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance(graph, x)


def test_every_float_op_is_written() -> None:
    written = {node.op for graph in (everything(), residual(), gated()) for node in graph}
    assert written == FLOAT_OPS - {"unknown"}


def test_folding_keeps_norms_that_follow_no_layer_alone() -> None:
    folded = fold_batch_norm(everything())
    verify(folded, "float")
    assert [n.name for n in folded if n.op == "batch_norm"] == ["sum.bn"]
    assert set(folded.consts) == {c for n in folded for c in n.consts.values()}


def test_a_layer_read_twice_is_not_folded() -> None:
    graph = residual()
    more = graph.with_nodes((*graph.nodes, Node("relu", "peek", ("stem",), graph.value("stem").shape)), graph.consts)
    assert "stem.bn" in [n.name for n in fold_batch_norm(more) if n.op == "batch_norm"]


def test_model_is_plain_and_batch_is_free() -> None:
    model = to_onnx(residual())
    assert [o.version for o in model.opset_import] == [OPSET]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert (shape[0].dim_param, [d.dim_value for d in shape][1:]) == ("N", [3, 8, 8])


def test_unknown_op_is_refused_by_name() -> None:
    node = Node("unknown", "odd", ("image",), (3, 8, 8), attrs={"target": "aten.erf"})
    graph = Graph((Node("input", "image", (), (3, 8, 8)),), (node,), ("odd",), {})
    with pytest.raises(UnsupportedError, match=r"odd: op 'aten\.erf'"):
        to_onnx(graph)


def test_a_slice_that_cuts_nothing() -> None:
    node = Node("slice", "same", ("image",), (3, 8, 8), attrs={"slices": ((0, 3, 1), (None, None, None), (0, 99, 1))})
    graph = Graph((Node("input", "image", (), (3, 8, 8)),), (node,), ("same",), {})
    x = images(graph, 2)
    assert np.array_equal(onnxruntime(graph, x), x)
