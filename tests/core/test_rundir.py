"""RUN folders: what is written is read back, an interrupted write leaves the old file, every damage is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="a RUN needs safetensors: extra [search]")

from bitpress.core import rundir
from bitpress.core.encoding import parse
from bitpress.core.errors import CorruptError, UnsupportedError, UsageError
from bitpress.core.graph import Graph, run
from bitpress.core.plan import BitConfig, CompressionPlan, Segment
from bitpress.core.rundir import (
    is_run,
    load_run,
    read_json,
    read_tensors,
    write_json,
    write_run,
    write_tensors,
)  # fmt: skip

from ..benchmarks.graphs import residual
from ..compiler.nets import gated, plan_of, tensors_of

META = {
    "model": "nets.py:small", "in_shape": [3, 8, 8], "classes": 10, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
    "labels": ["a", "b"],
}  # fmt: skip


def plan(graph: Graph) -> CompressionPlan:
    bits = {}
    for node in graph:
        if node.op in ("conv2d", "linear"):
            kept = (0, 3, 4) if node.name == "a" else tuple(range(node.shape[0]))
            bits[node.name] = BitConfig((Segment(parse("o4"), kept),), parse("u4"))
    return CompressionPlan(graph.fingerprint(), bits, {"a": (0, 3, 4)})


def tensors(graph: Graph) -> dict[str, np.ndarray]:
    return {**graph.consts, "a.act_clip": np.float32(1.5).reshape(()), "fc.weight_clip": np.ones(10, np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A RUN."""
    graph = residual()
    write_run(tmp_path / "run", graph, plan(graph), tensors(graph), {**META, "optimizer": "not kept"})
    return tmp_path / "run"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    doc = json.loads(path.read_text())
    change(doc)
    path.write_text(json.dumps(doc))


def retensor(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    found = read_tensors(folder / "model.safetensors")
    change(found)
    write_tensors(folder / "model.safetensors", found)


def test_what_is_written_is_read(folder: Path) -> None:
    graph, found = residual(), load_run(folder)
    assert is_run(folder)
    assert found.path == folder
    assert found.graph.fingerprint() == graph.fingerprint()
    assert found.plan == plan(graph)
    assert dict(found.meta) == META
    assert set(found.tensors) == set(tensors(graph))
    assert found.tensors["a.act_clip"].shape == ()
    assert set(found.graph.consts) == set(graph.consts)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(found.graph, {"image": x})["fc"], run(graph, {"image": x})["fc"])


def test_the_same_run_is_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    graph = residual()
    shuffled = dict(reversed(tensors(graph).items()))
    write_run(tmp_path / "again", graph, plan(graph), shuffled, META)
    for name in ("graph.json", "plan.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_constants_of_the_graph_are_added(tmp_path: Path) -> None:
    graph = residual()
    write_run(tmp_path, graph, plan(graph), {}, META)
    assert set(load_run(tmp_path).tensors) == set(graph.consts)


def test_data_and_method_come_from_settings_and_result(folder: Path) -> None:
    write_json(folder / "run.json", {"method": "sbs", "data": "digits", "lr": 0.1})
    assert load_run(folder).meta == {**META, "method": "sbs", "data": "digits"}
    write_json(folder / "result.json", {"method": "uniform", "data": None})
    assert load_run(folder).meta == {**META, "method": "uniform", "data": "digits"}


def test_a_run_is_read_without_torch(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bitpress.core.rundir import load_run\n"
        f"print(len(load_run({str(folder)!r}).graph.nodes))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(len(residual().nodes))


@pytest.mark.parametrize("name", ["graph.json", "plan.json", "model.safetensors"])
def test_no_run(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert not is_run(folder)
    with pytest.raises(UsageError, match=f"is no RUN: {name} is missing"):
        load_run(folder)


def test_a_folder_or_a_name_that_is_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="are missing"):
            load_run(path)


@pytest.mark.parametrize("name", ["graph.json", "plan.json", "model.safetensors"])
@pytest.mark.parametrize("cut", [0.0, 0.3, 0.9])
def test_files_that_are_cut_short(folder: Path, name: str, cut: float) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(CorruptError, match=name):
        load_run(folder)


@pytest.mark.parametrize("name", ["graph.json", "plan.json"])
@pytest.mark.parametrize("text", ["[]", "5", "\xff", '{"schema": "other"}', '{"a": NaN}'])
def test_files_of_another_kind(folder: Path, name: str, text: str) -> None:
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptError):
        load_run(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named(folder: Path, value: float) -> None:
    bad = read_tensors(folder / "model.safetensors")
    bad["a.bn.var"] = bad["a.bn.var"].copy()
    bad["a.bn.var"][[2, 5]] = value
    write_tensors(folder / "model.safetensors", bad)
    with pytest.raises(CorruptError, match=r"a\.bn\.var holds NaN or infinity in 2 of 16 elements"):
        load_run(folder)
    graph = residual()
    with pytest.raises(CorruptError, match=r"a\.act_clip"):
        write_run(folder, graph, plan(graph), {"a.act_clip": np.float32(value).reshape(())}, META)


GRAPH_DAMAGE = {
    "no nodes": (lambda d: d.pop("nodes"), "damaged"),
    "no op": (lambda d: d["nodes"][0].pop("op"), "damaged"),
    "unknown op": (lambda d: d["nodes"][1].update(op="softmax"), "softmax"),
    "integer op": (lambda d: d["nodes"][1].update(op="requantize"), "does not allow"),
    "no input": (lambda d: d.update(inputs=[]), "image"),
    "wrong order": (lambda d: d["nodes"].reverse(), "is not computed before it"),
    "no output": (lambda d: d.update(outputs=["x"]), "output 'x'"),
    "shape": (lambda d: d["nodes"][0].update(shape=[16, 9, 8]), r"stem is \[16, 9, 8\], .* make \[16, 8, 8\]"),
    "no padding": (lambda d: d["nodes"][0]["attrs"].pop("padding"), r"stem \(conv2d\) has padding None"),
    "stride": (lambda d: d["nodes"][0]["attrs"].update(stride=[0, 1]), r"has stride \(0, 1\)"),
    "name": (lambda d: d["nodes"][0].update(name=["a"]), r"\['a'\] is no name"),
    "size": (lambda d: d["nodes"][0].update(shape=[16, 8, 0]), "0 is no size"),
    "arity": (lambda d: d["nodes"][1]["inputs"].append("image"), "reads 2 values"),
    "roles": (lambda d: d["nodes"][1]["consts"].pop("var"), "expected .*'var'"),
    "dtype": (lambda d: d["nodes"][0].update(dtype="u4"), "stem is u4, a float graph holds f32"),
    "model": (lambda d: d.update(model=5), "model is 5"),
    "classes": (lambda d: d.update(classes=0), "classes is 0"),
    "labels": (lambda d: d.update(labels=["a", 1]), "labels is"),
    "deviation": (lambda d: d.update(std=[1, 1, 0]), r"std is .*, each above 0"),
    "depth": (lambda d: d["inputs"][0].update(shape=[4, 8, 8]), "weights for 3 input channels, its input has 4"),
    "mean": (lambda d: d.update(mean=[0.5]), "mean is .*expected 3"),
    "std": (lambda d: d.update(std=["a", "b", "c"]), "std is"),
    "in_shape": (lambda d: d.update(in_shape=[3, 9, 9]), r"in_shape is \[3, 9, 9\]"),
}


@pytest.mark.parametrize("name", GRAPH_DAMAGE)
def test_a_damaged_graph(folder: Path, name: str) -> None:
    change, words = GRAPH_DAMAGE[name]
    edit(folder / "graph.json", change)
    with pytest.raises(CorruptError, match=words):
        load_run(folder)


def test_products_and_tables_are_kept_and_checked(tmp_path: Path) -> None:
    graph = gated()
    chosen = plan_of(graph)
    meta = {**META, "classes": 7, "in_shape": list(graph.inputs[0].shape)}
    write_run(tmp_path / "run", graph, chosen, {**graph.consts, **tensors_of(graph, chosen)}, meta)
    assert load_run(tmp_path / "run").graph.text() == graph.text()
    at = next(i for i, node in enumerate(graph.nodes) if node.name == "gate")
    edit(tmp_path / "run" / "graph.json", lambda d: d["nodes"][at].update(inputs=["dw.act", "stem.act"]))
    with pytest.raises(CorruptError, match=r"gate joins \[16, 8, 7\] and \[8, 8, 7\]"):
        load_run(tmp_path / "run")


TENSOR_DAMAGE = {
    "missing": (lambda t: t.pop("a.weight"), r"no weight \('a\.weight' is missing\)"),
    "rows": (lambda t: t.update({"a.weight": np.zeros((9, 16, 3, 3), np.float32)}), "make"),
    "depth": (lambda t: t.update({"a.weight": np.zeros((16, 15, 3, 3), np.float32)}), "weights for 15 input channels"),
    "norm": (lambda t: t.update({"a.bn.mean": np.zeros(15, np.float32)}), r"mean of shape \[15\], expected \[16\]"),
    "dtype": (lambda t: t.update({"a.bn.mean": np.zeros(16, np.float64)}), r"a\.bn\.mean is float64"),
    "variance": (lambda t: t.update({"a.bn.var": np.full(16, -1, np.float32)}), "has a variance of -1"),
    "rank": (lambda t: t.update({"a.weight": np.zeros(16, np.float32)}), "damaged"),
}


@pytest.mark.parametrize("name", TENSOR_DAMAGE)
def test_tensors_that_do_not_fit(folder: Path, name: str) -> None:
    change, words = TENSOR_DAMAGE[name]
    retensor(folder, change)
    with pytest.raises(CorruptError, match=words):
        load_run(folder)


def test_a_plan_edited_by_hand(folder: Path) -> None:
    edit(folder / "plan.json", lambda d: d["bits"]["b"].update(act="u2"))
    assert load_run(folder).plan.bits["b"].act == parse("u2")
    edit(folder / "plan.json", lambda d: d["keep"].update(a=[0, 3]))
    with pytest.raises(CorruptError, match="'a' keeps 2 filters, its segments hold 3"):
        load_run(folder)


def test_a_plan_of_another_graph_and_one_without_kernels(folder: Path) -> None:
    edit(folder / "plan.json", lambda d: d["bits"]["b"]["weight"][0].update(encoding="i5"))
    with pytest.raises(UnsupportedError, match="i5 weights have no kernel"):
        load_run(folder)
    edit(folder / "plan.json", lambda d: d.update(graph="0" * 16))
    with pytest.raises(CorruptError, match="plan was made for graph 0000"):
        load_run(folder)


def test_an_interrupted_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "plan.json").read_bytes()

    def fails(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(KeyboardInterrupt):
        write_json(folder / "plan.json", {"a": 1})
    assert (folder / "plan.json").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["graph.json", "model.safetensors", "plan.json"]


def test_json_takes_numpy_and_refuses_what_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": np.float32(0.5), "a": np.arange(3), "c": Path("x")})
    assert read_json(path) == {"a": [0, 1, 2], "b": 0.5, "c": "x"}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError, match="no JSON form"):
        write_json(path, {"a": object()})
    assert read_json(path)["b"] == 0.5
    with pytest.raises(UsageError, match="no file"):
        read_json(tmp_path / "b.json")


def test_module_names_are_those_of_the_contract() -> None:
    assert (rundir.GRAPH, rundir.PLAN, rundir.TENSORS) == ("graph.json", "plan.json", "model.safetensors")
    assert (rundir.RESULT, rundir.SETTINGS) == ("result.json", "run.json")
