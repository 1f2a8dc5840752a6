"""Triton kernels, one family a file, behind a face that loads neither triton nor torch before something is computed.

`load` puts a layer on a device, `linear` and `conv2d` run it. Without triton or a GPU they raise EnvironmentMissing,
one sentence with the remedy; `missing` is that sentence for `doctor`. docs/gpu.md says what exists and what is checked.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import EnvironmentMissing
from .layout import Storage, Weights, arrange, packed
from .window import Window

if TYPE_CHECKING:
    import torch

    from .call import Layer

__all__ = ["Storage", "Weights", "Window", "arrange", "conv2d", "linear", "load", "missing", "packed"]

DEVICES = ("/dev/nvidia0", "/dev/kfd")


def missing() -> str:
    """What this host lacks to run GPU kernels, and the remedy; "" where it has all."""
    for library, extra in (("triton", "gpu"), ("torch", "search")):
        if find_spec(library) is None:
            return f"{library} is not installed: pip install 'bitpress[{extra}]'"
    if not any(Path(device).exists() for device in DEVICES):
        return f"no GPU: {' and '.join(DEVICES)} {'do' if len(DEVICES) > 1 else 'does'} not exist"
    return ""


def load(weights: Weights, **constants: Any) -> Layer:
    """Weights and epilogue on a device: see `call.load`."""
    need()
    from . import call

    return call.load(weights, **constants)


def linear(x: torch.Tensor, layer: Layer, *, residual: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K] as the layer's `act` stores it -> [..., rows] as its `out` does, by the family that suits."""
    need()
    from . import gemm, gemv

    pixels = x.numel() // max(1, x.shape[-1])
    family = gemv if gemv.suits(layer.form, pixels) else gemm
    return family.launch(x, layer, residual=residual)


def conv2d(x: torch.Tensor, layer: Layer, window: Window, *, residual: torch.Tensor | None = None) -> torch.Tensor:
    """x [N, H, W, C] as the layer's `act` stores it -> [N, H', W', rows] as its `out` does."""
    need()
    from . import conv

    if window == Window():  # every pixel by itself
        return linear(x, layer, residual=residual)
    return conv.launch(x, layer, window, residual=residual)


def need() -> None:
    """EnvironmentMissing where triton or torch is not installed; whether there is a GPU, the tensors tell."""
    lack = missing()
    if "installed" in lack:
        raise EnvironmentMissing(f"GPU kernels cannot run here: {lack}")
