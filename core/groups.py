"""Which channels must be cut together: the channel rules of the ops (core/ops.py), followed through a float graph.

Channels are chosen per group, so that two layers cannot disagree. Knows nothing of plans but the group's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .graph import Graph, Node
from .ops import OPS
from .plan import GroupId

WHOLE = (None, None, None)  # a slice that leaves an axis alone


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that live or die together.

    `id`: name of the first producer, of the first value where a group has none (the image, a concatenation).
    `values`: values of the float graph whose channels these are; behind a flatten each channel is a run of features.
    `producers`: convs and linears that make the channels; `consumers`: those that mix them. A depthwise conv is
    neither: its filters are the group's channels. `why`: why the group cannot be pruned, "" if it can.
    """

    id: GroupId
    channels: int
    values: tuple[str, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    prunable: bool
    why: str


def groups(graph: Graph) -> tuple[Group, ...]:
    """The groups of a float graph, in the order of their first values; each value is in exactly one."""
    walk = _Walk()
    for node in (*graph.inputs, *graph.nodes):
        walk.visit(node)
    for name in graph.outputs:
        walk.forbid(name, "it is the network's output")
    _forbid_shared_constants(graph, walk)
    members: dict[str, list[str]] = {}
    for name in walk.parent:
        members.setdefault(walk.root(name), []).append(name)
    return tuple(_group(graph, walk, root, values) for root, values in members.items())


def channel_group(graph: Graph) -> dict[str, GroupId]:
    """Value name -> its group, for every value of the graph. A layer's own value gives the group of its filters."""
    return {value: group.id for group in groups(graph) for value in group.values}


def is_depthwise(node: Node, channels: int) -> bool:
    """Whether a conv2d with so many input channels has one filter for each of them."""
    return node.op == "conv2d" and 1 < node.attrs["groups"] == channels == node.shape[0]


@dataclass
class _Walk:
    """Union-find over values; the reason why a set cannot be pruned sits at its root."""

    parent: dict[str, str] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)  # of a root
    why: dict[str, str] = field(default_factory=dict)  # of a root, where there is a reason
    features: dict[str, int] = field(default_factory=dict)  # per channel, of each value; 1 but behind a flatten

    def root(self, name: str) -> str:
        """Representative of the set that `name` is in."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def new(self, node: Node) -> None:
        """`node` has channels of its own."""
        self.parent[node.name] = node.name
        self.channels[node.name] = node.shape[0] if node.shape else 1
        self.features[node.name] = 1

    def follow(self, node: Node, source: str) -> None:
        """`node` has the channels of `source`."""
        self.parent[node.name] = self.root(source)
        self.features[node.name] = self.features[source]
        if node.op == "flatten":
            self.features[node.name] = node.shape[0] // self.channels_of(source)

    def tie(self, name: str, other: str) -> None:
        """The channels of both are the same."""
        a, b = self.root(name), self.root(other)
        if a == b:
            return
        self.parent[b] = a
        if b in self.why:
            self.why.setdefault(a, self.why[b])

    def forbid(self, name: str, why: str) -> None:
        """The channels of `name` stay whole; the first reason is kept."""
        self.why.setdefault(self.root(name), why)

    def visit(self, node: Node) -> None:
        """Places one value."""
        if node.op == "input":
            self.new(node)
            self.forbid(node.name, "it is the network's input")
            return
        reason = self._mixed(node)
        if reason is not None:
            self.new(node)
            if reason:
                for name in (*node.inputs, node.name):
                    self.forbid(name, reason)
            return
        first, *rest = node.inputs
        self.follow(node, first)
        for other in rest:
            if self.features[other] == self.features[first]:
                self.tie(first, other)
            else:
                for name in (first, other):
                    self.forbid(name, f"{node.name} adds features of different channels")

    def channels_of(self, name: str) -> int:
        """Channels (not features) of a value."""
        return self.channels[self.root(name)]

    def _mixed(self, node: Node) -> str | None:
        """None if the output's channels are the input's; else "" or why input and output stay whole."""
        kind = OPS[node.op].channels
        if node.op == "conv2d":
            count = self.channels_of(node.inputs[0])
            if is_depthwise(node, count):
                return None
            return f"{node.name} is a grouped convolution" if node.attrs["groups"] > 1 else ""
        if node.op == "unknown":
            return f"{node.name} ({node.attrs.get('target', '?')}) is not known"
        if kind == "mix":
            return ""
        if kind == "concat":
            return f"{node.name} concatenates channels"
        if node.op == "slice" and tuple(node.attrs["slices"][0]) != WHOLE:
            return f"{node.name} cuts channels out"
        if node.op == "pad" and tuple(node.attrs["pads"][0]) != (0, 0):
            return f"{node.name} pads channels"
        return None


def _forbid_shared_constants(graph: Graph, walk: _Walk) -> None:
    """Two nodes with one constant would have to be cut alike; nothing sees to that, so neither is cut."""
    owner: dict[str, Node] = {}
    for node in graph.nodes:
        for const in node.consts.values():
            first = owner.setdefault(const, node)
            if first is not node:
                for name in (first.name, node.name, *first.inputs, *node.inputs):
                    walk.forbid(name, f"{first.name} and {node.name} share {const}")


def _group(graph: Graph, walk: _Walk, root: str, values: list[str]) -> Group:
    mine = set(values)
    layers = [node for node in graph.nodes if node.op in ("conv2d", "linear")]
    deep = {n.name for n in layers if is_depthwise(n, walk.channels_of(n.inputs[0]))}
    producers = tuple(n.name for n in layers if n.name in mine and n.name not in deep)
    consumers = tuple(n.name for n in layers if n.inputs[0] in mine and n.name not in deep)
    why = walk.why.get(root, "")
    first = producers[0] if producers else values[0]
    return Group(GroupId(first), walk.channels[root], tuple(values), producers, consumers, not why, why)
