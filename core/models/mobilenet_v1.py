"""MobileNet version 1, keyed as the public TensorFlow weights are, with TensorFlow's padding.

Howard et al.: MobileNets, table 1. "Same" padding of a 3x3 window with stride 2 on an even size is (0, 1, 0, 1); batch
norm's epsilon is 1e-3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .initial import start

EPS = 1e-3
# (filters of the pointwise convolution at width 1, stride of the depthwise one)
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """[N, C, H, W] -> [N, classes]: a 3x3 stem and 13 depthwise-separable layers."""

    def __init__(self, width: float, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        depth = int(32 * width)
        self.conv1 = nn.Conv2d(in_shape[0], depth, 3, 2, bias=False)
        self.conv1_bn = nn.BatchNorm2d(depth, eps=EPS)
        for i, (filters, stride) in enumerate(LAYERS, 1):
            out, pad = int(filters * width), 1 if stride == 1 else 0
            setattr(self, f"dw{i}", nn.Conv2d(depth, depth, 3, stride, pad, groups=depth, bias=False))
            setattr(self, f"dw{i}_bn", nn.BatchNorm2d(depth, eps=EPS))
            setattr(self, f"pw{i}", nn.Conv2d(depth, out, 1, bias=False))
            setattr(self, f"pw{i}_bn", nn.BatchNorm2d(out, eps=EPS))
            depth = out
        self.fc = nn.Linear(depth, classes)
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, 13 layers, average, classifier."""
        x = F.relu6(self.conv1_bn(self.conv1(F.pad(x, (0, 1, 0, 1)))))
        for i, (_, stride) in enumerate(LAYERS, 1):
            if stride == 2:
                x = F.pad(x, (0, 1, 0, 1))
            x = F.relu6(getattr(self, f"dw{i}_bn")(getattr(self, f"dw{i}")(x)))
            x = F.relu6(getattr(self, f"pw{i}_bn")(getattr(self, f"pw{i}")(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def mobilenet_v1(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Width 1."""
    return MobileNetV1(1.0, classes, in_shape)


def mobilenet_v1_075(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Width 0.75."""
    return MobileNetV1(0.75, classes, in_shape)
