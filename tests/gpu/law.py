"""What stored results of the families must be: sums that are known, and the law of docs/numerics.md on top of them.

Needs triton, in its interpreter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bitpress.core import quant
from bitpress.core.encoding import parse
from bitpress.kernels.gpu import call
from bitpress.kernels.gpu.layout import Storage, packed
from bitpress.kernels.gpu.window import Window as Geometry

from ..kernels.oracle import Window
from . import cases
from .cases import Case, assert_same

STORED = {
    "u8": Storage(parse("u8")), "i8": Storage(parse("i8")), "u4": Storage(parse("u4")), "i3": Storage(parse("i3")),
    "u4 fields": packed(parse("u4"), 41), "i4 fields": packed(parse("i4"), 41), "u2 fields": packed(parse("u2"), 41),
    "i2 fields": packed(parse("i2"), 200), "u4 wide fields": packed(parse("u4"), 200),
}  # fmt: skip


def expected(case: Case, layer: call.Layer, kept: np.ndarray | None) -> np.ndarray:
    """The law on exact sums; levels or float32, channels last."""
    layer = layer.epilogue
    m, b = layer.m.numpy(), layer.b.numpy()
    if isinstance(layer.out, Storage):
        return quant.requantize(
            case.sums.astype(np.int32),
            m,
            b,
            lo=int(layer.lo),
            hi=int(layer.hi),
            residual=kept,
            m_r=np.float32(layer.m_r),
        )
    t = quant.affine(case.sums.astype(np.int32), m, b, residual=kept, m_r=np.float32(layer.m_r))
    return np.clip(t, np.float32(layer.lo), np.float32(layer.hi))


def check_epilogue(case: Case, out: call.Out, residual: call.Out | None, run: Callable[..., torch.Tensor]) -> None:
    """Random constants of the size that spreads sums over the range, and over its ends; fields have no 0 in bounds."""
    rng = np.random.default_rng(7)
    rows = case.sums.shape[-1]
    lo, hi = quant.act_bounds(out.encoding) if isinstance(out, Storage) else (-100, 1e6)
    if isinstance(out, Storage) and out.packed:
        lo = 1  # so that codes past the last channel are not 0 by themselves
    spread = np.float32(1.5 * max(abs(lo), hi if isinstance(out, Storage) else 1) / max(1, np.abs(case.sums).max()))
    m = (rng.uniform(0.3, 1, rows) * spread).astype(np.float32)
    m[::5] *= -1
    b = rng.normal(0, 3, rows).astype(np.float32)
    m[1::7], b[1::7] = 0.5, 0  # ties
    kept = held = None
    if isinstance(residual, Storage):
        kept = cases.levels(rng, residual.encoding.name, case.sums.shape)
        held = torch.from_numpy(residual.store(kept))
    elif residual:
        kept = rng.normal(0, 5, case.sums.shape).astype(np.float32)
        held = torch.from_numpy(kept)
    layer = call.load(
        case.weights, device="cpu", out=out, m=m, b=b, lo=lo, hi=hi, residual=residual, m_r=0.3 if residual else 0.0
    )
    got = run(stored(case), layer, residual=held).numpy()
    want = expected(case, layer, kept)
    if not isinstance(out, Storage):
        assert_same(want.view(np.int32), got.view(np.int32))
        return
    assert_same(want, out.load(got, rows))
    if out.packed:  # past the last channel codes are 0, and all lie as the document says
        flat = want.reshape(-1, rows)
        assert_same(
            cases.spelled(out.encoding.encode(flat), out.bits, out.run), got.view(np.uint8).reshape(len(flat), -1)
        )


def stored(case: Case) -> torch.Tensor:
    """The case's input as the kernels read it."""
    return torch.from_numpy(case.act.store(case.x))


def geometry(g: Window) -> Geometry:
    """The package's word for the oracle's."""
    return Geometry(g.kernel, g.stride, g.padding, g.dilation)
