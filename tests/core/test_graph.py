"""The graph: what is checked, how it prints, that it comes back from JSON, and what its fingerprint sees."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitpress.core.errors import CorruptError
from bitpress.core.graph import Graph, Node, from_json, run, to_json, verify

CONV = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}


def small() -> Graph:
    """input -> conv -> relu, and the sum of both."""
    weight = np.random.default_rng(0).normal(size=(2, 2, 3, 3)).astype(np.float32)
    return Graph(
        inputs=(Node("input", "input", (), (2, 4, 4)),),
        nodes=(
            Node("conv2d", "conv", ("input",), (2, 4, 4), attrs=CONV, consts={"weight": "conv.weight"}),
            Node("relu", "relu", ("conv",), (2, 4, 4)),
            Node("add", "sum", ("relu", "input"), (2, 4, 4)),
        ),
        outputs=("sum",),
        consts={"conv.weight": weight},
    )


def changed(graph: Graph, number: int, **fields: Any) -> Graph:
    nodes = list(graph.nodes)
    nodes[number] = replace(nodes[number], **fields)
    return replace(graph, nodes=tuple(nodes))


def test_text_is_stable() -> None:
    assert small().text() == (
        "input %input: f32[2,4,4]\n"
        "%conv: f32[2,4,4] = conv2d(%input) dilation=[1, 1] groups=1 padding=[1, 1, 1, 1] stride=[1, 1] "
        "weight:(2, 2, 3, 3)\n"
        "%relu: f32[2,4,4] = relu(%conv)\n"
        "%sum: f32[2,4,4] = add(%relu, %input)\n"
        "output %sum\n"
    )


def test_run_executes_every_node() -> None:
    graph = small()
    x = np.random.default_rng(1).normal(size=(3, 2, 4, 4)).astype(np.float32)
    values = run(graph, {"input": x}, keep=True)
    assert set(values) == {"input", "conv", "relu", "sum"}
    assert np.array_equal(values["sum"], np.maximum(values["conv"], 0) + x)
    assert set(run(graph, {"input": x})) == {"sum"}


def test_consumers_in_order_and_once() -> None:
    graph = small()
    doubled = changed(graph, 2, inputs=("relu", "relu"))
    assert [n.name for n in graph.consumers()["input"]] == ["conv", "sum"]
    assert [n.name for n in doubled.consumers()["relu"]] == ["sum"]
    assert graph.consumers()["sum"] == ()


def test_json_round_trip_and_fingerprint() -> None:
    graph = small()
    doc = json.loads(json.dumps(to_json(graph)))
    back = from_json(doc, graph.consts)
    assert back == graph and back.fingerprint() == graph.fingerprint()
    retrained = replace(graph, consts={"conv.weight": graph.consts["conv.weight"] * 2})
    assert retrained.fingerprint() == graph.fingerprint()
    for other in (
        changed(graph, 0, attrs={**CONV, "stride": (2, 2)}),
        changed(graph, 2, inputs=("input", "relu")),
        changed(graph, 1, name="act"),
    ):
        assert other.fingerprint() != graph.fingerprint()


def test_damaged_documents_are_refused() -> None:
    doc = to_json(small())
    with pytest.raises(CorruptError, match=r"not a bitpress\.graph version 1 document \(schema 'x', version 1\)"):
        from_json({**doc, "schema": "x"}, {})
    with pytest.raises(CorruptError, match="version 2"):
        from_json({**doc, "schema_version": 2}, {})
    with pytest.raises(CorruptError, match="damaged"):
        from_json({**doc, "nodes": [{"op": "relu"}]}, {})
    with pytest.raises(CorruptError, match="damaged"):
        from_json({k: v for k, v in doc.items() if k != "outputs"}, {})


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (changed(small(), 1, name="conv"), "two nodes are named 'conv'"),
        (changed(small(), 0, inputs=("sum",)), "'conv' reads 'sum', which is not computed before it"),
        (changed(small(), 1, op="requantize"), "'relu' is a 'requantize', which this stage does not allow"),
        (replace(small(), consts={}), r"'conv' has no weight \('conv\.weight' is missing\)"),
        (replace(small(), outputs=("nothing",)), "output 'nothing' is not computed"),
    ],
)
def test_verify_names_what_is_wrong(graph: Graph, message: str) -> None:
    with pytest.raises(CorruptError, match=f"float graph: {message}"):
        verify(graph, "float")


def test_verify_accepts_a_good_graph() -> None:
    verify(small(), "float")
    with pytest.raises(CorruptError, match="integer graph: 'conv' is a 'conv2d'"):
        verify(small(), "integer")
