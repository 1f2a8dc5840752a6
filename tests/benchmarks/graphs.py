"""Small hand-made float graphs that touch every op of the float stage, and the tolerance of comparing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitpress.core.graph import Graph, Node, run
from bitpress.core.ops import OPS


@dataclass
class Maker:
    """Builds a float graph node by node with random constants."""

    shape: tuple[int, int, int] = (3, 9, 7)
    seed: int = 0
    nodes: list[Node] = field(default_factory=list)
    consts: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.input = Node("input", "image", (), self.shape)

    def add(self, op: str, name: str, *inputs: str, consts: Mapping[str, np.ndarray] = {}, **attrs: Any) -> str:
        """Appends a node; its name."""
        shapes = {n.name: n.shape for n in (self.input, *self.nodes)}
        shape = OPS[op].shape(attrs, consts, [shapes[i] for i in inputs])
        self.consts |= {f"{name}.{role}": array.astype(np.float32) for role, array in consts.items()}
        roles = {role: f"{name}.{role}" for role in consts}
        self.nodes.append(Node(op, name, inputs, shape, attrs=attrs, consts=roles))
        return name

    def conv(
        self, name: str, source: str, rows: int, kernel: int = 3, *, stride: int = 1, groups: int = 1,
        bias: bool = False, dilation: int = 1,
    ) -> str:  # fmt: skip
        """Convolution that keeps the size (before its stride)."""
        depth = next(n.shape[0] for n in (self.input, *self.nodes) if n.name == source) // groups
        consts = {"weight": self.rng.normal(0, (depth * kernel**2) ** -0.5, (rows, depth, kernel, kernel))}
        if bias:
            consts["bias"] = self.rng.normal(0, 0.3, rows)
        pad = dilation * (kernel - 1) // 2
        return self.add(
            "conv2d", name, source, consts=consts, stride=(stride, stride), padding=(pad,) * 4,
            dilation=(dilation, dilation), groups=groups,
        )  # fmt: skip

    def norm(self, name: str, source: str) -> str:
        """Batch norm with statistics as a trained one has."""
        c = next(n.shape[0] for n in (self.input, *self.nodes) if n.name == source)
        consts = {
            "weight": self.rng.uniform(0.5, 1.5, c), "bias": self.rng.normal(0, 0.3, c),
            "mean": self.rng.normal(0, 0.3, c), "var": self.rng.uniform(0.5, 1.5, c),
        }  # fmt: skip
        return self.add("batch_norm", name, source, consts=consts, eps=1e-5)

    def linear(self, name: str, source: str, rows: int) -> str:
        """Linear layer with bias."""
        depth = next(n.shape[0] for n in self.nodes if n.name == source)
        weight, bias = self.rng.normal(0, depth**-0.5, (rows, depth)), self.rng.normal(0, 0.3, rows)
        return self.add("linear", name, source, consts={"weight": weight, "bias": bias})

    def graph(self, output: str) -> Graph:
        """The finished graph."""
        return Graph((self.input,), tuple(self.nodes), (output,), self.consts)


def everything(seed: int = 0) -> Graph:
    """Every float op; batch norms that fold and one that does not (it starts from a sum)."""
    m = Maker(seed=seed)
    x = m.add("relu", "stem.relu", m.norm("stem.bn", m.conv("stem", "image", 8)))
    y = m.add("clip", "a.act", m.norm("a.bn", m.conv("a", x, 16, 1)), lo=0.0, hi=6.0)
    y = m.norm("b.bn", m.conv("b", y, 16, groups=16, stride=2))
    short = m.add("slice", "short.cut", x, slices=((None, None, None), (None, None, 2), (0, 7, 2)))
    short = m.add("pad", "short.pad", short, pads=((4, 4), (0, 0), (0, 0)))
    y = m.add("relu", "sum.relu", m.norm("sum.bn", m.add("add", "sum", y, short)))
    y = m.conv("c", y, 12, groups=2, bias=True, dilation=2)
    y = m.add("concat", "join", y, m.conv("d", "sum.relu", 4, 1))
    y = m.add("max_pool2d", "max", y, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    y = m.add("avg_pool2d", "mean", y, kernel=(2, 2), stride=(1, 1), padding=(1, 0, 0, 1))
    y = m.linear("hidden", m.add("flatten", "flat", y), 20)
    y = m.linear("fc", m.norm("hidden.bn", y), 10)
    return m.graph(y)


def residual(seed: int = 0, *, classes: int = 10, shape: tuple[int, int, int] = (3, 8, 8)) -> Graph:
    """A small residual classifier, as peers meet them."""
    m = Maker(shape, seed)
    x = m.add("relu", "stem.relu", m.norm("stem.bn", m.conv("stem", "image", 16)))
    y = m.add("relu", "a.relu", m.norm("a.bn", m.conv("a", x, 16)))
    y = m.add("relu", "sum.relu", m.add("add", "sum", m.norm("b.bn", m.conv("b", y, 16)), x))
    y = m.add("flatten", "flat", m.add("global_avg_pool", "pool", y))
    return m.graph(m.linear("fc", y, classes))


def tolerance(graph: Graph, x: np.ndarray) -> float:
    """Largest difference that float32 arithmetic in another order explains.

    A float32 dot product of depth K, summed in any order, is the exact one of weights changed by at most K epsilons
    each; so the outputs are compared with those of weights changed by random amounts up to that, three times.
    """
    rng = np.random.default_rng(0)
    name = graph.outputs[0]
    want = run(graph, {graph.inputs[0].name: x})[name]
    worst = float(np.abs(want).max() * np.finfo(np.float32).eps)
    for _ in range(3):
        consts = {
            k: (a * (1 + rng.uniform(-1, 1, a.shape) * a[0].size * np.finfo(np.float32).eps)).astype(np.float32)
            for k, a in graph.consts.items()
        }
        other = run(graph.with_nodes(graph.nodes, consts), {graph.inputs[0].name: x})[name]
        worst = max(worst, float(np.abs(other - want).max()))
    return 4 * worst
