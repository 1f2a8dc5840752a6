"""A plain chain for 8x8 greyscale digits: small enough to be searched in a minute on one core.

First convolution and classifier hold 0.5 % of the MACs, so that 8-bit ends cost 0.03 % of the float BOPs and the inner
layers can spend the rest of a budget.
"""

from __future__ import annotations

import torch
from torch import nn

from .initial import start

WIDTHS = (16, 32, 32, 64, 64, 64)  # filters of conv1 .. conv6
POOLED = (3, 5)  # convolutions followed by a 2x2 max-pool: 8x8 -> 4x4 -> 2x2


class DigitsCnn(nn.Module):
    """[N, C, 8, 8] -> [N, classes]: six 3x3 convolutions with batch norm and ReLU, global average pool, linear."""

    def __init__(self, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        depth = in_shape[0]
        for i, width in enumerate(WIDTHS, 1):
            setattr(self, f"conv{i}", nn.Conv2d(depth, width, 3, padding=1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(width))
            setattr(self, f"relu{i}", nn.ReLU())
            if i in POOLED:
                setattr(self, f"pool{i}", nn.MaxPool2d(2))
            depth = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(depth, classes)
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs the parts in the order in which they were made."""
        for part in self.children():
            x = part(x)
        return x


def digits_cnn(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """The demo's network."""
    return DigitsCnn(classes, in_shape)
