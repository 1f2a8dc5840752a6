"""Why a layer is slow: what a kernel pads equals its layout, parts come from the figures, sentences name them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitpress.benchmarks.bench import bench
from bitpress.benchmarks.causes import Parts, cause, fixed_parts, padded
from bitpress.benchmarks.roofline import Roofs
from bitpress.benchmarks.shapes import CONV, Shape, encodings, program, session
from bitpress.cli.bench import worst
from bitpress.compiler import artifact
from bitpress.core.encoding import parse
from bitpress.kernels.registry import ROWS

from ..runtime import samples
from ..schema.schemas import check

NARROW = Shape((8, 1, 100), 10)  # 80 of 1,000 products a pixel, by 8 lanes of avx2 128
BY_NAME = {row.name: row for row in ROWS}


def roofs(products: float = 1e12, read: float = 1e12) -> Roofs:
    return Roofs(dict.fromkeys(((name, "avx2") for name in ("i8dot", "i8dot16", "bitserial")), products), read)


def explained(
    shape: Shape, bits: tuple[int, int], kernel: str, milliseconds: float, at: Roofs, fixed: float | None = 0.0
) -> tuple[Parts, str]:
    made, _ = program(shape, *encodings(bits))
    found = cause(made.steps[CONV], made, kernel, milliseconds, at, batch=1, fixed=fixed)
    assert found is not None
    return found.parts, found.why


@pytest.mark.native
@pytest.mark.parametrize("bits", [(2, 2), (1, 8), (4, 4), (8, 8)])
@pytest.mark.parametrize(
    "shape",
    [
        NARROW, Shape((40, 1, 5), 67), Shape((5, 7, 6), 9, (3, 3), padding=(1, 1, 1, 1)), Shape((5, 3, 4), 9, (3, 4)),
        Shape((7, 9, 9), 3, (2, 3), dilation=(1, 2)), Shape((12, 5, 5), 10, (3, 3), groups=2),
    ],
)  # fmt: skip
def test_what_a_kernel_pads_is_what_its_layout_holds(
    shape: Shape, bits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitpress import _native

    monkeypatch.delenv("BITPRESS_FORCE_ISA", raising=False)
    made, _ = program(shape, *encodings(bits))
    data, tried = artifact.encode(made), 0
    for row in ROWS:
        if row.op != "conv2d" or row.isa not in _native.cpu_isas():
            continue
        alone = session(_native, data, row.name, 1)
        if alone.steps()[CONV]["kernel"] != row.name:
            continue
        tried += 1
        tables = 16**row.group if row.family == "lut" else 0
        found = padded(made.steps[CONV], shape.in_shape, row)
        if row.family == "bitsliced":
            assert (found.rows, found.depth) == (shape.rows, shape.depth)
            continue
        assert found.weight_bytes + tables == alone.memory()["layouts"], row.name
        assert found.rows >= shape.rows and found.depth >= shape.depth
    assert tried >= 2


def test_padding_is_named_where_it_costs_most() -> None:
    # 8 products of 10 rows on 100 pixels: 8,000 at 1e9 a second are 8 us, of 16 rows 12.8 us
    parts, why = explained(NARROW, (8, 8), "i8dot_avx2", 0.014, roofs(1e9))
    assert (parts.arithmetic, parts.padding) == (pytest.approx(0.008), pytest.approx(0.0048))
    assert "products at the peak take 8.00 of 14.00 us" in why
    assert "M padded 10 -> 16: 1.60 times the products, 4.80 us more at the peak" in why
    deep = Shape((1, 20, 20), 8, (3, 3), padding=(1, 1, 1, 1))  # K: three runs of 3, each padded to 4
    _, why = explained(deep, (4, 4), "i8dot16_avx2", 0.04, roofs(1e9))
    assert "K padded 9 -> 12: 1.33 times the products" in why


def test_what_does_not_grow_with_depth_is_named() -> None:
    parts, why = explained(Shape((8, 1, 100), 16), (8, 8), "i8dot_avx2", 0.1, roofs(1e9), 0.06)
    assert parts.fixed == pytest.approx(0.06) and parts.padding == 0
    assert "60.00 us do not grow with K (requantising 1,600 outputs)" in why
    parts, _ = explained(Shape((8, 1, 100), 16), (8, 8), "i8dot_avx2", 0.1, roofs(1e9), 0.7)
    assert parts.fixed == pytest.approx(0.1)  # measured alone; the layer as a whole took less


def test_memory_bound_layers_say_so_and_wider_weights_count() -> None:
    # 4,096 bytes stored at 2 bits, 16,384 as bytes: at 1e9 a second 12.29 us more
    parts, why = explained(Shape((128, 1, 1), 128), (2, 2), "i8dot16_avx2", 0.02, roofs(1e15, 1e9))
    assert why.startswith("memory-bound, its bytes take 4.35 of 20.00 us")
    assert parts.expansion == pytest.approx(0.012288)
    assert "4,096 bytes of 2-bit weights are 16,384 to i8dot16_avx2, 12.29 us more to read" in why


def test_the_rest_is_the_speed_of_the_loop() -> None:
    shape = Shape((8, 1, 100), 16)  # 12.8 us at the peak
    _, why = explained(shape, (8, 8), "i8dot_avx2", 0.1, roofs(1e9), 0.01)
    assert "the part that grows with K, 8-bit weights as int16, runs at 14 % of the peak (12.80 of 90.00 us)" in why
    _, why = explained(shape, (2, 2), "i8dot16_avx2", 0.1, roofs(1e9), 0.01)
    assert ", 2-bit weights as bytes," in why
    _, why = explained(Shape((64, 1, 100), 16), (2, 2), "bitserial_avx2", 1.0, roofs(1e9), 0.01)
    assert "grows with K runs at 41 %" in why
    depthwise = Shape((16, 8, 8), 16, (3, 3), padding=(1, 1, 1, 1), groups=16)
    _, why = explained(depthwise, (8, 8), "depthwise_avx2", 0.1024, roofs(), None)
    assert "depthwise_conv2d: 1,024 outputs of 9 products, 100.00 ns each" in why


def test_layers_at_their_bound_and_unknown_roofs_need_no_sentence() -> None:
    _, why = explained(Shape((8, 1, 100), 16), (8, 8), "i8dot_avx2", 0.0133, roofs(1e9))
    assert why == ""  # 96 %
    made, _ = program(NARROW, *encodings((8, 8)))
    unknown = Roofs({}, None)
    assert cause(made.steps[CONV], made, "i8dot_avx2", 1.0, unknown, batch=1, fixed=None) is None
    pool = cause(made.steps[2], made, "requantize_generic", 0.01, roofs(read=1e9), batch=1, fixed=None)
    assert pool is not None and "requantize multiplies nothing: its bytes take 5.00 of 10.00 us" in pool.why
    assert "10.00 ns for each of 1,000 values" in pool.why


@pytest.mark.native
def test_the_fixed_part_is_measured_where_channels_can_be_halved() -> None:
    from bitpress import _native

    flat = samples.everything()
    steps = session(_native, artifact.encode(flat), "i8dot_generic", 1).steps()
    found = fixed_parts(_native, flat, [row["kernel"] for row in steps], batch=2, threads=1)
    halved = {
        i for i, s in enumerate(flat.steps)
        if s.op == "conv2d" and s.groups == 1 and flat.buffers[s.inputs[0]].shape[0] > 1
    }  # fmt: skip
    assert set(found) == halved and all(value >= 0 for value in found.values())


@pytest.mark.native
def test_bench_explains_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITPRESS_NATIVE", "BITPRESS_FORCE_ISA", "BITPRESS_FORCE_KERNEL"):
        monkeypatch.delenv(name, raising=False)
    artifact.write(samples.everything(), tmp_path / "x.bpk")
    document = check(bench(tmp_path / "x.bpk", vs=(), seconds=0.05))
    rows = document["runs"][0]["layers"]
    slow = [row for row in rows if row["efficiency"] < 0.9]
    assert slow and all(row["why"] for row in slow)
    said = worst(document)
    gaps = {f"{row['name']}: {row['why']}": row["median"] - row["bound"] for row in rows}
    assert len(said) == min(3, len(slow)) and gaps[said[0]] == max(gaps.values())


def test_rows_know_their_lanes() -> None:
    assert (BY_NAME["lut_avx512vbmi"].lanes, BY_NAME["lut_avx512vbmi"].group) == (64, 3)
    made, _ = program(Shape((144, 1, 4), 16), parse("i2"), parse("u2"))
    found = padded(made.steps[CONV], (144, 1, 4), BY_NAME["lut_avx512vbmi"])
    assert (found.rows, found.depth, found.weight_bytes) == (64, 144, 64 * 48)
    wide = padded(replace(made.steps[CONV]), (144, 1, 4), BY_NAME["i8dot_generic"])
    assert wide.weight_bytes == 2 * 16 * 144
