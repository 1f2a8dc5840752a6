"""SkyNet: a detector of one object from depthwise-separable bundles, keyed as the public weights are.

Zhang et al.: SkyNet, table 3, model C. The map of 192 channels goes past a pool: its pixels of even and odd rows and
columns become four times the channels, which slices and one concatenation say.
"""

from __future__ import annotations

import torch
from torch import nn

from .initial import start


class SkyNet(nn.Module):
    """[N, C, H, W] -> [N, classes, H / 8, W / 8]: box, objectness of two anchors where `classes` is 10."""

    def __init__(self, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.model_p1 = nn.Sequential(
            _bundle(in_shape[0], 48), nn.MaxPool2d(2), _bundle(48, 96), nn.MaxPool2d(2), _bundle(96, 192)
        )
        self.model_p2 = nn.Sequential(nn.MaxPool2d(2), _bundle(192, 384), _bundle(384, 512))
        self.model_p3 = nn.Sequential(_bundle(4 * 192 + 512, 96), nn.Conv2d(96, classes, 1, bias=False))
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three bundles, then two more beside the rearranged bypass, then the map of answers."""
        x = self.model_p1(x)
        bypass = [x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return self.model_p3(torch.cat([*bypass, self.model_p2(x)], 1))


def _bundle(depth: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(depth, depth, 3, 1, 1, groups=depth, bias=False), nn.BatchNorm2d(depth), nn.ReLU6(),
        nn.Conv2d(depth, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
    )  # fmt: skip


def skynet(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """The one SkyNet."""
    return SkyNet(classes, in_shape)
