"""Machine code of the Triton kernels for chips that are not here: no spills, memory within the chip's, tensor cores and
few instructions in the loop, and nothing that the numeric law forbids.

Bounds are what triton 3.9.0 (constraints.txt) gives and a tenth more, but for the two that are promised.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles, which TRITON_INTERPRET=1 prevents: make test-gpu", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed: pip install 'bitpress[gpu]'")

import triton

from bitpress.core.encoding import parse
from bitpress.core.errors import EnvironmentMissing
from bitpress.kernels import gpu
from bitpress.kernels.gpu import bitserial, call, conv, depthwise, gemm, gemv
from bitpress.kernels.gpu.layout import Storage, packed
from bitpress.kernels.gpu.tiles import SHARED, Tile, choose
from bitpress.kernels.gpu.window import Window

from .cases import PAIRS, name, product
from .compiled import TARGETS, TENSOR_CORE, Code, build, build_pool

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


def sound(code: Code, target: str, *, memory: bool = True) -> None:
    """What holds for every kernel on every chip."""
    assert code.spills == 0, f"{code.spills} bytes spilled"
    assert memory <= code.shared <= SHARED[target], (
        f"{code.shared} bytes of shared memory, {target} has {SHARED[target]}"
    )
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


@pytest.mark.parametrize(
    ("weights", "act", "most"),
    [("i4", "u8", 130), ("o4", "u8", 130), ("o4", "i8", 130), ("i2", "u8", 140), ("o2", "u8", 140), ("i2", "i8", 140)],
)
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


@pytest.mark.parametrize(
    ("kind", "pixels"),
    [*((kind, 16) for kind in PAIRS), *((kind, n) for kind in PAIRS[1:4:2] for n in (32, 64))],
    ids=name,
)
def test_narrow_tiles_keep_the_tensor_cores(kind: tuple[str, str, bool], pixels: int) -> None:
    tile = choose("sm90", pixels)
    assert tile.pixels == pixels
    code = build(gemm, kind, "sm90", channels=1024, tile=tile, out=U8)
    sound(code, "sm90")
    assert code.count("IGMMA"), code.names()


@pytest.mark.parametrize("target", ["sm80", "sm89", "gfx942"])
def test_narrow_tiles_fit_the_other_chips(target: str) -> None:
    for kind, pixels in zip(PAIRS[1:4], (16, 64, 32), strict=True):
        sound(build(gemm, kind, target, channels=1024, tile=choose(target, pixels), out=U8), target)


@pytest.mark.parametrize(
    ("out", "target"),
    [
        *((packed(parse(e), 256), target) for e in ("u4", "i2") for target in TARGETS),
        *((out, target) for out in ("f32", "i32") for target in ("sm90", "gfx942")),
    ],
    ids=str,
)
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
    for channels, pixels in ((1000, 64), (77, 4096)) if kind in PAIRS[::2] else ((77, 4096),):
        tile = choose("sm90", pixels)
        sound(build(gemm, kind, "sm90", rows=77, channels=channels, tile=tile, out=U8, even=False), "sm90")
    sound(build(gemv, kind, "sm90", rows=77, channels=1000, out=U8, even=False), "sm90")


@pytest.mark.parametrize("kind", PAIRS, ids=name)
def test_convolutions_of_few_channels(kind: tuple[str, str, bool]) -> None:
    cases = ((16, SAME), (3, Window((3, 3), (2, 2), (1, 1, 1, 1))), (96, Window((1, 1), (2, 2))))
    for channels, window in cases if kind in PAIRS[::2] else cases[1:2]:
        code = build(conv, kind, "sm90", rows=64, channels=channels, window=window, out=U8, residual=U8)
        sound(code, "sm90")
        assert code.count("IGMMA"), code.names()


# Instructions of the loop at most, on sm80, sm89, sm90 and gfx942.
FLAT = {
    ("i8", "u8", False): (132, 87, 91, 83), ("o4", "u8", False): (147, 139, 142, 90),
    ("o2", "u8", False): (147, 139, 142, 90),
}  # fmt: skip
POOLS = {
    "largest, bytes": ("max_pool", U8, SAME, U8, None, (83, 79, 73, 107)),
    "sums, fields": (
        "average_pool", packed(parse("i4"), 256), SAME, packed(parse("u4"), 256), U8, (147, 146, 147, 87)
    ),
    "floats to bytes": ("average_pool", "f32", Window(), U8, None, (57, 57, 57, 76)),
    "image": ("global_average_pool", U8, None, U8, U8, (57, 57, 57, 54)),
}  # fmt: skip
SERIAL = {
    ("i2", "u2", "sm80"): 409, ("i2", "u2", "sm89"): 410, ("i2", "u2", "sm90"): 407, ("i2", "u2", "gfx942"): 250,
    ("o4", "i4", "sm90"): 1580,
}  # fmt: skip
WIDE = r"LDG\S*\.128|global_load_dwordx[24]"  # 16 bytes of a thread; 8 where a warp has 64 threads


def flat(code: Code, target: str, most: int) -> None:
    """No tensor core and no barrier in the loop, bytes read 16 at a time."""
    sound(code, target, memory=False)
    assert not any(TENSOR_CORE.match(one) for one in code.loop) and code.count("BAR|s_barrier") == 0, code.names()
    assert 0 < len(code.loop) <= most, f"{len(code.loop)} instructions in the loop, at most {most}: {code.names()}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", FLAT, ids=name)
def test_depthwise_convolutions_on_every_chip(kind: tuple[str, str, bool], target: str) -> None:
    code = build(depthwise, kind, target, window=SAME, out=U8, residual=U8)
    flat(code, target, FLAT[kind][list(TARGETS).index(target)])
    assert code.count(WIDE) >= 1, code.names()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("label", POOLS)
def test_pools_on_every_chip(label: str, target: str) -> None:
    kernel, source, window, out, residual, most = POOLS[label]
    code = build_pool(kernel, source, target, window=window, out=out, residual=residual)
    flat(code, target, most[list(TARGETS).index(target)])
    assert code.count(WIDE) >= 1, code.names()


def test_flat_families_of_odd_sizes_and_packed_results() -> None:
    u2 = packed(parse("u2"), 256)
    for code in (
        build(depthwise, PAIRS[2], "sm90", rows=77, window=SAME, out=U8, residual=U8, even=False),
        build(bitserial, PAIRS[4], "sm90", rows=77, channels=77, out=packed(parse("u4"), 77), even=False),
        build_pool("max_pool", u2, "sm90", window=SAME, even=False),
        build_pool("average_pool", U8, "sm90", window=SAME, out=u2, residual=U8),
    ):
        sound(code, "sm90", memory=False)


@pytest.mark.parametrize(("weights", "act", "target"), SERIAL)
def test_bit_serial_products_count_ones_by_one_instruction(weights: str, act: str, target: str) -> None:
    """A popcount for each pair of planes of each result of a thread, which are 16, or 8 in a warp of 64."""
    code = build(bitserial, (weights, act, True), target, out=U8, residual=U8)
    flat(code, target, SERIAL[weights, act, target])
    pairs = parse(weights).bits ** 2
    assert code.count("POPC|v_bcnt") // (8 if target == "gfx942" else 16) == pairs, code.names()


@pytest.mark.parametrize(("kind", "target"), [(PAIRS[2], "sm90"), (PAIRS[4], "sm80"), (PAIRS[1], "gfx942")], ids=name)
def test_programs_that_share_a_tile(kind: tuple[str, str, bool], target: str) -> None:
    """Sums are added by atomics and read past the first cache by the last program."""
    tile = replace(choose(target, 16), splits=4)
    code = build(gemm, kind, target, channels=4096, tile=tile, out=U8, residual=U8)
    sound(code, target)
    assert any(re.match(r"RED|ATOMG|global_atomic_add|buffer_atomic_add", one) for one in code.all)
    assert sum(bool(TENSOR_CORE.match(one)) for one in code.loop), code.names()


@pytest.mark.parametrize(("family", "target"), [("gemm", "sm90"), ("gemm", "gfx942"), ("conv", "sm90")])
def test_results_in_chosen_channels(family: str, target: str) -> None:
    module, window = FAMILIES[family]
    sound(build(module, PAIRS[1], target, window=window, out=U8, residual=U8, columns=True), target)
    if family == "conv":
        code = build(depthwise, PAIRS[1], target, window=window, out=U8, columns=True)
        sound(code, target, memory=False)


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
