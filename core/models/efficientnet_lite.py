"""EfficientNet-lite0: EfficientNet-B0 without squeeze-excite, with ReLU6, keyed as timm keys it.

Tan and Le: EfficientNet, table 1. Narrow ends of blocks stay linear: their activations are signed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .initial import start

STEM, HEAD = 32, 1280  # channels before and behind the blocks
# expansion, filters, blocks, kernel of the depthwise convolution, stride of the first block
STAGES = (
    (1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)  # fmt: skip


class Separable(nn.Module):
    """Depthwise, project; a shortcut where the shape stays."""

    def __init__(self, depth: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(depth, depth, kernel, stride, kernel // 2, groups=depth, bias=False)
        self.bn1 = nn.BatchNorm2d(depth)
        self.conv_pw = nn.Conv2d(depth, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.keeps_shape = stride == 1 and depth == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, depth, H, W] -> [N, width, H / stride, W / stride], not activated."""
        y = self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))
        return x + y if self.keeps_shape else y


class Inverted(nn.Module):
    """Expand, depthwise, project; a shortcut where the shape stays."""

    def __init__(self, depth: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = depth * expansion
        self.conv_pw = nn.Conv2d(depth, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_dw = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv_pwl = nn.Conv2d(hidden, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.keeps_shape = stride == 1 and depth == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, depth, H, W] -> [N, width, H / stride, W / stride], not activated."""
        y = F.relu6(self.bn1(self.conv_pw(x)))
        y = F.relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.keeps_shape else y


class EfficientNetLite0(nn.Module):
    """[N, C, H, W] -> [N, classes]: a 3x3 stem, 16 blocks, a 1x1 convolution to 1280 channels."""

    def __init__(self, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(in_shape[0], STEM, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        depth, stages = STEM, []
        for expansion, width, blocks, kernel, first in STAGES:
            parts: list[nn.Module] = []
            for i in range(blocks):
                stride = 1 if i else first
                parts.append(
                    Inverted(depth, width, kernel, stride, expansion)
                    if expansion > 1
                    else Separable(depth, width, kernel, stride)
                )
                depth = width
            stages.append(nn.Sequential(*parts))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(depth, HEAD, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD)
        self.classifier = nn.Linear(HEAD, classes)
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, blocks, 1x1 convolution, average, classifier."""
        x = self.blocks(F.relu6(self.bn1(self.conv_stem(x))))
        x = F.relu6(self.bn2(self.conv_head(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def efficientnet_lite0(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Width 1, 224 x 224."""
    return EfficientNetLite0(classes, in_shape)
