"""From any choice to one within its budgets: moves, what they lose, and in which order they are made.

`project` lowers until every budget holds, `fill` spends what is left, `exchange` and `spend` trade. All are
deterministic; what a move loses is told by the caller. Knows nothing of torch, as `core.cost`, whose prices it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .cost import END_BITS, Budget, Choice, Costs, Space, at_widths, cheapest, smallest
from .errors import CheckFailed, UsageError
from .graph import Graph
from .plan import GroupId, LayerId

USED = 0.92  # of each budget: so far parts come back though they say little, where no width fits any more
EXCHANGES = 200  # trades at most
LEAST_GAIN = 1e-9  # of a trade, in what harm is measured in: less is rounding


def check_reachable(graph: Graph, budgets: Sequence[Budget], space: Space) -> None:
    """CheckFailed with the least possible figure where a budget lies below the cheapest point of the space.

    Where one is of latency, whose cheapest point is another, all are tried together.
    """
    if space.target is None and any(b.kind == "latency" for b in budgets):
        raise UsageError(
            "a latency budget needs --latency-table TABLE.json, a file that bitpress profile MODEL -o TABLE.json makes"
        )
    costs = Costs(graph, space)
    for budget in budgets:
        kind, whole = budget.kind, costs.whole[budget.kind]
        bound, figure = budget.bound(whole), costs.figure(kind, cheapest(costs, kind))
        if figure > bound:
            timed = kind == "latency"
            allows, least = (f"{x:.4g} ms" if timed else f"{x:.0f}" for x in (bound, figure))
            raise CheckFailed(
                f"budget {budget.text} cannot be reached: it allows {allows}, and the least is {least} "
                f"({100 * figure / whole:.4g} % of the {'network at w8a8' if timed else 'float network'}), with "
                f"{_described(space, kind)}; {_remedies(space)}"
            )
    if len(budgets) > 1:
        try:
            least_within(costs, budgets)
        except CheckFailed as error:
            raise CheckFailed(
                f"budgets {', '.join(b.text for b in budgets)} cannot be reached together, though each alone can; "
                f"{_remedies(space)}"
            ) from error


def least_within(costs: Costs, budgets: Sequence[Budget]) -> Choice:
    """Least widths and the largest pruning; where time counts, widths fast enough. CheckFailed: none is found."""
    if all(b.kind != "latency" for b in budgets):
        return smallest(costs.space)
    return project(costs, budgets, cheapest(costs, "latency"), _even)[0]


def _even(_choice: Choice, _move: Move) -> float:
    """Every move harms the same."""
    return 1.0


def _described(space: Space, kind: str) -> str:
    """The cheapest point in words."""
    held = next(iter(space.held.values()), None)
    if kind == "latency" and held is None:
        return f"the fastest widths of every layer and {'the largest pruning' if space.open else 'no pruning'}"
    bits = f"{min(space.widths)}-bit weights and activations" if held is None else f"w{held[0]}a{held[1]}"
    pruning = "the largest pruning" if space.open else "no pruning"
    return f"{bits}{f' between {END_BITS}-bit ends' if space.ends else ''} and {pruning}"


def _remedies(space: Space) -> str:
    ways = ["the budget", *(["the pruning ratio"] if space.open else [])]
    return f"raise {' or '.join(ways)}" + (", or lower --bits" if space.held else "")


@dataclass(frozen=True, slots=True)
class Move:
    """One step between choices. `side`: weight, act, prune, restore; `name`: layer or group; `to`: bits, or a part."""

    side: str
    name: str
    to: int

    def applied(self, choice: Choice) -> Choice:
        """The choice after the move."""
        if self.side == "weight":
            return replace(choice, weight={**choice.weight, LayerId(self.name): self.to})
        if self.side == "act":
            return replace(choice, act={**choice.act, LayerId(self.name): self.to})
        group = GroupId(self.name)
        left = {*choice.parts[group], self.to} if self.side == "restore" else {*choice.parts[group]} - {self.to}
        return replace(choice, parts={**choice.parts, group: tuple(sorted(left))})


@dataclass(frozen=True, slots=True)
class Step:
    """A move that was made, what it was thought to lose, and the figures after it."""

    move: Move
    loss: float
    figures: Mapping[str, float]


def lowering(space: Space, choice: Choice) -> list[Move]:
    """Every move that makes a choice cheaper by one width or one part."""
    down = {b: max((w for w in space.widths if w < b), default=None) for b in space.widths}
    out = _to_widths(space, choice, down)
    for group, gate in space.open.items():
        if len(gate.sizes) - len(choice.parts[group]) < gate.removable:
            out.extend(Move("prune", group, part) for part in choice.parts[group])
    return out


def _to_widths(space: Space, choice: Choice, next_: Mapping[int, int | None]) -> list[Move]:
    """One move for each width that is chosen and has a next one."""
    out = []
    for layer in space.searched:
        sides = [("weight", choice.weight[layer]), *([("act", choice.act[layer])] if layer in space.acts else [])]
        out += [Move(side, layer, to) for side, bits in sides if (to := next_[bits]) is not None]
    return out


def raising(
    space: Space, choice: Choice, *, parts: bool = False, trimmed: Container[LayerId] = ()
) -> list[Move]:  # fmt: skip
    """Every move that gives one width back; one part, too, where no width is searched or `parts` asks for them.

    A joint search spends on widths: removed channels save bytes, memory and time that BOPs do not tell. Weights of
    `trimmed` layers stay as narrow as they are.
    """
    up = {b: min((w for w in space.widths if w > b), default=None) for b in space.widths}
    out = [m for m in _to_widths(space, choice, up) if m.side != "weight" or m.name not in trimmed]
    if parts or not space.searched:
        for group, gate in space.open.items():
            gone = {*range(len(gate.sizes))} - {*choice.parts[group]}
            out.extend(Move("restore", group, part) for part in sorted(gone))
    return out


Way = tuple[tuple[Move, float], ...]  # moves one after the other, and what each loses


def project(
    costs: Costs, budgets: Sequence[Budget], choice: Choice, loss: Callable[[Choice, Move], float]
) -> tuple[Choice, list[Step]]:
    """The choice brought under its budgets, and the steps that led there; deterministic, ties by name.

    Each step takes the lowering that loses least per share of the broken budgets' figures that it saves. Time does not
    fall with every lowering: where latency alone is broken, a step may also be any widths of one layer, wider ones too,
    or several parts, that save time and break nothing else; where nothing is left, the search goes on from the fastest
    widths. CheckFailed if that fails too, which `check_reachable` rules out.
    """
    done: list[Step] = []
    fastest = False
    while over := costs.over(choice, budgets):
        best: tuple[float, float, str, Way] | None = None
        ways: list[Way] = [((move, lost),) for move, lost in _weakest(costs.space, choice, loss)]
        if set(over) == {"latency"}:
            ways += [*_faster(costs, budgets, choice, loss), *_blocks(costs, choice, loss)]
        for way in ways:
            after = _after(choice, way)
            saved = sum(max(0.0, math.log(costs.figure(k, choice) / costs.figure(k, after))) for k in over)
            if saved <= 0:
                continue
            lost = sum(part for _, part in way)
            rank = (lost / saved, lost, _words(way), way)
            if best is None or rank[:3] < best[:3]:
                best = rank
        if best is None:
            if fastest or "latency" not in over:
                raise CheckFailed(f"budgets {', '.join(b.text for b in budgets)}: nothing is left to lower")
            fastest, loss = True, _even
            best = (0.0, 0.0, "", _way(choice, _moves(choice, _last_resort(costs, choice)), loss))
        choice, steps = _made(costs, budgets, choice, best[3])
        done += steps
    return choice, done


def _made(costs: Costs, budgets: Sequence[Budget], choice: Choice, way: Way) -> tuple[Choice, list[Step]]:
    """The choice at the end of a way, and its moves with the figures after each."""
    steps = []
    for move, lost in way:
        choice = move.applied(choice)
        steps.append(Step(move, lost, {b.kind: costs.figure(b.kind, choice) for b in budgets}))
    return choice, steps


def _words(way: Way) -> str:
    """What ties are broken by."""
    return ", ".join(f"{m.side} {m.name} {m.to}" for m, _ in way)


def _after(choice: Choice, way: Way) -> Choice:
    for move, _ in way:
        choice = move.applied(choice)
    return choice


def _faster(
    costs: Costs, budgets: Sequence[Budget], choice: Choice, loss: Callable[[Choice, Move], float]
) -> list[Way]:
    """Widths of one layer, wider ones too, at which it takes less time and no budget but that of latency breaks."""
    out = []
    for term in costs.terms if costs.space.searched else ():
        if term.layer not in costs.space.searched:
            continue
        now = costs.time_of(choice, term)
        for pair in costs.space.pairs(term.layer):
            after = at_widths(choice, term.layer, pair)
            if costs.time_of(after, term) < now and not costs.over(after, budgets).keys() - {"latency"}:
                out.append(_way(choice, _moves(choice, after), loss))
    return out


def _blocks(costs: Costs, choice: Choice, loss: Callable[[Choice, Move], float]) -> list[Way]:
    """Of each group, the least harmful parts that have to go together until any time is saved, where one is not enough.

    Kernels compute filters in blocks.
    """
    out = []
    before = costs.latency(choice)
    for group, gate in costs.space.open.items():
        way: list[tuple[Move, float]] = []
        after = choice
        while len(gate.sizes) - len(after.parts[group]) < gate.removable and costs.latency(after) >= before:
            moves = [Move("prune", group, part) for part in after.parts[group]]
            lost, _, move = min((loss(after, move), f"{move.to}", move) for move in moves)
            way.append((move, lost))
            after = move.applied(after)
        if len(way) > 1:
            out.append(tuple(way))
    return out


def _way(choice: Choice, moves: Iterable[Move], loss: Callable[[Choice, Move], float]) -> Way:
    way = []
    for move in moves:
        way.append((move, loss(choice, move)))
        choice = move.applied(choice)
    return tuple(way)


def _moves(choice: Choice, goal: Choice) -> list[Move]:
    """From one choice to another; parts come back before others go, so that one always stays."""
    out = [Move("weight", name, bits) for name, bits in goal.weight.items() if bits != choice.weight[name]]
    out += [Move("act", name, bits) for name, bits in goal.act.items() if bits != choice.act[name]]
    for group, parts in goal.parts.items():
        mine = choice.parts[group]
        out += [Move("restore", group, part) for part in parts if part not in mine]
        out += [Move("prune", group, part) for part in mine if part not in parts]
    return out


def _last_resort(costs: Costs, choice: Choice) -> Choice:
    """The fastest point, with the parts of `choice` where they are as few channels."""
    goal = cheapest(costs, "latency")
    kept = {
        g: choice.parts[g] if costs.channels(choice, g, 0) == costs.channels(goal, g, 0) else parts
        for g, parts in goal.parts.items()
    }
    return replace(goal, parts=kept)


def _weakest(space: Space, choice: Choice, loss: Callable[[Choice, Move], float]) -> list[tuple[Move, float]]:
    """The lowerings and their losses; of a group's parts of one size, which all save the same, the least loss only."""
    found: dict[tuple[str, str, int], tuple[Move, float]] = {}
    for move in lowering(space, choice):
        size = space.gates[GroupId(move.name)].sizes[move.to] if move.side == "prune" else 0
        key, lost = (move.side, move.name, size), loss(choice, move)
        if key not in found or (lost, f"{move.to}") < (found[key][1], f"{found[key][0].to}"):
            found[key] = (move, lost)
    return list(found.values())


def fill(
    costs: Costs,
    budgets: Sequence[Budget],
    choice: Choice,
    gain: Callable[[Choice, Move], float],
    *,
    parts: bool = False,
    trimmed: Container[LayerId] = (),
) -> tuple[Choice, list[Step]]:
    """What the budgets still allow is spent on `raising`, first where the gain per share of the figures is largest."""
    done: list[Step] = []
    while True:
        best: tuple[float, str, Move, float] | None = None
        for move in raising(costs.space, choice, parts=parts, trimmed=trimmed):
            after = move.applied(choice)
            if costs.over(after, budgets):
                continue
            spent = sum(math.log(costs.figure(b.kind, after) / costs.figure(b.kind, choice)) for b in budgets)
            gained = gain(choice, move)
            rank = (-gained / max(spent, 1e-12), f"{move.side} {move.name} {move.to}", move, gained)
            if gained > 0 and (best is None or rank[:2] < best[:2]):
                best = rank
        if best is None:
            return choice, done
        choice = best[2].applied(choice)
        done.append(Step(best[2], -best[3], {b.kind: costs.figure(b.kind, choice) for b in budgets}))


def trim(
    costs: Costs, choice: Choice, harm: Callable[[Choice, Move], float], most: float, *, side: str = "prune"
) -> tuple[Choice, list[Step]]:  # fmt: skip
    """Parts removed, or weights a width narrower, least harmful first, while they harm `most` or less together."""
    done: list[Step] = []
    while True:
        moves = [(harm(choice, m), f"{m.name} {m.to}", m) for m in lowering(costs.space, choice) if m.side == side]
        if not moves or min(moves)[0] > most:
            return choice, done
        lost, _, move = min(moves)
        choice, most = move.applied(choice), most - lost
        done.append(Step(move, lost, {kind: costs.figure(kind, choice) for kind in costs.kinds}))


def share_used(costs: Costs, budgets: Sequence[Budget], choice: Choice) -> float:
    """The largest share of a budget that a choice uses."""
    return max(costs.figure(b.kind, choice) / b.bound(costs.whole[b.kind]) for b in budgets)


def exchange(
    costs: Costs,
    budgets: Sequence[Budget],
    choice: Choice,
    harm: Callable[[Choice, Move], float],
    *,
    parts: bool = False,
    trimmed: Container[LayerId] = (),
) -> tuple[Choice, list[Step]]:
    """A choice within its budgets that harms less, and the steps that led there.

    Round by round the best trade is made: one width given back (or one part, if `parts`), then lowered elsewhere until
    the budgets hold (`project`), then the rest spent (`fill`). `harm` of a move must be a difference of one function of
    the choice, so that trades add up; ends where no trade gains anything. Deterministic.
    """
    done: list[Step] = []
    for _ in range(EXCHANGES):
        best: tuple[float, Choice, list[Step]] | None = None
        for move in raising(costs.space, choice, parts=parts, trimmed=trimmed):
            raised = move.applied(choice)
            first = Step(move, harm(choice, move), {b.kind: costs.figure(b.kind, raised) for b in budgets})
            try:
                found, lowered = project(costs, budgets, raised, harm)
            except CheckFailed:
                continue
            found, spent = fill(costs, budgets, found, lambda c, m: -harm(c, m), trimmed=trimmed)
            steps = [first, *lowered, *spent]
            total = sum(s.loss for s in steps)
            if total < -LEAST_GAIN and (best is None or total < best[0]):
                best = total, found, steps
        if best is None:
            break
        choice = best[1]
        done += best[2]
    return choice, done


def spend(
    costs: Costs, budgets: Sequence[Budget], choice: Choice, harm: Callable[[Choice, Move], float], *,
    trimmed: Container[LayerId] = (),
) -> tuple[Choice, list[Step]]:  # fmt: skip
    """A choice that uses `USED` of a budget, where it can be reached, and the steps that led there.

    For what `fill` leaves because every width that could be given back costs more: one layer is lowered so that another
    may rise. Each round uses more than the last; of the ways to use enough the one that harms least is taken, else the
    one that uses most. Deterministic.
    """
    done: list[Step] = []
    while (used := share_used(costs, budgets, choice)) < USED:
        best: tuple[float, float, str, Way] | None = None
        for way in _raises(costs.space, choice, harm, trimmed):
            after = _after(choice, way)
            use = share_used(costs, budgets, after)
            if used + LEAST_GAIN < use and not costs.over(after, budgets):
                rank = (-min(use, USED), sum(lost for _, lost in way), _words(way), way)
                best = rank if best is None else min(best, rank, key=lambda r: r[:3])
        if best is None:
            break
        choice, steps = _made(costs, budgets, choice, best[3])
        done += steps
    return choice, done


def _raises(
    space: Space, choice: Choice, harm: Callable[[Choice, Move], float], trimmed: Container[LayerId]
) -> Iterator[Way]:  # fmt: skip
    """Every width given back, alone or after one other was lowered."""
    for up in raising(space, choice, trimmed=trimmed):
        yield _way(choice, [up], harm)
        for down in lowering(space, choice):
            if down.side in ("weight", "act") and (down.side, down.name) != (up.side, up.name):
                yield _way(choice, [down, up], harm)
