"""Small networks and data of a user's own, as `file.py:factory`; loaded by the tests as a user's file would be."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def chain(classes: int = 3) -> nn.Module:
    """A plain chain of three layers on [2, 6, 6]."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip
    net.in_shape = (2, 6, 6)
    return net


def strange(classes: int = 3) -> nn.Module:
    """The same with an op that Bitpress does not know."""
    net = chain(classes)
    out = nn.Sequential(*list(net)[:3], nn.Tanh(), *list(net)[3:])
    out.in_shape = net.in_shape
    return out


class Blobs:
    """Map-style set: the class says which third of the image is bright."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 3, count)
        self.images = rng.normal(0, 0.3, (count, 2, 6, 6)).astype(np.float32)
        for image, label in zip(self.images, self.labels, strict=True):
            image[:, :, 2 * label : 2 * label + 2] += 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.images[i], int(self.labels[i])


def blobs() -> tuple[Blobs, Blobs]:
    """Train and test."""
    return Blobs(120, 1), Blobs(60, 2)
