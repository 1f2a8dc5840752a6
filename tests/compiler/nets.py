"""Float graphs by kind of difficulty, random plans and ranges for them, and the one comparison of all stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bitpress.compiler.execute import values
from bitpress.compiler.fuse import fuse
from bitpress.compiler.lower import lower
from bitpress.compiler.pack import pack
from bitpress.compiler.program import Program
from bitpress.compiler.prune import kept_of, prune
from bitpress.core.encoding import parse
from bitpress.core.graph import Graph, run, verify
from bitpress.core.groups import channel_group, groups
from bitpress.core.integer import integer
from bitpress.core.plan import BitConfig, CompressionPlan, GroupId, LayerId, Segment
from bitpress.core.storage import LAYERS, act_encoding, analyse
from tests.benchmarks.graphs import Maker, everything, residual

WIDTHS = (2, 4, 8)
Keep = Mapping[str, Sequence[int]]


def chain(seed: int = 0) -> Graph:
    """conv, conv, pool, linear."""
    m = Maker((3, 8, 8), seed)
    x = m.add("relu", "a.relu", m.norm("a.bn", m.conv("a", "image", 12)))
    x = m.add("relu", "b.relu", m.norm("b.bn", m.conv("b", x, 20, stride=2)))
    x = m.add("flatten", "flat", m.add("global_avg_pool", "pool", x))
    return m.graph(m.linear("fc", x, 10))


def option_a(seed: int = 0) -> Graph:
    """Residual blocks, the second with a shortcut that takes every other pixel and pads channels with zeros."""
    m = Maker((3, 9, 8), seed)
    x = m.add("relu", "stem.relu", m.norm("stem.bn", m.conv("stem", "image", 8)))
    y = m.add("relu", "a.relu", m.norm("a.bn", m.conv("a", x, 8)))
    x = m.add("relu", "one.relu", m.add("add", "one", m.norm("b.bn", m.conv("b", y, 8)), x))
    y = m.add("relu", "c.relu", m.norm("c.bn", m.conv("c", x, 16, stride=2)))
    short = m.add("slice", "short", x, slices=((None, None, None), (None, None, 2), (None, None, 2)))
    short = m.add("pad", "short.pad", short, pads=((4, 4), (0, 0), (0, 0)))
    x = m.add("relu", "two.relu", m.add("add", "two", m.norm("d.bn", m.conv("d", y, 16)), short))
    x = m.add("flatten", "flat", m.add("global_avg_pool", "pool", x))
    return m.graph(m.linear("fc", x, 10))


def preact(seed: int = 0) -> Graph:
    """Batch norms on a stream, which cannot fold; a projection reads the activated value."""
    m = Maker((3, 8, 8), seed)
    x = m.conv("stem", "image", 8)
    y = m.add("relu", "a.relu", m.norm("a.bn", x))
    y = m.add("relu", "b.relu", m.norm("b.bn", m.conv("a", y, 12)))
    x = m.add("add", "one", m.conv("b", y, 8), x)
    act = m.add("relu", "c.relu", m.norm("c.bn", x))
    y = m.add("relu", "d.relu", m.norm("d.bn", m.conv("c", act, 16, stride=2)))
    x = m.add("add", "two", m.conv("d", y, 16), m.conv("short", act, 16, 1, stride=2))
    x = m.add("relu", "last.relu", m.norm("last.bn", x))
    x = m.add("flatten", "flat", m.add("global_avg_pool", "pool", x))
    return m.graph(m.linear("fc", x, 10))


def flat(seed: int = 0) -> Graph:
    """Flatten of more than one pixel into a linear layer; another linear layer behind it."""
    m = Maker((2, 9, 7), seed)
    x = m.add("relu", "a.relu", m.conv("a", "image", 12, bias=True))
    x = m.add("max_pool2d", "max", x, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    x = m.add("relu", "hidden.relu", m.norm("hidden.bn", m.linear("hidden", m.add("flatten", "flat", x), 24)))
    return m.graph(m.linear("fc", x, 7))


def shared_flat(seed: int = 0) -> Graph:
    """A flattened value of more than one pixel that two layers read, so that it is requantised behind the flatten."""
    m = Maker((2, 6, 5), seed)
    x = m.add("flatten", "flat", m.add("relu", "a.relu", m.conv("a", "image", 12)))
    x = m.add("add", "sum", m.linear("one", x, 8), m.linear("two", x, 8))
    return m.graph(m.linear("fc", x, 7))


def inverted(seed: int = 0) -> Graph:
    """Inverted residual: expansion, depthwise, linear bottleneck whose sum is signed."""
    m = Maker((3, 8, 8), seed)
    x = m.norm("stem.bn", m.conv("stem", "image", 8))
    y = m.add("clip", "a.act", m.norm("a.bn", m.conv("a", x, 24, 1)), lo=0.0, hi=6.0)
    y = m.add("clip", "dw.act", m.norm("dw.bn", m.conv("dw", y, 24, groups=24)), lo=0.0, hi=6.0)
    x = m.add("add", "one", m.norm("b.bn", m.conv("b", y, 8, 1)), x)
    y = m.add("clip", "c.act", m.norm("c.bn", m.conv("c", x, 24, 1)), lo=0.0, hi=1.0)
    y = m.add("clip", "dw2.act", m.norm("dw2.bn", m.conv("dw2", y, 24, 5, groups=24, stride=2)), lo=0.0, hi=6.0)
    x = m.norm("d.bn", m.conv("d", y, 12, 1))
    x = m.add("flatten", "flat", m.add("global_avg_pool", "pool", x))
    return m.graph(m.linear("fc", x, 10))


def space_to_depth(seed: int = 0) -> Graph:
    """A bypass whose even and odd rows and columns become channels of their own, and one concatenation."""
    m = Maker((3, 8, 7), seed)
    x = m.add("clip", "a.act", m.norm("a.bn", m.conv("a", "image", 6)), lo=0.0, hi=6.0)
    x = m.add("slice", "even", x, slices=((None, None, None), (None, None, None), (1, None, 1)))
    whole = (None, None, None)
    cuts = [
        m.add("slice", f"cut{row}{column}", x, slices=(whole, (row, None, 2), (column, None, 2)))
        for row in (0, 1)
        for column in (0, 1)
    ]
    y = m.add("max_pool2d", "max", x, kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0))
    y = m.add("relu", "b.act", m.norm("b.bn", m.conv("b", y, 10)))
    y = m.add("concat", "join", *cuts, y)
    y = m.add("relu", "c.act", m.norm("c.bn", m.conv("c", y, 34, groups=34)))
    return m.graph(m.conv("d", y, 5, 1))


def gated(seed: int = 0) -> Graph:
    """Activations that are tables, behind layers, sums, flattens and at the end; products with gates and values."""
    m = Maker((3, 8, 7), seed)
    x = m.add("hard_swish", "stem.act", m.norm("stem.bn", m.conv("stem", "image", 8)))
    y = m.add("silu", "a.act", m.norm("a.bn", m.conv("a", x, 16, 1)))
    y = m.add("relu", "dw.act", m.norm("dw.bn", m.conv("dw", y, 16, 5, groups=16)))
    z = m.add("relu", "squeeze.act", m.conv("squeeze", m.add("global_avg_pool", "squeeze.mean", y), 6, 1, bias=True))
    z = m.add("hard_sigmoid", "excite.act", m.conv("excite", z, 16, 1, bias=True))
    y = m.norm("b.bn", m.conv("b", m.add("mul", "gate", y, z), 8, 1))
    x = m.add("hard_swish", "sum.act", m.add("add", "sum", y, x))
    gate = m.add("sigmoid", "whole.act", m.norm("whole.bn", m.conv("whole", x, 8, stride=1)))
    x = m.add("relu", "product.act", m.norm("product.bn", m.add("mul", "product", x, gate)))
    x = m.add("add", "late", m.add("mul", "square", x, x), m.conv("c", x, 8, 1))
    x = m.add("flatten", "flat", m.add("global_avg_pool", "pool", x))
    x = m.add("silu", "hidden.act", m.linear("hidden", x, 12))
    return m.graph(m.add("sigmoid", "last", m.linear("fc", x, 7)))


def odd_sum(seed: int = 0) -> Graph:
    """The image itself is a stream; behind it a value is added to itself."""
    m = Maker((4, 6, 6), seed)
    x = m.add("relu", "one.relu", m.add("add", "one", m.conv("a", "image", 4), "image"))
    x = m.add("add", "two", x, x)
    return m.graph(m.linear("fc", m.add("flatten", "flat", x), 3))


def bare_output(seed: int = 0) -> Graph:
    """Two accumulators are added, and the output is a flattened activation."""
    m = Maker((4, 6, 6), seed)
    x = m.add("add", "sum", m.conv("a", "image", 4), m.conv("b", "image", 4))
    return m.graph(m.add("flatten", "flat", m.add("relu", "relu", x)))


def joined_output(seed: int = 0) -> Graph:
    """The output is a concatenation; a pool and a batch norm come before any layer."""
    m = Maker((4, 6, 6), seed)
    x = m.add("avg_pool2d", "mean", "image", kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0))
    x = m.add("relu", "relu", m.norm("bn", x))
    return m.graph(m.add("concat", "join", m.conv("a", x, 3, 1), m.conv("b", x, 2, 1)))


def signed_clip(seed: int = 0) -> Graph:
    """A clip that is not at zero, a max pool with a border on a stream, an output that is a pool."""
    m = Maker((4, 7, 6), seed)
    x = m.add("clip", "clip", m.conv("a", "image", 4), lo=-0.3, hi=0.2)
    x = m.add("max_pool2d", "max", x, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    x = m.conv("c", m.add("add", "sum", x, m.conv("b", x, 4)), 3, 1)
    return m.graph(m.add("max_pool2d", "last", x, kernel=(2, 2), stride=(1, 1), padding=(0, 0, 0, 0)))


NETS = {
    "chain": chain,
    "residual": residual,
    "option_a": option_a,
    "preact": preact,
    "flat": flat,
    "shared_flat": shared_flat,
    "inverted": inverted,
    "space_to_depth": space_to_depth,
    "gated": gated,
    "odd_sum": odd_sum,
    "bare_output": bare_output,
    "joined_output": joined_output,
    "signed_clip": signed_clip,
    "everything": everything,
}


def layers(graph: Graph) -> list[str]:
    """Names of conv and linear layers, in order."""
    return [n.name for n in graph.nodes if n.op in LAYERS]


def plan_of(
    graph: Graph,
    *,
    weight: str = "o4",
    act: int = 4,
    keep: Keep | None = None,
    residual: str = "int8",
    segments: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
) -> CompressionPlan:
    """The same widths everywhere, but for layers in `segments`: layer -> {encoding: filters}. `keep`: by group."""
    keep, segments = keep or {}, segments or {}
    group = channel_group(graph)
    bits = {}
    for name in layers(graph):
        rows = tuple(sorted(keep.get(group[name], range(graph.value(name).shape[0]))))
        chosen = segments.get(name, {weight: rows})
        bits[LayerId(name)] = BitConfig(
            tuple(Segment(parse(e), tuple(f)) for e, f in chosen.items()), act_encoding(graph, name, act)
        )
    kept = {GroupId(g): tuple(sorted(k)) for g, k in keep.items()}
    return CompressionPlan(graph.fingerprint(), bits, kept, residual)


def tensors_of(graph: Graph, plan: CompressionPlan, seed: int = 0) -> dict[str, np.ndarray]:
    """Ranges that fill the levels: magnitudes of the float values, with some overflow."""
    rng = np.random.default_rng(seed)
    x = images(graph, 8, seed)
    floats = run(graph, {graph.inputs[0].name: x}, keep=True)
    points = analyse(graph, {name: b.act for name, b in plan.bits.items()}, plan.residual).points
    out: dict[str, np.ndarray] = {}
    for point in points:
        top = float(np.abs(floats[point.value]).max()) * rng.uniform(0.5, 1.0)
        out[point.clip] = np.float32(max(top, float(out.get(point.clip, 0)), 1e-3)).reshape(())
    for name in layers(graph):
        weight = graph.consts[graph.value(name).consts["weight"]]
        odd = any(s.encoding.name[0] == "o" for s in plan.bits[LayerId(name)].weight)
        rows = np.abs(weight.reshape(len(weight), -1)).max(axis=1) * rng.uniform(0.6, 1.0)
        if odd and graph.value(name).op == "conv2d":
            rows = np.full(len(weight), rng.uniform(1.5, 2.5))
        out[f"{name}.weight_clip"] = rows.astype(np.float32)
    return out


def images(graph: Graph, count: int, seed: int = 0) -> np.ndarray:
    """Normal noise."""
    return np.random.default_rng(seed + 1).normal(size=(count, *graph.inputs[0].shape)).astype(np.float32)


def random_plan(graph: Graph, rng: np.random.Generator, residual: str = "int8") -> CompressionPlan:
    """0, 2, 4 and 8 bits mixed within layers; some groups pruned; activations of 1 to 8 bits."""
    keep = {}
    for g in groups(graph):
        if g.prunable and rng.random() < 0.7:
            size = int(rng.integers(1, g.channels + 1))
            keep[g.id] = tuple(sorted(rng.choice(g.channels, size, replace=False).tolist()))
    of, bits = channel_group(graph), {}
    for name in layers(graph):
        node = graph.value(name)
        rows = keep.get(of[name], tuple(range(node.shape[0])))
        family = str(rng.choice(["o", "i"]))
        grouped = node.attrs.get("groups", 1) not in (1, node.shape[0])
        width = rng.choice(WIDTHS, 1 if grouped else len(rows)).repeat(len(rows) if grouped else 1)
        chosen = tuple(
            Segment(parse(f"{family}{w}"), tuple(r for r, own in zip(rows, width, strict=True) if own == w))
            for w in rng.permutation(WIDTHS).tolist()
            if (width == w).any()
        )
        bits[LayerId(name)] = BitConfig(chosen, act_encoding(graph, name, int(rng.integers(1, 9))))
    return CompressionPlan(graph.fingerprint(), bits, keep, residual)


def assert_same(expected: np.ndarray, actual: np.ndarray, name: str) -> None:
    """First differing index and both values."""
    assert expected.shape == actual.shape, f"{name}: shapes {expected.shape} and {actual.shape}"
    wrong = expected != actual
    if wrong.any():
        at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        raise AssertionError(f"{name}: {int(wrong.sum())} differ, first at {at}: {expected[at]} and {actual[at]}")


def assert_stages_agree(
    graph: Graph, plan: CompressionPlan, tensors: Mapping[str, np.ndarray], x: np.ndarray
) -> Program:
    """integer = torch semantics = the kept part of pruned = fused = program, every value, bit by bit."""
    from bitpress.core.semantics import Semantics

    source = graph.inputs[0].name
    whole = integer(graph, plan, tensors)
    verify(whole, "integer")
    want = run(whole, {source: x}, keep=True)
    torch_values = Semantics(whole).values(x)
    assert list(torch_values) == list(want)
    for name, value in want.items():
        assert_same(value, torch_values[name], f"torch {name}")
    small = prune(whole)
    verify(small, "pruned")
    kept = {n.name: list(kept_of(n)) for n in (*whole.inputs, *whole.nodes)}
    for name, value in run(small, {source: x}, keep=True).items():
        assert_same(want[name][:, kept[name]], value, f"pruned {name}")
        assert not np.delete(want[name], kept[name], axis=1).any() or name.endswith(".acc"), f"{name}: a code is not 0"
    fused = fuse(small)
    verify(fused, "fused")
    for name, value in run(fused, {source: x}, keep=True).items():
        assert_same(want[name][:, kept[name]], value, f"fused {name}")
    c = graph.inputs[0].shape[0]
    program = lower(fused, pack(fused), mean=np.zeros(c, np.float32), std=np.ones(c, np.float32))
    for name, value in values(program, x).items():
        assert_same(want[name][:, kept[name]].reshape(value.shape), value, f"program {name}")
    return program
