"""A network and a data set that train in seconds, in the form in which users bring their own: file.py:factory."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

SHAPE = (1, 6, 6)


class Chain(nn.Module):
    """Three convolutions and a classifier."""

    in_shape = SHAPE

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.body(x)).flatten(1))


class Block(nn.Module):
    """A residual block between a stem and a classifier."""

    in_shape = SHAPE

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(y)) + x)
        return self.fc(x.mean((2, 3)))


class Signed(nn.Module):
    """An inner convolution whose input can be negative."""

    in_shape = SHAPE

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(self.bn0(self.stem(x)))))
        return self.fc(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class Odd(nn.Module):
    """Has an op that nothing here knows."""

    in_shape = SHAPE

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.erf(self.conv(x)).mean((2, 3)))


def chain(classes: int = 4) -> nn.Module:
    return Chain(classes)


def block(classes: int = 4) -> nn.Module:
    return Block(classes)


def signed(classes: int = 4) -> nn.Module:
    return Signed(classes)


def odd(classes: int = 4) -> nn.Module:
    return Odd(classes)


class Bars:
    """Noisy bars in four places: a map-style set."""

    classes = ("top", "bottom", "left", "right")

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 4, count)
        self.images = rng.normal(0, 0.4, (count, *SHAPE)).astype(np.float32)
        places = ((0, slice(1, 2)), (0, slice(4, 5)), (1, slice(1, 2)), (1, slice(4, 5)))
        for image, label in zip(self.images, self.labels, strict=True):
            axis, where = places[label]
            if axis == 0:
                image[0, where, :] += 1
            else:
                image[0, :, where] += 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.images[i], int(self.labels[i])


def bars() -> tuple[Bars, Bars]:
    return Bars(220, 0), Bars(100, 1)


def no_test() -> tuple[Bars, object]:
    """A set whose test part cannot be read at all."""

    class Closed:
        def __len__(self) -> int:
            raise RuntimeError("the test part was opened")

    return Bars(220, 0), Closed()
