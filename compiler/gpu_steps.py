"""Steps of a Program on a device: a Triton family where kernels/gpu has one, else plain torch integers, both exact.

Values are dense and channels last: int8 [N, H, W, C] as `Storage` keeps levels, or float32. Every operation of torch
here rounds once (docs/numerics.md, R2): products and sums stand apart. `prepare` puts constants on the device and
refuses, by name, what cannot be computed; what it gives only computes, so that a CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..core.encoding import parse
from ..core.errors import UnsupportedError
from ..kernels import gpu
from ..kernels.packed import unpack
from .program import Buffer, Epilogue, Step

F32 = "f32"
TORCH = "torch"  # name of the kernel where none of ours computes a step

Run = Callable[[Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Ready:
    """A step that can be run. `kernel`: the family; `run`: values of its inputs -> those of its channels."""

    step: Step
    kernel: str
    run: Run
    places: torch.Tensor | None  # int64 [rows], where the step writes only some channels


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step works: the program's buffers and a device."""

    buffers: Sequence[Buffer]
    device: str

    def shape(self, number: int) -> tuple[int, int, int]:
        """[H, W, C] of a buffer."""
        c, h, w = self.buffers[number].shape
        return h, w, c

    def stored(self, number: int) -> gpu.Storage | None:
        """How a buffer keeps its levels; None where it holds floats."""
        storage = self.buffers[number].storage
        return None if storage == F32 else gpu.Storage(parse(storage))

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """A copy on the device."""
        return torch.from_numpy(np.array(array)).to(self.device)


def prepare(step: Step, place: Place) -> Ready:
    """The step with its constants on the device; UnsupportedError names it where the GPU cannot compute it."""
    try:
        kernel, run = _RULES[step.op](step, place)
    except UnsupportedError as error:
        raise UnsupportedError(f"step {step.name} ({step.op}) does not run on the GPU: {error}") from error
    places = None if step.out_channels is None else place.tensor(step.out_channels.astype(np.int64))
    return Ready(step, kernel, run, places)


def empty(images: int, number: int, place: Place) -> torch.Tensor:
    """A buffer of so many images, all level 0."""
    stored = place.stored(number)
    dtype, zero = (torch.float32, 0) if stored is None else (torch.int8, -stored.zero)
    return torch.full((images, *place.shape(number)), zero, dtype=dtype, device=place.device)


def levels(x: torch.Tensor, stored: gpu.Storage | None) -> torch.Tensor:
    """A stored value -> levels int32, or the float32 that it is."""
    return x if stored is None else x.to(torch.int32) + stored.zero


def _conv2d(step: Step, place: Place) -> tuple[str, Run]:
    """Every group by the families; one that sees its whole image at once is a matrix product."""
    act, weight, e = place.stored(step.inputs[0]), step.weight, step.epilogue
    assert act is not None and weight is not None and e is not None, "check() has proved that convolutions have them"
    high, wide, channels = place.shape(step.inputs[0])
    whole = step.kernel == (high, wide) and not any(step.padding)
    window = gpu.Window() if whole else gpu.Window(step.kernel, step.stride, step.padding, step.dilation)
    rows, depth = weight.shape[0] // step.groups, channels // step.groups
    shape = (step.groups, rows, 1, -1) if whole else (step.groups, rows, window.taps, depth)
    # -1 and 1 are levels of two bits, and no family has fields of one.
    encoding = parse("i2") if weight.encoding.bits == 1 else weight.encoding
    kept = place.stored(step.inputs[1]) or F32 if len(step.inputs) > 1 else None
    layers = [
        gpu.load(
            gpu.arrange(w, encoding, act), device=place.device, out=place.stored(step.output) or F32, residual=kept,
            m=e.m[i * rows : (i + 1) * rows], b=e.b[i * rows : (i + 1) * rows], lo=e.lo, hi=e.hi, m_r=e.m_r,
        )
        for i, w in enumerate(unpack(weight).reshape(shape))
    ]  # fmt: skip
    picked = None if step.out_channels is None else place.tensor(step.out_channels.astype(np.int64))

    def run(values: Sequence[torch.Tensor]) -> torch.Tensor:
        x, residual = values[0], _residual(values, picked)
        if whole:
            x = x.reshape(len(x), 1, 1, -1)
        if len(layers) == 1:
            return gpu.conv2d(x, layers[0], window, residual=residual)
        xs = x.reshape(*x.shape[:3], step.groups, -1).unbind(3)
        rs = [None] * step.groups if residual is None else residual.chunk(step.groups, -1)
        parts = [
            gpu.conv2d(part.contiguous(), layer, window, residual=None if r is None else r.contiguous())
            for part, layer, r in zip(xs, layers, rs, strict=True)
        ]
        return torch.cat(parts, -1)

    return "gemm" if window == gpu.Window() else "conv", run


def _depthwise_conv2d(step: Step, place: Place) -> tuple[str, Run]:
    act, weight = place.stored(step.inputs[0]), step.weight
    assert weight is not None, "check() has proved that convolutions have weights"
    taps = [place.tensor(tap) for tap in unpack(weight).T]  # int32 [rows] each
    picked = None if step.out_channels is None else place.tensor(step.out_channels.astype(np.int64))

    def sums(values: Sequence[torch.Tensor]) -> torch.Tensor:
        x = levels(values[0] if picked is None else values[0].index_select(-1, picked), act)
        total = torch.zeros((), dtype=torch.int32, device=x.device)
        for window, w in zip(_windows(x, step, place, 0), taps, strict=True):
            total = total + window * w
        return total

    return TORCH, _finished(sums, step, place, picked)


def _max_pool2d(step: Step, place: Place) -> tuple[str, Run]:
    """On bytes: they are in the order of their levels."""
    least = -np.inf if place.stored(step.inputs[0]) is None else -128

    def run(values: Sequence[torch.Tensor]) -> torch.Tensor:
        windows = _windows(values[0], step, place, least)
        best = next(windows)
        for window in windows:
            best = torch.maximum(best, window)
        return best.contiguous()

    return TORCH, run


def _sum_pool2d(step: Step, place: Place) -> tuple[str, Run]:
    act = place.stored(step.inputs[0])
    whole = step.kernel == place.shape(step.inputs[0])[:2] and not any(step.padding)

    def sums(values: Sequence[torch.Tensor]) -> torch.Tensor:
        x = levels(values[0], act)
        if whole:
            return x.sum((1, 2), keepdim=True, dtype=torch.int32)
        total = torch.zeros((), dtype=torch.int32, device=x.device)
        for window in _windows(x, step, place, 0):
            total = total + window
        return total

    return TORCH, _finished(sums, step, place)


def _requantize(step: Step, place: Place) -> tuple[str, Run]:
    act = place.stored(step.inputs[0])
    return TORCH, _finished(lambda values: levels(values[0], act), step, place)


def _gather(step: Step, place: Place) -> tuple[str, Run]:
    assert step.channels is not None, "check() has proved that a gather has channels"
    stored = place.stored(step.inputs[0])
    zero = 0 if stored is None else -stored.zero
    from_ = place.tensor(np.maximum(step.channels, 0).astype(np.int64))
    there = place.tensor(step.channels >= 0) if (step.channels < 0).any() else None

    def run(values: Sequence[torch.Tensor]) -> torch.Tensor:
        picked = values[0].index_select(-1, from_)
        if there is not None:
            picked = torch.where(there, picked, torch.full((), zero, dtype=picked.dtype, device=picked.device))
        return next(_windows(picked, step, place, zero)).contiguous()

    return TORCH, run


def _windows(x: torch.Tensor, step: Step, place: Place, fill: float) -> Iterator[torch.Tensor]:
    """x [N, H, W, C] under each tap of the step's window in turn, [N, H', W', C]; `fill` outside the image."""
    top, left, bottom, right = step.padding
    if any(step.padding):
        n, h, w, c = x.shape
        framed = x.new_full((n, h + top + bottom, w + left + right, c), fill)
        framed[:, top : top + h, left : left + w] = x
        x = framed
    high, wide, _ = place.shape(step.output)
    for ky, kx in np.ndindex(step.kernel):
        y, z = ky * step.dilation[0], kx * step.dilation[1]
        rows = x[:, y : y + (high - 1) * step.stride[0] + 1 : step.stride[0]]
        yield rows[:, :, z : z + (wide - 1) * step.stride[1] + 1 : step.stride[1]]


def _residual(values: Sequence[torch.Tensor], picked: torch.Tensor | None) -> torch.Tensor | None:
    """The second input, of the channels that the step writes."""
    if len(values) == 1:
        return None
    return values[1] if picked is None else values[1].index_select(-1, picked)


def _finished(sums: Run, step: Step, place: Place, picked: torch.Tensor | None = None) -> Run:
    """`sums` (int32, or float32 of a stream) and behind them the law of docs/numerics.md 5."""
    e = step.epilogue
    assert e is not None, "check() has proved that all but pools and gathers have an epilogue"
    m, b, stored = place.tensor(e.m), place.tensor(e.b), place.stored(step.output)
    kept = place.stored(step.inputs[1]) if len(step.inputs) > 1 else None

    def run(values: Sequence[torch.Tensor]) -> torch.Tensor:
        residual = _residual(values, picked)
        t = _affine(sums(values), m, b, e, None if residual is None else levels(residual, kept))
        if stored is None:
            return t.clamp(e.lo, e.hi)
        return (t.round().clamp(e.lo, e.hi) - stored.zero).to(torch.int8)

    return run


def _affine(
    acc: torch.Tensor, m: torch.Tensor, b: torch.Tensor, e: Epilogue, residual: torch.Tensor | None
) -> torch.Tensor:
    """core.quant.affine: each operation rounded on its own."""
    t = acc.to(torch.float32) * m
    t = t + b
    if residual is not None:
        t = t + residual.to(torch.float32) * float(np.float32(e.m_r))
    return t


_RULES: Mapping[str, Callable[[Step, Place], tuple[str, Run]]] = {
    "quantize": _requantize,
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise_conv2d,
    "requantize": _requantize,
    "max_pool2d": _max_pool2d,
    "sum_pool2d": _sum_pool2d,
    "gather": _gather,
}
