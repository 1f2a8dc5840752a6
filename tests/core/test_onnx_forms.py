"""Quantised files of other forms: ops on codes, sums of codes, QONNX, few bits in wide containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
pytest.importorskip("torch", reason="stages are compared in torch: extra [search]")

from onnx.helper import make_node as op  # noqa: E402

from bitpress.core.errors import UnsupportedError  # noqa: E402
from bitpress.core.graph import unknown_ops  # noqa: E402
from bitpress.core.network import network  # noqa: E402
from bitpress.core.onnx_forms import BIPOLAR, FORMS, ON_CODES, QONNX, QUANT, ROUNDS, SUMS  # noqa: E402

from .onnx_nets import Arrays, write  # noqa: E402
from .test_onnx_codes import CONSTS, codes, rounded, same  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MS, BREVITAS = "com.microsoft", QONNX[0]
RNG = np.random.default_rng(5)


def i8(*shape: int) -> np.ndarray:
    return RNG.integers(-60, 60, shape).astype(np.int8)


# scales are powers of two and zero points even, as in test_onnx_codes; s, z: of the image
KNOWN: Arrays = {
    **CONSTS, "half": np.float32(2**-1), "quarter": np.float32(2**-2), "un": np.float32(1), "factor": np.float32(2**-9),
    "factors": (np.float32([1, 2, 4, 8]) / 1024).reshape(4, 1, 1), "n": np.int8(0), "even": np.int8(-6),
    "k": i8(4, 3, 3, 3), "b": np.int32([5, -70, 900, 0]), "k8": RNG.integers(5, 125, (4, 3, 3, 3)).astype(np.uint8),
    "k8z": np.uint8(64), "m": i8(126, 5), "mt": i8(5, 126), "mb": np.int32([1, 2, 3, 4, 500]),
    "ms": np.float32([1, 2, 4, 2, 1]) / 64, "mz": np.zeros(5, np.int8), "pads": np.int64([0, 0, 1, 0, 0, 0, 0, 2]),
    "first": np.int64([0]), "last": np.int64([2**60]), "rows": np.int64([2]), "flat": np.int64([0, -1]),
    "k1": i8(2, 4, 1, 1), "k2": i8(2, 8, 1, 1), "m1": i8(5, 2), "m2": i8(56, 2),
}  # fmt: skip
START = [op("QuantizeLinear", ["x", "s", "z"], ["q"])]
FLAT = [*START, op("Flatten", ["q"], ["p"])]
CONV = op(
    "QLinearConv", ["q", "s", "z", "k", "ws", "wz", "half", "even", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 1]
)
SUM = [*START, op("ConvInteger", ["q", "k", "z", "n"], ["c"])]
OUT = ["half", "even"]


def read(weight: str, name: str = "c", scale: str = "half", zero: str = "even") -> list[Any]:
    """A layer that reads the codes, so that they are stored: weights k1 and k2 of a Conv, m1 and m2 of a Gemm."""
    return [
        op("DequantizeLinear", [name, scale, zero], ["last_c"]),
        op("DequantizeLinear", [weight, "one", "n"], ["last_w"]),
        op("Conv" if weight[0] == "k" else "Gemm", ["last_c", "last_w"], ["y"]),
    ]  # fmt: skip


# what is tested -> nodes from x [n, 3, 6, 7] to y
GOOD: dict[str, list[Any]] = {
    "a convolution, per channel": [*START, CONV, *read("k1")],
    "without bias": [*START, op("QLinearConv", ["q", "s", "z", "k", "one", "n", *OUT], ["c"]), *read("k1")],
    "a matrix": [*FLAT, op("QLinearMatMul", ["p", "s", "z", "m", "ms", "mz", *OUT], ["c"]), *read("m1")],
    "a linear layer": [
        *FLAT, op("QGemm", ["p", "s", "z", "mt", "ms", "mz", "mb", *OUT], ["c"], domain=MS, transB=1), *read("m1"),
    ],
    "a linear layer of floats": [*FLAT, op("QGemm", ["p", "s", "z", "m", "ms", "mz", "mb"], ["y"], domain=MS)],
    "a sum, a concatenation, pools": [
        *START, CONV, op("QLinearAdd", ["c", *OUT, "c", *OUT, "un", "n"], ["a"], domain=MS),
        op("QLinearAveragePool", ["a", "un", "n", "quarter", "n"], ["p"], domain=MS, kernel_shape=[2, 1]),
        op("MaxPool", ["c"], ["e"], kernel_shape=[2, 1]),
        op("QLinearConcat", ["half", "n", "p", "quarter", "n", "e", *OUT], ["j"], domain=MS, axis=1),
        op("QLinearGlobalAveragePool", ["j", "half", "n", "t", "n"], ["v"], domain=MS), *read("k2", "v", "t", "n"),
    ],
    "ops on codes": [
        *START, op("Pad", ["q", "pads", "z"], ["p"]), op("Slice", ["p", "first", "last", "rows", "rows"], ["l"]),
        op("QLinearConv", ["l", "s", "z", "k", "one", "n", "half", "n"], ["c"]), op("Clip", ["c", "even"], ["e"]),
        op("Reshape", ["e", "flat"], ["r"]), op("Identity", ["r"], ["o"]), *read("m2", "o", "half", "n"),
    ],
    "sums": [*SUM, op("Cast", ["c"], ["d"], to=1), op("Mul", ["factors", "d"], ["y"])],
    "sums, one factor, weights around 64": [
        *START, op("ConvInteger", ["q", "k8", "z", "k8z"], ["c"]), op("Cast", ["c"], ["d"], to=1),
        op("Mul", ["d", "factor"], ["y"]),
    ],
    "sums of a matrix, a zero point per column": [
        *FLAT, op("MatMulInteger", ["p", "m", "", "mz"], ["c"]), op("Cast", ["c"], ["y"], to=1),
    ],
    "onnxruntime's own quantisers": [
        op("QuantizeLinear", ["x", "s", "z"], ["q"], domain=MS), CONV,
        op("DequantizeLinear", ["c", *OUT], ["d"], domain=MS), op("DequantizeLinear", ["k1", "one", "n"], ["w1"]),
        op("Conv", ["d", "w1"], ["y"]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_ops_on_codes_compute_what_onnxruntime_computes(case: str, tmp_path: Path) -> None:
    same(write(tmp_path / "net.onnx", GOOD[case], KNOWN))


def test_every_row_of_the_lists_is_in_a_test() -> None:
    used = {(node.domain, node.op_type) for nodes in GOOD.values() for node in nodes}
    without = {"QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"}  # their floats have no counterpart
    assert {key for key in FORMS if key[1] not in without} <= used
    assert {("", name) for name in SUMS} <= used
    assert ON_CODES - {name for _, name in used} == {"Squeeze", "Unsqueeze", "Transpose", "Split"}


def test_the_documented_tables_are_the_rewriter_s() -> None:
    text = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    rows = text.split("| op on codes |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:3]] for row in rows]
    want = {name: form.op for (_, name), form in FORMS.items()} | dict(SUMS)
    assert cells[0] == ["QLinearConv", "DequantizeLinear, Conv, QuantizeLinear"]
    assert {**dict(cells[1:-1]), "QLinearConv": "Conv"} == want
    assert set(cells[-1][0].removesuffix(" of codes").split(", ")) == ON_CODES
    quants = text.split("| op | of constants |")[1].split("\n\n")[0]
    assert all(name in quants for name in (*QUANT, BIPOLAR, *ROUNDS, "Trunc"))
    assert all(f"`{domain}`" in text for domain in QONNX)


def quant(
    x: str, y: str, bits: str = "four", *, scale: str = "s", zero: str = "0", name: str = "Quant", **attrs: Any
) -> Any:
    return op(name, [x, scale, zero, bits], [y], domain=BREVITAS, **attrs)


def numbers(**values: float) -> Arrays:
    return {name: np.float32(v) for name, v in values.items()}


BITS: Arrays = {
    **numbers(one=1, two=2, three=3, four=4, eight=8, nine=9, sixteen=16, part=2.5, s=2**-5, t=2**-4),
    **numbers(**{"0": 0, "-4": -4}),
    "h": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32), "hs": np.float32([1, 2, 4, 2]).reshape(4, 1, 1, 1) / 4,
    "hb": RNG.normal(size=4).astype(np.float32), "bs": np.float32([1, 2, 4, 2]) / 128,
}  # fmt: skip
NET = [quant("x", "a", "eight"), quant("h", "wq", scale="hs", narrow=1), quant("hb", "b", "sixteen", scale="bs")]
TAIL = [op("Conv", ["a", "wq", "b"], ["c"]), op("Relu", ["c"], ["r"]), quant("r", "d", scale="t", signed=0)]
LAST = [quant("h2", "v", "two", scale="t"), op("Conv", ["d", "v"], ["y"])]
BITS["h2"] = RNG.normal(size=(2, 4, 2, 2)).astype(np.float32) / 16


def test_quant_nodes_are_plans_of_their_bits(tmp_path: Path) -> None:
    found = same(write(tmp_path / "net.onnx", [*NET, *TAIL, *LAST], BITS))
    assert [str(config) for config in codes(found).plan.bits.values()] == ["w:i4 a:i8", "w:i2 a:u4"]


# weights' node -> the encoding that they get
WEIGHTS: list[tuple[Any, str]] = [
    (quant("h", "wq", "two", scale="hs"), "i2"),
    (quant("h", "wq", "three", scale="hs"), "i4"),
    (quant("h", "wq", scale="hs", name="IntQuant"), "i4"),
    (quant("h", "wq", "eight"), "i8"),
    (quant("h", "wq", "eight", zero="-4"), "i8"),
    (quant("h", "wq", scale="hs", rounding_mode="FLOOR"), "i4"),
    (op("BipolarQuant", ["h", "hs"], ["wq"], domain=BREVITAS), "b1"),
]


@pytest.mark.parametrize(("node", "encoding"), WEIGHTS, ids=[f"{i}" for i in range(len(WEIGHTS))])
def test_weights_of_quant_nodes(node: Any, encoding: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", [quant("x", "a", "eight"), node, op("Conv", ["a", "wq"], ["y"])], BITS)
    if node.attribute and node.attribute[0].s == b"FLOOR":
        found = network(str(path))
        want = np.clip(np.floor(BITS["h"] / BITS["hs"]), -8, 7) * BITS["hs"]
        assert np.array_equal(found.graph.consts["y.weight"], want)
    else:
        found = same(path)
    (config,) = codes(found).plan.bits.values()
    assert str(config) == f"w:{encoding} a:i8"


def test_a_zero_point_of_values(tmp_path: Path) -> None:
    nodes = [quant("x", "a", "eight", zero="-4"), quant("h", "wq"), op("Conv", ["a", "wq"], ["y"])]
    found = same(write(tmp_path / "net.onnx", nodes, BITS))
    assert [float(v) for k, v in codes(found).tensors.items() if k.endswith(".zero")] == [-4]


END = op("DequantizeLinear", ["g", "s", "z"], ["y"])
REFUSED: list[tuple[list[Any], str]] = [
    ([op("Trunc", ["x", "s", "0", "eight", "four"], ["y"], domain=BREVITAS)], "Trunc: cuts the lowest bits"),
    ([op("FloatQuant", ["x", "s"], ["y"], domain=BREVITAS)], "FloatQuant: is of domain"),
    ([op("BipolarQuant", ["x", "s"], ["y"], domain=BREVITAS)], "makes codes -1 and 1"),
    ([quant("x", "y", "nine")], "codes of 9 bits of a computed value"),
    ([quant("x", "y", "part")], "has 2.5 bits"),
    ([quant("x", "y", "one", narrow=1, signed=0)], "has codes from 0 to 0"),
    ([quant("x", "y", rounding_mode="FLOOR")], "FLOOR of a computed value"),
    ([quant("h", "wq", rounding_mode="HALF_UP"), op("Conv", ["x", "wq"], ["y"])], "rounding_mode HALF_UP"),
    ([quant("x", "y", scale="hs")], "per channel on a computed value"),
    ([quant("x", "y", zero="part")], "zero point 2.5"),
    ([quant("x", "y", signed=0, zero="-4")], "zero point -4; one from 0 to 255"),
    ([quant("hb", "wq", "sixteen", zero="-4"), op("Add", ["x", "wq"], ["y"])], "16 bits and a zero point"),
    ([quant("h", "wq", scale="h"), op("Conv", ["x", "wq"], ["y"])], "scales of shape [4, 3, 3, 3]"),
    ([op("Relu", ["x"], ["r"]), quant("x", "y", scale="r")], "its scale r is computed"),
    ([op("Quant", ["x", "s", "0"], ["y"], domain=BREVITAS)], "its bit width is left out"),
    ([quant("h", "wq", scale="ms"), op("Conv", ["x", "wq"], ["y"])], "shapes do not fit together"),
    ([*SUM, op("Cast", ["c"], ["d"], to=1), op("Mul", ["d", "ms"], ["y"])],
     "scales of shape [5] for 4 slices along axis 0"),
    ([op("QuantizeLinear", ["x", "s", "mz"], ["q"]), op("DequantizeLinear", ["q", "s", "mz"], ["y"])],
     "has a scale per channel on a computed value"),
    ([op("DynamicQuantizeLinear", ["x"], ["q", "ds", "dz"]), op("DequantizeLinear", ["q", "ds", "dz"], ["y"])],
     "its scale depends on the image"),
    ([op("Cast", ["x"], ["q"], to=3), op("ConvInteger", ["q", "k"], ["c"]), op("Cast", ["c"], ["y"], to=1)],
     "no code of a QuantizeLinear"),
    ([*SUM, op("Cast", ["c"], ["d"], to=1), op("Cast", ["c"], ["y"], to=1)], "something else than one Cast"),
    ([*START, op("QLinearGlobalAveragePool", ["q", "s", "z", "s", "z"], ["g"], domain=MS, channels_last=1), END],
     "channels_last 1"),
    ([op("QuantizeLinear", ["x", "s", "off"], ["q"]), op("Pad", ["q", "pads"], ["p"]),
      op("DequantizeLinear", ["p", "s", "off"], ["y"])], "with 0.125; zeros"),
    ([*START, op("QLinearLeakyRelu", ["q", "s", "z", "s", "z"], ["g"], domain=MS), END],
     "LeakyRelu: has no counterpart"),
    ([*START, op("QLinearWhere", ["q", "s", "z", "s", "z"], ["g"], domain=MS), END], f"domain {MS}"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_has_no_such_form_is_named(nodes: list[Any], why: str, tmp_path: Path) -> None:
    path = str(write(tmp_path / "net.onnx", nodes, {**KNOWN, **BITS}))
    assert why in " ".join(f"{name} ({op})" for name, op in unknown_ops(network(path, floats=True).graph))
    with pytest.raises(UnsupportedError) as caught:
        network(path)
    assert why in str(caught.value)


def held(levels: np.ndarray, tmp_path: Path, kind: str = "Conv") -> str:
    """Encoding that int8 weights [O, I, kh, kw] get, or [O, I] of a Gemm; the file's results are kept."""
    nodes = [*rounded("a", "x"), op("DequantizeLinear", ["levels", "one", "n"], ["wq"])]
    last = [op("Flatten", ["a"], ["p"]), op("Gemm", ["p", "wq"], ["y"], transB=1)]
    nodes += [op("Conv", ["a", "wq"], ["y"])] if kind == "Conv" else last
    consts = {**KNOWN, "levels": levels.astype(np.int8)}
    (config,) = codes(same(write(tmp_path / "net.onnx", nodes, consts))).plan.bits.values()
    return str(config.weight[0].encoding)


FOURS, TWOS = RNG.integers(-8, 8, (4, 3, 3, 3)), RNG.integers(-2, 2, (4, 3, 3, 3))
ODDS, WIDE = (RNG.choice(range(-top, top + 1, 2), (4, 3, 3, 3)) for top in (3, 15))
STEPS = np.array([1, 3, 15, 4]).reshape(4, 1, 1, 1)  # of filters


@pytest.mark.parametrize(
    ("levels", "encoding"),
    [
        (FOURS, "i4"), (FOURS * 15, "i4"), (FOURS * STEPS, "i4"), (FOURS * 14 + 1, "i8"),
        (TWOS * STEPS, "i2"), (TWOS * STEPS * (np.arange(4) != 1).reshape(4, 1, 1, 1), "i2"),
        (ODDS, "o2"), (ODDS * STEPS, "o2"), (np.abs(ODDS), "i4"), (np.sign(ODDS), "b1"),
        (WIDE, "o4"), (ODDS * 2 + 9, "i8"),
    ],
)  # fmt: skip
def test_containers_wider_than_their_levels(levels: np.ndarray, encoding: str, tmp_path: Path) -> None:
    """Divided by a step of each filter where that helps; on the odd grid only where a mean of 0 is near."""
    assert held(levels, tmp_path) == encoding


def test_a_linear_layer_on_the_odd_grid_has_no_mean_to_lose(tmp_path: Path) -> None:
    assert held(np.abs(RNG.choice((-3, -1, 1, 3), (5, 126))), tmp_path, "Gemm") == "o2"
