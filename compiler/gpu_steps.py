"""Steps of a Program on a device, each by a Triton family of kernels/gpu; torch gathers, looks up and multiplies maps.

Values are dense and channels last: int8 [N, H, W, C] as `Storage` keeps levels, or float32. `prepare` puts constants on
the device and refuses, by name, what cannot be computed; what it gives only computes, so that a CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.encoding import parse
from ..core.errors import UnsupportedError
from ..kernels import gpu
from ..kernels.packed import unpack
from .program import Buffer, Step

F32 = "f32"

# Values of the inputs, and the result where the step writes only some of its channels -> the result.
Run = Callable[[Sequence[torch.Tensor], torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Ready:
    """A step that can be run. `kernel`: what computes it; `why`: why that."""

    step: Step
    kernel: str
    why: str
    run: Run


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step works: the program's buffers and a device."""

    buffers: Sequence[Buffer]
    device: str

    def shape(self, number: int) -> tuple[int, int, int]:
        """[H, W, C] of a buffer."""
        c, h, w = self.buffers[number].shape
        return h, w, c

    def stored(self, number: int) -> gpu.Storage | str:
        """How a buffer is stored: levels, or "f32"."""
        storage = self.buffers[number].storage
        return F32 if storage == F32 else gpu.Storage(parse(storage))

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """A copy on the device."""
        return torch.from_numpy(np.array(array)).to(self.device)

    def epilogue(self, step: Step) -> dict[str, Any]:
        """Constants of the step as the families take them."""
        e = step.epilogue
        assert e is not None, "check() has proved that all but max pools and gathers have an epilogue"
        out = {
            "m": e.m, "b": e.b, "lo": e.lo, "hi": e.hi, "m_r": e.m_r, "device": self.device,
            "out": self.stored(step.output),
            "residual": self.stored(step.inputs[1]) if len(step.inputs) > 1 else None,
        }  # fmt: skip
        if step.out_channels is not None:
            out |= {"columns": step.out_channels, "width": self.buffers[step.output].shape[0]}
        return out


def prepare(step: Step, place: Place) -> Ready:
    """The step with its constants on the device; UnsupportedError names it where the GPU cannot compute it."""
    try:
        kernel, run = _RULES[step.op](step, place)
    except UnsupportedError as error:
        raise UnsupportedError(f"step {step.name} ({step.op}) does not run on the GPU: {error}") from error
    return Ready(step, kernel, WHY[kernel], run)


def empty(images: int, number: int, place: Place) -> torch.Tensor:
    """A buffer of so many images, not initialised: steps write all its channels before one reads it."""
    dtype = torch.float32 if place.stored(number) == F32 else torch.int8
    return torch.empty((images, *place.shape(number)), dtype=dtype, device=place.device)


def levels(x: torch.Tensor, stored: gpu.Storage | str) -> torch.Tensor:
    """A stored value -> levels int32, or the float32 that it is."""
    return x.to(torch.int32) + stored.zero if isinstance(stored, gpu.Storage) else x


def _conv2d(step: Step, place: Place) -> tuple[str, Run]:
    """One that sees its whole image at once is a matrix product."""
    act, weight = place.stored(step.inputs[0]), step.weight
    assert isinstance(act, gpu.Storage) and weight is not None, "check() has proved that convolutions have them"
    high, wide, channels = place.shape(step.inputs[0])
    whole = step.kernel == (high, wide) and not any(step.padding)
    window = gpu.Window() if whole else _window(step)
    rows, depth = weight.shape[0] // step.groups, channels // step.groups
    shape = (step.groups, rows, 1, -1) if whole else (step.groups, rows, window.taps, depth)
    # -1 and 1 are levels of two bits, and no family has fields of one.
    encoding = parse("i2") if weight.encoding.bits == 1 else weight.encoding
    rest = place.epilogue(step)
    layers = []
    for i, w in enumerate(unpack(weight).reshape(shape)):
        part = slice(i * rows, (i + 1) * rows)
        own = {**rest, "m": rest["m"][part], "b": rest["b"][part]}
        layers.append(gpu.load(gpu.arrange(w, encoding, act), **own))

    def run(values: Sequence[torch.Tensor], into: torch.Tensor | None) -> torch.Tensor:
        x, residual = values[0], _residual(values)
        if whole:
            x = x.reshape(len(x), 1, 1, -1)
        return gpu.conv2d(x, layers[0], window, residual=residual, into=into)

    def grouped(values: Sequence[torch.Tensor], _into: torch.Tensor | None) -> torch.Tensor:
        x, residual = values[0], _residual(values)
        xs = [x[..., i * depth : (i + 1) * depth].contiguous() for i in range(step.groups)]
        if whole:
            xs = [part.reshape(len(x), 1, 1, -1) for part in xs]
        rs = [None] * step.groups if residual is None else [r.contiguous() for r in residual.chunk(step.groups, -1)]
        parts = [gpu.conv2d(p, layer, window, residual=r) for p, layer, r in zip(xs, layers, rs, strict=True)]
        return torch.cat(parts, -1)

    return "gemm" if window == gpu.Window() else "conv", run if step.groups == 1 else grouped


def _depthwise_conv2d(step: Step, place: Place) -> tuple[str, Run]:
    act, weight, window = place.stored(step.inputs[0]), step.weight, _window(step)
    assert isinstance(act, gpu.Storage) and weight is not None, "check() has proved that convolutions have them"
    encoding = parse("i2") if weight.encoding.bits == 1 else weight.encoding
    weights = gpu.arrange(unpack(weight)[:, :, None], encoding, act, depthwise=True)
    layer = gpu.load(weights, **place.epilogue(step))
    return "depthwise", lambda values, into: gpu.depthwise2d(
        values[0], layer, window, residual=_residual(values), into=into
    )


def _max_pool2d(step: Step, place: Place) -> tuple[str, Run]:
    source, window, channels = place.stored(step.inputs[0]), _window(step), place.shape(step.inputs[0])[2]
    return "max_pool", lambda values, _into: gpu.max_pool(values[0], source, channels, window)


def _sum_pool2d(step: Step, place: Place) -> tuple[str, Run]:
    """Of one pixel: another storage for what there is."""
    high, wide, channels = place.shape(step.inputs[0])
    pool, window = gpu.load_pool(place.stored(step.inputs[0]), channels, **place.epilogue(step)), _window(step)
    if step.op == "sum_pool2d" and step.kernel == (high, wide) and not any(step.padding):
        return "global_average_pool", lambda values, into: gpu.global_average_pool(
            values[0], pool, residual=_residual(values), into=into
        )
    return "average_pool", lambda values, into: gpu.average_pool(
        values[0], pool, window, residual=_residual(values), into=into
    )


def _gather(step: Step, place: Place) -> tuple[str, Run]:
    assert step.channels is not None, "check() has proved that a gather has channels"
    stored = place.stored(step.inputs[0])
    zero = -_zero(stored)
    from_ = place.tensor(np.maximum(step.channels, 0).astype(np.int64))
    there = place.tensor(step.channels >= 0) if (step.channels < 0).any() else None
    to = None if step.out_channels is None else place.tensor(step.out_channels.astype(np.int64))
    top, left, bottom, right = step.padding
    (high, wide), (down, across) = place.shape(step.output)[:2], step.stride

    def run(values: Sequence[torch.Tensor], into: torch.Tensor | None) -> torch.Tensor:
        x = values[0].index_select(-1, from_)
        if there is not None:
            x = torch.where(there, x, torch.full((), zero, dtype=x.dtype, device=x.device))
        x = torch.nn.functional.pad(x, (0, 0, left, right, top, bottom), value=zero) if any(step.padding) else x
        x = x[:, : (high - 1) * down + 1 : down, : (wide - 1) * across + 1 : across].contiguous()
        return x if into is None or to is None else into.index_copy_(-1, to, x)

    return "torch", run


def _lookup(step: Step, place: Place) -> tuple[str, Run]:
    """By the lowest bits of a level, which are its code."""
    source, out = place.stored(step.inputs[0]), place.stored(step.output)
    assert isinstance(source, gpu.Storage) and step.table is not None, "check() has proved that look-ups have them"
    entries = step.table if out == F32 else step.table - np.float32(_zero(out))
    table, mask = place.tensor(entries.astype(np.float32 if out == F32 else np.int8)), len(step.table) - 1

    def run(values: Sequence[torch.Tensor], _into: torch.Tensor | None) -> torch.Tensor:
        return table[levels(values[0], source).to(torch.int64) & mask]

    return "torch", run


def _product(step: Step, place: Place) -> tuple[str, Run]:
    """Each operation of the law is one of torch's, which fuses none of them."""
    stored, out, e = [place.stored(number) for number in step.inputs], place.stored(step.output), step.epilogue
    assert e is not None, "check() has proved that products have an epilogue"
    m, b = place.tensor(e.m), place.tensor(e.b)

    def run(values: Sequence[torch.Tensor], _into: torch.Tensor | None) -> torch.Tensor:
        x, gate = (levels(value, how) for value, how in zip(values, stored, strict=True))
        t = (x * gate).to(torch.float32) * m
        t = t + b
        if out == F32:
            return torch.clamp(t, e.lo, e.hi)
        return (torch.clamp(torch.round(t), e.lo, e.hi) - _zero(out)).to(torch.int8)

    return "torch", run


def _zero(stored: gpu.Storage | str) -> int:
    """Level that byte 0 stands for."""
    return stored.zero if isinstance(stored, gpu.Storage) else 0


def _window(step: Step) -> gpu.Window:
    return gpu.Window(step.kernel, step.stride, step.padding, step.dilation)


def _residual(values: Sequence[torch.Tensor]) -> torch.Tensor | None:
    return values[1] if len(values) > 1 else None


WHY: Mapping[str, str] = {
    "gemm": "every pixel by itself, or the whole image at once: a matrix product, of few rows a matrix-vector product",
    "conv": "an implicit matrix product on the tensor cores",
    "depthwise": "one channel by itself has no use for tensor cores",
    "max_pool": "the one family of maxima",
    "average_pool": "a sum over a window of one pixel or more, and the epilogue",
    "global_average_pool": "a sum over the whole image, and the epilogue",
    "torch": "moves bytes, looks them up or multiplies maps, which torch does as well",
}
_RULES: Mapping[str, Callable[[Step, Place], tuple[str, Run]]] = {
    "quantize": _sum_pool2d,
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise_conv2d,
    "requantize": _sum_pool2d,
    "max_pool2d": _max_pool2d,
    "sum_pool2d": _sum_pool2d,
    "gather": _gather,
    "lookup": _lookup,
    "product": _product,
}
