"""ZOO: one row per network of ours: how it is made, and the input that it expects when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..network import Triple
from .digits_cnn import digits_cnn
from .efficientnet_lite import efficientnet_lite0
from .mobilenet_v1 import mobilenet_v1, mobilenet_v1_075
from .mobilenet_v2 import mobilenet_v2
from .mobilenet_v2_tf import mobilenet_v2_tf, without_background
from .mobilenet_v3 import mobilenet_v3_small
from .preresnet import preresnet20, preresnet56
from .resnet import resnet18, resnet50
from .resnet_cifar import resnet20, resnet56
from .skynet import skynet
from .vgg7 import vgg7

Shape = tuple[int, int, int]
State = dict[str, torch.Tensor]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Of the training images: cifar10 0.2470 0.2435 0.2616 (per-pixel deviation), cifar100 as measured on the official set.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = ((0.507075, 0.486549, 0.440918), (0.267334, 0.256438, 0.276150))
TENSORFLOW = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # x/127.5 - 1
RAW = ((0.0,), (1.0,))


@dataclass(frozen=True, slots=True)
class Entry:
    """A network: its factory (classes, in_shape) -> module, and the defaults.

    `adapt` (module, state dict of a file) -> the state dict that is loaded.
    """

    name: str
    factory: Callable[[int, Shape], nn.Module]
    classes: int
    in_shape: Shape
    mean: Triple
    std: Triple
    adapt: Callable[[nn.Module, State], State] = lambda _module, state: state


_ROWS = (
    Entry("digits_cnn", digits_cnn, 10, (1, 8, 8), *RAW),
    Entry("resnet20", resnet20, 10, (3, 32, 32), *IMAGENET),  # as the public CIFAR-10 weights were trained
    Entry("resnet56", resnet56, 10, (3, 32, 32), *IMAGENET),
    Entry("preresnet20", preresnet20, 100, (3, 32, 32), *CIFAR100),
    Entry("preresnet56", preresnet56, 100, (3, 32, 32), *CIFAR100),
    Entry("vgg7", vgg7, 10, (3, 32, 32), *CIFAR10),
    Entry("resnet18", resnet18, 1000, (3, 224, 224), *IMAGENET),
    Entry("resnet50", resnet50, 1000, (3, 224, 224), *IMAGENET),
    Entry("mobilenet_v1", mobilenet_v1, 1000, (3, 224, 224), *TENSORFLOW),
    Entry("mobilenet_v1_075", mobilenet_v1_075, 1000, (3, 224, 224), *TENSORFLOW),
    Entry("mobilenet_v2", mobilenet_v2, 1000, (3, 224, 224), *IMAGENET),
    Entry("efficientnet_lite0", efficientnet_lite0, 1000, (3, 224, 224), *IMAGENET),
    Entry("mobilenet_v3_small", mobilenet_v3_small, 1000, (3, 224, 224), *IMAGENET),
    Entry("mobilenet_v2_tf", mobilenet_v2_tf, 1000, (3, 224, 224), *TENSORFLOW, adapt=without_background),
    Entry("skynet", skynet, 10, (3, 160, 320), (0.5,) * 3, (0.25,) * 3),  # 10 values a place: two anchors
)
ZOO = {entry.name: entry for entry in _ROWS}
