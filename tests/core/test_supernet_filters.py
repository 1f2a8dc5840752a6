"""Filters that differ in width: the training forward, its clips, and what the integers and figures make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitpress.core.bops import count
from bitpress.core.cost import Choice, Costs, largest, search_space, to_plan
from bitpress.core.graph import Graph
from bitpress.core.integer import integer
from bitpress.core.plan import validate
from bitpress.core.semantics import Semantics
from bitpress.core.supernet import SuperNet, differing_codes, from_plan
from bitpress.core.supernet_filters import FilterNet
from bitpress.core.supernet_starts import fit

from ..benchmarks.graphs import residual
from .test_cost import chain, depthwise
from .test_supernet import _images

WIDE = (8, 4, 2, 4)


def _mixed(net: FilterNet, gone: int = 1) -> Choice:
    """Widths 8, 4, 2, 4 over and over, `gone` parts of each group removed, inputs at 4 bits."""
    whole = largest(net.space)
    parts = {g: p[: len(p) - min(gone, net.space.gates[g].removable)] for g, p in whole.parts.items()}
    act = {**whole.act, **dict.fromkeys(net.space.searched, 4)}
    filters = {}
    for layer in net.space.searched:
        rows = net.graph.value(layer).shape[0]
        group = net._group_of[layer]
        kept = net.space.gates[group].kept(parts[group]) if group in parts else tuple(range(rows))
        filters[layer] = tuple(WIDE[f % 4] if f in kept else 0 for f in range(rows))
    return Choice(whole.weight, act, parts, filters)


def _net(make: Callable[[], Graph], gone: int = 1) -> FilterNet:
    graph = make()
    net = FilterNet(graph, search_space(graph, group_size=1))
    choice = _mixed(net, gone)
    net.freeze(choice)
    fit(net, [_images(graph)], choice)
    return net.eval()


@pytest.mark.parametrize("make", [chain, residual, depthwise])
def test_the_training_forward_is_what_the_integers_say(make: Callable[[], Graph]) -> None:
    net = _net(make)
    plan, tensors = net.extract()
    graph = net.graph.with_nodes(net.graph.nodes, {k: tensors[k] for k in net.graph.consts})
    validate(plan, graph)
    assert any(len(bits.weight) > 1 for bits in plan.bits.values())
    x = _images(graph).numpy()
    values = Semantics(integer(graph, plan, tensors)).values(x)
    assert max(differing_codes(graph, plan, tensors, values, x).values()) < 0.02
    again = from_plan(graph, plan, tensors)
    assert again.choice().filters == net.choice().filters
    for layer in net.space.searched:
        rows = net.kept_widths(layer) > 0
        with torch.no_grad():
            assert torch.equal(again.rounded_weight(layer)[rows], net.rounded_weight(layer)[rows])


def test_each_filter_has_the_levels_of_its_width() -> None:
    net = _net(chain, gone=0)
    plan, tensors = net.extract()
    graph = net.graph.with_nodes(net.graph.nodes, {k: tensors[k] for k in net.graph.consts})
    found = integer(graph, plan, tensors)
    for layer in net.space.searched:
        for row, width in zip(found.consts[f"{layer}.levels"], net.choice().filters[layer], strict=True):
            assert np.abs(row).max() <= 2**width - 1
            assert (row % 2 != 0).all()
            assert np.abs(row).max() > 2 ** (width - 1) - 1  # and uses them


def test_a_layer_of_one_width_rounds_as_in_a_net_of_layers() -> None:
    graph = chain()
    space = search_space(graph)
    choice = replace(largest(space), weight={**largest(space).weight, **dict.fromkeys(space.searched, 4)})
    nets = [kind(graph, space) for kind in (FilterNet, SuperNet)]
    for net in nets:
        net.freeze(choice)
        fit(net, [_images(graph)], choice)
        net.eval()
    with torch.no_grad():
        assert torch.equal(*(net(_images(graph)) for net in nets))
    plans = [net.extract()[0] for net in nets]
    assert plans[0] == plans[1]


def test_clips_of_widths_in_use_learn_and_others_do_not() -> None:
    net = _net(chain)
    layer = net.space.searched[0]
    two = replace(net.choice(), filters={}, weight={**net.choice().weight, layer: 2})
    net.freeze(two)
    net.train()
    net(_images(net.graph)).square().mean().backward()
    grad = net.tensor(f"{layer}.weight_clip").grad
    assert grad is not None and grad[0] != 0 and (grad[1:] == 0).all()


@pytest.mark.parametrize("make", [chain, residual, depthwise])
@pytest.mark.parametrize("gone", [0, 2])
def test_figures_of_mixed_filters_are_those_of_the_plan(make: Callable[[], Graph], gone: int) -> None:
    net = _net(make, gone)
    choice = net.choice()
    plan = to_plan(net.graph, net.space, choice, residual="int8")
    totals = count(net.graph, plan).totals
    costs = Costs(net.graph, net.space)
    assert (costs.bops(choice), costs.size(choice)) == (totals.bops, totals.weight_bytes)
    assert all(0 not in costs.widths(choice, term) for term in costs.terms)  # removed filters are none of any width
    assert costs.bops(choice) < costs.bops(replace(choice, filters={}))  # which are all at the widest


def test_a_state_holds_the_widths() -> None:
    net = _net(chain)
    other = FilterNet(net.graph, net.space)
    other.load_state_dict(net.state_dict())
    assert other.choice() == net.choice() != FilterNet(net.graph, net.space).choice()
