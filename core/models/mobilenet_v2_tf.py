"""MobileNet version 2 as TensorFlow's mobile models hold it: batch norms folded, TensorFlow's padding, flat keys.

Sandler et al.: MobileNetV2, table 2. A 3x3 window with stride 2 on an even size is padded by (0, 1, 0, 1); the
classifier is a 1x1 convolution behind the average.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .initial import start
from .mobilenet_v2 import HEAD, STAGES, STEM


class MobileNetV2Folded(nn.Module):
    """[N, C, H, W] -> [N, classes]; layer i, in the order of execution, has the keys `{i:02}.conv_2d.weight` and so on.

    Depthwise layers are called `depthwise_conv_2d`.
    """

    def __init__(self, classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        depth = STEM
        self._add(in_shape[0], depth, 3, 2)
        self.blocks: list[tuple[int, bool, int]] = []  # layers, whether the input is added, stride
        for expansion, width, blocks, first in STAGES:
            for i in range(blocks):
                stride, hidden = 1 if i else first, depth * expansion
                if expansion > 1:
                    self._add(depth, hidden, 1)
                self._add(hidden, hidden, 3, stride, groups=hidden)
                self._add(hidden, width, 1)
                self.blocks.append((3 if expansion > 1 else 2, stride == 1 and depth == width, stride))
                depth = width
        self._add(depth, HEAD, 1)
        self._add(HEAD, classes, 1)
        start(self)

    def _add(self, depth: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        pad = kernel // 2 if stride == 1 else 0
        name = "conv_2d" if groups == 1 else "depthwise_conv_2d"
        layer = nn.Conv2d(depth, width, kernel, stride, pad, groups=groups)
        self.add_module(f"{len(self._modules):02}", nn.ModuleDict({name: layer}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, 17 inverted residual blocks, a 1x1 convolution, average, classifier."""
        layers = [next(iter(part.values())) for part in self.children() if isinstance(part, nn.ModuleDict)]
        x = F.relu6(layers[0](F.pad(x, (0, 1, 0, 1))))
        at = 1
        for count, added, stride in self.blocks:
            y = x
            for i, layer in enumerate(layers[at : at + count], 1):
                y = F.pad(y, (0, 1, 0, 1)) if stride == 2 and i == count - 1 else y
                y = layer(y) if i == count else F.relu6(layer(y))
            x, at = x + y if added else y, at + count
        x = F.adaptive_avg_pool2d(F.relu6(layers[at](x)), 1)
        return layers[at + 1](x).flatten(1)


def without_background(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` of a public file without the first output, the background, where `module` has one output less."""
    own = module.state_dict()
    *_, last = own  # the classifier's weight or bias
    layer = last.rpartition(".")[0]
    return {
        name: value[1:] if name.startswith(layer) and name in own and len(value) == len(own[name]) + 1 else value
        for name, value in state.items()
    }


def mobilenet_v2_tf(classes: int, in_shape: tuple[int, int, int]) -> nn.Module:
    """Width 1."""
    return MobileNetV2Folded(classes, in_shape)
