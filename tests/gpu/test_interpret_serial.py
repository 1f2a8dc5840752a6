"""Values of the bit-serial product, by triton's interpreter, against int64 and against the matrix product's family."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in a process of its own, where TRITON_INTERPRET=1: make test-gpu", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed: pip install 'bitpress[gpu]'")

from bitpress.core.errors import UnsupportedError, UsageError
from bitpress.kernels import gpu
from bitpress.kernels.gpu import bitserial, call
from bitpress.kernels.gpu.tiles import Tile

from .cases import KINDS, Case, assert_same, name, product
from .law import STORED, check_epilogue, stored

pytestmark = [pytest.mark.triton_interpret, pytest.mark.usefixtures("poisoned")]

TILE = Tile(pixels=8, rows=16, blocks=1, warps=4, stages=1)
FIELDS = tuple(kind for kind in KINDS if kind[2])
# rows of x, rows of w, K: one of each; below, at and past tiles, words, runs and blocks.
SHAPES = {2: ((1, 1, 1), (9, 17, 129)), 4: ((3, 17, 65),)}


def sums(module: ModuleType, case: Case) -> np.ndarray:
    """What the kernel makes of it, without an epilogue, int64."""
    return module.launch(stored(case), call.load(case.weights, device="cpu"), tile=TILE).numpy().astype(np.int64)


@pytest.mark.parametrize("kind", FIELDS, ids=name)
def test_bit_serial_products_are_exact(kind: tuple[str, str, bool]) -> None:
    for m, n, k in SHAPES[int(kind[0][1])]:
        case = product(kind, m, n, k)
        assert_same(case.sums, sums(bitserial, case))


@pytest.mark.parametrize("out", ["u8", "u2 fields", "f32"])
def test_they_end_in_the_same_epilogue(out: str) -> None:
    case = product(("o2", "u2", True), 5, 41, 70)
    check_epilogue(case, STORED.get(out, "f32"), STORED["u8"], gpu.linear_bitserial)


FAULTS = {
    "planes of weights exchanged": ("plane(ws, p, BITS)", "plane(ws, BITS - 1 - p, BITS)"),
    "words of a plane on top of each other": ("& LOW) << i", "& LOW) << 0"),
    "the sign's plane counted up": ("worth(p, BITS, True)", "worth(p, BITS, False)"),
    "an odd grid without the window's sum": ("acc * 2 + total", "acc * 2"),
    "the last words dropped": ("range(0, stride, BITS)", "range(0, stride - BITS, BITS)"),
}


def run_all(module: ModuleType) -> None:
    for kind in (("i2", "i2", True), ("o2", "u2", True)):
        case = product(kind, 3, 17, 128)
        assert_same(case.sums, sums(module, case))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_seen(fault: str, planted: Callable[[str, str, str], ModuleType]) -> None:
    with pytest.raises(AssertionError, match=r"\d+ of \d+ differ, first at"):
        run_all(planted("bitserial", *FAULTS[fault]))


def test_nothing_is_seen_where_nothing_is_planted(planted: Callable[[str, str, str], ModuleType]) -> None:
    run_all(planted("bitserial", "from __future__", "from __future__ "))


def test_what_it_does_not_take_is_one_sentence() -> None:
    bytes_, packed = product(("i4", "u8", False), 2, 3, 64), product(("i2", "u2", True), 2, 3, 64)
    with pytest.raises(UnsupportedError, match="takes one tap and fields of 2 or 4 bits, not 1 taps and bytes"):
        gpu.linear_bitserial(stored(bytes_), call.load(bytes_.weights, device="cpu"))
    layer = call.load(packed.weights, device="cpu")
    with pytest.raises(UsageError, match=r"x is int8 \[2, 64\], the layer takes int8 \[2, 32\]"):
        gpu.linear_bitserial(stored(packed).repeat(1, 2), layer)
    assert gpu.linear_bitserial(stored(packed)[:0], layer).shape == (0, 3)
