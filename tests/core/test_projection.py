"""How a choice is brought under its budgets, and how what is left is spent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitpress.core.cost import (
    Choice,
    Costs,
    hold_bits,
    hold_channels,
    largest,
    parse_budget,
    search_space,
    smallest,
    stairs,
)
from bitpress.core.errors import CheckFailed
from bitpress.core.plan import LayerId
from bitpress.core.projection import (
    USED,
    Move,
    check_reachable,
    exchange,
    fill,
    lowering,
    project,
    raising,
    share_used,
    spend,
    trim,
)

from .test_cost import _random, chain, depthwise


def test_the_remedy_is_one_that_helps() -> None:
    graph = chain()
    space, budget = search_space(graph), [parse_budget("bops=0.01%")]
    for held, says in (
        (space, "largest pruning; raise the budget or the pruning ratio$"),
        (hold_channels(space), "no pruning; raise the budget$"),
        (hold_bits(graph, space, (4, 8)), "w4a8 between .* raise the budget or the pruning ratio, or lower --bits$"),
        (hold_channels(hold_bits(graph, space, (4, 8))), "no pruning; raise the budget, or lower --bits$"),
    ):
        with pytest.raises(CheckFailed, match=says):
            check_reachable(graph, budget, held)


def test_the_least_is_the_least() -> None:
    graph = chain()
    space = search_space(graph, group_size=4)
    costs, rng = Costs(graph, space), np.random.default_rng(1)
    assert costs.bops(smallest(space)) <= min(costs.bops(_random(space, rng)) for _ in range(200))
    assert costs.size(smallest(space)) <= min(costs.size(_random(space, rng)) for _ in range(200))


def test_an_unreachable_budget_is_told_with_the_least_figure() -> None:
    graph = chain()
    space = search_space(graph)
    least = Costs(graph, space).bops(smallest(space))
    with pytest.raises(CheckFailed, match=str(least)):
        check_reachable(graph, [parse_budget("bops=0.01%")], space)
    check_reachable(graph, [parse_budget(f"bops={least}"), parse_budget("size=90%")], space)


def test_projection_takes_the_least_loss_per_saving_and_always_meets_the_budget() -> None:
    graph = chain()
    space = search_space(graph, group_size=4)
    costs, rng = Costs(graph, space), np.random.default_rng(0)
    noise = {f"{s} {n}": rng.uniform(0.1, 1) for s, n in itertools.product(("weight", "act"), space.searched)}

    def loss(_choice: Choice, move: Move) -> float:
        return noise.get(f"{move.side} {move.name}", 5.0)

    start = largest(space)
    budgets = [parse_budget("bops=1.2%"), parse_budget("size=15%")]
    choice, steps = project(costs, budgets, start, loss)
    assert not costs.over(choice, budgets)
    assert steps
    assert project(costs, budgets, start, loss) == (choice, steps)
    before = start
    for step in steps:
        saved = {m: _saving(costs, budgets, before, m) for m in lowering(space, before)}
        ratio = {m: loss(before, m) / s for m, s in saved.items() if s > 0}
        assert ratio[step.move] == min(ratio.values())
        before = step.move.applied(before)
    assert before == choice


def _saving(costs: Costs, budgets: list, choice: Choice, move: Move) -> float:  # type: ignore[type-arg]
    after = move.applied(choice)
    over = costs.over(choice, budgets)
    return float(sum(np.log(costs.figure(k, choice) / costs.figure(k, after)) for k in over))


def test_projection_reaches_the_cheapest_point() -> None:
    graph = depthwise()
    space = search_space(graph)
    costs = Costs(graph, space)
    budget = parse_budget(f"bops={costs.bops(smallest(space))}")
    choice, _ = project(costs, [budget], largest(space), lambda _c, _m: 0.0)
    assert costs.bops(choice) == costs.bops(smallest(space))


def test_what_is_left_is_spent_within_the_budget() -> None:
    graph = chain()
    space = search_space(graph)
    costs = Costs(graph, space)
    budgets = [parse_budget("bops=2%")]
    choice, steps = fill(costs, budgets, smallest(space), lambda _c, m: 1.0 if m.side == "act" else 0.0)
    assert steps
    assert not costs.over(choice, budgets)
    assert set(choice.weight[LayerId(n)] for n in space.searched) == {2}


def test_trades_lower_a_known_harm_within_the_budget() -> None:
    """Harms in which the activation of one layer is worth all its bits: the trade must find it and pay elsewhere."""
    graph = chain()
    space = search_space(graph)
    costs = Costs(graph, space)
    start = stairs(space)[2]
    budgets = [parse_budget(f"bops={costs.bops(start)}")]
    dear = space.searched[-1]

    def level(choice: Choice) -> float:
        rows = [(b, 1.0) for b in choice.weight.values()]
        rows += [(b, 50.0 if layer == dear else 1.0) for layer, b in choice.act.items()]
        return sum(weight / b for b, weight in rows)

    def harm(choice: Choice, move: Move) -> float:
        return level(move.applied(choice)) - level(choice)

    choice, steps = exchange(costs, budgets, start, harm)
    assert not costs.over(choice, budgets)
    assert choice.act[dear] == 8
    assert level(choice) < level(start)
    assert sum(step.loss for step in steps) == pytest.approx(level(choice) - level(start))
    assert exchange(costs, budgets, choice, harm) == (choice, [])  # nothing is left to gain


def test_trades_give_parts_back_where_they_are_asked_to() -> None:
    graph = chain()
    space = search_space(graph)
    costs, start = Costs(graph, space), stairs(space)[2]
    group, gate = next(iter(space.gates.items()))
    cut = Choice(start.weight, start.act, {**start.parts, group: start.parts[group][1:]})
    budgets = [parse_budget(f"bops={costs.bops(start)}")]

    def harm(choice: Choice, move: Move) -> float:
        """A removed part hurts more than all rounding."""
        after = move.applied(choice)
        removed = sum(len(p) for p in choice.parts.values()) - sum(len(p) for p in after.parts.values())
        bits = (sum(c.weight.values()) + sum(c.act.values()) for c in (choice, after))
        return 1000.0 * removed + next(bits) - next(bits)

    assert exchange(costs, budgets, cut, harm)[0].parts == cut.parts
    assert exchange(costs, budgets, cut, harm, parts=True)[0].parts[group] == tuple(range(len(gate.sizes)))


def test_trimming_removes_the_least_harmful_parts_as_long_as_they_harm_little_together() -> None:
    graph = chain()
    costs = Costs(graph, search_space(graph))
    start = stairs(costs.space)[2]
    worth = {f"{g} {p}": 1.0 + i for i, (g, p) in enumerate((g, p) for g in start.parts for p in start.parts[g])}

    def harm(_choice: Choice, move: Move) -> float:
        return worth[f"{move.name} {move.to}"]

    choice, steps = trim(costs, start, harm, 0.9)
    assert (choice, steps) == (start, [])
    choice, steps = trim(costs, start, harm, 3.5)
    assert [step.loss for step in steps] == [1.0, 2.0][: len(steps)]
    assert sum(step.loss for step in steps) <= 3.5
    assert costs.bops(choice) == steps[-1].figures["bops"] < costs.bops(start)
    assert (choice.weight, choice.act) == (start.weight, start.act)


def test_trimmed_weights_are_the_least_harmful_and_stay_narrow_in_what_follows() -> None:
    graph = chain()
    space = search_space(graph)
    costs, start = Costs(graph, space), stairs(space)[2]
    first, second = space.searched[:2]
    worth = {first: 1.0, second: 2.0}

    def harm(choice: Choice, move: Move) -> float:
        """Of a width; parts and activations are worth more than all weights."""
        after = move.applied(choice)
        bits = [sum(worth.get(n, 9.0) * b for n, b in c.weight.items()) for c in (choice, after)]
        acts = [100.0 * sum(c.act.values()) for c in (choice, after)]
        return bits[0] - bits[1] + acts[0] - acts[1] + 1000.0 * (move.side == "prune")

    down = {layer: worth[layer] * (start.weight[layer] - 2) for layer in worth}
    assert trim(costs, start, harm, down[first] - 0.5, side="weight") == (start, [])
    choice, steps = trim(costs, start, harm, down[first] + down[second], side="weight")
    assert [(s.move.side, s.move.name, s.move.to) for s in steps] == [("weight", n, 2) for n in (first, second)]
    assert (choice.act, choice.parts) == (start.act, start.parts)

    trimmed, budgets = {first, second}, [parse_budget(f"bops={costs.bops(largest(space))}")]
    assert {m.name for m in raising(space, choice, trimmed=trimmed) if m.side == "weight"}.isdisjoint(trimmed)
    for made, _ in (
        fill(costs, budgets, choice, lambda c, m: -harm(c, m), trimmed=trimmed),
        exchange(costs, budgets, choice, harm, trimmed=trimmed),
        spend(costs, budgets, choice, harm, trimmed=trimmed),
    ):
        assert costs.bops(made) > costs.bops(choice)
        assert all(made.weight[n] == 2 for n in trimmed)
    assert fill(costs, budgets, choice, lambda c, m: -harm(c, m))[0] == largest(space)


def test_a_budget_that_no_single_width_fits_is_spent_by_a_trade() -> None:
    """Bytes of a layer are a lump: the widest layers do not fit, and those that fit are eight bits wide already."""
    graph = chain()
    space = hold_channels(search_space(graph))
    costs = Costs(graph, space)
    low = smallest(space)
    bytes_of = {
        layer: costs.size(Choice({**low.weight, layer: 8}, low.act, low.parts)) - costs.size(low)
        for layer in space.searched
    }
    small, large = min(bytes_of, key=bytes_of.__getitem__), max(bytes_of, key=bytes_of.__getitem__)
    assert bytes_of[large] > bytes_of[small]
    start = Choice({**low.weight, small: 8}, low.act, low.parts)
    budgets = [parse_budget(f"size={int(costs.size(low) + bytes_of[large])}")]
    choice, steps = spend(costs, budgets, start, lambda _c, move: float(move.to))
    assert not costs.over(choice, budgets) and share_used(costs, budgets, choice) >= USED > share_used(
        costs, budgets, start
    )
    assert steps and spend(costs, budgets, choice, lambda _c, move: float(move.to)) == (choice, [])
