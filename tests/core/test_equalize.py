"""Equalisation: not a bit of the float network changes, quiet channels are heard, clips are respected."""

import numpy as np
import pytest

from bitpress.core.calibrate import calibrate
from bitpress.core.equalize import equalize
from bitpress.core.graph import Graph, run
from bitpress.core.integer import integer
from tests.benchmarks.graphs import Maker
from tests.compiler.nets import NETS, assert_stages_agree, images, inverted


def outputs(graph: Graph, x: np.ndarray) -> np.ndarray:
    return run(graph, {graph.inputs[0].name: x})[graph.outputs[0]]


def uneven(act: str = "relu", *, most: float = 1.0, **attrs: float) -> Graph:
    """A depthwise net whose even channels are 100 times quieter than its odd ones, and count as much."""
    m = Maker((3, 8, 8), 1)
    x = m.add(act, "a.act", m.norm("a.bn", m.conv("a", "image", 16, 1)), **attrs)
    x = m.add(act, "dw.act", m.norm("dw.bn", m.conv("dw", x, 16, groups=16)), **attrs)
    x = m.conv("b", x, 12, 1)
    x = m.add("flatten", "flat", m.add("global_avg_pool", "pool", m.add("relu", "b.act", m.norm("b.bn", x))))
    graph = m.graph(m.linear("fc", x, 10))
    factor = np.where(np.arange(16) % 2, most, most / 100).astype(np.float32)
    consts = dict(graph.consts)
    for name in ("a.bn.weight", "a.bn.bias", "dw.bn.weight", "dw.bn.bias"):
        consts[name] = consts[name] * factor
    consts["dw.weight"] = consts["dw.weight"] / factor[:, None, None, None]
    consts["b.weight"] = consts["b.weight"] / factor[None, :, None, None]
    return graph.with_nodes(graph.nodes, consts)


def noise(graph: Graph, x: np.ndarray, w: int, a: int) -> float:
    """Squared error of the rounded network's outputs, as a share of their variance."""
    want = outputs(graph, x)
    plan, tensors = calibrate(graph, x, weight_bits=w, act_bits=a)
    assert_stages_agree(graph, plan, tensors, x[:2])
    got = run(integer(graph, plan, tensors), {"image": x})["fc"]
    return float(np.square(got - want).mean() / np.square(want - want.mean(axis=0)).mean())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("seen", [False, True])
def test_no_bit_of_a_float_changes(net, seen):
    graph = NETS[net]()
    x = images(graph, 8)
    equal, done = equalize(graph, x, seen=seen)
    assert np.array_equal(outputs(equal, x), outputs(graph, x))
    assert equal.fingerprint() == graph.fingerprint()
    assert bool(done.channels) == any((equal.consts[name] != graph.consts[name]).any() for name in graph.consts)


@pytest.mark.parametrize("net", ["chain", "residual", "preact", "flat", "inverted"])
def test_exact_holds_for_images_that_were_not_seen(net):
    graph = NETS[net]()
    equal, done = equalize(graph, images(graph, 4))
    other = 50 * images(graph, 8)[4:]
    assert done.channels and np.array_equal(outputs(equal, other), outputs(graph, other))


@pytest.mark.parametrize(("w", "a"), [(8, 4), (8, 8), (4, 8)])
def test_quiet_channels_of_a_depthwise_net_are_heard(w, a):
    graph = uneven()
    x = images(graph, 32)
    equal, done = equalize(graph, x)
    assert done.values >= 2 and done.held == 0 and done.largest >= 32
    assert noise(equal, x, w, a) < noise(graph, x, w, a) / 4


def test_progress_is_told():
    graph, told = uneven(), []
    equalize(graph, images(graph, 4), progress=told.append)
    assert told[-1] == 1.0


def test_a_clip_that_acts_on_a_channel_stays_where_it_is():
    """Loud channels reach 6 and keep their factor; quiet ones may grow up to 6, where they are seen to stay below."""
    graph = uneven("clip", most=12.0, lo=0.0, hi=6.0)
    x = images(graph, 32)
    before = run(graph, {"image": x}, keep=True)["a.act"].max(axis=(0, 2, 3))
    equal, _ = equalize(graph, x, seen=True)
    factors = equal.consts["a.bn.weight"] / graph.consts["a.bn.weight"]
    assert (before == 6).any() and (factors[before == 6] == 1).all()
    assert (before * factors <= 6).all() and (factors[before < 1] >= 4).all()
    assert np.array_equal(outputs(equal, x), outputs(graph, x))
    assert noise(equal, x, 8, 8) < noise(graph, x, 8, 8) / 2


def test_intervals_prove_that_a_clip_never_acts():
    """Behind a clip a depthwise layer's inputs are within 0 and 6: its own bound follows, whatever the image."""
    graph = uneven("clip", most=0.05, lo=0.0, hi=6.0)
    x = images(graph, 16)
    equal, _ = equalize(graph, x)
    assert np.array_equal(equal.consts["a.bn.weight"], graph.consts["a.bn.weight"])  # an image may be anything
    loud = 1000 * x
    assert np.array_equal(outputs(equal, loud), outputs(graph, loud))
    moved, held = (
        equalize(inverted(), images(inverted(), 8), seen=True)[1],
        equalize(inverted(), images(inverted(), 8))[1],
    )
    assert moved.channels > held.channels > 0 and held.held > moved.held


def test_shared_constants_and_streams_stay():
    m = Maker((4, 6, 6), 0)
    x = m.add("relu", "a.relu", m.conv("a", "image", 8))
    x = m.add("add", "sum", m.conv("b", x, 8), x)
    graph = m.graph(m.conv("c", x, 3, 1))
    equal, done = equalize(graph, images(graph, 4))
    assert done.channels == 0 and all(np.array_equal(equal.consts[k], graph.consts[k]) for k in graph.consts)
