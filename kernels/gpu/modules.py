"""Linear and Conv2d as modules of torch: packed weights in buffers, float32 or stored levels in, the same out.

`of` quantises a float layer after training with a clip for its input. For inference: there is no gradient.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from torch import nn

from ...core import quant
from ...core.encoding import Encoding, parse
from ...core.errors import UnsupportedError, UsageError
from . import op
from .layout import Storage, Weights, arrange, packed
from .window import Window


class Arguments(TypedDict):
    """What quantising a float layer gives a Layer."""

    weights: Weights
    m: np.ndarray
    b: np.ndarray
    scale: float


class Layer(nn.Module):
    """Weights, constants of the epilogue, and how x is quantised where it comes as float32.

    `scale`: real value of one level of the input; 0 where it comes as levels already.
    """

    fields: torch.Tensor
    correction: torch.Tensor
    m: torch.Tensor
    b: torch.Tensor

    def __init__(
        self,
        weights: Weights,
        *,
        m: np.ndarray,
        b: np.ndarray,
        out: Storage | str = op.FLOATS,
        lo: float = -np.inf,
        hi: float = np.inf,
        residual: Storage | str | None = None,
        m_r: float = 0.0,
        scale: float = 0.0,
        window: Window | None = None,
    ) -> None:
        super().__init__()
        self.form, self.out, self.residual = weights.form, out, residual
        self.window = window or Window()
        if self.window.taps != self.form.taps:
            raise UsageError(f"the window has {self.window.taps} taps, the weights {self.form.taps}")
        self.m_r, self.lo, self.hi, self.scale = float(m_r), float(lo), float(hi), float(scale)
        # Plain values, which compilers of torch see through.
        act = self.form.act
        self._spec, self._window = op.spell(self.form, out, residual), op.numbers(self.window)
        self._bits, self._run, self._zero = act.bits, act.run, act.zero
        self._bounds = quant.act_bounds(act.encoding)
        for name, array in (("fields", weights.fields), ("correction", weights.correction), ("m", m), ("b", b)):
            self.register_buffer(name, torch.from_numpy(np.array(array)))

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """x float32 or as form.act stores it, channels last -> as `out` stores it, channels last."""
        if x.is_floating_point():
            x = self.store(x)
        return op.layer(
            x,
            residual,
            self.fields,
            self.correction,
            self.m,
            self.b,
            self._spec,
            self._window,
            self.m_r,
            self.lo,
            self.hi,
        )

    def store(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [..., channels] -> levels by docs/numerics.md 5, as form.act stores them."""
        if not self.scale:
            raise UsageError("x is float32 and the layer was made for stored levels: give it the scale of its input")
        levels = torch.clamp(torch.round(x * (1 / self.scale)), *self._bounds)
        if self._bits == 8:
            return (levels - self._zero).to(torch.int8)
        parts = 8 // self._bits
        codes = levels.to(torch.int32) & (2**self._bits - 1)
        codes = nn.functional.pad(codes, (0, -x.shape[-1] % (parts * self._run)))
        shifts = torch.arange(parts, device=x.device, dtype=torch.int32) * self._bits
        joined = (codes.reshape(*codes.shape[:-1], -1, parts, self._run) << shifts[:, None]).sum(-2, dtype=torch.int32)
        return joined.flatten(-2).to(torch.uint8).view(torch.int8)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return self._spec


class Linear(Layer):
    """y = x W^T + b with packed weights."""

    @classmethod
    def of(cls, layer: nn.Linear, *, w: str = "i4", a: str = "i8", clip: float, packed_input: bool = False) -> Linear:
        """float32 in, float32 out: weights to the nearest level of `w` per row, x to `a` within `clip`."""
        weight = layer.weight.detach().numpy()
        return cls(**_quantised(weight[:, None], layer.bias, w=w, a=a, clip=clip, fields=packed_input))


class Conv2d(Layer):
    """A convolution with packed weights; images come and go as [N, C, H, W] where they are float32."""

    @classmethod
    def of(cls, layer: nn.Conv2d, *, w: str = "i4", a: str = "i8", clip: float, packed_input: bool = False) -> Conv2d:
        """float32 in, float32 out, as Linear.of; UnsupportedError for groups and padding that is not zeros."""
        if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise UnsupportedError(
                f"groups {layer.groups}, padding {layer.padding!r} of {layer.padding_mode}: packed convolutions have "
                f"one group and a number of zeros on each side"
            )
        weight = layer.weight.detach().numpy()
        high, wide = layer.padding
        window = Window(
            kernel=(weight.shape[2], weight.shape[3]),
            stride=(layer.stride[0], layer.stride[1]),
            padding=(high, wide, high, wide),
            dilation=(layer.dilation[0], layer.dilation[1]),
        )
        rows = weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], window.taps, -1)
        return cls(**_quantised(rows, layer.bias, w=w, a=a, clip=clip, fields=packed_input), window=window)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [N, C, H, W], or stored levels [N, H, W, C]; a float32 result is [N, rows, H', W'] likewise."""
        images = x.is_floating_point()
        out = super().forward(x.permute(0, 2, 3, 1).contiguous() if images else x, residual)
        return out.permute(0, 3, 1, 2) if images and self.out == op.FLOATS else out


def _quantised(
    weight: np.ndarray, bias: torch.Tensor | None, *, w: str, a: str, clip: float, fields: bool
) -> Arguments:
    """Arguments of a Layer for weights float32 [rows, taps, channels]: m and b make real values of sums."""
    encoding, act = parse(w), parse(a)
    if encoding.name[0] != "i":
        raise UnsupportedError(f"weights after training are i2, i4 or i8, not {w}: odd grids come from a search")
    scale = quant.act_scale(clip, act)
    if not scale > 0:
        raise UsageError(f"clip is {clip}: the largest magnitude of the input, above 0")
    steps = _steps(weight, encoding)
    levels = quant.quantize_weight(weight, steps[:, None, None], encoding)
    storage = packed(act, weight.shape[2]) if fields else Storage(act)
    return {
        "weights": arrange(levels, encoding, storage),
        "m": (steps * scale).astype(np.float32),
        "b": np.zeros(len(weight), np.float32) if bias is None else bias.detach().numpy().astype(np.float32),
        "scale": scale,
    }


def _steps(weight: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Real value of one level per row, float64: the largest magnitude is the highest level; 1 for rows of zeros."""
    most = np.abs(weight.astype(np.float64)).max(axis=(1, 2))
    return np.where(most > 0, most, encoding.hi) / encoding.hi
