"""Integer Graph -> smaller integer Graph: channels that a plan gave up are physically removed.

Removal is exact because their code is 0 everywhere; where that is not so, we refuse. slice and pad become `gather`,
which can also fetch a zero where a removed channel was. Knows no plan: `kept` stands in the nodes' attrs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.errors import UnsupportedError
from ..core.graph import Graph, Node
from ..core.ops import OPS

Attrs = dict[str, Any]
Consts = dict[str, np.ndarray]


def prune(graph: Graph) -> Graph:
    """Graph of stage "pruned"; every value holds the channels `kept_of` names, in order, with the same levels.

    `kept` stays in the attrs as a record of original channel numbers, `segments` keeps original filter numbers.
    UnsupportedError where a removed channel could be anything but 0, or a slice or pad cuts what a gather cannot.
    """
    values = {n.name: n for n in (*graph.inputs, *graph.nodes)}
    nodes: list[Node] = []
    consts: dict[str, np.ndarray] = {}
    shapes = {n.name: n.shape for n in graph.inputs}
    for node in graph.nodes:
        job = _Job(node, tuple(values[i] for i in node.inputs), graph.consts)
        op, attrs, mine = _RULES[node.op](job)
        shape = OPS[op].shape(attrs, mine, [shapes[i] for i in node.inputs])
        shapes[node.name] = shape
        consts |= {node.consts[role]: array for role, array in mine.items()}
        nodes.append(replace(node, op=op, attrs=attrs, shape=shape))
    return Graph(graph.inputs, tuple(nodes), graph.outputs, consts)


def kept_of(node: Node) -> tuple[int, ...]:
    """Original numbers of the channels (features) of an integer-stage value that survive."""
    kept: tuple[int, ...] = node.attrs.get("kept", tuple(range(node.shape[0])))
    return kept


@dataclass(frozen=True, slots=True)
class _Job:
    node: Node
    sources: tuple[Node, ...]
    all_consts: Mapping[str, np.ndarray]

    @property
    def rows(self) -> list[int]:
        return list(kept_of(self.node))

    @property
    def columns(self) -> list[int]:
        return list(kept_of(self.sources[0]))

    def const(self, role: str) -> np.ndarray:
        return self.all_consts[self.node.consts[role]]

    def same_channels(self) -> None:
        """UnsupportedError unless every input lost the channels that the output lost."""
        for source in self.sources:
            if kept_of(source) != kept_of(self.node):
                raise UnsupportedError(
                    f"{self.node.name}: keeps {len(self.rows)} channels, its input {source.name} "
                    f"{len(kept_of(source))}; they must be the same"
                )


Result = tuple[str, Attrs, Consts]


def _mixed(job: _Job) -> Result:
    weight, attrs = job.const("weight"), dict(job.node.attrs)
    weight = weight[job.rows]
    groups = attrs.get("groups", 1)
    if groups == 1:
        weight = weight[:, job.columns]
    elif groups == job.sources[0].shape[0] == job.node.shape[0]:
        job.same_channels()
        attrs["groups"] = len(job.rows)
    elif len(job.rows) != job.node.shape[0] or len(job.columns) != job.sources[0].shape[0]:
        raise UnsupportedError(f"{job.node.name}: a convolution in {groups} groups cannot lose channels")
    return job.node.op, attrs, {"weight": weight}


def _epilogue(job: _Job) -> Result:
    job.same_channels()
    gone = np.setdiff1d(np.arange(job.node.shape[0]), job.rows)
    m, b = job.const("m"), job.const("b")
    lo, hi = job.node.attrs.get("lo", 0), job.node.attrs.get("hi", 0)
    if gone.size and (m[gone].any() or b[gone].any() or lo > 0 or hi < 0):
        raise UnsupportedError(f"{job.node.name}: channel {int(gone[0])} is removed, but its code need not be 0")
    return job.node.op, dict(job.node.attrs), {"m": m[job.rows], "b": b[job.rows]}


def _same(job: _Job) -> Result:
    job.same_channels()
    return job.node.op, dict(job.node.attrs), {}


def _lookup(job: _Job) -> Result:
    """What a table makes of 0 need not be 0, but removed channels are (`core.ops.removed`)."""
    job.same_channels()
    return job.node.op, dict(job.node.attrs), {"table": job.const("table")}


def _flatten(job: _Job) -> Result:
    (source,) = job.sources
    size = int(np.prod(source.shape[1:]))
    spread = tuple(c * size + i for c in kept_of(source) for i in range(size))
    if spread != kept_of(job.node):
        raise UnsupportedError(f"{job.node.name}: keeps other channels than {source.name}, which it flattens")
    return job.node.op, dict(job.node.attrs), {}


def _concat(job: _Job) -> Result:
    if any("kept" in n.attrs for n in (job.node, *job.sources)):
        raise UnsupportedError(f"{job.node.name}: channels behind a concatenation cannot be removed")
    return job.node.op, dict(job.node.attrs), {}


def _gather(job: _Job, numbers: Sequence[int], stride: tuple[int, ...], padding: tuple[int, ...]) -> Result:
    """Gather of original input channels `numbers` (per original output channel); removed ones are zeros."""
    place = {c: i for i, c in enumerate(job.columns)}
    channels = tuple(place.get(numbers[row], -1) for row in job.rows)
    attrs: Attrs = {"channels": channels, "stride": stride, "padding": padding}
    if "kept" in job.node.attrs:
        attrs["kept"] = job.node.attrs["kept"]
    return "gather", attrs, {}


def _slice(job: _Job) -> Result:
    channel, *sides = (
        range(*slice(*row).indices(d)) for row, d in zip(job.node.attrs["slices"], job.sources[0].shape, strict=True)
    )
    strides = []
    for side, size in zip(sides, job.sources[0].shape[1:], strict=True):
        step = side.step if len(side) > 1 else max(1, size)
        if side.start != 0 or step < 1 or len(side) != len(range(0, size, step)):
            raise UnsupportedError(f"{job.node.name}: takes {side} of {size} pixels; only every n-th of all works here")
        strides.append(step)
    return _gather(job, channel, tuple(strides) or (1, 1), (0, 0, 0, 0))


def _pad(job: _Job) -> Result:
    (before, after), *sides = job.node.attrs["pads"]
    if min(before, after, *(n for side in sides for n in side)) < 0:
        raise UnsupportedError(f"{job.node.name}: pads {job.node.attrs['pads']}, negative ones are not supported")
    (top, bottom), (left, right) = sides or ((0, 0), (0, 0))
    numbers = [-1] * before + list(range(job.sources[0].shape[0])) + [-1] * after
    return _gather(job, numbers, (1, 1), (top, left, bottom, right))


_RULES: Mapping[str, Callable[[_Job], Result]] = {
    "quantize": _same,
    "conv2d_int": _mixed,
    "linear_int": _mixed,
    "sum_pool2d": _same,
    "product": _same,
    "lookup": _lookup,
    "requantize": _epilogue,
    "affine": _epilogue,
    "max_pool2d": _same,
    "flatten": _flatten,
    "slice": _slice,
    "pad": _pad,
    "concat": _concat,
}
