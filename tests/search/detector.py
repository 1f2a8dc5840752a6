"""A small detector, for tests: SkyNet's head behind two convolutions."""

from __future__ import annotations

import torch
from torch import nn

from bitpress.core.detection import HEAD


class Detector(nn.Module):
    """[N, 3, H, W] -> [N, HEAD, H / 8, W / 8]."""

    in_shape = (3, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        )  # fmt: skip
        self.head = nn.Conv2d(16, HEAD, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def detector() -> nn.Module:
    return Detector()
