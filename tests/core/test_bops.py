"""Published BOP counts, digit by digit, and what pruning and mixed widths do to them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from bitpress.core.bops import CONVENTIONS, count
from bitpress.core.encoding import parse
from bitpress.core.errors import UsageError
from bitpress.core.graph import Graph
from bitpress.core.groups import channel_group
from bitpress.core.ops import OPS
from bitpress.core.plan import BitConfig, CompressionPlan, Segment

from ..benchmarks.graphs import Maker, everything


@cache
def network(name: str, classes: int | None = None) -> Graph:
    pytest.importorskip("torch", reason="the zoo needs torch: extra [search]")
    from bitpress.core.capture import capture
    from bitpress.core.models import load

    loaded = load(name, classes=classes)
    return capture(loaded.module, loaded.in_shape)


# net, MACs, float BOPs, and BOPs at uniform widths, as printed: unit, digits behind the point
M, G = 1e6, 1e9
PUBLISHED = (
    ("preresnet20", (40.8189, M, 4), (41798.6, M, 1),
     {2: (190.2, M, 1), 3: (392.1, M, 1), 4: (674.6, M, 1), 8: (2612.4, M, 1)}),
    ("preresnet56", (125.7536, M, 4), (128771.7, M, 1),
     {2: (529.9, M, 1), 3: (1156.5, M, 1), 4: (2033.6, M, 1), 8: (8048.2, M, 1)}),
    ("resnet18", (1.81407, G, 5), (1857.6, G, 1),
     {2: (14.37, G, 2), 3: (22.85, G, 2), 4: (34.71, G, 2), 8: (116.1, G, 1)}),
    ("mobilenet_v2", (0.30077, G, 5), (308.0, G, 1),
     {2: (1.93, G, 2), 4: (5.39, G, 2), 6: (11.17, G, 2), 8: (19.25, G, 2)}),
    ("vgg7", (615.9, M, 1), (630.7, G, 1), {}),
)  # fmt: skip


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row[0])
def test_published_counts(row: tuple) -> None:
    name, macs, bops, uniform = row
    graph = network(name)
    totals = count(graph).totals
    for value, (want, unit, digits) in ((totals.macs, macs), (totals.bops_fp32, bops)):
        assert round(value / unit, digits) == want
    assert (totals.bops, totals.bops_ratio) == (None, None)
    for bits, (want, unit, digits) in uniform.items():
        found = count(graph, uniform=(bits, bits)).totals
        assert round(found.bops / unit, digits) == want
        assert found.bops_ratio == totals.bops_fp32 / found.bops


@pytest.mark.parametrize(("name", "want"), [("resnet20", 41530.2), ("resnet56", 128503.3)])
def test_parameter_free_shortcuts_count_less(name: str, want: float) -> None:
    assert round(count(network(name, 100)).totals.bops_fp32 / M, 1) == want


def test_digits_reach_two_percent_at_four_bits() -> None:
    graph = network("digits_cnn")
    rows = count(graph).layers
    assert (rows[0].macs + rows[-1].macs) / sum(r.macs for r in rows) < 0.01
    assert count(graph, uniform=(4, 4)).totals.bops_ratio > 60
    assert count(graph, uniform=(2, 2)).totals.bops_ratio > 200


def test_macs_and_shapes_are_those_of_the_ops() -> None:
    graph = everything()
    rows = {row.name: row for row in count(graph).layers}
    layers = [n for n in graph if n.op in ("conv2d", "linear")]
    assert list(rows) == [n.name for n in layers]
    for node in layers:
        consts = {role: graph.consts[name] for role, name in node.consts.items()}
        source = graph.value(node.inputs[0]).shape
        row = rows[node.name]
        assert row.macs == OPS[node.op].macs(node, source, consts)
        assert (row.in_shape, row.out_shape, row.op) == (source, node.shape, node.op)
        assert (row.channels_kept, row.channels_total) == (node.shape[0], node.shape[0])
        assert (row.w_bits, row.a_bits, row.bops, row.bits_hist) == (None, None, None, {})
        assert row.weight_bytes == 4 * consts["weight"].size
    weights = sum(graph.consts[n.consts["weight"]].size for n in layers)
    assert count(graph).totals.fp32_bytes == count(graph).totals.weight_bytes == 4 * weights


def chain() -> Graph:
    """3x6x6 -> a 8 -> depthwise -> b 6 -> flatten -> h 10 -> fc 4."""
    m = Maker((3, 6, 6))
    x = m.conv("dw", m.add("relu", "a.relu", m.conv("a", "image", 8)), 8, groups=8, stride=2)
    x = m.add("flatten", "flat", m.conv("b", x, 6, 1))
    return m.graph(m.linear("fc", m.linear("h", x, 10), 4))


def config(weight: dict[str, tuple[int, ...]], act: str) -> BitConfig:
    return BitConfig(tuple(Segment(parse(e), f) for e, f in weight.items()), parse(act))


def pruned_plan(graph: Graph) -> CompressionPlan:
    ten = tuple(range(10))
    return CompressionPlan(
        graph.fingerprint(),
        {
            "a": config({"i8": (0, 1, 2, 5, 7)}, "i8"), "dw": config({"o4": (0, 5), "o2": (1, 2, 7)}, "u4"),
            "b": config({"i2": (0, 3)}, "i4"), "h": config({"o8": ten[:3], "o4": ten[3:8], "o2": ten[8:]}, "u2"),
            "fc": config({"i4": (0, 1, 2, 3)}, "u8"),
        },
        {"a": (0, 1, 2, 5, 7), "b": (0, 3)},
    )  # fmt: skip


def test_pruning_and_mixed_widths_by_hand() -> None:
    graph = chain()
    assert channel_group(graph)["dw"] == "a"
    found = count(graph, pruned_plan(graph))
    rows = {row.name: row for row in found.layers}
    macs = {"a": 5 * 36 * 27, "dw": 5 * 9 * 9, "b": 2 * 9 * 5, "h": 10 * 18, "fc": 4 * 10}
    assert {name: row.macs for name, row in rows.items()} == macs
    assert {n: r.in_shape for n, r in rows.items()} == {
        "a": (3, 6, 6), "dw": (5, 6, 6), "b": (5, 3, 3), "h": (18,), "fc": (10,),
    }  # fmt: skip
    assert {n: r.out_shape for n, r in rows.items()} == {
        "a": (5, 6, 6), "dw": (5, 3, 3), "b": (2, 3, 3), "h": (10,), "fc": (4,),
    }  # fmt: skip
    assert {n: (r.channels_kept, r.channels_total) for n, r in rows.items()} == {
        "a": (5, 8), "dw": (5, 8), "b": (2, 6), "h": (10, 10), "fc": (4, 4),
    }  # fmt: skip
    assert {n: (r.w_bits, r.a_bits, r.bits_hist) for n, r in rows.items()} == {
        "a": (8, 8, {8: 5}), "dw": (None, 4, {2: 3, 4: 2}), "b": (2, 4, {2: 2}), "h": (None, 2, {2: 2, 4: 5, 8: 3}),
        "fc": (4, 8, {4: 4}),
    }  # fmt: skip
    assert {n: r.weight_bytes for n, r in rows.items()} == {
        "a": 5 * 27, "dw": 2 * 5 + 3 * 3, "b": 2 * 2, "h": 3 * 18 + 5 * 9 + 2 * 5, "fc": 4 * 5,
    }  # fmt: skip
    inner = {
        "dw": 81 * 4 * (2 * 4 + 3 * 2), "b": 90 * 2 * 4, "h": 18 * 2 * (3 * 8 + 5 * 4 + 2 * 2),
    }  # fmt: skip
    sbs = {"a": macs["a"] * 64, **inner, "fc": 40 * 64}
    assert {n: r.bops for n, r in rows.items()} == sbs
    assert found.totals.bops == sum(sbs.values())
    assert found.totals.macs == sum(macs.values())
    assert found.totals.bops_convention == "sbs"
    whole = 8 * 36 * 27 + 8 * 9 * 9 + 6 * 9 * 8 + 10 * 54 + 4 * 10
    assert found.totals.bops_fp32 == 1024 * whole
    assert found.totals.fp32_bytes == 4 * (8 * 27 + 8 * 9 + 6 * 8 + 10 * 54 + 4 * 10)


def test_the_other_conventions_by_hand() -> None:
    graph = chain()
    plan = pruned_plan(graph)
    djpq = {r.name: r.bops for r in count(graph, plan, convention="djpq").layers}
    assert djpq["fc"] == 40 * 4 * 8  # its own bits, not 8x8
    assert djpq["a"] == 5 * 36 * 27 * 8 * 8
    weights = {r.name: r.bops for r in count(graph, plan, convention="weights-only").layers}
    assert weights["fc"] == 40 * 4 * 32
    assert weights["dw"] == 81 * 32 * (2 * 4 + 3 * 2)
    narrow = CompressionPlan(plan.graph, {**plan.bits, "a": config({"i4": (0, 1, 2, 5, 7)}, "i4")}, plan.keep)
    assert {c: count(graph, narrow, convention=c).layers[0].bops // (5 * 36 * 27) for c in CONVENTIONS} == {
        "sbs": 64, "djpq": 32, "weights-only": 128,
    }  # fmt: skip
    assert count(graph, narrow, convention="sbs").layers[0].weight_bytes == 5 * 14  # as held, not as counted


def test_uniform_bits_hold_the_ends_at_eight() -> None:
    graph = chain()
    for convention in CONVENTIONS:
        found = count(graph, uniform=(3, 5), convention=convention)
        assert [(r.w_bits, r.a_bits) for r in found.layers] == [(8, 8), (3, 5), (3, 5), (3, 5), (8, 8)]
        assert [r.bits_hist for r in found.layers] == [{8: 8}, {3: 8}, {3: 6}, {3: 10}, {8: 4}]
        sizes = [8 * 27, 8 * -(-27 // 8), 6 * -(-24 // 8), 10 * -(-162 // 8), 4 * 10]
        assert [r.weight_bytes for r in found.layers] == sizes
    acts = [r.bops // r.macs // r.w_bits for r in count(graph, uniform=(3, 5), convention="weights-only").layers]
    assert acts == [32] * 5


def test_a_uniform_plan_counts_as_uniform_bits() -> None:
    graph = chain()
    rows = {n.name: tuple(range(n.shape[0])) for n in graph if n.op in ("conv2d", "linear")}
    bits = {name: config({"i8" if name in ("a", "fc") else "o2": f}, "u8" if name in ("a", "fc") else "u4")
            for name, f in rows.items()}  # fmt: skip
    plan = CompressionPlan(graph.fingerprint(), bits)
    for convention in CONVENTIONS:
        assert count(graph, plan, convention=convention) == count(graph, uniform=(2, 4), convention=convention)


def test_a_layer_without_bits_counts_as_float() -> None:
    graph = chain()
    plan = pruned_plan(graph)
    bits = {k: v for k, v in plan.bits.items() if k != "b"}
    row = count(graph, CompressionPlan(plan.graph, bits, plan.keep)).layers[2]
    assert (row.w_bits, row.a_bits, row.bops, row.weight_bytes) == (32, 32, 90 * 1024, 4 * 2 * 5)


def test_grouped_convs_and_padding() -> None:
    m = Maker((4, 5, 5))
    graph = m.graph(m.conv("b", m.conv("a", "image", 6, groups=2, stride=2), 3, 1))
    rows = count(graph).layers
    assert [r.macs for r in rows] == [6 * 9 * 2 * 9, 3 * 9 * 6]


@pytest.mark.parametrize("bits", [(1, 1), (32, 32), (1, 32)])
def test_any_width_can_be_counted(bits: tuple[int, int]) -> None:
    graph = chain()
    rows = count(graph, uniform=bits).layers
    assert rows[1].bops == rows[1].macs * bits[0] * bits[1]
    assert isinstance(rows[1].bops, int)
    assert not isinstance(rows[1].macs, np.integer)


@pytest.mark.parametrize("bits", [(0, 4), (4, 33)])
def test_impossible_requests(bits: tuple[int, int]) -> None:
    graph = chain()
    with pytest.raises(UsageError, match=f"w{bits[0]}a{bits[1]}"):
        count(graph, uniform=bits)
    with pytest.raises(UsageError, match="unknown BOP convention 'haq': known are sbs, djpq, weights-only"):
        count(graph, convention="haq")
    with pytest.raises(UsageError, match="not both"):
        count(graph, pruned_plan(graph), uniform=(4, 4))
