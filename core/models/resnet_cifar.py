"""ResNet-20/56 for 32x32 images with parameter-free shortcuts (option A), keyed as the public weights are.

He, Zhang, Ren, Sun: Deep Residual Learning, section 4.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .initial import start


class Block(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut takes every second pixel and pads the channels."""

    def __init__(self, depth: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(depth, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.pad = stride, (width - depth) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, depth, H, W] -> [N, width, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.pad:
            x = F.pad(x, (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNetCifar(nn.Module):
    """[N, C, H, W] -> [N, classes]: three stages of `blocks` blocks with 16, 32 and 64 channels."""

    def __init__(self, blocks: int, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_shape[0], 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, three stages, average, classifier."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(depth: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(depth, width, stride), *(Block(width, width, 1) for _ in range(blocks - 1)))


def resnet20(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Three blocks a stage."""
    return ResNetCifar(3, classes, in_shape)


def resnet56(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Nine blocks a stage."""
    return ResNetCifar(9, classes, in_shape)
