"""ONNX's own node tests of quantised ops, each in a small network, compiled and run; docs/onnx.md lists the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from onnx.backend.test.case.node import (  # noqa: E402
    _NodeTestCases,
    convinteger,
    dequantizelinear,
    matmulinteger,
    qlinearconv,
    qlinearmatmul,
    quantizelinear,
)
from onnx.helper import make_node as op  # noqa: E402

from bitpress.compiler.artifact import encode  # noqa: E402
from bitpress.compiler.model import Model  # noqa: E402
from bitpress.compiler.pipeline import compile_graph  # noqa: E402
from bitpress.core.errors import UnsupportedError  # noqa: E402
from bitpress.core.network import network  # noqa: E402

from ..core.onnx_nets import Arrays, write  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MODULES = {  # op -> the module that adds its tests to the list
    "ConvInteger": convinteger, "DequantizeLinear": dequantizelinear, "MatMulInteger": matmulinteger,
    "QLinearConv": qlinearconv, "QLinearMatMul": qlinearmatmul, "QuantizeLinear": quantizelinear,
}  # fmt: skip
CASES: Mapping[str, Any] = {
    case.name: case for case in _NodeTestCases if case.data_sets and case.model.graph.node[0].op_type in MODULES
}


@dataclass
class Net:
    """A network around one node: `image` [N, C, H, W] goes in, `answer` of the network must be `want`.

    `slack`: how far from it: signed levels may end one earlier than the file's, docs/onnx.md says.
    """

    image: np.ndarray
    want: np.ndarray
    nodes: list[Any]
    consts: Arrays
    answer: Callable[[np.ndarray], np.ndarray] = field(default=lambda y: y)
    slack: np.ndarray | float = 0.0


def arrays(case: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs of the test and what it wants."""
    (inputs, (want,)), *_ = case.data_sets

    def held(value: Any) -> np.ndarray:
        return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)

    return [held(value) for value in inputs], held(want)


def named(node: Any, inputs: Sequence[str], output: str, **changed: Any) -> Any:
    """The test's node between other tensors."""
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return op(node.op_type, list(inputs), [output], **{**attrs, **changed})


def image_of(x: np.ndarray) -> np.ndarray:
    """A tensor as one image: [1, ...], ones behind."""
    return (x if x.ndim == 4 else x.reshape(1, *x.shape, *(1,) * (3 - x.ndim))).astype(np.float32)


def at_the_ends(codes: np.ndarray) -> np.ndarray:
    """1.0 where a code is its type's lowest or highest, else 0.0; always 0.0 for types that are no integers."""
    name, wide = codes.dtype.name, codes.astype(np.float64)
    if "int" not in name:
        return np.zeros(codes.shape)
    signed, bits = name[0] == "i", int(name.rpartition("int")[2])
    lo = -(2.0 ** (bits - 1)) if signed else 0.0
    return ((wide == lo) | (wide == lo + 2.0**bits - 1)).astype(np.float64)


def one_to_one(channels: int, *, source: str, flat: bool = False) -> tuple[list[Any], Arrays]:
    """A layer that gives its input: 1 times each channel, in int8."""
    eye = np.eye(channels, dtype=np.int8)
    last = op("Gemm" if flat else "Conv", [source, "eye"], ["y"])
    nodes = [op("DequantizeLinear", ["eye_q", "eye_s", "eye_z"], ["eye"]), last]
    return nodes, {
        "eye_q": eye if flat else eye.reshape(channels, channels, 1, 1), "eye_s": np.float32(1), "eye_z": np.int8(0),
    }  # fmt: skip


def of_value(case: Any) -> Net:
    """QuantizeLinear and DequantizeLinear of a value that is computed; the layer behind it gives it back."""
    (x, *rest), want = arrays(case)
    into = case.model.graph.node[0].op_type == "QuantizeLinear"
    codes, scale = want if into else x, rest[0].astype(np.float64)
    zero = rest[1].reshape(()) if len(rest) > 1 else np.zeros((), codes.dtype)
    origin = float(zero.astype(np.float64))
    image = image_of(x if into else (x.astype(np.float64) - origin) * scale)
    ends = ["s", "z"]
    pair = [op("QuantizeLinear", ["x", *ends], ["q"]), op("DequantizeLinear", ["q", *ends], ["d"])]
    nodes, more = one_to_one(image.shape[1], source="d")

    def answer(y: np.ndarray) -> np.ndarray:
        return (np.rint(y / scale) + origin if into else y).reshape(want.shape)

    slack = at_the_ends(codes) * (1 if into else scale)
    consts = {"s": rest[0].astype(np.float32), "z": zero, **more}
    return Net(image, want, [*pair, *nodes], consts, answer, slack)


def of_weights(case: Any) -> Net:
    """Both of constants, a scale a slice: weights of a layer, one image for each column that it reads."""
    (x, *rest), want = arrays(case)
    node, names = case.model.graph.node[0], ["s", "z"][: len(rest)]
    first = node.op_type == "QuantizeLinear"
    made = named(node, ["w", *names], "wq" if first else "wf")
    axis = {a.name: a.i for a in node.attribute if a.name in ("axis", "block_size")}
    pair = [made, op("DequantizeLinear", ["wq", *names], ["wf"], **axis)] if first else [made]
    ones = op("QuantizeLinear", ["x", "one", "none"], ["xq"]), op("DequantizeLinear", ["xq", "one", "none"], ["xd"])
    consts = {**dict(zip(names, rest, strict=True)), "w": x, "one": np.float32(1), "none": np.uint8(0)}
    shape = x.shape if x.ndim == 4 else (len(x), int(np.prod(x.shape[1:])), 1, 1)
    columns = int(np.prod(shape[1:]))
    image = np.eye(columns, dtype=np.float32).reshape(columns, *shape[1:])
    if x.ndim == 2:
        last = [op("Flatten", ["xd"], ["f"]), op("Gemm", ["f", "wf"], ["y"], transB=1)]
    else:
        last = [op("Conv", ["xd", "wf"], ["y"])]

    def answer(y: np.ndarray) -> np.ndarray:
        values = y.reshape(columns, -1).T.reshape(x.shape).astype(np.float64)
        if not first:
            return values
        where = [-1 if i == axis.get("axis", 1) else 1 for i in range(x.ndim)]
        zero = rest[1].astype(np.float64).reshape(where) if len(rest) > 1 else 0.0
        return np.rint(values / rest[0].reshape(where)) + zero

    return Net(image, want, [*ones, *pair, *last], consts, answer)


def of_codes(case: Any) -> Net:
    """QLinearConv and QLinearMatMul: the image's codes are the test's, and a layer behind gives its codes back."""
    inputs, want = arrays(case)
    node, flat = case.model.graph.node[0], case.model.graph.node[0].op_type == "QLinearMatMul"
    names = [f"i{n}" for n in range(len(inputs))]
    consts = dict(zip(names[1:], inputs[1:], strict=True))
    values = (inputs[0].astype(np.float64) - inputs[2].astype(np.float64)) * inputs[1].astype(np.float64)
    image = values.astype(np.float32).reshape(*values.shape, *(1,) * (4 - values.ndim))
    consts["ss"] = inputs[1].astype(np.float32)
    nodes = [op("QuantizeLinear", ["x", "ss", "i2"], ["xq"])]
    if flat:
        consts["shape"] = np.int64([0, -1] if values.ndim == 2 else [0, *values.shape[1:]])
        nodes.append(op("Reshape", ["xq", "shape"], ["i0"]))
    nodes.append(named(node, [*(["i0"] if flat else ["xq"]), *names[1:]], "c"))
    consts["ts"] = inputs[6].astype(np.float32)
    nodes.append(op("DequantizeLinear", ["c", "ts", "i7"], ["e" if flat else "d"]))
    nodes += [op("Flatten", ["e"], ["d"])] if flat else []
    more, held = one_to_one(int(np.prod(want.shape[1:])) if flat else want.shape[1], source="d", flat=flat)

    def answer(y: np.ndarray) -> np.ndarray:
        return np.asarray(
            np.rint(y.reshape(want.shape) / consts["ts"].astype(np.float64)) + inputs[7].astype(np.float64)
        )

    slack = at_the_ends(want)
    if not flat:  # the test's window is one pixel: a level of the input moves that pixel's sum by one weight
        weight = np.abs(inputs[3].astype(np.float64) - inputs[5].astype(np.float64))
        slack += np.ceil(at_the_ends(inputs[0]) * weight * inputs[1] * inputs[4] / inputs[6])
    return Net(image, want, [*nodes, *more], {**consts, **held}, answer, slack)


def of_sums(case: Any) -> Net:
    """ConvInteger and MatMulInteger: codes of scale 1, sums as floats."""
    inputs, want = arrays(case)
    node, flat = case.model.graph.node[0], case.model.graph.node[0].op_type == "MatMulInteger"
    zero = inputs[2].reshape(()) if len(inputs) > 2 else np.zeros((), inputs[0].dtype)
    values = inputs[0].astype(np.float32) - zero.astype(np.float32)
    image = values.reshape(*values.shape, 1, 1) if flat else values
    consts = {"one": np.float32(1), "i2": zero, "i1": inputs[1]}
    names = ["xq", "i1", "i2", "i3"][: len(inputs)]
    if len(inputs) > 3:
        consts["i3"] = inputs[3]
    nodes = [op("QuantizeLinear", ["x", "one", "i2"], ["q" if flat else "xq"])]
    nodes += [op("Flatten", ["q"], ["xq"])] if flat else []
    nodes += [named(node, names, "c"), op("Cast", ["c"], ["y"], to=onnx.TensorProto.FLOAT)]
    weight = np.abs(inputs[1].astype(np.float64) - (inputs[3].astype(np.float64) if len(inputs) > 3 else 0))
    slack = at_the_ends(inputs[0]) @ weight if flat and zero else 0.0
    return Net(image, want, nodes, consts, slack=slack)


def net_of(case: Any) -> Net:
    """The network for a test; weights where a node has several scales."""
    kind = case.model.graph.node[0].op_type
    if kind in ("QLinearConv", "QLinearMatMul"):
        return of_codes(case)
    if kind in ("ConvInteger", "MatMulInteger"):
        return of_sums(case)
    return of_value(case) if arrays(case)[0][1].size == 1 else of_weights(case)


def computed(net: Net, path: Path) -> np.ndarray:
    """What the compiled network says of its image."""
    shape = ("n", *net.image.shape[1:])
    found = network(str(write(path, net.nodes, net.consts, shape=shape, opset=25)))
    assert found.codes is not None
    program = compile_graph(found.graph, found.codes.plan, found.codes.tensors, {})
    return net.answer(np.asarray(Model(encode(program))(net.image), np.float64))


def unsupported() -> dict[str, str]:
    """Test -> reason, by the table in docs/onnx.md."""
    text = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `test_")]
    return {name.strip("` "): row[2].strip(" `") for row in rows for name in row[1].split(",")}


@pytest.mark.parametrize("name", CASES)
def test_node(name: str, tmp_path: Path) -> None:
    """Equal codes, or refused with the reason that is documented."""
    net, reason = net_of(CASES[name]), unsupported().get(name)
    if reason is None:
        got = computed(net, tmp_path / "net.onnx")
        apart = np.abs(got.reshape(net.want.shape) - net.want.astype(np.float64))
        assert np.all(apart <= net.slack), (got, net.want, net.slack)
        return
    with pytest.raises(UnsupportedError) as caught:
        computed(net, tmp_path / "net.onnx")
    assert reason in str(caught.value)


def test_every_test_of_the_table_exists() -> None:
    assert set(unsupported()) <= set(CASES)
    assert {case.model.graph.node[0].op_type for case in CASES.values()} == set(MODULES)
