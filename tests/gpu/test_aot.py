"""Machine code of the Triton kernels for chips that are not here: no spills, memory within the chip's, tensor cores and
few instructions in the loop, and nothing that the numeric law forbids.

Bounds are what triton 3.9.0 (constraints.txt) gives and a tenth more, but for the two that are promised.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles, which TRITON_INTERPRET=1 prevents: make test-gpu", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed: pip install 'bitpress[gpu]'")

import triton

from bitpress.core.encoding import parse
from bitpress.core.errors import EnvironmentMissing
from bitpress.kernels import gpu
from bitpress.kernels.gpu import call, conv, gemm, gemv
from bitpress.kernels.gpu.layout import Storage, packed
from bitpress.kernels.gpu.tiles import SHARED, Tile, choose
from bitpress.kernels.gpu.window import Window

from .cases import PAIRS, name, product
from .compiled import TARGETS, TENSOR_CORE, Code, build

pytestmark = pytest.mark.triton_aot

SAME = Window((3, 3), padding=(1, 1, 1, 1))
U8 = Storage(parse("u8"))
CUBE = Tile(pixels=128, rows=128, blocks=1, warps=8, stages=3)
FAMILIES = {"gemm": (gemm, None), "conv": (conv, SAME), "gemv": (gemv, None)}
# Instructions of the loop at most, in the order of PAIRS: w8a8, w4a8, w2a8, w4a4, w2a2.
MOST = {
    ("sm80", "gemm"): (446, 185, 180, 377, 395), ("sm80", "conv"): (527, 279, 302, 420, 417),
    ("sm89", "gemm"): (461, 185, 180, 383, 395), ("sm89", "conv"): (527, 279, 328, 420, 417),
    ("sm90", "gemm"): (105, 130, 140, 142, 154), ("sm90", "conv"): (168, 214, 269, 176, 180),
    ("gfx942", "gemm"): (154, 239, 257, 356, 316), ("gfx942", "conv"): (124, 300, 395, 390, 352),
    ("sm80", "gemv"): (145, 191, 184, 172, 149), ("sm89", "gemv"): (150, 186, 187, 171, 156),
    ("sm90", "gemv"): (147, 179, 178, 156, 156), ("gfx942", "gemv"): (185, 260, 323, 257, 238),
}  # fmt: skip
FUSED = {"cuda": re.compile(r"\bfma\.|\.ftz\b"), "hip": re.compile(r"\bv_(pk_)?(fma|fmac|mad|mac)_f32|\bv_fma_f32")}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Everything is compiled here and now."""
    before, triton.knobs.cache.dir = triton.knobs.cache.dir, str(tmp_path_factory.mktemp("triton"))
    yield
    triton.knobs.cache.dir = before


def sound(code: Code, target: str) -> None:
    """What holds for every kernel on every chip."""
    assert code.spills == 0, f"{code.spills} bytes spilled"
    assert 0 < code.shared <= SHARED[target], f"{code.shared} bytes of shared memory, {target} has {SHARED[target]}"
    forbidden = FUSED[TARGETS[target].backend].search(code.ir)
    assert forbidden is None, f"{forbidden and forbidden[0]} rounds otherwise than the numeric law"
    assert not any(one.startswith("FFMA") for one in code.all)
    if target.startswith("gfx"):
        assert re.search(r"float_denorm_mode_32 3", code.ir), "float32 denormals would be flushed"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", PAIRS, ids=name)
def test_every_pair_on_every_chip(kind: tuple[str, str, bool], family: str, target: str) -> None:
    module, window = FAMILIES[family]
    code = build(module, kind, target, window=window, out=U8, residual=U8)
    sound(code, target)
    tensor = sum(bool(TENSOR_CORE.match(one)) for one in code.loop)
    if family == "gemv":
        assert tensor == 0 and code.count("BAR|s_barrier") == 0, code.names()
        if target.startswith("sm"):
            assert code.count("IDP") == 32, f"dot products of four bytes: {code.names()}"
    else:
        assert tensor, f"no tensor-core instruction in the loop: {code.names()}"
        wanted = "IGMMA" if target == "sm90" else "IMMA" if target.startswith("sm") else "v_mfma_i32"
        assert code.count(wanted) == tensor, code.names()
    most = MOST[target, family][PAIRS.index(kind)]
    assert 0 < len(code.loop) <= most, f"{len(code.loop)} instructions in the loop, at most {most}: {code.names()}"


@pytest.mark.parametrize(("weights", "most"), [("i4", 130), ("o4", 130), ("i2", 140), ("o2", 140)])
@pytest.mark.parametrize("act", ["u8", "i8"])
def test_the_promised_loops(weights: str, act: str, most: int) -> None:
    """128x128x128 on sm90: weights go from memory through registers into the product, never back."""
    code = build(gemm, (weights, act, False), "sm90", tile=CUBE, out=U8, residual=U8)
    sound(code, "sm90")
    assert code.count("IGMMA") == 4 and len(code.loop) <= most, f"{len(code.loop)}: {code.names()}"
    assert code.count("PRMT") == 0, "fields are taken apart byte by byte"
    assert code.count("STS") == 0, "unpacked weights go through shared memory"


@pytest.mark.parametrize("weights", ["i4", "o4", "i2", "o2"])
def test_convolutions_unpack_in_registers_too(weights: str) -> None:
    code = build(conv, (weights, "u8", False), "sm90", window=SAME, tile=CUBE, out=U8)
    assert code.count("PRMT") == 0 and code.count("STS") == 0, code.names()


@pytest.mark.parametrize("pixels", [16, 32, 64])
@pytest.mark.parametrize("kind", PAIRS, ids=name)
def test_narrow_tiles_keep_the_tensor_cores(kind: tuple[str, str, bool], pixels: int) -> None:
    tile = choose("sm90", pixels)
    assert tile.pixels == pixels
    code = build(gemm, kind, "sm90", channels=1024, tile=tile, out=U8)
    sound(code, "sm90")
    assert code.count("IGMMA"), code.names()


@pytest.mark.parametrize("target", ["sm80", "sm89", "gfx942"])
def test_narrow_tiles_fit_the_other_chips(target: str) -> None:
    for kind, pixels in zip(PAIRS, (32, 16, 64, 16, 32), strict=True):
        sound(build(gemm, kind, target, channels=1024, tile=choose(target, pixels), out=U8), target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("out", [packed(parse("u4"), 256), packed(parse("i2"), 256), "f32", "i32"], ids=str)
def test_every_kind_of_result(out: call.Out, target: str) -> None:
    code = build(gemm, PAIRS[2], target, out=out, residual=None if out == "i32" else U8)
    sound(code, target)
    assert sum(bool(TENSOR_CORE.match(one)) for one in code.loop), code.names()


@pytest.mark.parametrize("family", ["conv", "gemv"])
def test_packed_results_of_the_other_families(family: str) -> None:
    module, window = FAMILIES[family]
    sound(build(module, PAIRS[4], "sm90", window=window, out=packed(parse("u2"), 256), residual=U8), "sm90")


@pytest.mark.parametrize("kind", [*PAIRS, ("o8", "u8", False)], ids=name)
def test_depths_and_sizes_that_are_not_even(kind: tuple[str, str, bool]) -> None:
    """Byte activations are then loaded byte by byte, which takes registers."""
    for channels, pixels in ((1000, 64), (77, 4096)):
        tile = choose("sm90", pixels)
        sound(build(gemm, kind, "sm90", rows=77, channels=channels, tile=tile, out=U8, even=False), "sm90")
    sound(build(gemv, kind, "sm90", rows=77, channels=1000, out=U8, even=False), "sm90")


@pytest.mark.parametrize("kind", PAIRS, ids=name)
def test_convolutions_of_few_channels(kind: tuple[str, str, bool]) -> None:
    for channels, window in ((16, SAME), (3, Window((3, 3), (2, 2), (1, 1, 1, 1))), (96, Window((1, 1), (2, 2)))):
        code = build(conv, kind, "sm90", rows=64, channels=channels, window=window, out=U8, residual=U8)
        sound(code, "sm90")
        assert code.count("IGMMA"), code.names()


def test_rounding_to_even_is_not_folded_away() -> None:
    """The constant is added and taken away: two float32 sums that a compiler must not cancel."""
    code = build(gemm, PAIRS[1], "sm90", out=U8)
    assert len(re.findall(r"add(?:\.rn)?\.f32[^;]*0f4B400000", code.ir)) > 0, "1.5 * 2^23 is added"
    assert len(re.findall(r"(?:add|sub)(?:\.rn)?\.f32[^;]*0f(?:CB400000|4B400000)", code.ir)) >= 128, "and taken away"


def test_a_shared_memory_overflow_would_be_seen() -> None:
    """Compiling does not refuse it, so `sound` must."""
    code = build(gemm, PAIRS[0], "sm90", tile=Tile(128, 128, 1, 8, stages=8))
    with pytest.raises(AssertionError, match="bytes of shared memory, sm90 has 232448"):
        sound(code, "sm90")


def test_the_obvious_kernel_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without assembly and swapped operands the promised loop is twice as long and goes through shared memory."""
    constants = call.constants
    monkeypatch.setattr(call, "constants", lambda *a, **k: {**constants(*a, **k), "ASM": False, "SWAP": False})
    code = build(gemm, ("i2", "u8", False), "sm90", tile=CUBE)
    assert len(code.loop) > 200 and code.count("PRMT") > 0 and code.count("STS") > 0, code.names()


@pytest.mark.skipif(gpu.missing() == "", reason="this host has a GPU")
def test_without_a_gpu_a_launch_says_so() -> None:
    import torch

    case = product(("i4", "u8", False), 3, 6, 64)
    layer = gpu.load(case.weights, device="cpu")
    for family in (gemm, gemv):
        with pytest.raises(
            EnvironmentMissing, match=r"take tensors on a GPU, not on cpu: move layer and input to cuda"
        ):
            family.launch(torch.from_numpy(case.act.store(case.x)), layer)
