"""The list of rows: what any host can run, what this one would choose, and the reasons given."""

from __future__ import annotations

import pytest

from bitpress.core.encoding import ENCODINGS, FIELD_BITS, parse
from bitpress.core.errors import EnvironmentMissing, UnsupportedError
from bitpress.kernels import native, registry
from bitpress.kernels.kernel import F32, Problem

WEIGHTS = [e for e in ENCODINGS if e.bits in FIELD_BITS]
ACTS = [e for e in ENCODINGS if e.name[0] in "ui"]


def test_names_are_unique_and_rows_name_known_isas() -> None:
    names = [row.name for row in registry.ROWS]
    assert len(set(names)) == len(names)
    assert {row.isa for row in registry.ROWS} <= {*native.isas(), "reference"}


@pytest.mark.parametrize("op", ["conv2d", "depthwise_conv2d"])
def test_every_pair_of_the_format_has_a_baseline_row(op: str) -> None:
    for w in WEIGHTS:
        for a in ACTS:
            assert registry.baseline(Problem(op, w, a, 16, 144, 64)).isa == "generic"


def test_other_ops_have_baseline_rows() -> None:
    u4 = parse("u4")
    assert registry.baseline(Problem("quantize", None, F32)).name == "quantize_generic"
    for op, a in (("requantize", F32), ("requantize", u4), ("max_pool2d", F32), ("sum_pool2d", u4), ("gather", F32)):
        assert registry.baseline(Problem(op, None, a)).name == f"{op}_generic"


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (Problem("conv2d", parse("i3"), parse("u4")), "conv2d at w3a4"),
        (Problem("conv2d", parse("i4"), parse("o4")), "w4a4"),
        (Problem("conv2d", parse("i4"), F32), "conv2d at w4f32"),
        (Problem("sum_pool2d", None, F32), "sum_pool2d at f32"),
        (Problem("softmax", None, F32), "known ops are conv2d"),
    ],
)
def test_what_no_row_computes_is_refused_by_name(problem: Problem, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        registry.baseline(problem)


def test_without_native_code_the_reference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_NATIVE", "0")
    problem = Problem("conv2d", parse("i4"), parse("u4"), 16, 144, 64)
    assert registry.find(problem).isa == "reference"
    assert registry.find(problem, "generic").name == "i8dot_generic"


@pytest.mark.native
def test_explain_speaks_of_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITPRESS_FORCE_ISA", raising=False)
    monkeypatch.delenv("BITPRESS_FORCE_KERNEL", raising=False)
    problem = Problem("conv2d", parse("i2"), parse("u2"), 16, 144, 64)
    verdicts = registry.explain(problem)
    assert [v.kernel for v in verdicts] == list(registry.ROWS)
    assert all(v.why for v in verdicts)
    costs = [v.cost for v in verdicts if v.cost is not None]
    assert min(costs) == next(v.cost for v in verdicts if v.kernel == registry.find(problem))
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", "bitserial_generic")
    assert registry.find(problem).name == "bitserial_generic"


@pytest.mark.native
def test_one_bit_and_deep_is_what_bit_planes_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "generic")
    deep = Problem("conv2d", parse("b1"), parse("u1"), 256, 4608, 4)
    assert registry.find(deep).name == "bitserial_generic"


@pytest.mark.native
def test_few_bits_and_many_pixels_are_what_slices_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "generic")
    for weight, act, pixels, family in (
        ("o2", "u2", 1024, "bitsliced"), ("t2", "u4", 1024, "bitsliced"), ("t2", "u4", 1, "i8dot"),
        ("i8", "u2", 1024, "i8dot"), ("o2", "u8", 1024, "i8dot"),
    ):  # fmt: skip
        problem = Problem("conv2d", parse(weight), parse(act), 16, 144, pixels)
        assert registry.find(problem).name == f"{family}_generic", problem
    assert registry.find(Problem("conv2d", parse("i8"), parse("u8"), 256, 4608, 49)).name == "i8dot_generic"


@pytest.mark.native
def test_look_ups_are_for_two_bits_and_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITPRESS_FORCE_ISA", raising=False)
    monkeypatch.delenv("BITPRESS_FORCE_KERNEL", raising=False)

    def problem(rows: int, depth: int, a: str = "u2") -> Problem:
        return Problem("conv2d", parse("o2"), parse(a), rows, depth, 196)

    def chosen(rows: int, depth: int, a: str = "u2") -> str:
        return registry.find(problem(rows, depth, a)).name

    if not any(v.cost is not None for v in registry.explain(problem(64, 576)) if v.kernel.name == "lut_avx512vbmi"):
        pytest.skip("this host has no AVX-512 VBMI")
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "avx512vbmi")  # tiles of bytes are faster
    assert chosen(64, 576) == chosen(512, 4608) == "lut_avx512vbmi"
    assert "i8dot" in chosen(16, 144), "a block of look-ups has 64 channels"
    assert "i8dot" in chosen(64, 576, "u4")


@pytest.mark.native
def test_pairs_are_looked_up_where_maps_are_too_small_for_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "avx2")
    for rows, depth, pixels, tiles, a, name in (
        (64, 576, 64, 0, "u2", "lut"), (16, 144, 1024, 256, "u2", "bitsliced"), (64, 576, 64, 0, "u4", "i8dot16"),
    ):  # fmt: skip
        try:
            found = registry.find(Problem("conv2d", parse("o2"), parse(a), rows, depth, pixels, tiles=tiles))
        except EnvironmentMissing:
            pytest.skip("this host has no AVX2")
        assert found.name == f"{name}_avx2"


@pytest.mark.native
def test_weights_stay_packed_where_memory_is_what_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "avx2")
    for w, rows, pixels, family in (("i2", 4096, 1, "gemv"), ("i4", 4096, 1, "gemv"), ("i2", 64, 196, "i8dot16")):
        try:
            found = registry.find(Problem("conv2d", parse(w), parse("u8"), rows, 4096, pixels))
        except EnvironmentMissing:
            pytest.skip("this host has no AVX2")
        assert found.name == f"{family}_avx2"
