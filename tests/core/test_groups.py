"""Channels that must be cut together: by hand on small graphs, and by cutting a group and running the smaller graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitpress.core.graph import Graph, run
from bitpress.core.groups import Group, channel_group, groups
from bitpress.core.ops import OPS

from ..benchmarks.graphs import Maker, everything, residual


def by_id(graph: Graph) -> dict[str, Group]:
    return {g.id: g for g in groups(graph)}


def test_a_plain_chain() -> None:
    m = Maker((3, 8, 8))
    x = m.add("max_pool2d", "pool", m.add("relu", "a.relu", m.norm("a.bn", m.conv("a", "image", 6))),
              kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0))  # fmt: skip
    x = m.add("flatten", "flat", m.conv("b", x, 4))
    graph = m.graph(m.linear("fc", m.linear("hidden", x, 7), 5))
    found = by_id(graph)
    assert list(found) == ["image", "a", "b", "hidden", "fc"]
    assert found["a"] == Group("a", 6, ("a", "a.bn", "a.relu", "pool"), ("a",), ("b",), True, "")
    assert found["b"] == Group("b", 4, ("b", "flat"), ("b",), ("hidden",), True, "")  # 16 features a channel
    assert (found["image"].prunable, found["image"].why) == (False, "it is the network's input")
    assert (found["fc"].prunable, found["fc"].why) == (False, "it is the network's output")
    assert channel_group(graph)["flat"] == "b"
    assert set(channel_group(graph)) == {"image", *(n.name for n in graph)}


def test_a_sum_ties_its_operands() -> None:
    found = by_id(residual())
    stream = found["stem"]
    assert stream.producers == ("stem", "b")
    assert stream.consumers == ("a", "fc")
    assert {"stem.relu", "sum", "pool", "flat"} <= set(stream.values)
    assert stream.prunable
    assert found["a"].producers == ("a",)


def test_a_sum_with_the_image_keeps_both() -> None:
    m = Maker((3, 4, 4))
    graph = m.graph(m.conv("b", m.add("add", "sum", m.conv("a", "image", 3), "image"), 2))
    assert list(by_id(graph)) == ["a", "b"]  # the id is the first producer's although the image comes first
    assert by_id(graph)["a"].why == "it is the network's input"
    assert by_id(graph)["a"].values == ("image", "a", "sum")


def test_depthwise_layers_pass_channels_on() -> None:
    m = Maker()
    x = m.conv("dw", m.add("clip", "act", m.conv("expand", "image", 8, 1), lo=0.0, hi=6.0), 8, groups=8)
    graph = m.graph(m.conv("project", x, 4, 1))
    group = by_id(graph)["expand"]
    assert group.values == ("expand", "act", "dw")
    assert (group.producers, group.consumers, group.prunable) == (("expand",), ("project",), True)


def test_a_depthwise_layer_on_the_image_stays_whole() -> None:
    m = Maker()
    graph = m.graph(m.conv("mix", m.conv("dw", "image", 3, groups=3), 4, 1))
    assert by_id(graph)["image"].values == ("image", "dw")
    assert not by_id(graph)["image"].prunable


@pytest.mark.parametrize(("rows", "count"), [(8, 2), (12, 6)])
def test_grouped_convs_keep_both_sides(rows: int, count: int) -> None:
    m = Maker()
    graph = m.graph(m.conv("c", m.conv("b", m.conv("a", "image", 6), rows, groups=count), 4))
    found = by_id(graph)
    for name in ("a", "b"):
        assert found[name].why == "b is a grouped convolution"


def test_slices_pads_and_concats_of_channels_keep_what_they_touch() -> None:
    whole = (None, None, None)
    m = Maker((3, 8, 8))
    a = m.conv("a", "image", 6)
    cut = m.add("slice", "cut", a, slices=((1, 5, None), whole, whole))
    b = m.conv("b", "image", 4)
    padded = m.add("pad", "padded", b, pads=((0, 1), (0, 0), (0, 0)))
    graph = m.graph(m.conv("last", m.add("concat", "join", cut, padded), 2))
    found = by_id(graph)
    assert found["a"].why == "cut cuts channels out"
    assert found["b"].why == "padded pads channels"
    assert found["join"].producers == ()
    assert found["join"].why == "join concatenates channels"
    assert found["join"].consumers == ("last",)


def test_slices_and_pads_of_pixels_do_not_matter() -> None:
    whole = (None, None, None)
    m = Maker((3, 8, 8))
    x = m.add("slice", "cut", m.conv("a", "image", 6), slices=(whole, (1, 5, None), (None, None, 2)))
    graph = m.graph(m.conv("b", m.add("pad", "padded", x, pads=((0, 0), (1, 1), (0, 2))), 2))
    assert by_id(graph)["a"].values == ("a", "cut", "padded")
    assert by_id(graph)["a"].prunable


def test_option_a_shortcuts_keep_the_streams() -> None:
    found = by_id(everything())
    assert found["stem"].why == "short.pad pads channels"
    assert found["a"].values == ("a", "a.bn", "a.act", "b", "b.bn", "short.pad", "sum", "sum.bn", "sum.relu")
    assert found["a"].why == "short.pad pads channels"


def test_sums_of_unlike_features_keep_both() -> None:
    m = Maker((3, 2, 2))
    x = m.add("flatten", "flat", m.conv("a", "image", 4))  # 4 channels of 4 features
    y = m.linear("b", m.add("flatten", "flat2", m.conv("c", "image", 4)), 16)  # 16 of one
    graph = m.graph(m.linear("fc", m.add("add", "sum", x, y), 3))
    found = by_id(graph)
    assert found["a"].why == found["b"].why == "sum adds features of different channels"
    assert found["c"].prunable


def test_unknown_ops_keep_what_they_touch() -> None:
    m = Maker()
    x = m.add("unknown", "swish", m.conv("a", "image", 4), target="aten.silu")
    graph = m.graph(m.conv("b", x, 2))
    assert by_id(graph)["a"].why == "swish (aten.silu) is not known"
    assert by_id(graph)["swish"].why == "swish (aten.silu) is not known"


def test_shared_constants_keep_both_layers() -> None:
    m = Maker((3, 4, 4))
    m.conv("c", m.conv("b", m.conv("a", "image", 6), 6), 6)
    nodes = tuple(replace(n, consts={"weight": "b.weight"}) if n.name == "c" else n for n in m.nodes)
    graph = Graph((m.input,), nodes, ("c",), m.consts)
    assert by_id(graph)["a"].why == by_id(graph)["b"].why == "b and c share b.weight"


def cut(graph: Graph, group: Group, keep: list[int]) -> Graph:
    """The graph with only `keep` of the group's channels, by the group's own account of who has them."""
    consts = dict(graph.consts)
    mine, nodes, shapes = set(group.values), [], {n.name: n.shape for n in graph.inputs}
    for node in graph.nodes:
        if node.name in mine:
            for const in node.consts.values():
                consts[const] = consts[const][keep]
        if node.name in group.consumers:
            weight = consts[node.consts["weight"]]
            runs = weight.shape[1] // group.channels
            columns = [c * runs + r for c in keep for r in range(runs)]
            consts[node.consts["weight"]] = weight[:, columns]
        attrs = node.attrs
        if node.op == "conv2d" and node.name in mine and node.name not in group.producers:
            attrs = {**attrs, "groups": len(keep)}
        arrays = {role: consts[name] for role, name in node.consts.items()}
        shapes[node.name] = OPS[node.op].shape(attrs, arrays, [shapes[i] for i in node.inputs])
        nodes.append(replace(node, attrs=attrs, shape=shapes[node.name]))
    return graph.with_nodes(tuple(nodes), consts)


def silenced(graph: Graph, group: Group, keep: list[int]) -> dict[str, np.ndarray]:
    """Outputs where the consumers' columns of the other channels are zero: what removal must equal."""
    consts = dict(graph.consts)
    for name in group.consumers:
        const = graph.value(name).consts["weight"]
        weight = consts[const].copy()
        runs = weight.shape[1] // group.channels
        gone = [c * runs + r for c in range(group.channels) if c not in keep for r in range(runs)]
        weight[:, gone] = 0
        consts[const] = weight
    x = np.random.default_rng(5).standard_normal((2, *graph.inputs[0].shape)).astype(np.float32)
    return run(graph.with_nodes(graph.nodes, consts), {graph.inputs[0].name: x})


def chain_with_everything() -> Graph:
    """Depthwise, sum, pools, flatten and batch norms between prunable groups."""
    m = Maker((3, 8, 8), seed=3)
    x = m.add("relu", "stem.relu", m.norm("stem.bn", m.conv("stem", "image", 8)))
    y = m.add("clip", "e.act", m.norm("e.bn", m.conv("expand", x, 12, 1)), lo=0.0, hi=6.0)
    y = m.add("relu", "d.act", m.norm("d.bn", m.conv("dw", y, 12, groups=12)))
    y = m.norm("p.bn", m.conv("project", y, 8, 1))
    x = m.norm("sum.bn", m.add("add", "sum", y, x))
    x = m.add("avg_pool2d", "pool", x, kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0))
    x = m.add("flatten", "flat", x)
    x = m.add("relu", "h.relu", m.norm("h.bn", m.linear("hidden", x, 9)))
    return m.graph(m.linear("fc", x, 5))


@pytest.mark.parametrize("seed", range(4))
def test_cutting_a_group_is_silencing_it(seed: int) -> None:
    """The property that makes a group a group: removal everywhere it says equals never hearing those channels."""
    graph, rng = chain_with_everything(), np.random.default_rng(seed)
    for group in groups(graph):
        if not group.prunable:
            continue
        keep = sorted(rng.choice(group.channels, int(rng.integers(1, group.channels + 1)), replace=False).tolist())
        smaller = cut(graph, group, keep)
        x = np.random.default_rng(5).standard_normal((2, 3, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(
            run(smaller, {"image": x})["fc"], silenced(graph, group, keep)["fc"], rtol=1e-5, atol=1e-5
        )  # the same float64 products without the zeros, rounded to float32 after each layer


def test_prunable_groups_of_that_graph() -> None:
    assert [g.id for g in groups(chain_with_everything()) if g.prunable] == ["stem", "expand", "hidden"]
