"""MobileNet version 2 at width 1, keyed as torchvision keys it.

Sandler et al.: MobileNetV2, table 2. The narrow ends of a block stay linear: their activations are signed.
"""

from __future__ import annotations

import torch
from torch import nn

from .initial import start

STEM, HEAD = 32, 1280  # channels before and behind the blocks
# expansion, filters, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Inverted(nn.Module):
    """Expand, depthwise, project; a shortcut where the shape stays."""

    def __init__(self, depth: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = depth * expansion
        parts: list[nn.Module] = [_layer(depth, hidden, 1, 1, 1)] if expansion > 1 else []
        parts += [
            _layer(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        ]
        self.conv = nn.Sequential(*parts)
        self.keeps_shape = stride == 1 and depth == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, depth, H, W] -> [N, width, H / stride, W / stride], not activated."""
        y = self.conv(x)
        return x + y if self.keeps_shape else y


class MobileNetV2(nn.Module):
    """[N, C, H, W] -> [N, classes]: a 3x3 stem, 17 inverted residual blocks, a 1x1 convolution to 1280 channels."""

    def __init__(self, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        depth = STEM
        parts: list[nn.Module] = [_layer(in_shape[0], depth, 3, 2, 1)]
        for expansion, width, blocks, first in STAGES:
            for i in range(blocks):
                parts.append(Inverted(depth, width, 1 if i else first, expansion))
                depth = width
        self.features = nn.Sequential(*parts, _layer(depth, HEAD, 1, 1, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(HEAD, classes))
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features, average, classifier."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _layer(depth: int, width: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(depth, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU6())


def mobilenet_v2(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Width 1."""
    return MobileNetV2(classes, in_shape)
