"""The walk of two controllers through a network: ranks, clamp, wall and spending against the figures of core.bops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitpress.core.bops import count
from bitpress.core.cost import Costs, cheapest, largest, parse_budget, search_space, to_plan
from bitpress.core.graph import Graph
from bitpress.core.plan import validate
from bitpress.core.projection import USED, share_used
from bitpress.core.walk import CHANNEL, LAYER, Ranks, Walk

from ..benchmarks.graphs import residual
from .tables import Formula, flat, made, narrow_is_slow, smooth
from .test_cost import chain, depthwise


def walk(
    make: Callable[[], Graph], *budgets: str, widths: tuple[int, ...] = (2, 4, 8), group_size: int = 1, seed: int = 1,
    table: Path | None = None, formula: Formula = smooth,
) -> Walk:  # fmt: skip
    """Ranks drawn by chance; a budget "bops=0.5" lies half way between the least and the largest plan.

    `table`: folder for a table of made-up times, in blocks of eight filters.
    """
    graph = make()
    space = replace(search_space(graph, group_size=group_size), widths=widths)
    if table is not None:
        space = replace(space, target=made(table, graph, formula, block=8))
    rng = np.random.default_rng(seed)
    filters = {n: rng.permutation(graph.value(n).shape[0]).tolist() for n in space.searched}
    ranks = Ranks(filters, {g: rng.permutation(len(gate.sizes)).tolist() for g, gate in space.open.items()})
    costs = Costs(graph, space)
    found = []
    for text in budgets:
        kind, _, share = text.partition("=")
        least, most = costs.figure(kind, cheapest(costs, kind)), costs.figure(kind, largest(space))
        bound = least + float(share) * (most - least)
        found.append(parse_budget(f"latency={bound!r}ms" if kind == "latency" else f"{kind}={round(bound)}"))
    return Walk(graph, costs, found, ranks)


def through(one: Walk, decide: Callable[[str, int], np.ndarray]) -> Walk:
    one.begin()
    while not one.ended:
        one.take(decide(one.turn.role, one.shares(one.turn.role)))
    return one


def by_chance(seed: int) -> Callable[[str, int], np.ndarray]:
    rng = np.random.default_rng(seed)
    return lambda _role, size: rng.uniform(size=size)


@pytest.mark.parametrize("make", [chain, depthwise, residual])
@pytest.mark.parametrize("budgets", [("bops=0.3",), ("size=0.4",), ("bops=0.3", "size=0.3"), ("size=0.75",)])
def test_every_walk_ends_within_its_budgets_and_spends_them(
    make: Callable[[], Graph], budgets: tuple[str, ...]
) -> None:
    one = walk(make, *budgets)
    for seed in range(6):
        through(one, by_chance(seed))
        plan = to_plan(one.graph, one.space, one.choice, residual="int8")
        validate(plan, one.graph)
        totals = count(one.graph, plan).totals
        figures = {"bops": totals.bops, "size": totals.weight_bytes}
        used = [(figures[b.kind] or 0) / b.value for b in one.budgets]
        assert max(used) <= 1
        assert max(used) >= 0.9


@pytest.mark.parametrize("say", [0.0, 1.0])
def test_whatever_is_asked_for_the_budget_holds(say: float) -> None:
    one = through(walk(chain, "bops=0.12"), lambda _role, size: np.full(size, say))
    assert not one.costs.over(one.choice, one.budgets)
    assert (one.record.walled > 0) == (say == 1.0)


def test_who_is_first_in_rank_stays_and_is_wide() -> None:
    one = through(walk(chain, "bops=0.3"), by_chance(3))
    mixed = 0
    for layer in one.space.searched:
        line = one._lined(one.choice, layer)
        assert line == sorted(line, reverse=True)
        mixed += len({*line}) > 1
    assert mixed
    for group, parts in one.choice.parts.items():
        assert {*parts} == {*one.ranks.parts[group][: len(parts)]}


def test_ratios_are_clamped_to_what_leaves_later_layers_their_least() -> None:
    one = walk(chain, "size=0.01")
    through(one, lambda _role, size: np.ones(size))
    assert any(kept < asked for asked, kept in one.record.kept.values())
    assert not one.costs.over(one.choice, one.budgets)


def test_the_wall_takes_from_the_last_layer_first() -> None:
    one = walk(chain, "size=0.97")
    through(one, lambda _role, size: np.ones(size))
    changed = [n for n in one.space.searched if n in one.choice.filters or one.choice.weight[n] < 8]
    assert changed == [one.space.searched[-1]]


def test_one_width_leaves_the_channel_controller_nothing_to_say() -> None:
    one = walk(chain, "size=0.6", widths=(4,))
    assert {t.role for t in one.turns} == {LAYER}
    through(one, by_chance(0))
    assert not one.choice.filters
    assert {one.choice.weight[n] for n in one.space.searched} == {4}
    assert {t.role for t in walk(chain, "size=0.6").turns} == {LAYER, CHANNEL}


def test_observations_are_within_their_bounds_and_tell_turns_apart() -> None:
    one = walk(residual, "bops=0.3")
    seen = []

    def decide(_role: str, size: int) -> np.ndarray:
        seen.append(one.observation())
        return np.full(size, 0.5)

    through(one, decide)
    assert one.observation().shape == seen[0].shape
    table = np.stack(seen)
    assert table.dtype == np.float32 and table.min() >= 0 and table.max() <= 1
    assert len(np.unique(table, axis=0)) == len(table)


@pytest.mark.parametrize("budget", ["bops=0.9", "size=0.9", "size=0.3"])
def test_what_was_given_up_comes_back_only_where_there_are_no_bits_to_buy(budget: str) -> None:
    one = walk(chain, budget)
    through(one, lambda role, size: np.full(size, 0.25 if role == LAYER else 0.5))
    decided = {g: round(kept * len(one.space.gates[g].sizes)) for g, (_, kept) in _by_group(one).items()}
    stayed = {g: len(parts) for g, parts in one.choice.parts.items()}
    wide = all(min(one._lined(one.choice, n)) == 8 == one.choice.act[n] for n in one.space.searched)
    assert wide == (budget != "size=0.3")
    assert (stayed == decided) == (not wide)
    assert share_used(one.costs, one.budgets, one.choice) >= USED


def _by_group(one: Walk) -> dict[str, tuple[float, float]]:
    layers = {str(turn.layer): turn.group for turn in one.turns if turn.group is not None}
    return {layers[name]: shares for name, shares in one.record.kept.items()}


@pytest.mark.parametrize("group_size", [1, 3, 5])
@pytest.mark.parametrize("make", [chain, depthwise, residual])
def test_the_least_budget_is_kept_whoever_is_first_in_rank(make: Callable[[], Graph], group_size: int) -> None:
    """A group's last part may hold fewer channels than others: where only it fits it stays, whatever its rank."""
    for seed in range(4):
        one = walk(make, "bops=0", "size=0", group_size=group_size, seed=seed)
        through(one, by_chance(seed))
        assert not one.costs.over(one.choice, one.budgets)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("formula", [smooth, flat, narrow_is_slow])
def test_budgets_of_time_hold_where_fewer_bits_are_no_faster(tmp_path: Path, formula: Formula, share: float) -> None:
    one = walk(chain, f"latency={share}", table=tmp_path, formula=formula, group_size=3)
    for seed in range(4):
        through(one, by_chance(seed))
        assert not one.costs.over(one.choice, one.budgets)


@pytest.mark.parametrize("formula", [smooth, flat])
def test_a_few_narrow_filters_that_would_take_a_block_of_their_own_join_the_wider_ones(
    tmp_path: Path, formula: Formula
) -> None:
    plain, timed = walk(chain, "bops=0.8"), walk(chain, "bops=0.8", table=tmp_path, formula=formula)
    merged = []
    for seed in range(6):
        through(plain, by_chance(seed))
        through(timed, by_chance(seed))
        assert not plain.record.merged and not timed.costs.over(timed.choice, timed.budgets)
        merged.append(timed.record.merged)
        for term in timed.costs.terms:
            joined = timed._joined(term.layer)
            if joined is not None and not timed.costs.over(joined, timed.budgets):
                assert timed.costs.time_of(joined, term) > timed.costs.time_of(timed.choice, term)
    assert any(merged)
