"""Triton kernels, one family a file, behind a face that loads neither triton nor torch before something is computed.

`load` puts a layer on a device, `linear`, `conv2d` and `depthwise2d` run it; `load_pool` does so for `average_pool` and
`global_average_pool`, and `max_pool` needs nothing. Without triton or a GPU they raise EnvironmentMissing,
one sentence with the remedy; `missing` is that sentence for `doctor`. docs/gpu.md says what exists and what is checked.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import EnvironmentMissing
from .layout import Storage, Weights, arrange, packed
from .window import Window

if TYPE_CHECKING:
    import torch

    from .call import Layer, Out
    from .pool import Pool

__all__ = [
    "Storage", "Weights", "Window", "arrange", "average_pool", "conv2d", "depthwise2d", "device", "global_average_pool",
    "linear", "linear_bitserial", "load", "load_pool", "max_pool", "missing", "name", "packed", "target",
]  # fmt: skip

DEVICES = ("/dev/nvidia0", "/dev/kfd")
MAX_INDEX = 2**31 - 1  # kernels index with int32


def missing() -> str:
    """What this host lacks to run GPU kernels, and the remedy; "" where it has all."""
    for library, extra in (("triton", "gpu"), ("torch", "search")):
        if find_spec(library) is None:
            return f"{library} is not installed: pip install 'bitpress[{extra}]'"
    if not interpreted() and not any(Path(device).exists() for device in DEVICES):
        return f"no GPU: {' and '.join(DEVICES)} {'do' if len(DEVICES) > 1 else 'does'} not exist"
    return ""


def interpreted() -> bool:
    """Whether kernels run on CPU tensors in triton's interpreter, for tests: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def device() -> str:
    """Where networks run here: "cuda", in the interpreter "cpu". EnvironmentMissing where kernels cannot run."""
    if lack := missing():
        raise EnvironmentMissing(f"GPU kernels cannot run here: {lack}")
    if interpreted():
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentMissing(
            f"GPU kernels cannot run here: torch {torch.__version__} finds no GPU that it can use; install a build of "
            "torch for CUDA or ROCm, and the driver that it asks for"
        )
    return "cuda"


def target(device: str) -> str:
    """The chip, "sm90" or "gfx942"; EnvironmentMissing, UnsupportedError as of `call.target_of`."""
    need()
    import torch

    from . import call

    return call.target_of(torch.device(device))


def name(device: str) -> str:
    """What the GPU calls itself."""
    import torch

    return "triton's interpreter" if interpreted() else str(torch.cuda.get_device_name(device))


def load(weights: Weights, **constants: Any) -> Layer:
    """Weights and epilogue on a device: see `call.load`."""
    need()
    from . import call

    return call.load(weights, **constants)


def load_pool(source: Out, channels: int, **constants: Any) -> Pool:
    """A sum over windows on a device: see `pool.load`. Of one pixel it requantises, from "f32" it quantises."""
    need()
    from . import pool

    return pool.load(source, channels, **constants)


def linear(
    x: torch.Tensor, layer: Layer, *, residual: torch.Tensor | None = None, into: torch.Tensor | None = None
) -> torch.Tensor:
    """x [..., K] as the layer's `act` stores it -> [..., rows] as its `out` does, by the family that suits.

    `into`, here and below: the result, where the layer was loaded with `columns` and writes some of its channels.
    """
    need()
    from . import gemm, gemv

    pixels = x.numel() // max(1, x.shape[-1])
    family = gemv if gemv.suits(layer.form, pixels) else gemm
    return family.launch(x, layer, residual=residual, into=into)


def linear_bitserial(
    x: torch.Tensor, layer: Layer, *, residual: torch.Tensor | None = None, into: torch.Tensor | None = None
) -> torch.Tensor:
    """As `linear`, with the same bits, by AND and popcount: w2a2 and w4a4 whose activations come as fields."""
    need()
    from . import bitserial

    return bitserial.launch(x, layer, residual=residual, into=into)


def conv2d(
    x: torch.Tensor,
    layer: Layer,
    window: Window,
    *,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [N, H, W, C] as the layer's `act` stores it -> [N, H', W', rows] as its `out` does."""
    need()
    from . import conv

    if window == Window():  # every pixel by itself
        return linear(x, layer, residual=residual, into=into)
    return conv.launch(x, layer, window, residual=residual, into=into)


def depthwise2d(
    x: torch.Tensor,
    layer: Layer,
    window: Window,
    *,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [N, H, W, C] as the layer's `act` stores it -> [N, H', W', C]; its weights were arranged as depthwise."""
    need()
    from . import depthwise

    return depthwise.launch(x, layer, window, residual=residual, into=into)


def max_pool(x: torch.Tensor, source: Out, channels: int, window: Window) -> torch.Tensor:
    """x [N, H, W, channels] as `source` stores it, a Storage or "f32" -> [N, H', W', channels], stored alike."""
    need()
    from . import pool

    return pool.launch_max(x, source, channels, window)


def average_pool(
    x: torch.Tensor,
    pool: Pool,
    window: Window,
    *,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [N, H, W, C] as the pool reads it -> [N, H', W', C] as its `out` does; the divisor is in its m."""
    need()
    from .pool import launch_average

    return launch_average(x, pool, window, residual=residual, into=into)


def global_average_pool(
    x: torch.Tensor, pool: Pool, *, residual: torch.Tensor | None = None, into: torch.Tensor | None = None
) -> torch.Tensor:
    """x [N, H, W, C] as the pool reads it -> [N, 1, 1, C] as its `out` does; the divisor is in its m."""
    need()
    from .pool import launch_global

    return launch_global(x, pool, residual=residual, into=into)


def need() -> None:
    """EnvironmentMissing where triton or torch is not installed; whether there is a GPU, the tensors tell."""
    lack = missing()
    if "installed" in lack:
        raise EnvironmentMissing(f"GPU kernels cannot run here: {lack}")
