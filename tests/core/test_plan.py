"""Plans: JSON both ways, and every way in which a plan can fail to fit its graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bitpress.core.encoding import BIPOLAR, TERNARY, Encoding, parse
from bitpress.core.errors import CorruptError, UnsupportedError
from bitpress.core.graph import Graph
from bitpress.core.groups import groups
from bitpress.core.plan import BitConfig, CompressionPlan, Segment, from_json, to_json, validate

from ..benchmarks.graphs import Maker

GRAPH_WORDS = "plan was made for graph 0123, this graph is"


def graph() -> Graph:
    """image 3 -> a 8 -> depthwise dw -> b 6 (the output's group: whole)."""
    m = Maker((3, 4, 4))
    return m.graph(m.conv("b", m.conv("dw", m.add("relu", "a.relu", m.conv("a", "image", 8)), 8, groups=8), 6, 1))


def segments(**parts: tuple[int, ...]) -> tuple[Segment, ...]:
    return tuple(Segment(parse(name), filters) for name, filters in parts.items())


def plan() -> CompressionPlan:
    """Mixed widths of 2, 4 and 8 bits and pruned filters."""
    return CompressionPlan(
        graph().fingerprint(),
        {
            "a": BitConfig(segments(i8=(0, 2), i4=(1, 7), i2=(5,)), parse("i8")),
            "dw": BitConfig(segments(o4=(0, 1, 2, 5, 7)), parse("u4")),
            "b": BitConfig(segments(o2=(0, 1, 2, 3, 4, 5)), parse("u2")),
        },
        {"a": (0, 1, 2, 5, 7)},
    )


def test_json_round_trip() -> None:
    doc = json.loads(json.dumps(to_json(plan()), sort_keys=True))
    assert from_json(doc) == plan()
    assert str(plan().bits["a"]) == "w:i8x2+i4x2+i2x1 a:i8"
    assert str(plan().bits["b"]) == "w:o2 a:u2"


def test_a_plan_that_fits() -> None:
    validate(plan(), graph())
    validate(plan(), graph(), groups(graph()))
    validate(replace(plan(), keep={**plan().keep, "b": tuple(range(6))}), graph())  # whole, and said so


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(schema="bitpress.graph"),
        lambda d: d.update(schema_version=2),
        lambda d: d.pop("bits"),
        lambda d: d.pop("keep"),
        lambda d: d.pop("graph"),
        lambda d: d.update(residual="int4"),
        lambda d: d.update(bits=[]),
        lambda d: d["bits"]["a"].update(act="u9"),
        lambda d: d["bits"]["a"].pop("weight"),
        lambda d: d["bits"]["a"]["weight"][0].update(encoding="q4"),
        lambda d: d["bits"]["a"]["weight"][0].update(filters="many"),
        lambda d: d["bits"].update(a=None),
        lambda d: d["bits"]["a"].update(weight={}),
        lambda d: d["bits"]["a"]["weight"].append(None),
        lambda d: d.update(keep=None),
        lambda d: d["keep"].update(a="12"),
        lambda d: d["keep"].update(a=[0, 1.5]),
        lambda d: d["keep"].update(a=[0, "x"]),
    ],
)
def test_damaged_documents(damage: Callable[[dict[str, Any]], object]) -> None:
    doc = json.loads(json.dumps(to_json(plan())))
    damage(doc)
    with pytest.raises(CorruptError) as error:
        from_json(doc)
    assert "object has no attribute" not in str(error.value) and "subscriptable" not in str(error.value)


def with_bits(layer: str, config: BitConfig) -> CompressionPlan:
    return replace(plan(), bits={**plan().bits, layer: config})


def with_dw(*parts: Segment, act: str = "u4") -> CompressionPlan:
    return with_bits("dw", BitConfig(parts, parse(act)))


O4 = parse("o4")
MISFITS = {
    "fingerprint": (replace(plan(), graph="0123"), GRAPH_WORDS),
    "unknown layer": (with_bits("c", plan().bits["b"]), "gives bits to layer 'c'.*it has a, dw, b"),
    "unknown group": (replace(plan(), keep={"c": (0,)}), "keeps channels of group 'c'"),
    "a layer is no group": (replace(plan(), keep={**plan().keep, "dw": (0, 1)}), "group 'dw'"),
    "no bits": (replace(plan(), bits={k: v for k, v in plan().bits.items() if k != "dw"}), "no bits to layer 'dw'"),
    "out of range": (with_dw(Segment(O4, (0, 1, 2, 5, 8))), "'dw' has filters 0 .. 7, a segment names 8"),
    "negative": (with_dw(Segment(O4, (-1, 0, 1, 2, 5))), "a segment names -1"),
    "twice in a segment": (with_dw(Segment(O4, (0, 1, 1, 2, 5, 7))), "not ascending and distinct"),
    "unsorted": (with_dw(Segment(O4, (0, 2, 1, 5, 7))), "not ascending and distinct"),
    "twice": (with_dw(Segment(O4, (0, 1, 2)), Segment(parse("o2"), (2, 5, 7))), "filter 2 .* more than one segment"),
    "lost": (with_dw(Segment(O4, (0, 1, 2, 5))), "keeps 5 filters, its segments hold 4: kept filter 7"),
    "pruned": (with_dw(Segment(O4, (0, 1, 2, 3, 5, 7))), "filter 3 has bits but is pruned"),
    "empty segment": (with_dw(Segment(O4, (0, 1, 2, 5, 7)), Segment(O4, ())), "without filters"),
    "no segment": (with_dw(), "its segments hold 0"),
    "whole group cut": (replace(plan(), keep={"b": (0, 1)}), "keeps 2 of 6 channels of group 'b'.*network's output"),
    "image cut": (replace(plan(), keep={"image": (0,)}), "network's input"),
    "empty keep": (replace(plan(), keep={"a": ()}), "keeps no channel of group 'a'"),
    "unsorted keep": (replace(plan(), keep={"a": (1, 0)}), "group 'a' are not ascending"),
    "keep out of range": (replace(plan(), keep={"a": (0, 8)}), "keeps channel 8 of group 'a', which has 0 .. 7"),
    "no zero": (with_dw(Segment(O4, (0, 1, 2, 5, 7)), act="o4"), "input encoding o4 of layer 'dw' has no zero"),
    "residual": (replace(plan(), residual="int4"), "'int4' is none of int8, float32"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits(name: str) -> None:
    bad, words = MISFITS[name]
    with pytest.raises(CorruptError, match=words):
        validate(bad, graph())


@pytest.mark.parametrize("name", ["o3", "i5", "u7", "u1"])
def test_weights_without_kernels(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'dw': {name} weights have no kernel; there are 2, 4, 8 bits"):
        validate(with_dw(Segment(parse(name), (0, 1, 2, 5, 7))), graph())


def test_wide_activations_have_no_kernel() -> None:
    wide = Encoding("u9", tuple(1 << p for p in range(9)))
    with pytest.raises(UnsupportedError, match="9-bit activations"):
        validate(with_bits("dw", replace(plan().bits["dw"], act=wide)), graph())


@pytest.mark.parametrize("encoding", [BIPOLAR, TERNARY, parse("i2"), parse("o8")])
def test_weights_with_kernels(encoding: Encoding) -> None:
    validate(with_dw(Segment(encoding, (0, 1, 2, 5, 7))), graph())


@pytest.mark.parametrize("act", ["i4", "u4", "u1", "i8"])
def test_any_sign_of_activations_is_allowed(act: str) -> None:
    validate(with_dw(Segment(O4, (0, 1, 2, 5, 7)), act=act), graph())
