"""A plan decided layer by layer, by two controllers in turn, that ends within its budgets (methods A.3).

The layer controller says which share of a group's channels stays, the channel controller how the filters of a layer
that stay are spread over the widths. Both speak of ranks: who is first in rank is kept, and wide, first. Ratios are
clamped so that the rest, at its least, still fits (AMC); widths are walled from the last layer backwards (HAQ); what is
left is spent, on widths before channels come back. Knows nothing of agents, rewards and torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .cost import Budget, Choice, Costs, largest
from .errors import CheckFailed
from .graph import Graph, Node
from .groups import channel_group, is_depthwise
from .plan import GroupId, LayerId
from .projection import USED, least_within, share_used
from .storage import LAYERS

LAYER, CHANNEL = "layer", "channel"  # the controllers
NOTCH = 8  # while it is coarse, spending raises an eighth of a layer's filters at a time


@dataclass(frozen=True, slots=True)
class Ranks:
    """Filters of each searched layer, and parts of each open gate, the most important first."""

    filters: Mapping[LayerId, Sequence[int]]
    parts: Mapping[GroupId, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose decision is next: the layer controller's on a group, or the channel controller's on a layer."""

    role: str
    layer: LayerId
    group: GroupId | None


@dataclass
class Record:
    """What became of an episode's decisions: asked and clamped shares of channels, steps of all that came after."""

    kept: dict[str, tuple[float, float]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    walled: int = 0
    spent: int = 0
    merged: int = 0


class Walk:
    """One way through the network at a time; `choice` is what is decided so far, the rest at its least."""

    def __init__(self, graph: Graph, costs: Costs, budgets: Sequence[Budget], ranks: Ranks) -> None:
        self.graph, self.costs, self.budgets, self.ranks = graph, costs, tuple(budgets), ranks
        self.space, self.group_of = costs.space, channel_group(graph)
        self.least = self._least()
        self.widths = tuple(sorted(self.space.widths))
        nodes = [n for n in graph.nodes if n.op in LAYERS]
        self.turns = tuple(self._turns(nodes))
        self.features = _features(graph, nodes)
        self.begin()

    def _turns(self, nodes: Sequence[Node]) -> list[Turn]:
        """In the order of the layers; a group is decided at the first layer that makes it."""
        out, seen = [], set()
        for node in nodes:
            layer, group = LayerId(node.name), self.group_of[node.name]
            if group in self.space.open and group not in seen:
                seen.add(group)
                out.append(Turn(LAYER, layer, group))
            if layer in self.space.searched and len(self.widths) > 1:
                out.append(Turn(CHANNEL, layer, None))
        return out

    def _least(self) -> Choice:
        """What no decision can go below, within the budgets: the first parts in rank, at the least or fastest widths.

        Where that is too much because a group's last part, which may hold fewer channels, is not among them, it is
        taken for the most important one.
        """
        least = least_within(self.costs, self.budgets)
        found = self._ranked(least)
        if self.costs.over(found, self.budgets):
            last = {g: len(gate.sizes) - 1 for g, gate in self.space.open.items()}
            parts = {g: [last[g], *(p for p in rank if p != last[g])] for g, rank in self.ranks.parts.items()}
            self.ranks = replace(self.ranks, parts=parts)
            found = self._ranked(least)
        return found

    def _ranked(self, choice: Choice) -> Choice:
        """As many parts as there are, those that are first in rank."""
        parts = {g: self._first(g, len(p)) for g, p in choice.parts.items() if g in self.space.open}
        return replace(choice, parts={**choice.parts, **parts, **self.space.cut})

    def begin(self) -> None:
        """Nothing decided."""
        self.choice = self.least
        self.at, self.record, self.previous = 0, Record(), dict.fromkeys((LAYER, CHANNEL), 1.0)

    @property
    def ended(self) -> bool:
        """Whether all is decided."""
        return self.at == len(self.turns)

    @property
    def turn(self) -> Turn:
        """The next decision."""
        return self.turns[self.at]

    def shares(self, role: str) -> int:
        """Numbers within [0, 1] of a decision: the part kept; or the shares that get each further width, and input."""
        return 1 if role == LAYER else len(self.widths)

    def observation(self) -> np.ndarray:
        """What both controllers see, float32 [11] within [0, 1]: the layer, budgets spent and left, what was said last.

        The share of its channels that stays comes last: of a layer whose turn it is to be cut, 1.
        """
        if self.ended:
            return np.zeros(self.features[next(iter(self.features))].size + 4, np.float32)
        turn, most = self.turn, largest(self.space)
        open_ = {t.layer for t in self.turns[self.at :] if t.role == CHANNEL}
        rest = replace(
            self.choice,
            weight={n: most.weight[n] if n in open_ else w for n, w in self.choice.weight.items()},
            act={n: most.act[n] if n in open_ else a for n, a in self.choice.act.items()},
            filters={n: f for n, f in self.choice.filters.items() if n not in open_},
        )
        spent = share_used(self.costs, self.budgets, self.choice)
        left = share_used(self.costs, self.budgets, rest)
        kept = 1.0 if turn.role == LAYER else len(self._kept(turn.layer)) / self.graph.value(turn.layer).shape[0]
        last = (min(spent, 1.0), spent / max(left, spent), self.previous[turn.role], kept)
        return np.concatenate([self.features[turn.layer], np.array(last, np.float32)])

    def take(self, decision: np.ndarray) -> None:
        """Decides the next turn; after the last one the choice is brought to its budgets."""
        turn, said = self.turn, [min(max(float(d), 0.0), 1.0) for d in decision]
        if turn.group is not None:
            self._keep(turn, said[0])
        else:
            self._widen(turn.layer, said)
        self.previous[turn.role] = sum(said) / len(said)
        self.at += 1
        if self.ended:
            self._merge()
            self._wall()
            self._spend()

    # -- decisions ----------------------------------------------------------------------------------------------

    def _keep(self, turn: Turn, share: float) -> None:
        """The first parts in rank, as many as asked for, or as leave the later layers their least."""
        group = turn.group
        assert group is not None, "a turn of the layer controller has a group"
        gate = self.space.gates[group]
        least, every = len(gate.sizes) - gate.removable, len(gate.sizes)
        parts = least + round(share * gate.removable)
        narrow = replace(self.least, parts=self.choice.parts)  # what widths can do is the wall's business
        while parts > least and self.costs.over(self._cut(narrow, group, parts), self.budgets):
            parts -= 1
        self.choice = self._cut(self.choice, group, parts)
        asked = (least + share * gate.removable) / every
        self.record.kept[str(turn.layer)] = (asked, parts / every)

    def _first(self, group: GroupId, parts: int) -> tuple[int, ...]:
        return tuple(sorted(self.ranks.parts[group][:parts]))

    def _cut(self, choice: Choice, group: GroupId, parts: int) -> Choice:
        """The first `parts` of a group stay; filters that come back are as wide as the narrowest."""
        before = {n: self._lined(choice, n) for n in self.space.searched if self.group_of[n] == group}
        choice = replace(choice, parts={**choice.parts, group: self._first(group, parts)})
        for layer, line in before.items():
            kept = len(self._kept(layer, choice))
            choice = self._set(choice, layer, [*line[:kept], *[line[-1]] * (kept - len(line))])
        return choice

    def _kept(self, layer: LayerId, choice: Choice | None = None) -> list[int]:
        """The filters of a layer that stay, the most important first."""
        choice = self.choice if choice is None else choice
        group, rank = self.group_of[layer], self.ranks.filters[layer]
        if group not in self.space.gates:
            return list(rank)
        stay = {*self.space.gates[group].kept(choice.parts[group])}
        return [f for f in rank if f in stay]

    def _lined(self, choice: Choice, layer: LayerId) -> list[int]:
        """Widths of a layer's filters in their rank, never rising."""
        kept = self._kept(layer, choice)
        each = choice.filters.get(layer)
        return [choice.weight[layer]] * len(kept) if each is None else [each[f] for f in kept]

    def _set(self, choice: Choice, layer: LayerId, line: Sequence[int]) -> Choice:
        """`line` as the widths of a layer's filters in their rank."""
        filters = {n: f for n, f in choice.filters.items() if n != layer}
        if len({*line}) > 1:
            each = [0] * self.graph.value(layer).shape[0]
            for number, bits in zip(self._kept(layer, choice), line, strict=True):
                each[number] = bits
            filters[layer] = tuple(each)
        return replace(choice, weight={**choice.weight, layer: max(line)}, filters=filters)

    def _widen(self, layer: LayerId, said: Sequence[float]) -> None:
        """All filters have the first width; the first in rank get each further one, as many as said of those so far.

        The last number is the input's width.
        """
        *shares, act = said
        whole = len(self._kept(layer))
        line = [self.widths[0]] * whole
        filters = whole if self._parted(layer) else 1  # of a convolution in groups: all or none
        for bits, share in zip(self.widths[1:], shares, strict=True):
            filters = round(share * filters)
            wide = filters if self._parted(layer) else whole * filters
            line[:wide] = [bits] * wide
        self.choice = self._set(self.choice, layer, line)
        if layer in self.space.acts:
            self.choice = self._read(self.choice, layer, self.widths[round(act * (len(self.widths) - 1))])
        self.record.shares[str(layer)] = list(said)

    def _read(self, choice: Choice, layer: LayerId, bits: int) -> Choice:
        return replace(choice, act={**choice.act, layer: bits})

    def _parted(self, layer: LayerId) -> bool:
        """Whether filters of a layer may differ: programs have no steps for parts of a convolution in groups."""
        node = self.graph.value(layer)
        return node.attrs.get("groups", 1) == 1 or is_depthwise(node, self.graph.value(node.inputs[0]).shape[0])

    # -- budgets ------------------------------------------------------------------------------------------------

    def _merge(self) -> None:
        """Narrow filters join the next wider ones where that takes no longer: few of them fill no block of a kernel.

        Where no machine's times are given, or a budget of another kind would break, they stay apart.
        """
        for term in self.costs.terms if self.space.target else ():
            while (joined := self._joined(term.layer)) is not None:
                broken = self.costs.over(joined, self.budgets).keys() - self.costs.over(self.choice, self.budgets)
                if broken or self.costs.time_of(joined, term) > self.costs.time_of(self.choice, term):
                    break
                self.choice, self.record.merged = joined, self.record.merged + 1

    def _joined(self, layer: LayerId) -> Choice | None:
        """The choice with a layer's narrowest filters as wide as the next of them; None where they are alike."""
        if layer not in self.choice.filters:
            return None
        line = self._lined(self.choice, layer)
        wider = line[line.index(line[-1]) - 1]
        return self._set(self.choice, layer, [max(bits, wider) for bits in line])

    def _wall(self) -> None:
        """From the last layer backwards, again and again: the input a width down, then filters by a bit on average.

        Time need not fall with widths: where nothing is left to lower, they are the fastest.
        """
        while self.costs.over(self.choice, self.budgets):
            before = self.record.walled
            for layer in reversed(self.space.searched):
                self._lower_input(layer)
                gone = 0
                while gone < len(self._kept(layer)) and self.costs.over(self.choice, self.budgets):
                    step = self._lower_filter(layer)
                    if not step:
                        break
                    gone += step
            if self.record.walled == before:
                self.choice = replace(self.least, parts=self.choice.parts)
                break
        if self.costs.over(self.choice, self.budgets):
            raise CheckFailed(f"budgets {', '.join(b.text for b in self.budgets)}: nothing is left to lower")

    def _lower_input(self, layer: LayerId) -> None:
        """A width down, if a budget that is broken feels it."""
        over, at = self.costs.over(self.choice, self.budgets), self.widths.index(self.choice.act[layer])
        if layer not in self.space.acts or not over or at == 0:
            return
        after = self._read(self.choice, layer, self.widths[at - 1])
        if any(self.costs.figure(kind, after) < self.costs.figure(kind, self.choice) for kind in over):
            self.choice, self.record.walled = after, self.record.walled + 1

    def _lower_filter(self, layer: LayerId) -> int:
        """Bits saved: of the widest filters the last in rank takes the next width; in grouped convolutions all do."""
        line = self._lined(self.choice, layer)
        at = self.widths.index(line[0])
        if at == 0:
            return 0
        last = line.count(line[0])
        first = last - 1 if self._parted(layer) else 0
        lowered = [*line[:first], *[self.widths[at - 1]] * (last - first), *line[last:]]
        self.choice, self.record.walled = self._set(self.choice, layer, lowered), self.record.walled + 1
        return (last - first) * (line[0] - self.widths[at - 1])

    def _spend(self) -> None:
        """What the budgets still allow, round by round: widths rise, from the first layer on; parts come back as far as
        `USED`.

        In this order, so that what the layer controller gave up stays given up where there are bits to buy.
        """
        for rise in (self._raised, self._restored):
            for parts in (NOTCH, 0):
                while rise(parts):
                    pass

    def _raised(self, parts: int) -> bool:
        return any([self._raise(layer, parts) for layer in self.space.searched])

    def _restored(self, parts: int) -> bool:
        return share_used(self.costs, self.budgets, self.choice) < USED and any(
            [self._restore(group, parts) for group in self.space.open]
        )

    def _raise(self, layer: LayerId, parts: int) -> bool:
        """A step of the input or of some filters, first of what is narrower; whether anything fitted.

        Some: the first in rank of the narrowest, one in `parts` of all, or a single one for 0.
        """
        line = self._lined(self.choice, layer)
        steps = []
        at = self.widths.index(self.choice.act[layer]) if layer in self.space.acts else len(self.widths) - 1
        if at + 1 < len(self.widths):
            steps.append(self._read(self.choice, layer, self.widths[at + 1]))
        if line[-1] < self.widths[-1]:
            first, bits = line.index(line[-1]), self.widths[self.widths.index(line[-1]) + 1]
            some = max(1, len(line) // parts) if parts else 1
            last = min(first + some, len(line)) if self._parted(layer) else len(line)
            raised = self._set(self.choice, layer, [*line[:first], *[bits] * (last - first), *line[last:]])
            steps.insert(0 if sum(line) / len(line) <= self.choice.act[layer] else len(steps), raised)
        if self.space.target and (joined := self._joined(layer)) is not None:
            steps.append(joined)  # all of them may take less time than some
        return any(self._fits(step) for step in steps)

    def _restore(self, group: GroupId, parts: int) -> bool:
        """The next in rank come back, if they fit: one in `parts` of those that may go, or a single one for 0."""
        gate, now = self.space.gates[group], len(self.choice.parts[group])
        after = min(now + (max(1, gate.removable // parts) if parts else 1), len(gate.sizes))
        return after > now and self._fits(self._cut(self.choice, group, after))

    def _fits(self, after: Choice) -> bool:
        """Takes a step that keeps the budgets."""
        if self.costs.over(after, self.budgets):
            return False
        self.choice, self.record.spent = after, self.record.spent + 1
        return True


def _features(graph: Graph, nodes: Sequence[Node]) -> dict[LayerId, np.ndarray]:
    """Of each layer, float32 [7]: place, is it a convolution, channels in and out, stride, window, weights; over the
    largest.
    """
    rows = []
    for at, node in enumerate(nodes):
        weight = graph.consts[node.consts["weight"]]
        window = float(weight.shape[2]) if node.op == "conv2d" else 1.0
        stride = float(node.attrs["stride"][0]) if node.op == "conv2d" else 1.0
        channels = (graph.value(node.inputs[0]).shape[0], node.shape[0])
        rows.append((at + 1, float(node.op == "conv2d"), *channels, stride, window, weight.size))
    table = np.array(rows, np.float64)
    table = (table / np.maximum(table.max(axis=0), 1)).astype(np.float32)
    return {LayerId(node.name): row for node, row in zip(nodes, table, strict=True)}
