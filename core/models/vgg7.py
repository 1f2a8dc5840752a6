"""VGG7: 2x128C3-MP-2x256C3-MP-2x512C3-MP-FC1024-FC, the CIFAR-10 network of DJPQ and Bayesian Bits."""

from __future__ import annotations

import torch
from torch import nn

from .initial import start

WIDTHS = (128, 128, 256, 256, 512, 512)


class Vgg7(nn.Module):
    """[N, C, H, W] -> [N, classes]; the first linear layer fixes the size of the image."""

    def __init__(self, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        depth, height, width = in_shape
        parts: list[nn.Module] = []
        for i, filters in enumerate(WIDTHS):
            parts += [nn.Conv2d(depth, filters, 3, 1, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
            if i % 2:
                parts.append(nn.MaxPool2d(2))
            depth = filters
        self.features = nn.Sequential(*parts)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(depth * (height // 8) * (width // 8), 1024, bias=False)
        self.bn = nn.BatchNorm1d(1024)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(1024, classes)
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Six convolutions, two linear layers."""
        return self.fc2(self.relu(self.bn(self.fc1(self.flatten(self.features(x))))))


def vgg7(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """The one VGG7."""
    return Vgg7(classes, in_shape)
