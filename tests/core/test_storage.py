"""Where chains begin and end, and how each value is stored."""

import pytest

from bitpress.core.encoding import twos, unsigned
from bitpress.core.errors import UnsupportedError
from bitpress.core.graph import Graph, Node
from bitpress.core.storage import Chain, Stored, act_encoding, analyse, non_negative
from tests.benchmarks.graphs import Maker, residual
from tests.compiler.nets import NETS, inverted, layers, option_a, preact

U8 = unsigned(8)


def of(graph, bits=4, kind="int8"):
    return analyse(graph, {name: act_encoding(graph, name, bits) for name in layers(graph)}, kind)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", ["int8", "float32"])
def test_every_node_is_in_one_chain_or_keeps_codes(net, kind):
    graph = NETS[net]()
    found = of(graph, kind=kind)
    inside = [name for c in found.chains for name in (c.start, *c.norms, c.add, *c.acts) if name]
    passed = [n.name for n in graph.nodes if n.op in ("max_pool2d", "flatten", "slice", "pad", "concat")]
    assert sorted(inside + passed) == sorted(n.name for n in graph.nodes)
    names = {p.clip for p in found.points}
    held = [s for s in (*found.stored.values(), *found.reads.values()) if s.encoding is not None]
    assert {s.clip for s in held} == names
    assert all((s.encoding is None) == (s.clip == "") for s in found.stored.values())
    assert found.stored[graph.outputs[0]] == Stored(None, "")


def test_residual_block():
    found = of(residual())
    assert found.chain_of("sum.relu") == Chain("b", "a.relu", ("b.bn",), "sum", "stem.relu", ("sum.relu",), "sum.relu")
    assert found.stored["stem.relu"] == Stored(U8, "stem.relu.clip")
    assert found.stored["a.relu"] == Stored(unsigned(4), "b.act_clip")
    assert found.reads["a"] == Stored(unsigned(4), "a.act_clip")
    assert found.reads["pool"] == found.stored["sum.relu"]
    assert found.stored["flat"] == found.stored["pool"] == Stored(unsigned(4), "fc.act_clip")


def test_float32_streams_are_floats_and_pools_requantise_them():
    found = of(residual(), kind="float32")
    assert found.stored["stem.relu"] == found.stored["sum.relu"] == Stored(None, "")
    assert found.reads["pool"] == Stored(U8, "pool.act_clip")
    assert found.stored["a.relu"].encoding == unsigned(4)


def test_shortcut_of_slices_and_pads_keeps_the_stream():
    found = of(option_a())
    assert found.stored["short.pad"] == found.stored["short"] == found.stored["one.relu"]
    assert found.chain_of("two.relu").residual == "short.pad"


def test_batch_norm_on_a_stream_is_a_chain_of_its_own():
    found = of(preact())
    assert found.chain_of("c.relu") == Chain("", "one", ("c.bn",), "", "", ("c.relu",), "c.relu")
    assert found.stored["one"] == Stored(twos(8), "one.clip")
    assert found.stored["c.relu"] == Stored(U8, "c.relu.clip"), "two layers read it"
    chain = found.chain_of("two")
    assert (chain.start, chain.residual) in (("d", "short"), ("short", "d"))
    assert found.stored[chain.residual].encoding == twos(8), "only one operand of a sum is never rounded"


def test_linear_bottleneck_is_signed():
    found = of(inverted())
    assert found.stored["stem.bn"].encoding == twos(8)
    assert found.stored["one"] == Stored(twos(4), "c.act_clip"), (
        "a sum that one layer reads is stored as that layer wants"
    )
    assert found.stored["a.act"] == Stored(unsigned(4), "dw.act_clip")


def test_signs_follow_from_structure():
    graph = inverted()
    positive = non_negative(graph)
    assert not positive["one"]
    assert positive["pool"] is False
    assert positive["a.act"]
    assert act_encoding(graph, "c", 4) == twos(4)
    assert act_encoding(graph, "b", 1) == unsigned(1)
    assert act_encoding(graph, "c", 1) == twos(2), "one bit cannot hold a sign"


def test_concatenated_output_is_held_in_floats():
    m = Maker()
    x = m.add("relu", "r", m.conv("a", "image", 4))
    graph = m.graph(m.add("concat", "join", m.conv("b", x, 2), m.conv("c", x, 3)))
    found = of(graph)
    assert found.stored["join"] == found.stored["b"] == found.stored["c"] == Stored(None, "")


def test_refusals_name_the_node():
    node = Node("unknown", "odd", ("image",), (3, 9, 7), attrs={"target": "aten.erf"})
    graph = Graph((Node("input", "image", (), (3, 9, 7)),), (node,), ("odd",))
    with pytest.raises(UnsupportedError, match=r"odd: op 'aten\.erf'"):
        analyse(graph, {}, "int8")
    with pytest.raises(UnsupportedError, match="stem: no bits"):
        analyse(residual(), {}, "int8")
    m = Maker()
    x = m.add("relu", "r", m.conv("a", "image", 4))
    y = m.add("concat", "one", x, m.conv("b", x, 2))
    y = m.add("concat", "two", y, x)
    with pytest.raises(UnsupportedError, match="r: feeds 2 concatenations"):
        of(m.graph(m.conv("c", y, 2)))
