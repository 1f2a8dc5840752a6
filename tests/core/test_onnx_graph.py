"""A float graph read from ONNX computes what the file computes; what has no counterpart is named with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
torch = pytest.importorskip("torch", reason="models are exported by torch: extra [search]")

from onnx.helper import make_node as op  # noqa: E402
from torch import nn  # noqa: E402

from bitpress.core.errors import BitpressError, CorruptError, UnsupportedError, UsageError  # noqa: E402
from bitpress.core.graph import Graph, run, unknown_ops  # noqa: E402
from bitpress.core.network import network  # noqa: E402
from bitpress.core.onnx_graph import RULES  # noqa: E402

from ..benchmarks.graphs import tolerance  # noqa: E402
from .onnx_nets import Residual, export, outputs, write  # noqa: E402
from .test_capture import live  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def same(path: Path, n: int = 2) -> Graph:
    """The imported graph, whose outputs are onnxruntime's."""
    graph = network(str(path)).graph
    assert not unknown_ops(graph)
    x = np.random.default_rng(1).standard_normal((n, *graph.inputs[0].shape)).astype(np.float32)
    want = next(iter(outputs(path, x).values()))
    got = run(graph, {graph.inputs[0].name: x})[graph.outputs[0]]
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance(graph, x)
    return graph


@pytest.mark.parametrize("fold", [True, False])
def test_an_exported_network(fold: bool, tmp_path: Path) -> None:
    graph = same(export(live(Residual()), tmp_path / "net.onnx", (1, 8, 8), fold=fold))
    assert [n.name for n in graph if n.op in ("conv2d", "linear")] == ["stem", "body", "down", "fc"]
    assert ("batch_norm" in {n.op for n in graph}) is not fold


K = np.array
# what is tested -> nodes from x [n, 3, 6, 7] to y, constants
GOOD: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "grouped, strided, dilated": (
        [op("Conv", ["x", "w", "b"], ["y"], group=3, strides=[2, 1], dilations=[1, 2], pads=[0, 1, 2, 3])],
        {"w": f32(6, 1, 3, 3), "b": f32(6)},
    ),
    "same upper": ([op("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])], {"w": f32(4, 3, 3, 2)}),
    "same lower": ([op("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])], {"w": f32(4, 3, 4, 3)}),
    "batch norm": (
        [op("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"], epsilon=0.01)],
        {"g": f32(3), "b": f32(3), "m": f32(3), "v": np.abs(f32(3)) + np.float32(0.5)},
    ),
    "relu6": ([op("Clip", ["x", "lo", "hi"], ["y"])], {"lo": K(0, np.float32), "hi": K(6, np.float32)}),
    "curves": (
        [op("HardSwish", ["x"], ["a"]), op("HardSigmoid", ["a"], ["b"], alpha=1 / 6), op("Sigmoid", ["b"], ["c"]),
         op("Mul", ["c", "x"], ["y"])], {},
    ),
    "gate": (
        [op("GlobalAveragePool", ["x"], ["m"]), op("Sigmoid", ["m"], ["g"]), op("Mul", ["g", "x"], ["y"])], {},
    ),
    "split": (
        [op("Split", ["x", "n"], ["a", "b"], axis=1), op("Concat", ["b", "a"], ["c"], axis=1),
         op("Split", ["c"], ["l", "r"], axis=2, num_outputs=2), op("Split", ["l"], ["m"], axis=3, num_outputs=1),
         op("Add", ["m", "r"], ["y"])], {"n": K([1, 2])},
    ),
    "a pad that is computed": (
        [op("ConstantOfShape", ["s"], ["z"], value=onnx.numpy_helper.from_array(K([0]))),
         op("Concat", ["z", "e"], ["p"], axis=0), op("Pad", ["x", "p"], ["y"])], {"s": K([4]), "e": K([0, 0, 1, 2])},
    ),
    "one-sided clip": ([op("Clip", ["x", "lo"], ["y"])], {"lo": K(0, np.float32)}),
    "max pool, ceiling": (
        [op("MaxPool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, pads=[1, 0, 1, 0])], {},
    ),
    "average with border": (
        [op("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1)], {},
    ),
    "mean, axes as input": (
        [op("ReduceMean", ["x", "a"], ["y"], keepdims=0)], {"a": K([2, -1])},
    ),
    "pool, squeeze, gemm": (
        [op("GlobalAveragePool", ["x"], ["p"]), op("Squeeze", ["p", "a"], ["f"]),
         op("Gemm", ["f", "w", "b"], ["y"], beta=0.5)],
        {"a": K([2, 3]), "w": f32(3, 5), "b": f32(5)},
    ),
    "matmul and bias": (
        [op("Reshape", ["x", "s"], ["f"]), op("MatMul", ["f", "w"], ["m"]),
         op("Add", ["b", "m"], ["y"])],
        {"s": K([0, -1]), "w": f32(126, 5), "b": f32(5)},
    ),
    "turned weights": (
        [op("Flatten", ["x"], ["f"]), op("Transpose", ["w"], ["t"]), op("MatMul", ["f", "t"], ["y"])],
        {"w": f32(5, 126)},
    ),
    "convolution and bias": (
        [op("Conv", ["x", "w"], ["c"]), op("Add", ["c", "b"], ["y"])],
        {"w": f32(4, 3, 1, 1), "b": f32(1, 4, 1, 1)},
    ),
    "weights that two layers share": (
        [op("Conv", ["x", "w"], ["c"]), op("Conv", ["c", "w"], ["d"]), op("Add", ["c", "d"], ["y"])],
        {"w": f32(3, 3, 1, 1)},
    ),
    "pad, slice, concat": (
        [op("Pad", ["x", "p"], ["a"]), op("Slice", ["a", "s", "e", "ax", "st"], ["b"]),
         op("Relu", ["b"], ["c"]), op("Concat", ["b", "c"], ["y"], axis=1)],
        {"p": K([0, 1, 0, 0, 0, 2, 0, 0]), "s": K([0, 0]), "e": K([2**60, 6]), "ax": K([3, 2]), "st": K([2, 1])},
    ),
    "pad of a convolution": (
        [op("Pad", ["x", "p"], ["a"]), op("Conv", ["a", "w"], ["y"])],
        {"p": K([0, 0, 1, 2, 0, 0, 0, 1]), "w": f32(2, 3, 3, 3)},
    ),
    "nothing": (
        [op("Identity", ["x"], ["a"]), op("Dropout", ["a"], ["b"]),
         op("Constant", [], ["w"], value=onnx.numpy_helper.from_array(f32(2, 3, 1, 1))),
         op("Conv", ["b", "w"], ["y"])],
        {},
    ),
    "a shape that is computed": (
        [op("Shape", ["x"], ["s"], start=0, end=1), op("Concat", ["s", "r"], ["t"], axis=0),
         op("Relu", ["x"], ["a"]), op("Reshape", ["a", "t"], ["y"])],
        {"r": K([-1])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_ops_compute_what_onnxruntime_computes(case: str, tmp_path: Path) -> None:
    nodes, consts = GOOD[case]
    same(write(tmp_path / "net.onnx", nodes, consts))


def test_every_row_of_the_table_is_in_a_test() -> None:
    used = {node.op_type for nodes, _ in GOOD.values() for node in nodes} | {"QuantizeLinear", "DequantizeLinear"}
    assert set(RULES) - used == {"Unsqueeze"}  # of constants only; exporters put it between shapes


@pytest.mark.parametrize("opset", [13, 17, 18, onnx.defs.onnx_opset_version()])
def test_opsets(opset: int, tmp_path: Path) -> None:
    axes: dict[str, Any] = {"axes": [2, 3]} if opset < 18 else {}
    inputs, consts = (["x"], {}) if axes else (["x", "a"], {"a": K([2, 3])})
    path = write(tmp_path / "net.onnx", [op("ReduceMean", inputs, ["y"], **axes)], consts, opset=opset)
    assert [n.op for n in network(str(path)).graph] == ["global_avg_pool"]


def test_a_minus_infinite_pad_belongs_to_the_max_pool(tmp_path: Path) -> None:
    nodes = [op("Pad", ["x", "p", "v"], ["a"]), op("MaxPool", ["a"], ["y"], kernel_shape=[2, 2])]
    consts = {"p": K([0, 0, 1, 1, 0, 0, 0, 0]), "v": K(-np.inf, np.float32)}
    (pool,) = network(str(write(tmp_path / "net.onnx", nodes, consts))).graph.nodes
    assert pool.attrs["padding"] == (1, 1, 0, 0)


BIG = {"w": f32(4, 3, 3, 3)}
# nodes, constants, part of the reason
BAD: list[tuple[list[Any], dict[str, np.ndarray], str]] = [
    ([op("Tanh", ["x"], ["y"], name="/act/Tanh")], {}, "act (Tanh: has no counterpart)"),
    ([op("HardSigmoid", ["x"], ["y"])], {}, "y (HardSigmoid: alpha 0.2: 0.166667 is supported)"),
    ([op("Relu", ["x"], ["r"]), op("ReduceMean", ["r", "a"], ["m"]), op("Mul", ["r", "m"], ["y"])], {"a": K([1])},
     "y (Mul: "),
    ([op("Softmax", ["x"], ["y"])], {}, "y (Softmax: has no counterpart)"),
    ([op("Gelu", ["x"], ["y"], domain="com.microsoft")], {}, "domain com.microsoft"),
    ([op("Conv", ["x", "x2"], ["y"]), op("Conv", ["x", "w"], ["x2"])][::-1], BIG, "is computed"),
    ([op("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])], {}, "dilations [2, 2]"),
    ([op("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[1, 1, 1, 1])], {}, "count_include_pad 0"),
    ([op("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], ceil_mode=1)], {}, "ceil_mode 1"),
    ([op("ReduceMean", ["x", "a"], ["y"])], {"a": K([1])}, "averages other axes"),
    ([op("Reshape", ["x", "s"], ["y"])], {"s": K([0, 6, 3, 7])}, "one flat axis"),
    ([op("Reshape", ["x", "s"], ["y"])], {"s": K([-1])}, "the batch must stay"),
    ([op("Cast", ["x"], ["i"], to=7), op("Reshape", ["i", "s"], ["f"]), op("Reshape", ["x", "f"], ["y"])],
     {"s": K([-1])}, "the shape of y depends on data"),
    ([op("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2])], {}, "turns a computed value"),
    ([op("Concat", ["x", "x"], ["y"], axis=2)], {}, "axis 2"),
    ([op("Add", ["x", "b"], ["y"])], {"b": f32(1)}, "adds a constant"),
    ([op("Pad", ["x", "p"], ["y"], mode="reflect")], {"p": K([0] * 3 + [1] + [0] * 4)}, "mode reflect"),
    ([op("Pad", ["x", "p", "v"], ["y"])], {"p": K([0] * 3 + [1] + [0] * 4), "v": K(2, np.float32)}, "with 2"),
    ([op("Slice", ["x", "s", "e", "a"], ["y"])], {"s": K([0]), "e": K([1]), "a": K([0])}, "cuts the batch"),
    ([op("Clip", ["x", "lo"], ["y"])], {"lo": K(1, np.float32)}, "one bound"),
    ([op("Flatten", ["x"], ["f"]), op("Gemm", ["f", "w"], ["y"], alpha=2.0)], {"w": f32(126, 4)}, "alpha"),
    ([op("MaxPool", ["x"], ["p", "i"], kernel_shape=[2, 2]), op("Cast", ["i"], ["y"], to=1)], {}, "output i"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "consts", "why"), BAD, ids=[b[2] for b in BAD])
def test_what_has_no_counterpart_is_named(
    nodes: list[Any], consts: dict[str, np.ndarray], why: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "net.onnx", nodes, consts)
    found = " ".join(f"{name} ({op})" for name, op in unknown_ops(network(str(path), floats=True).graph))
    assert why in found


RELU = [op("Relu", ["x"], ["y"])]


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"shape": ("n", 3, "h", 7)}, UnsupportedError, "give --in-shape"),
        ({"shape": ("n", 3)}, UnsupportedError, "rank 2"),
        ({"kind": onnx.TensorProto.FLOAT16}, UnsupportedError, "float16"),
        ({"opset": 12}, UnsupportedError, "opset 12, 13 to"),
        ({"inputs": ("x", "z")}, UnsupportedError, "2 inputs (x, z)"),
        ({"inputs": ("q",)}, CorruptError, "no valid ONNX"),
    ],
)
def test_files_that_cannot_be_read(
    options: dict[str, Any], error: type[BitpressError], why: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "net.onnx", RELU, **options)
    with pytest.raises(error) as caught:
        network(str(path))
    assert why in str(caught.value)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", RELU)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CorruptError, match="no valid ONNX"):
        network(str(path))
    with pytest.raises(UsageError, match="no file"):
        network(str(tmp_path / "none.onnx"))


def test_open_sizes_are_given(tmp_path: Path) -> None:
    path = str(write(tmp_path / "net.onnx", RELU, shape=("n", 3, "h", "w")))
    assert network(path, in_shape=(3, 5, 4)).graph.value("y").shape == (3, 5, 4)
    with pytest.raises(UsageError, match=r"takes \[3, 0, 0\]"):
        network(path, in_shape=(1, 5, 4))
    with pytest.raises(UsageError, match="holds its weights itself"):
        network(path, in_shape=(3, 5, 4), weights="w.safetensors")
    with pytest.raises(UsageError, match="gives 3 values"):
        network(path, in_shape=(3, 5, 4), classes=4)


def test_mean_and_std_are_per_channel(tmp_path: Path) -> None:
    path = str(write(tmp_path / "net.onnx", RELU))
    assert network(path).mean == (0.0,) * 3 and network(path).std == (1.0,) * 3
    assert network(path, mean=(0.5,), std=(1.0, 2.0, 3.0)).std == (1.0, 2.0, 3.0)


def test_functions_are_inlined(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [op("Mine", ["x"], ["y"], domain="own")])
    model = onnx.load(path)
    opset = onnx.helper.make_opsetid("", 21)
    body = onnx.helper.make_function("own", "Mine", ["a"], ["b"], [op("Relu", ["a"], ["b"])], [opset])
    model.functions.append(body)
    onnx.save(model, path)
    assert [n.op for n in network(str(path)).graph] == ["relu"]


def test_the_documented_table_is_the_importer_s() -> None:
    text = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.split("## Quantised files")[0].splitlines() if line.startswith("| `")]
    named = {word.strip("` ") for row in rows for word in row.split(",")}
    assert named == set(RULES)


def test_a_layer_without_weights_of_its_own_name_bears_the_node_s(tmp_path: Path) -> None:
    module = live(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    graph = same(export(module, tmp_path / "net.onnx", (3, 6, 7)))
    assert [n.name for n in graph if n.op == "conv2d"] == ["0"]
