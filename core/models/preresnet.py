"""Pre-activation ResNet-20/56 for 32x32 images with 1x1-convolution shortcuts: the network of SBS's CIFAR tables.

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks. The shortcut reads the activated input, so that it is
quantised without a sign like every other input but the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .initial import start


class PreBlock(nn.Module):
    """Batch norm and ReLU before each of the two 3x3 convolutions."""

    def __init__(self, depth: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(depth)
        self.conv1 = nn.Conv2d(depth, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(depth, width, 1, stride, bias=False) if depth != width or stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, depth, H, W] -> [N, width, H / stride, W / stride], not activated."""
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class PreResNet(nn.Module):
    """[N, C, H, W] -> [N, classes]: three stages of `blocks` blocks with 16, 32 and 64 channels."""

    def __init__(self, blocks: int, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_shape[0], 16, 3, 1, 1, bias=False)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.bn = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, classes)
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, three stages, batch norm and ReLU, average, classifier."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1))


def _stage(depth: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(PreBlock(depth, width, stride), *(PreBlock(width, width, 1) for _ in range(blocks - 1)))


def preresnet20(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Three blocks a stage."""
    return PreResNet(3, classes, in_shape)


def preresnet56(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Nine blocks a stage."""
    return PreResNet(9, classes, in_shape)
