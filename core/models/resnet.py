"""ResNet-18 and ResNet-50 for ImageNet, keyed as torchvision keys them; ResNet-50's stride sits on the 3x3 convolution.

He, Zhang, Ren, Sun: Deep Residual Learning, table 1.
"""

from __future__ import annotations

import torch
from torch import nn

from .initial import start


class Basic(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, depth: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(depth, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(depth, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, depth, H, W] -> [N, width, H / stride, W / stride]."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the last has four times the channels."""

    expansion = 4

    def __init__(self, depth: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(depth, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.downsample = _projection(depth, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, depth, H, W] -> [N, 4 * width, H / stride, W / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """[N, C, H, W] -> [N, classes]: a 7x7 stem, four stages of 64, 128, 256 and 512 channels."""

    def __init__(
        self, block: type[Basic | Bottleneck], blocks: tuple[int, ...], classes: int, in_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_shape[0], 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stages = len(blocks)
        depth = 64
        for stage, count in enumerate(blocks):
            width, parts = 64 * 2**stage, []
            for i in range(count):
                parts.append(block(depth, width, 2 if stage and not i else 1))
                depth = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*parts))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(depth, classes)
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, four stages, average, classifier."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(self.avgpool(x).flatten(1))


def _projection(depth: int, width: int, stride: int) -> nn.Sequential | None:
    if depth == width and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(depth, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def resnet18(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Two basic blocks a stage."""
    return ResNet(Basic, (2, 2, 2, 2), classes, in_shape)


def resnet50(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """3, 4, 6 and 3 bottlenecks."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, in_shape)
