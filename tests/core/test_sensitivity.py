"""Mixed widths without training: harms that are measured, budgets that hold, and what is said of the rest."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bitpress.core.calibrate import calibrate, tensors_for
from bitpress.core.cost import Choice, Costs, hold_channels, parse_budget, plan_cost, search_space, smallest
from bitpress.core.errors import CheckFailed, UsageError
from bitpress.core.graph import run
from bitpress.core.integer import integer
from bitpress.core.plan import validate
from bitpress.core.ranges import Ranges
from bitpress.core.sensitivity import IMAGES, LEAST_USED, choose, measure, mixed, total
from tests.compiler.nets import NETS, assert_stages_agree, chain, images, residual

DEFAULT = Ranges()


def measured(graph, x, ranges=DEFAULT):
    return measure(graph, hold_channels(search_space(graph)), x, ranges, lambda _share: None)


def divergence(graph, plan, tensors, x):
    """From the float network's answers, in nats, as the integer graph computes it."""
    got = run(integer(graph, plan, tensors), {"image": x})[graph.outputs[0]]
    want, found = (F.log_softmax(torch.from_numpy(a.reshape(len(x), -1)), 1) for a in (outputs(graph, x), got))
    return float((want.exp() * (want - found)).sum(1).mean())


def outputs(graph, x):
    return run(graph, {"image": x})[graph.outputs[0]]


@pytest.mark.parametrize("net", ["chain", "residual", "preact", "option_a", "inverted"])
def test_fewer_bits_never_hurt_less_and_the_widest_hurts_nothing(net):
    graph = NETS[net]()
    harms = measured(graph, images(graph, 12))
    space = search_space(graph)
    for side, layers in (("weight", space.searched), ("act", space.acts)):
        for name in layers:
            two, four, eight = (harms[side, name, bits] for bits in (2, 4, 8))
            assert two >= four >= eight == 0 and two > 0


def test_a_harm_is_what_rounding_one_tensor_does():
    """Of one layer at 2 bits among 8, as the integer network shows it."""
    graph = chain()
    x = images(graph, 32)
    harms = measured(graph, x)
    plan, tensors = calibrate(graph, x, weight_bits=2, act_bits=8)
    rest = calibrate(graph, x, weight_bits=8, act_bits=8)
    assert harms["weight", "b", 2] == pytest.approx(
        divergence(graph, plan, tensors, x) - divergence(graph, *rest, x), rel=0.3
    )


def test_batches_do_not_matter(monkeypatch):
    graph = chain()
    x = images(graph, 8)
    whole = measured(graph, x, Ranges(correct=False))
    monkeypatch.setattr("bitpress.core.calibrate.BATCH_VALUES", 3 * x[0].size)
    for key, value in measured(graph, x, Ranges(correct=False)).items():
        assert value == pytest.approx(whole[key], rel=1e-3, abs=1e-6), key


@pytest.mark.parametrize("net", ["residual", "option_a", "inverted"])
@pytest.mark.parametrize("budget", ["size=14%", "size=20%", "bops=2%", "bops=4%"])
def test_a_budget_holds_and_is_used_or_it_is_said_why(net, budget):
    graph = NETS[net]()
    x = images(graph, 8)
    wanted = parse_budget(budget)
    try:
        found = mixed(graph, x, [wanted], ranges=Ranges())
    except CheckFailed as error:
        assert "cannot be reached" in str(error)
        return
    validate(found.plan, graph)
    kind = "size" if wanted.kind == "size" else "bops"
    whole = Costs(graph, search_space(graph)).whole[kind]
    share = plan_cost(graph, found.plan)[kind] / wanted.bound(whole)
    assert share <= 1 and share == pytest.approx(found.used[budget])
    assert share >= LEAST_USED or found.why
    assert_stages_agree(graph, found.plan, tensors_for(graph, found.plan, x), x[:2])


def test_the_layer_that_hurts_most_keeps_its_bits():
    graph = residual()
    x = images(graph, 16)
    space = hold_channels(search_space(graph))
    costs = Costs(graph, space)
    harms = {(side, name, bits): (8 - bits) * 0.01 for side in ("weight", "act") for name in space.searched
             for bits in (2, 4, 8)}  # fmt: skip
    for spared in space.searched:
        harsh = {key: value * (100 if key[:2] == ("weight", spared) else 1) for key, value in harms.items()}
        choice = choose(costs, [parse_budget("size=20%")], harsh)
        others = [choice.weight[name] for name in space.searched if name != spared]
        assert choice.weight[spared] >= max(others)
    assert total(space, harms, smallest(space)) == pytest.approx(0.06 * (len(space.searched) + len(space.acts)))
    assert isinstance(choice, Choice) and len(x)


def test_mixed_hurts_less_than_uniform_bits_of_the_same_size():
    graph = residual()
    x = images(graph, 32)
    for w in (2, 4):
        plan, _ = calibrate(graph, x, weight_bits=w, act_bits=8)
        size = plan_cost(graph, plan)["size"]
        found = mixed(graph, x, [parse_budget(f"size={size}B")], ranges=Ranges())
        assert plan_cost(graph, found.plan)["size"] <= size
        uniform = sum(v for (side, _, bits), v in found.harms.items() if side == "weight" and bits == w)
        assert found.harm <= uniform


def test_what_is_refused_and_what_needs_nothing():
    graph = chain()
    x = images(graph, 4)
    with pytest.raises(UsageError, match="need a budget"):
        mixed(graph, x, [], ranges=Ranges())
    with pytest.raises(CheckFailed, match="the least is"):
        mixed(graph, x, [parse_budget("size=1%")], ranges=Ranges())
    with pytest.raises(UsageError, match="--latency-table"):
        mixed(graph, x, [parse_budget("latency=1ms")], ranges=Ranges())
    found = mixed(graph, x, [parse_budget("size=90%")], ranges=Ranges())
    assert "all layers have 8 bits" in found.why and found.harm == 0


def test_progress_rises_to_the_end():
    graph, told = chain(), []
    mixed(graph, images(graph, 4), [parse_budget("size=20%")], ranges=Ranges(), progress=told.append)
    assert told == sorted(told) and told[-1] == pytest.approx(1.0) and IMAGES >= 4
    assert np.isfinite(told).all()
