"""Weights that a network starts its training from. Knows no network by name."""

from __future__ import annotations

from torch import nn


def start(module: nn.Module) -> None:
    """He's normal start for every convolution (fan-in, so that depthwise ones keep the scale too) and linear layer."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="linear")
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
