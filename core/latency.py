"""Latency tables: what `bitpress profile` measured on a machine, read from its file, interpolated between channels.

`LatencyTable` is the file, `Target` what it says of one graph. Knows no kernel, no clock and no search.
"""

from __future__ import annotations

import itertools
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .bops import END_BITS, count, layer_nodes
from .errors import CorruptError, UnsupportedError, UsageError
from .graph import Graph, Node
from .groups import groups
from .host import cpu_name
from .job import sha256
from .plan import CompressionPlan, LayerId

TABLE_SCHEMA = "bitpress.profile"
TABLE_VERSION = 1
LEAST_OF_ALONE = 0.5  # a layer in a network takes at least this share of what it takes alone, whatever `extra` says
AXES = ("input channels", "filters", "bits of weights", "bits of activations")
Point = tuple[float, float, float, float]  # input channels (a grouped convolution: 1), filters, w bits, a bits


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer's time depends on beside its bits; a linear layer is a 1x1 convolution of one pixel.

    `in_shape` [C, H, W]; `padding` top, left, bottom, right.
    """

    in_shape: tuple[int, int, int]
    rows: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        sides, window = ("x".join(map(str, part)) for part in (self.in_shape, self.kernel))
        return f"{sides} to {self.rows} filters of {window}"


def layer_shape(graph: Graph, node: Node) -> LayerShape:
    """Of a conv or linear node of a float graph."""
    weight = graph.consts[node.consts["weight"]].shape
    if node.op == "linear":
        return LayerShape((weight[1], 1, 1), node.shape[0])
    c, h, w = graph.value(node.inputs[0]).shape
    attrs = {name: tuple(node.attrs[name]) for name in ("stride", "padding", "dilation")}
    return LayerShape((c, h, w), node.shape[0], (weight[2], weight[3]), groups=node.attrs["groups"], **attrs)


@dataclass(frozen=True, slots=True)
class Grid:
    """Milliseconds float64 [in, out, w, a] over four ascending axes; linear in each between its points.

    `block`: filters that kernels compute at once, so that a count takes the time of the next multiple.

    >>> grid = Grid(((1.0,), (4.0, 8.0), (2.0, 8.0), (8.0,)), np.array([[[[1.0], [2.0]], [[2.0], [4.0]]]]))
    >>> grid.at((1, 6, 2, 8)), grid.at((1, 6, 5, 8))
    (1.5, 2.25)
    """

    axes: tuple[tuple[float, ...], ...]
    ms: np.ndarray
    block: int = 1

    def covers(self, point: Point) -> bool:
        """Whether `point`, its filters in whole blocks, lies within all axes."""
        inside = point[1] <= self.axes[1][-1]
        return inside and all(axis[0] <= x <= axis[-1] for axis, x in zip(self.axes, self._padded(point), strict=True))

    def _padded(self, point: Point) -> Point:
        return _set(point, 1, min(self.block * math.ceil(point[1] / self.block), self.axes[1][-1]))

    def at(self, point: Point) -> float:
        """Milliseconds at a point that the grid covers."""
        sides = [_between(axis, x) for axis, x in zip(self.axes, self._padded(point), strict=True)]
        total = 0.0
        for corner in itertools.product(*sides):
            share = 1.0
            for _, part in corner:
                share *= part
            total += share * float(self.ms[tuple(i for i, _ in corner)])
        return total

    def chords(self, point: Point) -> Point:
        """How much the time changes by one channel or bit: slopes from the least to the largest of each axis.

        Of the whole axis and not of the two points around: times have steps, and those of bits are felt only where both
        sides are narrow, so a side's slope is the mean over the widths of the other.
        """
        out = []
        for i, axis in enumerate(self.axes):
            if len(axis) == 1:
                out.append(0.0)
                continue
            other = 5 - i  # of the two sides of bits, 2 and 3
            around = [point]
            if i > 1:
                around = [_set(point, other, b) for b in self.axes[other]]
            ends = [self.at(_set(p, i, axis[-1])) - self.at(_set(p, i, axis[0])) for p in around]
            out.append(float(np.mean(ends)) / (axis[-1] - axis[0]))
        return out[0], out[1], out[2], out[3]


def _set(point: Point, i: int, value: float) -> Point:
    values = [*point]
    values[i] = value
    return values[0], values[1], values[2], values[3]


def _between(axis: Sequence[float], x: float) -> list[tuple[int, float]]:
    """Numbers of the two neighbours of `x` on an axis that covers it, and the share of each; one where it is a point.

    >>> _between((2, 4, 8), 5), _between((2, 4, 8), 8)
    ([(1, 0.75), (2, 0.25)], [(2, 1.0)])
    """
    at = bisect_right(axis, x) - 1
    if axis[at] == x:
        return [(at, 1.0)]
    share = (x - axis[at]) / (axis[at + 1] - axis[at])
    return [(at, 1 - share), (at + 1, share)]


@dataclass(frozen=True, slots=True)
class Rest:
    """A step beside conv and linear layers: milliseconds at some counts of its group's channels, "" for no group."""

    name: str
    group: str
    channels: tuple[float, ...]
    ms: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Milliseconds a channel, over all that was measured."""
        return 0.0 if len(self.ms) < 2 else (self.ms[-1] - self.ms[0]) / (self.channels[-1] - self.channels[0])

    def at(self, channels: float) -> float:
        """Milliseconds at so many channels; beyond the ends as at them."""
        return float(np.interp(channels, self.channels, self.ms))


@dataclass(frozen=True, slots=True)
class Network:
    """What a whole network takes beside its layers alone.

    `extra`: layer -> what it takes longer there than alone (residual sums, colder caches), which may be negative;
    `overhead`: between and around all steps.
    """

    model: str
    rest: tuple[Rest, ...]
    extra: Mapping[str, float]
    overhead: float


@dataclass(frozen=True)
class LatencyTable:
    """A file of `bitpress profile`. `networks`: by fingerprint of the graph and kind of residual stream."""

    path: str
    sha256: str
    cpu: str
    isa: str
    threads: int
    grids: Mapping[LayerShape, tuple[Grid, ...]]
    networks: Mapping[tuple[str, str], Network]

    @property
    def name(self) -> str:
        """What a plan says it was made for."""
        return f"{self.cpu}, {self.isa}, {self.threads} threads, table {self.sha256[:16]}"

    def warning(self) -> str:
        """The sentence about a table of another machine; "" for one of this CPU."""
        if self.cpu == cpu_name():
            return ""
        return (
            f"{self.path} was measured on {self.cpu}, this machine is {cpu_name()}: latencies are those of the former"
        )

    def document(self) -> dict[str, Any]:
        """How results name it."""
        return {"sha256": self.sha256, "cpu": self.cpu, "isa": self.isa, "threads": self.threads}


def load_table(path: str | Path) -> LatencyTable:
    """The table in a file. UsageError: no such file, or an unfinished one; CorruptError: damaged, or no table."""
    path = Path(path)
    document = read_document(path)
    if not document.get("complete"):
        raise UsageError(f"{path} is not finished; the `bitpress profile` command that began it goes on where it was")
    return table_of(document, path, sha256(path))


def table_of(document: Mapping[str, Any], path: Path, digest: str) -> LatencyTable:
    """The table that a document holds; CorruptError where it is damaged."""
    try:
        host = document["host"]
        networks = {(n["graph"], n["residual"]): _network(n) for n in document["networks"]}
        return LatencyTable(
            str(path), digest, host["cpu"], host["isa"], int(host["threads"]), _grids(document), networks
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptError(f"{path} is damaged: {type(error).__name__} {error}; measure it anew") from error


def read_document(path: Path) -> dict[str, Any]:
    """The JSON of a table, finished or not; errors as of `load_table`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; bitpress profile MODEL -o {path} measures one") from error
    except ValueError as error:
        raise CorruptError(f"{path} is no JSON: {error}") from error
    found = (document.get("schema"), document.get("schema_version")) if isinstance(document, dict) else (None, None)
    if found != (TABLE_SCHEMA, TABLE_VERSION):
        raise CorruptError(
            f"{path} is {found[0]} version {found[1]}, a latency table is {TABLE_SCHEMA} version {TABLE_VERSION}"
        )
    return dict(document)


def shape_of(row: Mapping[str, Any]) -> LayerShape:
    """The shape that an entry of a table's `shapes` describes."""
    c, h, w = row["in_shape"]
    top, left, bottom, right = row["padding"]
    (kh, kw), (sh, sw), (dh, dw) = row["kernel"], row["stride"], row["dilation"]
    return LayerShape(
        (c, h, w), int(row["rows"]), (kh, kw), (sh, sw), (top, left, bottom, right), (dh, dw), row["groups"]
    )


def _grids(document: Mapping[str, Any]) -> dict[LayerShape, tuple[Grid, ...]]:
    times: dict[tuple[float, ...], float] = {}
    for p in document["points"]:
        if not 0 <= p["ms"] < float("inf"):
            raise ValueError(f"a time of {p['ms']} ms")
        times[p["shape"], p["in"], p["out"], p["w"], p["a"]] = float(p["ms"])
    bits = tuple(map(float, document["w_bits"])), tuple(map(float, document["a_bits"]))
    out = {}
    for number, row in enumerate(document["shapes"]):
        made = []
        for inside, outside in row["grids"]:
            axes = (tuple(map(float, inside)), tuple(map(float, outside)), *bits)
            ms = [times[(number, *point)] for point in itertools.product(*axes)]
            made.append(Grid(axes, np.array(ms).reshape([len(axis) for axis in axes]), int(row["block"])))
        out[shape_of(row)] = tuple(made)
    return out


def _network(row: Mapping[str, Any]) -> Network:
    rest = tuple(
        Rest(step["name"], step["group"], tuple(map(float, step["channels"])), tuple(map(float, step["ms"])))
        for step in row["steps"]
    )
    return Network(str(row["model"]), rest, {k: float(v) for k, v in row["extra"].items()}, float(row["overhead"]))


@dataclass(frozen=True)
class Target:
    """Prices one graph by a table; made by `target`, which has checked that every layer is there."""

    table: LatencyTable
    network: Network
    shapes: Mapping[str, LayerShape]
    _known: dict[tuple[str, Point], float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Of the table."""
        return self.table.name

    def layer(self, layer: str, point: Point) -> float:
        """Milliseconds of a layer; UnsupportedError beyond what was measured."""
        key = (layer, point)
        if key not in self._known:
            alone = self._grid(layer, point).at(point)
            self._known[key] = max(alone + self.network.extra[layer], LEAST_OF_ALONE * alone)
        return self._known[key]

    def tangent(self, layer: str, point: Point) -> tuple[float, Point]:
        """Milliseconds of a layer, and the slopes that a gradient takes (`Grid.chords`)."""
        return self.layer(layer, point), self._grid(layer, point).chords(point)

    def beside(self, kept: Callable[[str], float]) -> float:
        """Milliseconds of all that is no layer; `kept`: channels of a group that stay."""
        return self.network.overhead + sum(step.at(kept(step.group)) for step in self.network.rest)

    def uniform(self, bits: int = END_BITS) -> float:
        """Milliseconds of the whole network, every layer at `bits`."""
        whole = [self.layer(layer, (*_whole(shape), bits, bits)) for layer, shape in self.shapes.items()]
        return sum(whole) + self.beside(lambda _group: float("inf"))

    def plan(self, graph: Graph, plan: CompressionPlan) -> float:
        """Milliseconds of a plan. A layer in segments is as many steps.

        A segment of fewer filters than were measured takes its share of the whole layer.
        """
        sizes = {str(g.id): len(plan.keep.get(g.id, range(g.channels))) for g in groups(graph)}
        total = self.beside(lambda group: sizes.get(group, 0))
        for row in count(graph, plan).layers:
            config = plan.bits[LayerId(row.name)]
            inside = 1 if self.shapes[row.name].groups > 1 else row.in_shape[0]
            for segment in config.weight:
                point = (inside, len(segment.filters), segment.encoding.bits, config.act.bits)
                total += self.segment(row.name, point, row.channels_kept)
        return total

    def segment(self, layer: str, point: Point, filters: int) -> float:
        """Milliseconds of the filters of one width, where `filters` of the layer stay."""
        if filters == point[1] or any(grid.covers(point) for grid in self.table.grids[self.shapes[layer]]):
            return self.layer(layer, point)
        return self.layer(layer, _set(point, 1, filters)) * point[1] / filters

    def _grid(self, layer: str, point: Point) -> Grid:
        for grid in self.table.grids[self.shapes[layer]]:
            if grid.covers(point):
                return grid
        (inside, outside, w, a), axes = point, self.table.grids[self.shapes[layer]][0].axes
        said = ", ".join(f"{axis[0]:g} to {axis[-1]:g} {of}" for axis, of in zip(axes, AXES, strict=True))
        raise UnsupportedError(
            f"{self.table.path} has no time of {layer} ({self.shapes[layer]}) with {inside:g} input channels and "
            f"{outside:g} filters at w{w:g}a{a:g}: it has {said}; keep within them, or measure a table of another -o"
        )


def _whole(shape: LayerShape) -> tuple[float, float]:
    """Input channels and filters of a layer that lost none."""
    return (1 if shape.groups > 1 else shape.in_shape[0]), shape.rows


def target(table: LatencyTable, graph: Graph, model: str, residual: str) -> Target:
    """`table` for one float graph; UnsupportedError names what was not measured, and the command that does."""
    shapes = {node.name: layer_shape(graph, node) for node in layer_nodes(graph)}
    missing = [f"{layer} ({shape})" for layer, shape in shapes.items() if shape not in table.grids]
    if missing:
        others = f" and {len(missing) - 1} other layers" if len(missing) > 1 else ""
        raise UnsupportedError(
            f"{table.path} has no times of {missing[0]}{others}; bitpress profile {model} -o {table.path} adds them"
        )
    network = table.networks.get((graph.fingerprint(), residual))
    if network is None:
        held = ", ".join(f"{n.model} ({kind} residual streams)" for (_, kind), n in table.networks.items()) or "none"
        raise UnsupportedError(
            f"{table.path} has times of the layers of {model}, but not of the whole network with {residual} residual "
            f"streams (it has {held}); bitpress profile {model} --residual {residual} -o {table.path} adds them"
        )
    return Target(table, network, shapes)
