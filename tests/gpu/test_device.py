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

from .cases import KINDS, PAIRS, Case, assert_same, convolution, depthwise, levels, name, product, seen

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


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind[2]], ids=name)
def test_depthwise_convolutions_are_exact(kind: tuple[str, str, bool]) -> None:
    for shape, _, g in IMAGES:
        case = depthwise(kind, shape, g)
        out = gpu.depthwise2d(stored(case), gpu.load(case.weights, device=DEVICE), g)
        assert_same(case.sums, out.cpu().numpy().astype(np.int64))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[2]], ids=name)
def test_bit_serial_products_are_exact(kind: tuple[str, str, bool]) -> None:
    for m, n, k in SHAPES:
        case = product(kind, m, n, k)
        out = gpu.linear_bitserial(stored(case), gpu.load(case.weights, device=DEVICE))
        assert_same(case.sums, out.cpu().numpy().astype(np.int64))


@pytest.mark.parametrize("encoding", ["u8", "i8", "u4", "i4", "u2", "i2"])
@pytest.mark.parametrize("fields", [False, True])
def test_pools_are_exact(encoding: str, fields: bool) -> None:
    if fields and encoding.endswith("8"):
        return  # bytes already
    for shape, _, g in IMAGES[:4]:
        form = packed(parse(encoding), shape[-1]) if fields else Storage(parse(encoding))
        x = levels(np.random.default_rng(3), encoding, shape)
        given = torch.from_numpy(form.store(x)).to(DEVICE)
        largest = gpu.max_pool(given, form, shape[-1], g).cpu().numpy()
        assert_same(np.max(seen(x, g, outside=-1000), axis=0), form.load(largest, shape[-1]).astype(np.int64))
        sums = gpu.load_pool(form, shape[-1], device=DEVICE)
        assert_same(sum(seen(x, g)), gpu.average_pool(given, sums, g).cpu().numpy().astype(np.int64))
        whole = gpu.global_average_pool(given, sums).cpu().numpy()
        assert_same(x.sum((1, 2), keepdims=True), whole.astype(np.int64))


def test_layers_write_their_channels_of_one_result() -> None:
    places = np.random.default_rng(0).permutation(300)
    cut = (places[:70], places[70:200], places[200:])
    out = torch.full((2, 9, 9, 300), 5, dtype=torch.int32, device=DEVICE)
    for kind, at in zip(PAIRS[:3], cut, strict=True):
        case = convolution(kind, (2, 9, 9, 48), len(at), SAME)
        layer = gpu.load(case.weights, device=DEVICE, columns=at, width=300)
        gpu.conv2d(stored(case), layer, SAME, into=out)
        assert_same(case.sums, out[..., torch.from_numpy(at).to(DEVICE)].cpu().numpy().astype(np.int64))


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
