"""Rounding to grids with a straight-through gradient: the domains, the gated sum of residuals, both fused with clips,
and grids whose step, range and exponent are learned.

Plain functions of tensors; which value is rounded by which clip to how many bits is `core.supernet`'s business. The
fused forms take one pass of memory an operation and keep no intermediate that their backward does not read: in plain
autograd the quantisers cost more than the convolutions of a small network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

TINY = 1e-12
SHORT = 1 - 1e-7  # of a nested range: its ends round inwards, so that the grid is symmetric (methods A.4)

# Normalised domains. unit: activations that are never negative, [0, 1]; odd: weights, [0, 1] before 2D - 1, no zero;
# even: signed activations, [-1, 1] on the symmetric grid, zero exact.
UNIT, ODD, EVEN = "unit", "odd", "even"


def steps(domain: str, bits: int) -> int:
    """Steps of the grid from 0 to 1: 2**b - 1, or 2**(b-1) - 1 on the symmetric one, which takes 2 bits at least."""
    return 2 ** (bits - 1) - 1 if domain == EVEN else 2**bits - 1


def least(domain: str) -> float:
    """Lower end of an activation's normalised domain."""
    return -1.0 if domain == EVEN else 0.0


class Round(torch.autograd.Function):
    """D(z, 1/n) = round(z n) / n, half to even; the gradient passes (methods A.1.1)."""

    @staticmethod
    def forward(_ctx: Any, z: Tensor, n: int | Tensor) -> Tensor:
        """Nearest multiple of 1/n."""
        return torch.round(z * n) / n

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Straight through."""
        return grad, None


class Decompose(torch.autograd.Function):
    """z_2 + g_4 (e_4 + g_8 e_8): the single path that holds 2, 4 and 8 bits (methods A.1.2, A.1.3).

    The residuals' own gradients vanish under straight-through rounding, so z's gradient passes and each gate receives
    the sum of gradient times what it lets through.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, g4: Tensor, g8: Tensor, domain: str) -> Tensor:
        """Normalised z -> normalised rounded z; `g4`, `g8` scalars."""
        z2, e4, e8 = residuals(z, domain)
        ctx.save_for_backward(e4, e8, g4, g8)
        return z2 + g4 * (e4 + g8 * e8)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """To z unchanged; to the gates what they let through."""
        e4, e8, g4, g8 = ctx.saved_tensors
        through4, through8 = (grad * e4).sum(), (grad * e8).sum()
        return grad, through4 + g8 * through8, g4 * through8, None


class RoundClipped(torch.autograd.Function):
    """v D(clamp(x / v, lo, 1), 1/n): an activation as a frozen net stores it, with the gradients of plain autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, n: int, lo: float) -> Tensor:
        """`x` of any shape, `v` a positive scalar; same values as the separate operations, bit for bit."""
        out = x.float() / v
        out = out.clamp_(lo, 1.0).mul_(n).round_().div_(n).mul_(v).to(x.dtype)
        ctx.save_for_backward(x, out, v)
        ctx.lo = lo
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """To x within the clip; to v the rounding error within, the end of the grid outside."""
        x, out, v = ctx.saved_tensors
        grad = _like(grad, x)
        to_x = _within(grad, x, v, ctx.lo)
        return to_x, _to_clip(grad, to_x, x, out, v) if ctx.needs_input_grad[1] else None, None, None


class DecomposeClipped(torch.autograd.Function):
    """v (z_2 + g_4 (e_4 + g_8 e_8)) of z = clamp(x / v, lo, 1), given (z_2, e_4, e_8) from `split`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor, g4: Tensor, g8: Tensor, parts: tuple[Tensor, Tensor, Tensor], lo: float
    ) -> Tensor:
        """`x` of any shape, the rest scalars; the parts stay as they are."""
        z2, e4, e8 = parts
        out = e8 * g8
        out = out.add_(e4).mul_(g4).add_(z2).mul_(v).to(x.dtype)
        ctx.save_for_backward(x, out, v, e4, e8, g4, g8)
        ctx.lo = lo
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, None, None]:
        """To x and v as `RoundClipped`, to the gates as `Decompose`."""
        x, out, v, e4, e8, g4, g8 = ctx.saved_tensors
        grad = _like(grad, x)
        to_x = _within(grad, x, v, ctx.lo)
        to_v = _to_clip(grad, to_x, x, out, v) if ctx.needs_input_grad[1] else None
        to_4 = to_8 = None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            through4, through8 = v * _dot(grad, e4), v * _dot(grad, e8)
            to_4, to_8 = through4 + g8 * through8, g4 * through8
        return to_x, to_v, to_4, to_8, None, None


class RoundStepped(torch.autograd.Function):
    """sign(x) d round(min(|x|, q) ** t / d), never mapped back: DJPQ's quantiser (methods A.2.1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor, q: Tensor, t: Tensor | None) -> Tensor:
        """`x` of any shape; step, range and exponent positive scalars, no exponent for 1."""
        wide = x.float() if x.dtype == torch.bfloat16 else x
        power = _power(wide, q, t)
        ctx.save_for_backward(*([x, d, q] if t is None else [x, d, q, t]))
        return (torch.sign(wide) * (torch.round(power / d) * d)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """To x unchanged within the range; to d the rounding error, to q and t as the power has it."""
        x, d, q, *exponent = ctx.saved_tensors
        t = exponent[0] if exponent else None
        size, signed = x.abs(), (grad * torch.sign(x)).to(d.dtype)
        power = _power(x.to(d.dtype), q, t)
        ratio = power / d
        to_d = (signed * (torch.round(ratio) - ratio)).sum()
        slope = 1.0 if t is None else t * q ** (t - 1)
        to_q = (signed * (size > q)).sum() * slope
        to_t = None if t is None else (signed * torch.xlogy(power, torch.minimum(size, q))).sum()
        return grad * (size <= q), to_d, to_q, to_t


def _power(x: Tensor, q: Tensor, t: Tensor | None) -> Tensor:
    """min(|x|, q) ** t."""
    size = torch.clamp(x.abs(), max=q)
    return size if t is None else size**t


def stepped(x: Tensor, d: Tensor, q: Tensor, t: Tensor | None = None) -> Tensor:
    """`RoundStepped`, typed."""
    out: Tensor = RoundStepped.apply(x, d, q, t)  # type: ignore[no-untyped-call]
    return out


def rounded_to(z: Tensor, n: int | Tensor) -> Tensor:
    """`Round`, typed."""
    out: Tensor = Round.apply(z, n)  # type: ignore[no-untyped-call]
    return out


def decomposed(z: Tensor, g4: Tensor, g8: Tensor, domain: str) -> Tensor:
    """`Decompose`, typed."""
    out: Tensor = Decompose.apply(z, g4, g8, domain)  # type: ignore[no-untyped-call]
    return out


def clipped(x: Tensor, v: Tensor, bits: int, domain: str) -> Tensor:
    """`RoundClipped`, typed: `x` on the grid of `bits` within the positive clip `v`, a float32 scalar.

    Rounded in float32; `x` may be bfloat16, and so is the result then.
    """
    out: Tensor = RoundClipped.apply(x, v, steps(domain, bits), least(domain))  # type: ignore[no-untyped-call]
    return out


def clipped_by_gates(
    x: Tensor, v: Tensor, gates: tuple[Tensor, Tensor], parts: tuple[Tensor, Tensor, Tensor], domain: str
) -> Tensor:
    """`DecomposeClipped`, typed; `parts` as `split` gave them."""
    out: Tensor = DecomposeClipped.apply(x, v, *gates, parts, least(domain))  # type: ignore[no-untyped-call]
    return out


def residuals(z: Tensor, domain: str) -> tuple[Tensor, Tensor, Tensor]:
    """(z_2, e_4, e_8). Chained where the grids nest (5 and 17 steps in one); on the symmetric grid, where 127 is no
    multiple of 7, the differences of the directly rounded values."""
    two, four, eight = (steps(domain, b) for b in (2, 4, 8))
    z2 = torch.round(z * two) / two
    if domain == EVEN:
        z4 = torch.round(z * four) / four
        return z2, z4 - z2, torch.round(z * eight) / eight - z4
    e4 = torch.round((z - z2) * four) / four
    return z2, e4, torch.round((z - z2 - e4) * eight) / eight


def mean_residuals(z: Tensor, domain: str) -> Tensor:
    """[A_4, A_8]: mean |z - z_2| and mean |z - z_4|, on the scale of [0, 1] (methods A.1.3). No gradient."""
    with torch.no_grad():
        z2, e4, _ = residuals(z, domain)
        left = z - z2
        return _scaled(left.abs().mean(), (left - e4).abs().mean(), domain)


def split(x: Tensor, v: Tensor, domain: str) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """`residuals` and `mean_residuals` of clamp(x / v) in one go. No gradient."""
    two, four, eight = (steps(domain, b) for b in (2, 4, 8))
    with torch.no_grad():
        z = x.float() / v
        z.clamp_(least(domain), 1.0)
        z2 = (z * two).round_().div_(two)
        if domain == EVEN:
            e4 = (z * four).round_().div_(four)
            e8 = (z * eight).round_().div_(eight).sub_(e4)
            e4.sub_(z2)
        first = _mean_magnitude(z.sub_(z2))
        if domain != EVEN:
            e4 = (z * four).round_().div_(four)
        second = _mean_magnitude(z.sub_(e4))
        if domain != EVEN:
            e8 = z.mul_(eight).round_().div_(eight)
        return (z2, e4, e8), _scaled(first, second, domain)


def nested(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z_2, e_4, e_8) of signed x / v in steps of 2 / (2**b - 1), which divide each other and hold zero (methods A.4).

    At b bits z lies on the symmetric grid of the clip `nested_clip(v, b)`. No gradient.
    """
    two, four, eight = ((2**b - 1) / 2 for b in (2, 4, 8))
    with torch.no_grad():
        z = (x / v).clamp_(-SHORT, SHORT)
        z2 = (z * two).round_().div_(two)
        e4 = z.sub_(z2).mul(four).round_().div_(four)
        return z2, e4, z.sub_(e4).mul_(eight).round_().div_(eight)


def nested_clip(v: Tensor, bits: int) -> Tensor:
    """Largest value of `bits` bits in a nested range `v`: 2**(b-1) - 1 steps of 2 v / (2**b - 1)."""
    return v * ((2**bits - 2) / (2**bits - 1))


def _scaled(first: Tensor, second: Tensor, domain: str) -> Tensor:
    out = torch.stack((first, second))
    return (out / 2 if domain == EVEN else out).float()


def _mean_magnitude(x: Tensor) -> Tensor:
    return x.abs().mean()


def _flat(x: Tensor) -> Tensor:
    """The elements in memory's order, [numel]; a view where they lie densely, as all values of a forward do."""
    if x.is_contiguous():
        return x.view(-1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).reshape(-1)
    return x.reshape(-1)


def _like(grad: Tensor, x: Tensor) -> Tensor:
    """`grad` in the memory order of `x`."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype != torch.float32 or b.dtype != torch.float32:
        return (a * b).sum(dtype=torch.float32)  # the CPU's dot product of bfloat16 is slow and sums in bfloat16
    return torch.dot(_flat(a), _flat(b))


def _within(grad: Tensor, x: Tensor, v: Tensor, lo: float) -> Tensor:
    """`grad` where lo v <= x <= v, else 0."""
    if x.device.type != "cpu":
        return grad * ((x >= lo * v) & (x <= v))
    top = np.float32(v.item())  # one pass; the kernel leaves both ends out, so they lie one float further
    bottom = np.nextafter(lo * top, np.float32("-inf")) if lo else -np.finfo(np.float32).tiny
    return torch.ops.aten.hardtanh_backward(grad, x, float(bottom), float(np.nextafter(top, np.float32("inf"))))


def _to_clip(grad: Tensor, to_x: Tensor, x: Tensor, out: Tensor, v: Tensor) -> Tensor:
    """dL/dv: within the clip the rounding error counts, outside the end of the grid, both in units of v.

    sum(to_x (out - x)) + sum((grad - to_x) out), without the two differences, which took a quarter of a training step.
    """
    return (_dot(grad, out) - _dot(to_x, x)) / v
