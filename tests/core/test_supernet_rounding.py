"""The fused roundings against the separate operations: the same values bit for bit, the gradients of autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitpress.core.supernet_rounding import (
    EVEN,
    UNIT,
    clipped,
    clipped_by_gates,
    decomposed,
    least,
    mean_residuals,
    residuals,
    rounded_to,
    split,
    steps,
)

V = 1.7


def values(layout: str) -> Tensor:
    """Normal values, half of them beyond the clip, with the ends of the domain and zeros among them."""
    x = 2 * torch.randn(4, 6, 9, 8, generator=torch.Generator().manual_seed(1))
    x[0, 0, 0, :6] = torch.tensor([0.0, V, -V, 2 * V, -2 * V, -0.0])
    return x.contiguous(memory_format=torch.channels_last) if layout == "last" else x


def apart(x: Tensor, v: Tensor, n: int, domain: str) -> Tensor:
    """The separate operations."""
    return v * rounded_to(torch.clamp(x / v, least(domain), 1.0), n)


def gated_apart(x: Tensor, v: Tensor, g4: Tensor, g8: Tensor, domain: str) -> Tensor:
    return v * decomposed(torch.clamp(x / v, least(domain), 1.0), g4, g8, domain)


def near(got: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(got.double(), wanted.double(), rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("domain", [UNIT, EVEN])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_within_a_clip_is_the_separate_operations(bits: int, domain: str, layout: str) -> None:
    x, v = values(layout).requires_grad_(), torch.tensor(V, requires_grad=True)
    y = clipped(x, v, bits, domain)
    assert torch.equal(y, apart(x, v, steps(domain, bits), domain))
    assert y.stride() == x.stride()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad(y, (x, v), upstream)  # first in memory, whatever x is
    assert got[0].stride() == x.stride()
    xd, vd = x.detach().double().requires_grad_(), v.detach().double().requires_grad_()
    wanted = torch.autograd.grad(apart(xd, vd, steps(domain, bits), domain), (xd, vd), upstream.double())
    assert torch.equal(got[0], wanted[0].float())
    assert near(got[1], wanted[1])


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("domain", [UNIT, EVEN])
@pytest.mark.parametrize(("g4", "g8"), [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.25, 0.75)])
def test_the_gated_sum_within_a_clip_is_the_separate_operations(g4: float, g8: float, domain: str, layout: str) -> None:
    x = values(layout).requires_grad_()
    scalars = [torch.tensor(value, requires_grad=True) for value in (V, g4, g8)]
    parts, means = split(x, scalars[0], domain)
    z = torch.clamp(x / scalars[0], least(domain), 1.0).detach()
    assert all(torch.equal(a, b) for a, b in zip(parts, residuals(z, domain), strict=True))
    assert torch.allclose(means, mean_residuals(z, domain), rtol=1e-6)
    y = clipped_by_gates(x, scalars[0], (scalars[1], scalars[2]), parts, domain)
    assert torch.equal(y, gated_apart(x, *scalars, domain))
    assert y.stride() == x.stride()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    got = torch.autograd.grad(y, (x, *scalars), upstream)
    precise = [t.detach().double().requires_grad_() for t in (x, *scalars)]
    wanted = torch.autograd.grad(gated_apart(*precise, domain), precise, upstream.double())
    assert torch.equal(got[0], wanted[0].float())
    assert all(near(a, b) for a, b in zip(got[1:], wanted[1:], strict=True))


def test_the_gradient_of_a_clip_survives_cancelling_on_many_values() -> None:
    """At 8 bits the rounding error is a thousandth of what it is the difference of, and adds up over 10^6 values.

    Both sums are a thousand times what is left, and float32 errs by some 1e-7 of them: a thousandth bounds it, where
    one image more or less in the batch does a hundred times as much.
    """
    x = torch.relu(torch.randn(1 << 20, generator=torch.Generator().manual_seed(4)))
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    v = torch.tensor(V, requires_grad=True)
    y = clipped(x, v, 8, UNIT)
    (got,) = torch.autograd.grad(y, v, upstream)
    error = (y.double() - torch.where(x <= V, x, 0.0).double()) / V  # of the levels that float32 chose
    wanted = float((upstream.double() * error.detach()).sum())
    assert abs(float(got) - wanted) < 1e-3 * abs(wanted)
