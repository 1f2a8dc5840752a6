"""MobileNet version 3, small, at width 1, keyed as torchvision keys it: hard-swish and squeeze-excite.

Howard et al.: Searching for MobileNetV3, table 2. Batch norm's epsilon is 1e-3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .initial import start

EPS = 1e-3
STEM, HEAD, LAST = 16, 576, 1024  # channels before and behind the blocks; features of the hidden classifier
# kernel, expanded width, filters, squeeze-excite, hard-swish (else ReLU), stride
BLOCKS = (
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1), (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1), (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2), (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
)  # fmt: skip
Activation = type[nn.Module] | None


class SqueezeExcite(nn.Module):
    """A gate in [0, 1] for each channel, from the channels' means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = _rounded(width // 4)
        self.fc1 = nn.Conv2d(width, inner, 1)
        self.fc2 = nn.Conv2d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, width, H, W] -> the same, each channel scaled."""
        gate = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return F.hardsigmoid(gate) * x


class Inverted(nn.Module):
    """Expand, depthwise, squeeze-excite, project; a shortcut where the shape stays."""

    def __init__(
        self, depth: int, kernel: int, hidden: int, width: int, stride: int, act: Activation, *, squeezed: bool
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = [_layer(depth, hidden, 1, 1, 1, act)] if hidden != depth else []
        parts.append(_layer(hidden, hidden, kernel, stride, hidden, act))
        parts += [SqueezeExcite(hidden)] if squeezed else []
        self.block = nn.Sequential(*parts, _layer(hidden, width, 1, 1, 1, None))
        self.keeps_shape = stride == 1 and depth == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, depth, H, W] -> [N, width, H / stride, W / stride], not activated."""
        y = self.block(x)
        return x + y if self.keeps_shape else y


class MobileNetV3Small(nn.Module):
    """[N, C, H, W] -> [N, classes]: a 3x3 stem, 11 blocks, a 1x1 convolution, a classifier of two layers."""

    def __init__(self, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        depth = STEM
        parts: list[nn.Module] = [_layer(in_shape[0], depth, 3, 2, 1, nn.Hardswish)]
        for kernel, hidden, width, squeezed, swish, stride in BLOCKS:
            act = nn.Hardswish if swish else nn.ReLU
            parts.append(Inverted(depth, kernel, hidden, width, stride, act, squeezed=squeezed))
            depth = width
        self.features = nn.Sequential(*parts, _layer(depth, HEAD, 1, 1, 1, nn.Hardswish))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(HEAD, LAST), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(LAST, classes)
        )
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features, average, classifier."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _rounded(width: float) -> int:
    """The nearest multiple of 8, but no less than 8 and no less than nine tenths."""
    near = max(8, int(width + 4) // 8 * 8)
    return near if near >= 0.9 * width else near + 8


def _layer(depth: int, width: int, kernel: int, stride: int, groups: int, act: Activation) -> nn.Sequential:
    conv = nn.Conv2d(depth, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width, eps=EPS), *([act()] if act else []))


def mobilenet_v3_small(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Width 1."""
    return MobileNetV3Small(classes, in_shape)
