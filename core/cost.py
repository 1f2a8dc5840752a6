"""What may be chosen, what a choice costs, and what a budget allows; all said before any time is spent.

`Space` is what a search may choose from, `Choice` one point of it, `Costs` its price layer by layer (tied to
`core.bops` by a test), `Budget` the user's bound. Knows nothing of torch, of training or of how a choice is made.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from . import bops
from .encoding import Encoding, odd
from .errors import UnsupportedError, UsageError
from .graph import Graph, Node
from .groups import Group, channel_group, groups, is_depthwise
from .latency import Target
from .plan import MAX_ACT_BITS, WEIGHT_BITS, BitConfig, CompressionPlan, GroupId, LayerId, Segment
from .storage import LAYERS, POOLS, act_encoding

WIDTHS = (2, 4, 8)  # b_j = 2 * b_(j-1): what the decomposition of SBS shares (methods A.1.2)
END_BITS = bops.END_BITS
GROUP_SIZE = 4  # filters a pruning gate (methods A.1.4, CIFAR)
MAX_PRUNING_RATIO = 0.5  # share of a group's channels that may go; the paper's value is not known
KINDS = ("bops", "size", "latency")
_UNITS: Mapping[str, Mapping[str, float]] = {
    "bops": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "size": {"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "latency": {"ms": 1, "us": 1e-3, "s": 1e3},
}


@dataclass(frozen=True, slots=True)
class Budget:
    """An upper bound of one figure. `value`: absolute (BOPs, bytes, milliseconds), or a share if `relative`.

    A share of BOPs and bytes is one of the float net's, of time one of the whole net's at 8 bits.
    """

    kind: str
    text: str
    value: float
    relative: bool

    def bound(self, whole: float) -> float:
        """The bound in absolute units; `whole` is the figure that shares refer to."""
        return self.value * whole if self.relative else self.value


def parse_budget(text: str) -> Budget:
    """'bops=2%', 'bops=630M', 'size=120kB', 'latency=0.8ms' or 'size=20%'; UsageError says what is wrong with the rest.

    >>> parse_budget("bops=2%").value
    0.02
    """
    kind, _, amount = text.partition("=")
    if kind not in KINDS:
        raise UsageError(f"budget {text!r}: {kind!r} is none of {', '.join(KINDS)}; write for example bops=2%")
    units = _UNITS[kind]
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*", amount)
    if not match or (match[2] != "%" and match[2] not in units):
        raise UsageError(
            f"budget {text!r}: {amount!r} is not a number with %, {', '.join(u or 'no unit' for u in units)}"
        )
    value = float(match[1]) * (0.01 if match[2] == "%" else units[match[2]])
    if not 0 < value < math.inf:
        raise UsageError(f"budget {text!r}: the bound must be a finite number above zero")
    return Budget(kind, text, value, match[2] == "%")


@dataclass(frozen=True, slots=True)
class Gate:
    """Pruning of one channel group: contiguous parts of `size` channels (the last may be smaller).

    `removable`: how many parts may go. `scored`: the convolutions whose weights score the parts.
    """

    group: GroupId
    channels: int
    size: int
    removable: int
    scored: tuple[LayerId, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Channels of each part."""
        return _sizes(self.channels, self.size)

    def kept(self, parts: Iterable[int]) -> tuple[int, ...]:
        """Channels of the parts that stay."""
        return tuple(c for p in sorted(parts) for c in range(p * self.size, min((p + 1) * self.size, self.channels)))


@cache
def _sizes(channels: int, size: int) -> tuple[int, ...]:
    return tuple(min(size, channels - i) for i in range(0, channels, size))


@dataclass(frozen=True)
class Space:
    """What may be chosen, and what is given.

    `searched`: layers whose two widths are chosen from `widths`; `held`: layers whose (weight, input) widths are given;
    `ends`: held at `END_BITS`, as is the input of the searched layers in `image`: it is the network's. `gates` by
    group, of which those in `cut` are decided: the parts that stay. `target`: the machine whose time counts, if any.
    """

    searched: tuple[LayerId, ...]
    ends: tuple[LayerId, ...]
    gates: Mapping[GroupId, Gate]
    widths: tuple[int, ...] = WIDTHS
    held: Mapping[LayerId, tuple[int, int]] = field(default_factory=dict)
    cut: Mapping[GroupId, tuple[int, ...]] = field(default_factory=dict)
    image: tuple[LayerId, ...] = ()
    target: Target | None = None

    @property
    def acts(self) -> tuple[LayerId, ...]:
        """The searched layers whose input's width is chosen too."""
        return tuple(name for name in self.searched if name not in self.image)

    @property
    def open(self) -> Mapping[GroupId, Gate]:
        """The gates that are still to be decided."""
        return {g: gate for g, gate in self.gates.items() if g not in self.cut}

    def pairs(self, layer: LayerId) -> list[tuple[int, int]]:
        """(weight, input) widths that a searched layer may have."""
        acts = self.widths if layer in self.acts else (END_BITS,)
        return list(itertools.product(self.widths, acts))

    def given(self, layer: LayerId) -> tuple[int, int]:
        """(weight, input) widths of a layer that is not searched."""
        return self.held.get(layer, (END_BITS, END_BITS))


@dataclass(frozen=True)
class Choice:
    """Widths of every layer's weights and input, and the parts of each gate that stay (a missing gate is whole).

    `filters`: of layers whose filters differ, the width of each, 0 where it is removed; `weight` is the widest then.
    """

    weight: Mapping[LayerId, int]
    act: Mapping[LayerId, int]
    parts: Mapping[GroupId, tuple[int, ...]] = field(default_factory=dict)
    filters: Mapping[LayerId, tuple[int, ...]] = field(default_factory=dict)


def search_space(graph: Graph, *, group_size: int = GROUP_SIZE, max_pruning_ratio: float = MAX_PRUNING_RATIO) -> Space:
    """What may be chosen in a float graph; UnsupportedError names an op that is not known.

    Gates stand on the groups of convolutions that nothing ties to a residual stream: the inner convolutions of
    residual blocks; in plain chains every convolution but the last. An inverted residual has one gate, on its expanded
    width, scored on the depthwise weights (methods A.1.4); the last convolution of its squeeze-excite follows, the
    first stays whole.
    """
    for node in graph.nodes:
        if node.op == "unknown":
            raise UnsupportedError(f"{node.name}: op {node.attrs.get('target')!r} is not supported")
    if group_size < 1 or not 0 <= max_pruning_ratio < 1:
        raise UsageError(
            f"group size {group_size} must be at least 1 and pruning ratio {max_pruning_ratio} within [0, 1)"
        )
    layers = [LayerId(n.name) for n in graph.nodes if n.op in LAYERS]
    if not layers:
        raise UnsupportedError("the network has no convolution and no linear layer: there is nothing to search")
    ends = tuple(dict.fromkeys((layers[0], layers[-1])))
    squeezed = _squeezed(graph)
    gates = {g.id: _gate(graph, g, group_size, max_pruning_ratio) for g in groups(graph) if _gated(graph, g, squeezed)}
    gates = {k: g for k, g in gates.items() if g.removable}
    return Space(tuple(name for name in layers if name not in ends), ends, gates)


def _convs(graph: Graph, group: Group) -> list[Node]:
    """Convolutions whose output channels are the group's, depthwise ones too."""
    return [n for n in graph.nodes if n.op == "conv2d" and n.name in group.values]


def _squeezed(graph: Graph) -> frozenset[str]:
    """Convolutions of one pixel between a mean and the product that it scales: those of squeeze-excite."""
    found: set[str] = set()
    open_ = [n.inputs[1] for n in graph.nodes if n.op == "mul" and n.shape != graph.value(n.inputs[1]).shape]
    while open_:
        node = graph.value(open_.pop())
        if node.op == "conv2d":
            found.add(node.name)
        open_ += [] if node.op in POOLS or node.shape[1:] != (1, 1) else node.inputs
    return frozenset(found)


def _gated(graph: Graph, group: Group, squeezed: frozenset[str]) -> bool:
    made = _convs(graph, group)
    if squeezed.issuperset(n.name for n in made):
        return False
    last = [n.name for n in graph.nodes if n.op == "conv2d"][-1:]
    stream = any(graph.value(v).op == "add" for v in group.values)
    only_convs = all(graph.value(p).op == "conv2d" for p in group.producers)
    return group.prunable and bool(made) and only_convs and not stream and last[0] not in [n.name for n in made]


def _gate(graph: Graph, group: Group, size: int, ratio: float) -> Gate:
    made = _convs(graph, group)
    scored = [n for n in made if is_depthwise(n, group.channels)] or made
    parts = -(-group.channels // size)
    # k of methods A.1.5; one part always stays
    removable = min(max(1, int(group.channels * ratio) // size), parts - 1) if ratio > 0 else 0
    return Gate(group.id, group.channels, size, removable, tuple(LayerId(n.name) for n in scored))


def hold_bits(graph: Graph, space: Space, bits: tuple[int, int]) -> Space:
    """The space with all inner layers at `bits` (weight, activation); UnsupportedError for widths without kernels."""
    w, a = bits
    if w not in WEIGHT_BITS:
        raise UnsupportedError(f"weights of {w} bits have no kernel; there are {', '.join(map(str, WEIGHT_BITS))}")
    if a > MAX_ACT_BITS:
        raise UnsupportedError(f"activations of {a} bits have no kernel; there are 1 to {MAX_ACT_BITS}")
    # A sign takes a second bit; the network's input stays as it is.
    held = {
        name: (w, END_BITS if name in space.image else act_encoding(graph, name, a).bits) for name in space.searched
    }
    return replace(space, searched=(), held=held)


def hold_widths(space: Space, choice: Choice) -> Space:
    """The space with all layers at the widths of `choice`."""
    held = {name: (choice.weight[name], choice.act[name]) for name in space.searched}
    return replace(space, searched=(), held={**space.held, **held})


def hold_channels(space: Space) -> Space:
    """The space without pruning."""
    return replace(space, gates={})


def open_ends(graph: Graph, space: Space) -> Space:
    """The space with the ends searched as well; the network's input stays at `END_BITS` (convention djpq)."""
    layers = tuple(LayerId(n.name) for n in graph.nodes if n.name in {*space.searched, *space.ends})
    inputs = {n.name for n in graph.inputs}
    image = tuple(name for name in layers if graph.value(name).inputs[0] in inputs)
    return replace(space, searched=layers, ends=(), image=image)


def smallest(space: Space) -> Choice:
    """The cheapest point: least widths, largest pruning."""
    parts = {g: tuple(range(gate.removable, len(gate.sizes))) for g, gate in space.gates.items()}
    return _corner(space, min(space.widths), parts)


def largest(space: Space) -> Choice:
    """Where a search starts: most bits everywhere, nothing pruned beyond what is decided."""
    return _corner(space, max(space.widths), {g: tuple(range(len(gate.sizes))) for g, gate in space.gates.items()})


def stairs(space: Space) -> list[Choice]:
    """Uniform points, cheapest first: 2/2, 2/4, 4/4, 4/8, 8/8; weights bear few bits better than activations do.

    Nothing is pruned beyond what is decided. One point where no width is searched.
    """
    whole, widths = largest(space), sorted(space.widths)
    pairs = [
        (w, a) for w, a in itertools.product(widths, widths) if a in (w, min((b for b in widths if b > w), default=w))
    ]
    out = []
    for w, a in pairs if space.searched else pairs[-1:]:
        weight, act = dict.fromkeys(space.searched, w), dict.fromkeys(space.acts, a)
        out.append(Choice({**whole.weight, **weight}, {**whole.act, **act}, whole.parts))
    return out


def stair_near(costs: Costs, budgets: Iterable[Budget]) -> Choice:
    """The uniform point next to the budgets, in ln of the figure that is furthest from its bound."""

    def away(choice: Choice) -> float:
        return abs(max(math.log(costs.figure(b.kind, choice) / b.bound(costs.whole[b.kind])) for b in budgets))

    return min(stairs(costs.space), key=away)


def stair_above(costs: Costs, budgets: Sequence[Budget]) -> Choice:
    """The cheapest uniform point that breaks a budget; the dearest of all where none does."""
    found = stairs(costs.space)
    return next((choice for choice in found if costs.over(choice, budgets)), found[-1])


def _corner(space: Space, width: int, parts: Mapping[GroupId, tuple[int, ...]]) -> Choice:
    given = {name: space.given(name) for name in (*space.held, *space.ends, *space.image)}
    weight = {name: w for name, (w, _) in given.items()} | dict.fromkeys(space.searched, width)
    act = {name: a for name, (_, a) in given.items()} | dict.fromkeys(space.acts, width)
    return Choice(weight, act, {**parts, **space.cut})


def to_plan(
    graph: Graph, space: Space, choice: Choice, *, residual: str, weight: Callable[[int], Encoding] = odd
) -> CompressionPlan:
    """The plan of a choice: weights as `weight` spells their bits, activations with a sign only where they need it."""
    group_of = channel_group(graph)
    keep = {
        g: space.gates[g].kept(parts) for g, parts in choice.parts.items() if len(parts) < len(space.gates[g].sizes)
    }
    bits_of = {}
    for layer in (*space.searched, *space.held, *space.ends):
        rows = graph.consts[graph.value(layer).consts["weight"]].shape[0]
        filters = keep.get(group_of[layer], tuple(range(rows)))
        each = choice.filters.get(layer, (choice.weight[layer],) * rows)
        segments = tuple(
            Segment(weight(bits), tuple(f for f in filters if each[f] == bits)) for bits in sorted({*each} - {0})
        )
        bits_of[layer] = BitConfig(segments, act_encoding(graph, layer, choice.act[layer]))
    return CompressionPlan(graph.fingerprint(), bits_of, keep, residual, space.target.name if space.target else "")


@dataclass(frozen=True, slots=True)
class Term:
    """A layer's share of the figures: bops = unit * c_in * c_out * b_w * b_a, over the channels that stay.

    `inside`, `outside`: groups of its input and output channels ("" for an input side that costs nothing more: a
    depthwise layer); `depth`: weights of a filter for each of `c_in` input channels; `columns`: features of each,
    where a linear layer reads a flattened value.
    """

    layer: LayerId
    unit: int
    inside: str
    outside: str
    c_in: int
    c_out: int
    depth: int
    columns: int = 1


class Costs:
    """Prices choices quickly: what `core.bops` says of the same plan, from one term a layer.

    BOPs are those of the convention that the space is made for: sbs where it has ends, djpq where it has none.
    """

    def __init__(self, graph: Graph, space: Space) -> None:
        self.space = space
        self.whole = _whole_figures(graph, space.target)
        self.terms = tuple(_term(graph, space, row) for row in bops.count(graph).layers)
        self._sizes = {str(g.id): g.channels for g in groups(graph)}

    def channels(self, choice: Choice, group: str, whole: int) -> int:
        """Channels of `group` that stay."""
        gate = self.space.gates.get(GroupId(group))
        parts = choice.parts.get(GroupId(group))
        if gate is None or parts is None:
            return whole
        last = len(gate.sizes) - 1
        return len(parts) * gate.size - (gate.size - gate.sizes[last] if last in parts else 0)

    def widths(self, choice: Choice, term: Term) -> Mapping[int, int]:
        """Bits of a layer's weights -> filters that stay and hold so many."""
        each = choice.filters.get(term.layer)
        if each is None:
            return {choice.weight[term.layer]: self.channels(choice, term.outside, term.c_out)}
        return {bits: filters for bits, filters in Counter(each).items() if bits}

    def bops(self, choice: Choice) -> int:
        """BOPs."""
        total = 0
        for t in self.terms:
            widths, act = self.widths(choice, t), choice.act[t.layer]
            if t.layer in self.space.ends:
                widths, act = {END_BITS: sum(widths.values())}, END_BITS
            bits = sum(bits * filters for bits, filters in widths.items())
            total += t.unit * self.channels(choice, t.inside, t.c_in) * bits * act
        return total

    def size(self, choice: Choice) -> int:
        """Bytes of packed weights."""
        total = 0
        for t in self.terms:
            depth = self.channels(choice, t.inside, t.c_in) * t.depth
            total += sum(filters * -(-depth * bits // 8) for bits, filters in self.widths(choice, t).items())
        return total

    def latency(self, choice: Choice) -> float:
        """Milliseconds on the space's target."""
        return self.beside(choice) + sum(self.time_of(choice, term) for term in self.terms)

    def beside(self, choice: Choice) -> float:
        """Milliseconds of all that is no layer, on the space's target."""
        return self.target.beside(lambda group: self.channels(choice, group, self._sizes.get(group, 0)))

    def time_of(self, choice: Choice, term: Term) -> float:
        """Milliseconds of one layer on the space's target."""
        inside, act = self.channels(choice, term.inside, term.c_in) * term.columns, choice.act[term.layer]
        widths = self.widths(choice, term)
        kept = sum(widths.values())
        return sum(self.target.segment(term.layer, (inside, n, bits, act), kept) for bits, n in widths.items())

    @property
    def target(self) -> Target:
        """Of the space, where `check_reachable` has seen to that there is one."""
        assert self.space.target is not None, "latency is asked for only where there is a table"
        return self.space.target

    @property
    def kinds(self) -> tuple[str, ...]:
        """The figures that this space has."""
        return KINDS if self.space.target else tuple(kind for kind in KINDS if kind != "latency")

    def figure(self, kind: str, choice: Choice) -> float:
        """`bops`, `size` or `latency`; the first two are whole numbers."""
        price: Callable[[Choice], float] = getattr(self, kind)
        return price(choice)

    def over(self, choice: Choice, budgets: Iterable[Budget]) -> dict[str, float]:
        """Kind -> figure / bound, for the budgets that the choice breaks."""
        ratios = {b.kind: self.figure(b.kind, choice) / b.bound(self.whole[b.kind]) for b in budgets}
        return {kind: ratio for kind, ratio in ratios.items() if ratio > 1}


def _term(graph: Graph, space: Space, row: bops.LayerCount) -> Term:
    node = graph.value(row.name)
    weight = graph.consts[node.consts["weight"]].shape
    group_of = channel_group(graph)
    if node.op == "conv2d" and node.attrs["groups"] > 1:
        depth = weight[1] * weight[2] * weight[3]
        return Term(LayerId(row.name), row.macs // weight[0], "", group_of[row.name], 1, weight[0], depth)
    inside = group_of[node.inputs[0]]
    c_in = space.gates[inside].channels if inside in space.gates else weight[1]  # behind a flatten: fewer than columns
    depth = math.prod(weight[1:])
    unit = row.macs // (c_in * weight[0])
    columns = weight[1] // c_in if node.op == "linear" else 1
    return Term(LayerId(row.name), unit, inside, group_of[row.name], c_in, weight[0], depth // c_in, columns)


def _whole_figures(graph: Graph, target: Target | None) -> dict[str, float]:
    """What shares of a budget refer to."""
    totals = bops.count(graph).totals
    timed = {} if target is None else {"latency": target.uniform(END_BITS)}
    return {"bops": totals.bops_fp32, "size": totals.fp32_bytes, **timed}


def plan_cost(
    graph: Graph, plan: CompressionPlan, convention: str = "sbs", target: Target | None = None
) -> dict[str, float]:
    """`bops` and `size` of a plan, as `core.bops` counts them; on a target `latency` too, in milliseconds."""
    totals = bops.count(graph, plan, convention=convention).totals
    assert totals.bops is not None, "every layer counts, a float one 32 x 32"
    timed = {} if target is None else {"latency": target.plan(graph, plan)}
    return {"bops": totals.bops, "size": totals.weight_bytes, **timed}


def cheapest(costs: Costs, kind: str) -> Choice:
    """The point of the space at which a figure is least; for latency each layer's fastest widths, the widest of them.

    The largest pruning is taken for the fastest.
    """
    choice = smallest(costs.space)
    if kind == "latency":
        for term in costs.terms:
            if term.layer in costs.space.searched:
                choice = _fastest(costs, choice, term)
    return choice


def _fastest(costs: Costs, choice: Choice, term: Term) -> Choice:
    """The choice with the fastest widths in one layer, the widest of them."""

    def rank(pair: tuple[int, int]) -> tuple[float, int, int]:
        return costs.time_of(at_widths(choice, term.layer, pair), term), -pair[0], -pair[1]

    return at_widths(choice, term.layer, min(costs.space.pairs(term.layer), key=rank))


def at_widths(choice: Choice, layer: LayerId, pair: tuple[int, int]) -> Choice:
    """The choice with other widths in one layer."""
    return replace(choice, weight={**choice.weight, layer: pair[0]}, act={**choice.act, layer: pair[1]})
