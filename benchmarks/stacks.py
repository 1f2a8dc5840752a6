"""Networks of one kind of layer, over and over: what peers time as a whole then tells what such a layer takes them.

Factories for `bitpress compile benchmarks/stacks.py:NAME --in-shape 3,H,W --classes 10`.
"""

from __future__ import annotations

from torch import nn

DEPTH = 12  # layers of the kind in question


def depthwise_128() -> nn.Module:
    """`DEPTH` depthwise layers of 3x3, stride 1, 128 channels; [n, 3, H, W] -> [n, 10]."""
    return _depthwise(128)


def depthwise_256() -> nn.Module:
    """The same of 256 channels."""
    return _depthwise(256)


def depthwise_512() -> nn.Module:
    """The same of 512 channels."""
    return _depthwise(512)


def _depthwise(channels: int) -> nn.Module:
    body: list[nn.Module] = [nn.Conv2d(3, channels, 1), nn.ReLU()]
    for _ in range(DEPTH):
        body += [nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
