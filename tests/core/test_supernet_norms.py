"""Norms that came with the weights: kept where nothing changes, moved by what does."""

from __future__ import annotations

import pytest
import torch

from bitpress.core.supernet import FloatNet
from bitpress.core.supernet_norms import norms_of
from bitpress.core.train import reestimate

from .test_supernet_levels import uneven


def statistics(net: FloatNet) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items() if "mean" in name or "var" in name}


def test_a_net_that_is_as_it_was_gets_its_own_norms_back_whatever_the_images() -> None:
    net, x = uneven()
    own = statistics(net)
    norms = norms_of(net, [3 * x[:5] + 1])
    assert any(not torch.allclose(value, own[name]) for name, value in statistics(net).items())
    norms.move(net)
    for name, value in statistics(net).items():
        assert value == pytest.approx(own[name], rel=1e-4, abs=1e-12)


def test_norms_move_by_what_a_change_does_on_the_images() -> None:
    """Weights twice as large and a bias one larger: the mean of each filter moves so, its variance is fourfold."""
    net, x = uneven()
    own = statistics(net)
    norms = norms_of(net, [x[:9]])
    consts = net.graph.value("conv").consts
    with torch.no_grad():
        net.tensor(consts["weight"]).mul_(2)
        net.tensor(consts["bias"]).mul_(2).add_(1)
    reestimate(net, [x[:9]])
    norms.move(net)
    after = net.graph.value("bn").consts
    mean, var = net.tensor(after["mean"]), net.tensor(after["var"])
    alive = own[after["var"]] > 1e-6
    assert var[alive] == pytest.approx(4 * own[after["var"]][alive], rel=1e-3)
    seen = norms.seen[after["mean"]]
    assert mean == pytest.approx(own[after["mean"]] + seen + 1, abs=1e-3)
