"""A QDQ file of onnxruntime's quantiser computes here what it computes there: codes differ by at most one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
pytest.importorskip("sklearn", reason="digits come from scikit-learn: extra [search]")
torch = pytest.importorskip("torch", reason="models are exported by torch: extra [search]")

from onnx.helper import make_node as op  # noqa: E402
from onnxruntime.quantization import QuantType  # noqa: E402

from bitpress.core.data import load  # noqa: E402
from bitpress.core.errors import UnsupportedError, UsageError  # noqa: E402
from bitpress.core.graph import run  # noqa: E402
from bitpress.core.integer import integer, zero_name  # noqa: E402
from bitpress.core.network import Codes, Network, network, refuse_quantised  # noqa: E402
from bitpress.core.ops import OPS  # noqa: E402
from bitpress.core.quant import act_bounds, act_scale  # noqa: E402
from bitpress.core.storage import LAYERS, Point, Storage, analyse  # noqa: E402

from ..compiler.nets import assert_stages_agree  # noqa: E402
from .onnx_nets import Arrays, Residual, annotate, code_makers, export, outputs, quantise, write  # noqa: E402

SIGNED, UNSIGNED = QuantType.QInt8, QuantType.QUInt8
WAYS: dict[str, dict[str, Any]] = {
    "symmetric": {"activation_type": SIGNED, "weight_type": SIGNED, "extra_options": {"ActivationSymmetric": True}},
    "symmetric, per channel": {
        "activation_type": SIGNED, "weight_type": SIGNED, "per_channel": True,
        "extra_options": {"ActivationSymmetric": True},
    },
    "asymmetric": {"activation_type": UNSIGNED, "weight_type": SIGNED},
    "asymmetric, signed, per channel": {"activation_type": SIGNED, "weight_type": SIGNED, "per_channel": True},
    "unsigned weights": {
        "activation_type": UNSIGNED, "weight_type": UNSIGNED, "extra_options": {"WeightSymmetric": True},
    },
    # weights of 7 bits: kernels of these ops saturate as fused ones do
    "operators, symmetric, per channel": {
        "form": "QOperator", "activation_type": SIGNED, "weight_type": SIGNED, "per_channel": True,
        "reduce_range": True, "extra_options": {"ActivationSymmetric": True},
    },
    "operators, asymmetric": {
        "form": "QOperator", "activation_type": UNSIGNED, "weight_type": SIGNED, "reduce_range": True,
    },
    "Brevitas": {"form": "QONNX", "weights": 4, "acts": 4},
    "NNCF": {"form": "NNCF", "weights": 8, "acts": 8},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Digits:
    """A trained network as a float ONNX file, images to calibrate with, and images to test with."""

    path: Path
    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    data = load("digits")
    test = data.test()
    images, pictures = (data.normalise(np.asarray(s.images), (0.0,), (1.0,)) for s in (data.train, test))
    net = trained(images, data.train.labels)
    path = export(net, tmp_path_factory.mktemp("digits") / "float.onnx", (1, 8, 8))
    return Digits(path, images[:256], pictures, test.labels)


def trained(images: np.ndarray, labels: np.ndarray) -> Residual:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net, generator = Residual(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(10):
        for part in torch.randperm(len(x), generator=generator).split(64):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="module", params=WAYS)
def file(request: pytest.FixtureRequest, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantised") / "net.onnx"
    options = WAYS[request.param]
    return (annotate if "acts" in options else quantise)(digits.path, target, digits.train, **options)


def codes(found: Network) -> Codes:
    assert found.codes is not None
    return found.codes


def storage_of(found: Network) -> Storage:
    made = codes(found)
    return analyse(found.graph, {layer: bits.act for layer, bits in made.plan.bits.items()}, made.plan.residual)


def stored_codes(path: Path, found: Network, x: np.ndarray) -> Iterator[tuple[str, Point, np.ndarray]]:
    """(name in the integer graph, point, the file's levels) of every stored value, found by its scale."""
    tensors, storage, made = codes(found).tensors, storage_of(found), outputs(path, x, codes=True)
    for point in storage.points:
        scale = act_scale(float(tensors[point.clip]), point.encoding)
        near = [(name, zero) for name, size, zero in code_makers(path) if abs(size / scale - 1) < 1e-6]
        is_layer = found.graph.value(point.value).op in LAYERS
        near = [(n, z) for n, z in near if ("/Conv_output" in n) == is_layer] or near  # sums may have their layer's
        found_levels = [made[name].astype(np.int64) - zero for name, zero in near]
        # a sum and its relu may have one scale: of these the one whose signs fit
        levels = min(found_levels, key=lambda v: bool(v.min() >= 0) != (point.encoding.lo == 0))
        if storage.stored[point.value].clip == point.clip:
            is_input = any(n.name == point.value for n in found.graph.inputs)
            yield (f"{point.value}.q" if is_input else point.value), point, levels


def test_codes_differ_by_at_most_one(file: Path, digits: Digits) -> None:
    assert_codes_near(file, digits)


def assert_codes_near(file: Path, digits: Digits) -> None:
    """Layer by layer, each fed with onnxruntime's own codes, ours differ by at most one; most are equal."""
    found = network(str(file))
    tensors = codes(found).tensors
    whole, x = integer(found.graph, codes(found).plan, tensors), digits.test[:100]
    theirs = {name: (point, levels) for name, point, levels in stored_codes(file, found, x)}
    values: Arrays = {found.graph.inputs[0].name: x}
    compared = 0
    for node in whole.nodes:
        consts = {role: whole.consts[name] for role, name in node.consts.items()}
        values[node.name] = OPS[node.op].meaning(node, consts, *(values[i] for i in node.inputs))
        # a relu in front of a max pool may be rounded behind it alone
        if node.name in theirs and theirs[node.name][1].size == values[node.name].size:
            point, levels = theirs[node.name]
            if any(n.name == point.value and n.op == "relu" for n in found.graph.nodes):
                levels = np.maximum(levels, 0)  # where it reads codes, and nothing rounds its result
            compared += 1
            want = levels + int(tensors.get(zero_name(point.clip), np.float32(0)))
            want = want.reshape(values[node.name].shape)  # of a mean that drops its axes
            assert np.abs(want - values[node.name]).max() <= 1, node.name
            assert (want == values[node.name]).mean() > 0.95, node.name  # of sixteenths, many are ties
            values[node.name] = np.clip(want, *act_bounds(point.encoding)).astype(np.int32)
    assert compared >= 6


def test_answers_agree(file: Path, digits: Digits) -> None:
    """Top-1 on every test image, both from end to end; and both do know digits."""
    found = network(str(file))
    whole = integer(found.graph, codes(found).plan, codes(found).tensors)
    ours = next(iter(run(whole, {found.graph.inputs[0].name: digits.test}).values())).argmax(axis=1)
    theirs = next(iter(outputs(file, digits.test).values())).argmax(axis=1)
    assert len(ours) >= 500
    assert (ours == theirs).mean() >= 0.99
    assert (theirs == digits.labels).mean() > 0.9


def test_answers_agree_with_fused_kernels(digits: Digits, tmp_path: Path) -> None:
    reduced = {**WAYS["asymmetric"], "reduce_range": True}
    path = quantise(digits.path, tmp_path / "net.onnx", digits.train, **reduced)
    found = network(str(path))
    whole = integer(found.graph, codes(found).plan, codes(found).tensors)
    ours = next(iter(run(whole, {found.graph.inputs[0].name: digits.test}).values())).argmax(axis=1)
    theirs = next(iter(outputs(path, digits.test, optimised=True).values())).argmax(axis=1)
    assert (ours == theirs).mean() >= 0.99


def test_all_stages_agree(file: Path, digits: Digits) -> None:
    found = network(str(file))
    assert_stages_agree(found.graph, codes(found).plan, codes(found).tensors, digits.test[:8])


def test_weights_are_the_file_s(file: Path) -> None:
    found, model = network(str(file)), onnx.load(file)
    whole = integer(found.graph, codes(found).plan, codes(found).tensors)
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    want = [
        stored[node.input[0]].astype(int) - stored[node.input[2]].reshape(-1)[0].astype(int)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and stored.get(node.input[0], np.int32(0)).dtype != np.int32
    ]
    for node in model.graph.node:
        if node.op_type == "Quant" and node.input[0] in stored:
            want.append(np.clip(np.rint(stored[node.input[0]] / stored[node.input[1]]), -7, 7))
        if node.op_type in ("QLinearConv", "QGemm"):
            want.append(stored[node.input[3]].astype(int))
    got = [int(np.abs(whole.consts[n.consts["weight"]].astype(int)).sum()) for n in whole if n.op.endswith("_int")]
    assert sorted(got) == sorted(int(np.abs(levels).sum()) for levels in want)


def rounded(name: str, source: str, scale: str = "s", zero: str = "z") -> list[Any]:
    """QuantizeLinear and DequantizeLinear of `source`, called `name`."""
    return [
        op("QuantizeLinear", [source, scale, zero], [f"{name}.q"]),
        op("DequantizeLinear", [f"{name}.q", scale, zero], [name]),
    ]


# scales that are powers of two, and an even zero point: both sides round the same numbers, ties the same way
WEIGHT = np.arange(-54, 54, dtype=np.int8).reshape(4, 3, 3, 3)
CONSTS: Arrays = {
    "s": np.float32(2**-5), "z": np.int8(0), "t": np.float32(2**-4), "off": np.int8(-4), "w": WEIGHT,
    "ws": np.float32([1, 2, 1, 4]) / 512, "one": np.float32(2**-6), "wz": np.zeros(4, np.int8),
    "f": WEIGHT.astype(np.float32), "w8": (WEIGHT.astype(int) * 2 + 121).astype(np.uint8), "z8": np.uint8(10),
}  # fmt: skip
LAYER = [op("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0)]


def conv(x: str, y: str, **attrs: Any) -> Any:
    return op("Conv", [x, "wf"], [y], **attrs)


def same(path: Path) -> Network:
    """The network, whose integer graph gives the file's outputs, whatever float32 sums lose."""
    found = network(str(path))
    x = np.random.default_rng(3).normal(size=(4, 3, 6, 7)).astype(np.float32)
    whole = integer(found.graph, codes(found).plan, codes(found).tensors)
    got = next(iter(run(whole, {found.graph.inputs[0].name: x}).values()))
    want = next(iter(outputs(path, x).values()))
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e3 * np.finfo(np.float32).eps * np.abs(want).max()  # longest sum: 432
    assert_stages_agree(found.graph, codes(found).plan, codes(found).tensors, x[:2])
    return found


def test_zero_points_without_a_border_are_exact(tmp_path: Path) -> None:
    """Input, sum, pool and flatten around another level than 0; weights add what the zero point takes away."""
    nodes = [
        *rounded("a", "x", "s", "off"), *LAYER, conv("a", "c"), *rounded("d", "c", "t", "off"),
        op("AveragePool", ["d"], ["p"], kernel_shape=[2, 2]), *rounded("e", "p", "t", "off"),
        op("Add", ["e", "e"], ["g"]), *rounded("h", "g", "t", "off"), op("Flatten", ["h"], ["i"]),
        op("DequantizeLinear", ["v", "one", "z"], ["vf"]), op("Gemm", ["i", "vf"], ["y"]),
    ]  # fmt: skip
    v = np.random.default_rng(0).integers(-100, 100, (48, 5)).astype(np.int8)
    path = write(tmp_path / "net.onnx", nodes, {**CONSTS, "v": v})
    zeros = [v for k, v in codes(same(path)).tensors.items() if k.endswith(".zero")]
    assert [int(v) for v in zeros] == [-4] * len(zeros) and len(zeros) > 3


def test_a_zero_point_with_a_border_is_refused(tmp_path: Path) -> None:
    nodes = [*rounded("a", "x", "s", "off"), *LAYER, conv("a", "y", pads=[1, 1, 1, 1])]
    found = network(str(write(tmp_path / "net.onnx", nodes, CONSTS)))
    with pytest.raises(UnsupportedError, match=r"y: pads with zeros, and zero is level -4 .*ActivationSymmetric"):
        integer(found.graph, codes(found).plan, codes(found).tensors)


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT2"])
def test_narrow_weights_keep_their_bits(kind: str, tmp_path: Path) -> None:
    """As opset 21 and 25 store them; the plan says 4 or 2 bits, and the levels are the file's."""
    bits, zero = int(kind[-1]), 8 if kind[0] == "U" else 0
    levels = WEIGHT.astype(int) % 2**bits - (0 if zero else 2 ** (bits - 1))
    held = onnx.helper.make_tensor("w", getattr(onnx.TensorProto, kind), WEIGHT.shape, levels.ravel())
    shift = onnx.helper.make_tensor("wz", getattr(onnx.TensorProto, kind), [4], [zero] * 4)
    path = write(tmp_path / "net.onnx", [*rounded("a", "x"), *LAYER, conv("a", "y")], CONSTS, opset=25)
    model = onnx.load(path)
    kept = [one for one in model.graph.initializer if one.name not in ("w", "wz")]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, held, shift])
    onnx.save(model, path)
    found = network(str(path))
    (config,) = codes(found).plan.bits.values()
    assert config.weight[0].encoding.name == f"i{bits}"
    whole = integer(found.graph, codes(found).plan, codes(found).tensors)
    (layer,) = (n for n in whole if n.op == "conv2d_int")
    assert np.array_equal(whole.consts[layer.consts["weight"]], levels - zero)


def test_float_weights_behind_both_nodes(tmp_path: Path) -> None:
    """A file may keep weights as floats and round them itself (add_qdq_pair_to_weight)."""
    pair = [
        op("QuantizeLinear", ["f", "ws", "wz"], ["fq"], axis=0),
        op("DequantizeLinear", ["fq", "ws", "wz"], ["wf"], axis=0),
    ]
    consts = {**CONSTS, "f": WEIGHT.astype(np.float32) * np.float32(0.003)}
    same(write(tmp_path / "net.onnx", [*rounded("a", "x"), *pair, conv("a", "y")], consts))


@pytest.mark.parametrize(("lo", "hi", "bits"), [(0, 15, 4), (1, 7, 4), (None, 3, 2), (-9, 300, 8)])
def test_codes_that_are_clipped_are_narrower_than_their_type(
    lo: int | None, hi: int, bits: int, tmp_path: Path
) -> None:
    """So `export` writes 2 and 4 bits, for which most runtimes have no type."""
    ends = ["" if lo is None else "lo", "hi"]
    nodes = [
        *LAYER, *rounded("a", "x"), conv("a", "c"), op("Relu", ["c"], ["r"]),
        op("QuantizeLinear", ["r", "big", "u"], ["q"]), op("Clip", ["q", *ends], ["n"]),
        op("DequantizeLinear", ["n", "big", "u"], ["d"]),
        op("DequantizeLinear", ["w4", "one", "z"], ["v"]), op("Conv", ["d", "v"], ["y"]),
    ]  # fmt: skip
    ends_held = {"lo": np.uint8(max(0, lo or 0)), "hi": np.uint8(min(hi, 255))}
    w4 = np.arange(-4, 4, dtype=np.int8).reshape(2, 4, 1, 1)
    consts = {**CONSTS, **ends_held, "big": np.float32(2**-2), "u": np.uint8(0), "w4": w4}
    path = write(tmp_path / "net.onnx", nodes, consts)
    plan = codes(same(path)).plan
    assert [config.act.bits for config in plan.bits.values()] == [8, bits]


def test_one_code_read_through_several_nodes(tmp_path: Path) -> None:
    """Two DequantizeLinear of one code, and two equal QuantizeLinear of one value, are one stored value."""
    nodes = [
        *rounded("a", "x"), *LAYER, conv("a", "c"), *rounded("d", "c"), *rounded("e", "c"),
        op("DequantizeLinear", ["d.q", "s", "z"], ["g"]), op("Add", ["d", "e"], ["h"]), *rounded("i", "h", "t"),
        op("Add", ["i", "g"], ["y"]),
    ]  # fmt: skip
    path = write(tmp_path / "net.onnx", nodes, CONSTS)
    same(path)


def test_a_value_rounded_twice(tmp_path: Path) -> None:
    """At once, behind a max pool, and before a concatenation: each rounding is a stored value of its own."""
    nodes = [
        *LAYER, *rounded("a", "x"), *rounded("b", "a", "t"), op("MaxPool", ["b"], ["m"], kernel_shape=[2, 2]),
        *rounded("d", "m", "s", "off"), conv("d", "c"), *rounded("e", "c", "t"),
        op("MaxPool", ["d"], ["n"], kernel_shape=[3, 3]), *rounded("g", "n", "s", "off"),
        op("Concat", ["e", "g"], ["h"], axis=1), *rounded("i", "h", "big"),
        op("DequantizeLinear", ["w7", "one", "z"], ["v"]), op("Conv", ["i", "v"], ["y"]),
    ]  # fmt: skip
    consts = {**CONSTS, "big": np.float32(2**-3), "w7": np.arange(-7, 7, dtype=np.int8).reshape(2, 7, 1, 1)}
    same(write(tmp_path / "net.onnx", nodes, consts))


def test_what_the_file_rounds_is_stored_though_we_could_go_on(tmp_path: Path) -> None:
    """A coarse rounding between a convolution, a sum and a relu shows in the result."""
    nodes = [
        *LAYER, *rounded("a", "x"), conv("a", "c"), *rounded("b", "c", "big"), op("Relu", ["b"], ["d"]),
        *rounded("e", "d", "s"), conv("a", "m"), *rounded("n", "m", "big"), op("Add", ["e", "n"], ["k"]),
        *rounded("i", "k"), op("DequantizeLinear", ["w4", "one", "z"], ["v"]), op("Conv", ["i", "v"], ["y"]),
    ]  # fmt: skip
    consts = {**CONSTS, "big": np.float32(2**-1), "w4": np.arange(-4, 4, dtype=np.int8).reshape(2, 4, 1, 1)}
    same(write(tmp_path / "net.onnx", nodes, consts))


# nodes behind the rounded input and the weights, part of the sentence
REFUSED: list[tuple[list[Any], str]] = [
    ([*rounded("a", "x"), op("Conv", ["a", "f"], ["y"])], "y: its weights are not quantised"),
    ([op("Conv", ["x", "wf"], ["y"])], "x must be stored as codes, and no QuantizeLinear"),
    ([*rounded("a", "x"), conv("a", "c"), op("Relu", ["x"], ["b"]), conv("b", "d"),
      op("Add", ["c", "d"], ["y"])], "unrounded by Relu b"),
    ([op("QuantizeLinear", ["x", "s", "z"], ["q"]), op("DequantizeLinear", ["q", "t", "z"], ["a"]), conv("a", "y")],
     "another scale or zero point"),
    ([op("QuantizeLinear", ["x", "s", "z"], ["q"]), op("Clip", ["q", "z", "z"], ["n"]),
      op("DequantizeLinear", ["n", "s", "z"], ["a"]), conv("a", "y")], "leaves the codes 0 .. 0"),
    ([op("QuantizeLinear", ["x", "s", "z"], ["q"]), op("Add", ["q", "q"], ["p"]),
      op("DequantizeLinear", ["p", "s", "z"], ["a"]), conv("a", "y")], "not dequantised first"),
    ([*rounded("a", "x"), op("DequantizeLinear", ["w8", "one", "z8"], ["v"]), op("Conv", ["a", "v"], ["y"])],
     "run from 3 to 217"),
    ([*rounded("a", "x"), op("DequantizeLinear", ["w", "ws3", "wz3"], ["v"], axis=1), op("Conv", ["a", "v"], ["y"])],
     "scales along axis 1"),
    ([*rounded("a", "x", "zero"), conv("a", "y")], "not above 0"),
    ([*rounded("a", "x"), op("Relu", ["a"], ["y"])], "no convolution and no linear layer"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_cannot_be_held_is_refused_by_name(nodes: list[Any], why: str, tmp_path: Path) -> None:
    consts = {**CONSTS, "ws3": np.float32([1, 2, 3]), "wz3": np.zeros(3, np.int8), "zero": np.float32(0)}
    with pytest.raises(UnsupportedError) as caught:
        network(str(write(tmp_path / "net.onnx", [*LAYER, *nodes], consts)))
    assert why in str(caught.value)


def test_a_quantised_file_is_not_quantised_again(tmp_path: Path) -> None:
    found = network(
        str(write(tmp_path / "net.onnx", [*rounded("a", "x"), *LAYER, conv("a", "y")], CONSTS)), floats=True
    )
    assert found.quantised and found.codes is None
    with pytest.raises(UsageError, match="is quantised already, and a search takes floats"):
        refuse_quantised(found, "a search takes floats")
