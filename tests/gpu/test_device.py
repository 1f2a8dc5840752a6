"""The Triton kernels on a GPU: the cases of the interpreter, at tiles that launches choose, and larger ones.

What no other suite proves: that assembly, asynchronous copies and tensor cores give these values on a chip.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'bitpress[gpu]'")
pytest.importorskip("torch", reason="torch is not installed: pip install 'bitpress[search]'")

import torch

from bitpress.core.encoding import parse
from bitpress.kernels import gpu
from bitpress.kernels.gpu import op
from bitpress.kernels.gpu.layout import Storage, packed
from bitpress.kernels.gpu.window import Window

from .cases import KINDS, PAIRS, Case, assert_same, convolution, name, product

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
SHAPES = ((1, 1, 1), (1, 4096, 1024), (2, 77, 132), (17, 31, 127), (33, 200, 1000), (300, 260, 640), (128, 128, 4096))
SAME = Window((3, 3), padding=(1, 1, 1, 1))
IMAGES = (
    ((2, 14, 14, 64), 96, SAME), ((1, 9, 7, 3), 16, Window((7, 7), (2, 2), (3, 3, 3, 3))),
    ((3, 8, 8, 160), 40, Window((3, 3), (2, 2), (1, 1, 1, 1))), ((2, 5, 6, 33), 300, Window((1, 1), (2, 1))),
    ((1, 12, 12, 16), 20, Window((3, 3), padding=(2, 2, 2, 2), dilation=(2, 2))),
)  # fmt: skip


def stored(case: Case) -> torch.Tensor:
    return torch.from_numpy(case.act.store(case.x)).to(DEVICE)


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_matrix_products_are_exact(kind: tuple[str, str, bool]) -> None:
    for m, n, k in SHAPES:
        case = product(kind, m, n, k)
        out = gpu.linear(stored(case), gpu.load(case.weights, device=DEVICE))
        assert_same(case.sums, out.cpu().numpy().astype(np.int64))


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_convolutions_are_exact(kind: tuple[str, str, bool]) -> None:
    for shape, n, g in IMAGES:
        case = convolution(kind, shape, n, g)
        out = gpu.conv2d(stored(case), gpu.load(case.weights, device=DEVICE), g)
        assert_same(case.sums, out.cpu().numpy().astype(np.int64))


@pytest.mark.parametrize(
    "out", [Storage(parse("u8")), packed(parse("u4"), 200), packed(parse("i2"), 200), "f32"], ids=str
)
@pytest.mark.parametrize("kind", PAIRS, ids=name)
def test_the_epilogue_is_the_cpus_bit_by_bit(kind: tuple[str, str, bool], out: Storage | str) -> None:
    """Random constants, both sides of `bitpress::layer`; a fused multiply-add would differ in some of 60 000 values."""
    rng = np.random.default_rng(11)
    lo, hi = (-1e6, 1e6) if isinstance(out, str) else (max(0, out.encoding.lo + 1), out.encoding.hi)
    for case, window in ((product(kind, 1, 200, 512), Window()), (product(kind, 300, 200, 500), Window()),
                         (convolution(kind, (2, 9, 9, 48), 200, SAME), SAME)):  # fmt: skip
        kept = rng.integers(0, 256, case.sums.shape)
        m = (
            rng.uniform(0.5, 1.5, 200) * float(hi if isinstance(out, Storage) else 1) / np.abs(case.sums).max()
        ).astype(np.float32)
        residual = Storage(parse("u8"))
        given = [
            torch.from_numpy(a)
            for a in (
                case.act.store(case.x),
                residual.store(kept),
                case.weights.fields,
                case.weights.correction,
                m,
                rng.normal(0, 2, 200).astype(np.float32),
            )
        ]
        rest = (op.spell(case.weights.form, out, residual), op.numbers(window), 0.013, float(lo), float(hi))
        want, got = op.layer(*given, *rest), op.layer(*(t.to(DEVICE) for t in given), *rest)
        bits = torch.int32 if out == "f32" else torch.int8
        assert_same(want.view(bits).numpy(), got.cpu().view(bits).numpy())
