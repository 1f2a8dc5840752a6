"""The exported QDQ model holds the program's integers, and onnxruntime computes from them what the program says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitpress.compiler.execute import execute, levels
from bitpress.compiler.onnx_qdq import BIAS_ERROR, Qdq, to_qdq
from bitpress.compiler.pipeline import compile_graph
from bitpress.compiler.program import Program
from bitpress.core.errors import UnsupportedError
from bitpress.core.graph import Graph
from bitpress.core.groups import groups
from bitpress.core.integer import level_values
from bitpress.core.network import network
from bitpress.core.plan import CompressionPlan

from ..benchmarks import graphs
from ..runtime.samples import Maker
from .nets import NETS, chain, images, inverted, plan_of, random_plan, residual, tensors_of

onnx = pytest.importorskip("onnx", reason="the ONNX writer needs the extra `onnx`")
ort = pytest.importorskip("onnxruntime", reason="the check of ONNX models needs the extra `onnx`")

META = {"mean": [0.5, 0.25, 0.0], "std": [1.0, 2.0, 0.5], "labels": [f"class {i}" for i in range(10)], "model": "net"}
FORMS = (("o2", 2, "int8", True), ("o4", 4, "int8", False), ("o8", 8, "float32", False), ("i2", 8, "int8", True),
         ("i4", 4, "float32", True), ("i8", 8, "int8", False))  # fmt: skip


def program_of(graph: Graph, plan: CompressionPlan, meta: Mapping[str, Any] | None = None) -> Program:
    return compile_graph(graph, plan, tensors_of(graph, plan), meta or {})


def compared(program: Program, exported: Qdq, count: int = 6) -> dict[str, Any]:
    from bitpress.compiler.onnx_agreement import agreement

    shape = program.buffers[program.input].shape
    x = np.random.default_rng(3).normal(size=(count, *shape)).astype(np.float32)
    return agreement(program, exported, x, lambda x: execute(program, x))


def constants(exported: Qdq) -> dict[str, Any]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in exported.model.graph.initializer}


def stored_weights(exported: Qdq, layer: str) -> np.ndarray:
    return constants(exported)[f"{layer}.weight"]


def assert_faithful(program: Program, exported: Qdq) -> None:
    found = compared(program, exported)
    assert found["agrees"], [row for row in found["layers"] if not row["agrees"]] or found["top1"]
    assert {row["name"] for row in found["layers"]} == {b.name for b in program.buffers[1:]}
    made = {name for node in exported.model.graph.node for name in node.output}
    read = {name for node in exported.model.graph.node for name in node.input}
    assert {t.name for t in exported.model.graph.initializer} <= read, "a constant that nothing reads"
    assert made - read == {exported.model.graph.output[0].name}, "a node that nothing reads"


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0])
def test_every_value_agrees(net: str, form: tuple[str, int, str, bool]) -> None:
    weight, act, held, native = form
    graph = NETS[net]()
    program = program_of(graph, plan_of(graph, weight=weight, act=act, residual=held))
    assert_faithful(program, to_qdq(program, native_low_bit=native))


@pytest.mark.parametrize("net", ["chain", "residual", "inverted", "shared_flat", "odd_sum"])
@pytest.mark.parametrize("weight", ["o2", "i2", "o4", "i4"])
def test_files_come_back_with_their_bits_and_answers(net: str, weight: str, tmp_path: Path) -> None:
    """int8 containers are imported as what they hold; a value that is rounded again for one reader is stored twice."""
    graph = NETS[net]()
    program = program_of(graph, plan_of(graph, weight=weight, act=4, residual="int8"))
    onnx.save(to_qdq(program).model, tmp_path / "net.onnx")
    found = network(str(tmp_path / "net.onnx"))
    assert found.codes is not None
    assert {config.weight[0].encoding.name for config in found.codes.plan.bits.values()} == {weight}
    x = np.random.default_rng(0).normal(size=(4, *found.in_shape)).astype(np.float32)
    again = compile_graph(found.graph, found.codes.plan, found.codes.tensors, {})
    want = execute(program, x)
    assert np.abs(execute(again, x) - want).max() <= 1e-5 * np.abs(want).max()  # scales are products in float32


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("native", [False, True], ids=["int8", "native"])
def test_pruned_and_mixed_layers_agree(net: str, native: bool) -> None:
    graph = NETS[net]()
    plan = random_plan(graph, np.random.default_rng(len(net)))
    program = program_of(graph, plan)
    known = level_values(graph, plan, tensors_of(graph, plan))
    assert {b.name for b in program.buffers if b.storage != "f32"} <= set(known)
    assert_faithful(program, to_qdq(program, native_low_bit=native, known=known))


def turned(graph: Graph, factors: tuple[int, ...] = (1, -1)) -> Graph:
    """The channels of its batch norms multiplied by `factors` in turn: every other one has a negative factor."""
    norms = {n.consts["weight"] for n in graph if n.op == "batch_norm"}
    signs = {name: np.resize(np.float32(factors), graph.consts[name].shape) for name in norms}
    consts = {name: array * signs[name] if name in signs else array for name, array in graph.consts.items()}
    return graph.with_nodes(graph.nodes, consts)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("native", [False, True], ids=["int8", "native"])
def test_the_exact_form_gives_the_same_bits(net: str, native: bool) -> None:
    graph = NETS[net]()
    program = program_of(graph, random_plan(graph, np.random.default_rng(1 + len(net))))
    exported = to_qdq(program, native_low_bit=native, exact=True)
    assert_faithful(program, exported)
    found = compared(program, exported)
    assert found["output_difference"] == 0 and not [row for row in found["layers"] if row["differing"]]


@pytest.mark.parametrize("weight", ["o2", "o4", "i2", "i4", "i8"])
def test_weights_are_the_levels(weight: str) -> None:
    """As they are in the program, but for the sign of filters whose multiplier is negative."""
    graph = turned(chain())
    program = program_of(graph, plan_of(graph, weight=weight))
    exported = to_qdq(program)
    for step in (s for s in program.steps if s.weight is not None):
        got, want = stored_weights(exported, step.layer), levels(step, program.buffers[step.inputs[0]].shape[0])
        scale = constants(exported)[f"{step.layer}.weight.scale"].reshape(-1, 1, 1, 1)
        assert got.dtype == np.int8
        assert np.array_equal(got * np.sign(scale), want * np.sign(step.epilogue.m).reshape(-1, 1, 1, 1))
        assert got[scale.ravel() < 0].size == 0 or (got[scale.ravel() < 0].min(axis=(1, 2, 3)) == -128).all()
    assert any((s.epilogue.m < 0).any() for s in program.steps if s.weight is not None)
    assert_faithful(program, exported)
    assert [row["stored"] for row in exported.layers] == ["w"] * 3


@pytest.mark.parametrize("weight", ["o4", "o8", "i8"])
@pytest.mark.parametrize("exact", [False, True])
def test_filters_without_effect(weight: str, exact: bool) -> None:
    """A batch norm that multiplies by 0 leaves the bias alone."""
    graph = turned(chain(), (1, 0, -1))
    program = program_of(graph, plan_of(graph, weight=weight, act=8))
    assert any((s.epilogue.m == 0).any() for s in program.steps if s.weight is not None)
    exported = to_qdq(program, exact=exact)
    assert_faithful(program, exported)
    assert all((array != 0).all() for name, array in constants(exported).items() if name.endswith(".scale"))


def test_odd_levels_of_eight_bits_are_2v_plus_1() -> None:
    graph = turned(chain())
    program = program_of(graph, plan_of(graph, weight="o8"))
    exported = to_qdq(program)
    for step in (s for s in program.steps if s.weight is not None):
        v, want = stored_weights(exported, step.layer), levels(step, program.buffers[step.inputs[0]].shape[0])
        assert v.dtype == np.int8 and np.abs(want).max() > 127
        assert np.array_equal(2 * v.astype(int) + 1, want * np.sign(step.epilogue.m).reshape(-1, 1, 1, 1))
    assert [row["stored"] for row in exported.layers] == ["2v+1"] * 3


@pytest.mark.parametrize(
    ("weight", "type_", "opset"), [("o2", "INT2", 25), ("o4", "INT4", 21), ("i4", "INT4", 21), ("i8", "INT8", 17)]
)
def test_native_types_and_the_opset_that_has_them(weight: str, type_: str, opset: int) -> None:
    graph = chain()
    exported = to_qdq(program_of(graph, plan_of(graph, weight=weight)), native_low_bit=True)
    types = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in exported.model.graph.initializer}
    assert [types[f"{name}.weight"] for name in ("a", "b", "fc")] == [type_] * 3
    assert exported.model.opset_import[0].version == opset
    assert [row["container"] for row in exported.layers] == [type_.lower()] * 3
    plain = to_qdq(program_of(graph, plan_of(graph, weight=weight)))
    assert (plain.model.opset_import[0].version, plain.model.ir_version) == (17, 8)


def test_onnxruntime_has_no_integer_conv_of_int2() -> None:
    """A layer of 2-bit levels that would become one is held in INT4."""
    m = graphs.Maker((3, 8, 8))
    x = m.add("relu", "b.relu", m.conv("b", m.add("relu", "a.relu", m.conv("a", "image", 12)), 8))
    graph = m.graph(m.linear("fc", m.add("flatten", "flat", x), 5))
    program = program_of(graph, plan_of(graph, weight="i2", act=8))
    exported = to_qdq(program, native_low_bit=True)
    assert [row["container"] for row in exported.layers] == ["int4", "int4", "int2"]
    assert_faithful(program, exported)


def test_removed_channels_are_gone() -> None:
    graph = residual()
    group = next(g for g in groups(graph) if g.prunable)
    kept = tuple(range(1, group.channels, 2))
    program = program_of(graph, plan_of(graph, keep={group.id: kept}))
    exported = to_qdq(program)
    rows = {row["name"]: row for row in exported.layers}
    small = [name for name, row in rows.items() if row["channels_kept"] < row["channels_total"]]
    assert small and all(stored_weights(exported, name).shape[0] == len(kept) for name in small)


def test_codes_are_clamped_where_the_container_is_wider() -> None:
    graph = chain()
    exported = to_qdq(program_of(graph, plan_of(graph, weight="i8", act=4)))
    clips = {node.output[0]: node for node in exported.model.graph.node if node.op_type == "Clip"}
    bounds = {name: [int(constants(exported)[i]) for i in node.input[1:]] for name, node in clips.items()}
    assert bounds == {"image.q.clamped": [-7, 7], "a.relu.clamped": [0, 15], "pool.clamped": [0, 15]}
    assert all(constants(exported)[node.input[1]].dtype.itemsize == 1 for node in clips.values())
    wide = to_qdq(program_of(graph, plan_of(graph, weight="i8", act=8)))
    assert [n.output[0] for n in wide.model.graph.node if n.op_type == "Clip"] == ["image.q.clamped"]  # -127, not -128


def test_what_a_reader_must_know_is_in_the_file() -> None:
    graph = chain()
    exported = to_qdq(program_of(graph, plan_of(graph, weight="o4"), META))
    facts = {p.key: p.value for p in exported.model.metadata_props}
    assert json.loads(facts["labels"]) == META["labels"] and facts["model"] == "net"
    assert json.loads(facts["mean"]) == META["mean"] and json.loads(facts["std"]) == META["std"]
    assert "(x / 255 - mean) / std" in facts["preprocessing"]
    assert [row["w_bits"] for row in json.loads(facts["layers"])] == [4, 4, 4]
    nodes = {n.name: {p.key: p.value for p in n.metadata_props} for n in exported.model.graph.node}
    assert nodes["b"]["w_bits"] == "4" and nodes["b"]["channels_total"] == "20"
    assert nodes["a.relu.codes"] == {"bits": "4", "encoding": "u4"}


def test_scales_of_a_run_are_real_ones() -> None:
    """The dequantised values are what the float network computes, to the step of their grid."""
    from bitpress.core.graph import run

    graph = chain()
    plan = plan_of(graph, weight="i8", act=8)
    tensors = {k: np.float32(v * 2) if v.ndim == 0 else v for k, v in tensors_of(graph, plan).items()}
    program = compile_graph(graph, plan, tensors, {})
    known = level_values(graph, plan, tensors)
    exported = to_qdq(program, known=known)
    assert constants(exported)["a.relu.scale"] == np.float32(known["a.relu"])
    x = images(graph, 4)
    copy = onnx.ModelProto()
    copy.CopyFrom(exported.model)
    copy.graph.output.append(onnx.ValueInfoProto(name="a.relu"))
    got = ort.InferenceSession(copy.SerializeToString()).run(["a.relu"], {"image": x})[0]
    want = run(graph, {"image": x}, keep=True)["a.relu"]
    assert np.abs(got - want).max() < 0.15 * np.abs(want).max()


def test_biases_are_integers_only_where_that_moves_nothing() -> None:
    graph = inverted()
    kinds = set()
    for weight, act in (("i8", 8), ("i4", 4)):
        program = program_of(graph, plan_of(graph, weight=weight, act=act))
        exported = to_qdq(program)
        steps = {s.layer: s for s in program.steps if s.layer}
        for row in exported.layers:
            m = np.abs(steps[row["name"]].epilogue.m).max()
            assert row["bias"] != "int32" or m / 2 <= BIAS_ERROR
            kinds.add(row["bias"])
    assert kinds >= {"int32", "float32"}


def test_another_function_is_named_by_its_layer() -> None:
    graph = chain()
    program = program_of(graph, plan_of(graph, weight="i8", act=8))
    exported = to_qdq(program)
    assert compared(program, exported)["agrees"]
    scale = next(t for t in exported.model.graph.initializer if t.name == "b.weight.scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.2), scale.name))
    found = compared(program, exported)
    assert not found["agrees"]
    assert [row["layer"] for row in found["layers"] if not row["agrees"]] == ["b"]


def test_channels_from_anywhere() -> None:
    """Gathers in any order, with zeros before, between and behind, padded, strided, and joined out of order."""
    m = Maker((3, 8, 8))
    data = m.quantize()
    for name, channels, places in (
        ("turned", [2, 0, 1], None), ("around", [-1, 0, 1, 2, -1, -1], None), ("between", [0, -1, 2], None),
        ("none", [-1, -1], None), ("first", [-1, 0, 1], None),
    ):  # fmt: skip
        m.steps.append(gather(m, name, data, channels, places))
    joined = m.buffer("joined", (4, 8, 8), "i8")
    for i, places in enumerate(([3, 0], [2, 1])):
        step = gather(m, f"part{i}", data, [i, 2], places)
        m.steps.append(replace(step, output=joined))
    strided = m.buffer("strided", (3, 5, 5), "i8")
    m.steps.append(
        replace(gather(m, "strides", data, [0, 2, 1], None), output=strided, stride=(2, 2), padding=(1, 0, 1, 2))
    )
    program = finished(m, joined)
    found = compared(program, to_qdq(program))
    assert found["agrees"] and {"turned", "around", "between", "none", "joined", "strided"} <= {
        row["name"] for row in found["layers"]
    }
    assert all(row["differing"] == 0 for row in found["layers"] if row["held"] == "levels")


def gather(m: Maker, name: str, data: int, channels: list[int], places: list[int] | None) -> Any:
    from bitpress.compiler.program import Step

    out = m.buffer(name, (len(channels), *m.shape(data)[1:]), "i8")
    at = None if places is None else np.array(places, np.int32)
    return Step("gather", name, (data,), out, channels=np.array(channels, np.int32), out_channels=at)


def finished(m: Maker, data: int) -> Program:
    """A program whose output is a convolution of buffer `data`; no rule about unused buffers is asked for here."""
    m.conv("fc", data, (3, "f32"), "i8")
    end = sum(-(-b.bytes // 64) * 64 for b in m.buffers)
    ones = np.ones(3, np.float32)
    return Program(tuple(m.steps), tuple(m.buffers), 0, len(m.buffers) - 1, end, 0 * ones, ones)


def test_levels_beyond_int8_are_refused() -> None:
    m = Maker((3, 8, 8))
    m.conv("wide", m.quantize(), (3, "f32"), "u8")
    program = finished(m, m.quantize())
    with pytest.raises(UnsupportedError, match=r"wide: weight levels from \d+ to \d+ do not fit into int8"):
        to_qdq(program)


def test_segments_with_bounds_of_their_own_are_refused() -> None:
    m = Maker((3, 8, 8))
    data = m.quantize()
    both = m.buffer("both", (4, 8, 8), "u4")
    for i, top in enumerate((15.0, 9.0)):
        m.conv(f"part{i}", data, both, "i4", out_channels=[2 * i, 2 * i + 1])
        epilogue = replace(m.steps[-1].epilogue, hi=top)
        m.steps[-1] = replace(m.steps[-1], layer="both", epilogue=epilogue)
    with pytest.raises(UnsupportedError, match="both: its 2 segments are clamped differently"):
        to_qdq(finished(m, both))
