"""Physical removal: what goes, what becomes a gather, what cannot be absorbed."""

from dataclasses import replace

import numpy as np
import pytest

from bitpress.compiler.prune import kept_of, prune
from bitpress.core.errors import UnsupportedError
from bitpress.core.graph import Graph, run, verify
from bitpress.core.integer import integer
from tests.benchmarks.graphs import Maker
from tests.compiler.nets import (
    assert_same,
    assert_stages_agree,
    chain,
    flat,
    images,
    inverted,
    option_a,
    plan_of,
    residual,
    shared_flat,
    space_to_depth,
    tensors_of,
)


def derive(graph, **choice):
    plan = plan_of(graph, **choice)
    return integer(graph, plan, tensors_of(graph, plan))


def test_rows_and_columns_go():
    graph = chain()
    keep = (1, 2, 7)
    whole = derive(graph, keep={"a": keep})
    small = prune(whole)
    verify(small, "pruned")
    assert small.value("a.acc").shape == (3, 8, 8)
    assert np.array_equal(small.consts["a.levels"], whole.consts["a.levels"][list(keep)])
    assert np.array_equal(small.consts["b.levels"], whole.consts["b.levels"][:, list(keep)])
    assert len(small.consts["a.relu.m"]) == len(small.consts["a.relu.b"]) == 3
    assert kept_of(small.value("a.relu")) == keep
    x = images(graph, 4)
    assert_same(run(whole, {"image": x})["fc"], run(small, {"image": x})["fc"], "fc")


def test_nothing_to_remove_changes_nothing():
    whole = derive(residual())
    assert prune(whole).text() == whole.text()


def test_a_group_with_a_sum_goes_everywhere():
    graph = residual()
    small = prune(derive(graph, keep={"stem": (3, 5)}))
    assert small.value("stem.relu").shape[0] == small.value("sum.relu").shape[0] == small.value("flat").shape[0] == 2
    assert small.consts["b.levels"].shape == (2, 16, 3, 3)
    assert small.consts["fc.levels"].shape == (10, 2)
    plan = plan_of(graph, keep={"stem": (3, 5), "a": (0,)})
    assert_stages_agree(graph, plan, tensors_of(graph, plan), images(graph, 3))


def test_flatten_takes_all_pixels_of_a_channel():
    graph = flat()
    keep = {"a": (0, 2, 11), "hidden": (1, 23)}
    small = prune(derive(graph, keep=keep))
    assert small.consts["hidden.levels"].shape == (2, 3 * 5 * 4)
    plan = plan_of(graph, keep=keep)
    assert_stages_agree(graph, plan, tensors_of(graph, plan), images(graph, 3))
    graph = shared_flat()
    plan = plan_of(graph, keep={"a": (0, 2, 11)})
    assert_stages_agree(graph, plan, tensors_of(graph, plan), images(graph, 3))


def test_depthwise_loses_its_channels():
    graph = inverted()
    keep = {"a": (0, 1, 5, 23), "c": (7,)}
    small = prune(derive(graph, keep=keep))
    node = small.value("dw.acc")
    assert (node.attrs["groups"], small.consts["dw.levels"].shape) == (4, (4, 1, 3, 3))
    assert small.value("dw2.acc").attrs["groups"] == 1, "one channel is left"
    plan = plan_of(graph, keep=keep)
    assert_stages_agree(graph, plan, tensors_of(graph, plan), images(graph, 3))


def test_slice_and_pad_become_gathers():
    small = prune(derive(option_a()))
    cut, pad = small.value("short"), small.value("short.pad")
    assert (cut.op, cut.attrs["channels"], cut.attrs["stride"]) == ("gather", tuple(range(8)), (2, 2))
    assert (pad.op, pad.attrs["channels"]) == ("gather", (-1,) * 4 + tuple(range(8)) + (-1,) * 4)
    assert (cut.shape, pad.shape) == ((8, 5, 4), (16, 5, 4))


def test_a_gather_finds_zeros_where_channels_were_removed():
    graph = option_a()
    whole = derive(graph)
    gone = {n.name for n in whole.nodes if n.name in ("one.relu", "b.acc", "c.input")}
    nodes, consts = [], dict(whole.consts)
    for n in whole.nodes:  # as a plan that prunes the stream before the shortcut would have it
        if n.name in gone:
            n = replace(n, attrs={**n.attrs, "kept": (0, 1, 5)})
        if n.name == "one.relu":
            n = replace(n, inputs=n.inputs[:1], attrs={k: v for k, v in n.attrs.items() if k != "m_r"})
        nodes.append(n)
    for name in ("one.relu.m", "one.relu.b", "c.input.m"):
        consts[name] = consts[name] * np.isin(np.arange(8), (0, 1, 5))
    edited = Graph(whole.inputs, tuple(nodes), whole.outputs, consts)
    small, x = prune(edited), images(graph, 3)
    assert small.value("short").attrs["channels"] == (0, 1, -1, -1, -1, 2, -1, -1)
    assert_same(run(edited, {"image": x})["fc"], run(small, {"image": x})["fc"], "fc")


def test_codes_that_are_not_zero_cannot_be_removed():
    whole = derive(chain(), keep={"a": (1, 2, 7)})
    b = whole.consts["a.relu.b"].copy()
    b[3] = 4
    with pytest.raises(UnsupportedError, match=r"a\.relu: channel 0 is removed, but its code need not be 0"):
        prune(whole.with_nodes(whole.nodes, {**whole.consts, "a.relu.b": b}))
    nodes = tuple(replace(n, attrs={**n.attrs, "lo": 1}) if n.name == "a.relu" else n for n in whole.nodes)
    with pytest.raises(UnsupportedError, match="need not be 0"):
        prune(whole.with_nodes(nodes, whole.consts))


def test_a_clip_above_zero_cannot_be_pruned():
    m = Maker((3, 6, 6))
    x = m.add("clip", "act", m.conv("a", "image", 8), lo=0.5, hi=6.0)
    graph = m.graph(m.linear("fc", m.add("flatten", "flat", m.add("global_avg_pool", "pool", x)), 4))
    with pytest.raises(UnsupportedError, match="act: channel 0"):
        prune(derive(graph, keep={"a": (1, 2)}))


def test_mismatched_channels_are_refused():
    whole = derive(residual())
    nodes = tuple(
        replace(n, attrs={**n.attrs, "kept": (0, 1)}) if n.name in ("a.relu", "stem.relu") else n for n in whole.nodes
    )
    with pytest.raises(UnsupportedError, match=r"stem\.relu: keeps 2 channels, its input stem\.acc 16"):
        prune(whole.with_nodes(nodes, whole.consts))


def test_slices_that_start_inside_are_windows_with_a_single_one():
    graph = space_to_depth()
    whole = derive(graph)
    window = whole.consts["cut10.levels"]
    assert (window.shape, window.sum(), window[0, 0, 1, 0]) == ((6, 1, 2, 1), 6, 1)
    assert (whole.consts["cut10.m"] == 1).all()
    plan = plan_of(graph)
    assert_stages_agree(graph, plan, tensors_of(graph, plan), images(graph, 2))


@pytest.mark.parametrize("part", [(0, 5, 2), (2, 6, 1), (1, 7, 2)])
def test_slices_that_end_inside_are_refused(part):
    m = Maker((3, 8, 8))
    x = m.add("relu", "r", m.conv("a", "image", 8))
    x = m.add("slice", "cut", x, slices=((None, None, None), part, (None, None, 2)))
    graph = m.graph(m.conv("b", x, 4))
    with pytest.raises(UnsupportedError, match=r"cut: takes range\(\d, \d(, 2)?\) of 8 pixels"):
        prune(derive(graph))
