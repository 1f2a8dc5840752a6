"""Filters of one range: the same network, in evaluation and where norms take their statistics anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bitpress.core.capture import capture
from bitpress.core.cost import largest, search_space
from bitpress.core.supernet import FloatNet
from bitpress.core.supernet_filters import FilterNet
from bitpress.core.supernet_levels import level, normed
from bitpress.core.supernet_rounding import EVEN
from bitpress.core.supernet_starts import fit
from bitpress.core.train import reestimate


class Uneven(nn.Module):
    """Filters from nothing at all to large, depthwise ones and one with a bias among them; the last has no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, bias=True), nn.BatchNorm2d(6, eps=1e-3)
        self.dw, self.dwbn = nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6, eps=1e-3)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.dwbn(self.dw(torch.relu(self.bn(self.conv(x)))))))


def uneven() -> tuple[FloatNet, torch.Tensor]:
    torch.manual_seed(0)
    module = Uneven()
    sizes = torch.tensor([0.0, 1e-14, 1e-4, 0.03, 1.0, 20.0])
    x = torch.randn(64, 3, 10, 10)
    with torch.no_grad():
        module.conv.weight.mul_(sizes.view(-1, 1, 1, 1))
        module.conv.bias.mul_(sizes)
        module.dw.weight.mul_(sizes.flip(0).clamp_min(1e-3).view(-1, 1, 1, 1))
        for norm in (module.bn, module.dwbn):
            norm.momentum = 1.0
            norm.weight.normal_(1, 0.2)
            norm.bias.normal_(0.5, 0.2)
        module.train()(x)
    return FloatNet(capture(module.eval(), (3, 10, 10))).eval(), x


def test_ranges_are_one_and_the_network_computes_what_it_did() -> None:
    net, x = uneven()
    with torch.no_grad():
        before = net(x)
        level(net)
        assert net(x) == pytest.approx(before, rel=1e-4, abs=1e-4)
        assert [layer.name for layer, _ in normed(net.graph)] == ["conv", "dw"]
        ranges = net.tensor(net.graph.value("dw").consts["weight"]).abs().flatten(1).amax(1)
        assert ranges == pytest.approx(torch.full((6,), float(ranges.max())))
        ranges = net.tensor(net.graph.value("conv").consts["weight"]).abs().flatten(1).amax(1)
        assert ranges[2:] == pytest.approx(torch.full((4,), float(ranges.max())))
        assert float(ranges[0]) == 0


def test_statistics_taken_anew_find_the_same_norms() -> None:
    net, x = uneven()
    with torch.no_grad():
        before = net(x)
        level(net)
        reestimate(net, [x])
        assert np.abs((net(x) - before).numpy()).max() < 0.02 * np.abs(before.numpy()).max()


def test_filters_of_a_super_net_are_levelled_before_they_are_rounded() -> None:
    """At 8 bits it then computes nearly what the float network does, whose filters differ by orders of magnitude."""
    plain, x = uneven()
    net = FilterNet(plain.graph, search_space(plain.graph, group_size=1), grid=EVEN).eval()
    level(net)
    with torch.no_grad():
        fit(net, [x], largest(net.space))
        reestimate(net, [x])  # rounding moves what dead filters give, which norms enlarge
        wanted = plain(x)
        assert float((net(x) - wanted).norm() / wanted.norm()) < 0.1
        weight = net.graph.value("dw").consts["weight"]
        ranges = net.tensor(weight).abs().flatten(1).amax(1)
        assert ranges == pytest.approx(torch.full((6,), float(ranges.max())))
