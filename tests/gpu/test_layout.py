"""How weights and activations lie on the GPU: needs numpy only."""

from __future__ import annotations

import numpy as np
import pytest

from bitpress.core.encoding import ENCODINGS, INT32_MAX, parse
from bitpress.core.errors import UnsupportedError, UsageError
from bitpress.kernels.gpu import layout, tiles
from bitpress.kernels.gpu.layout import Storage, arrange, packed

from .cases import KINDS, assert_same, levels, name, spelled, storage


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("channels", [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300])
def test_fields_lie_where_the_document_says(bits: int, channels: int) -> None:
    codes = np.random.default_rng(channels).integers(0, 2**bits, (3, channels), dtype=np.uint8)
    for run in layout.RUNS:
        assert_same(spelled(codes, bits, run), layout.slices(codes, bits, run))
        assert_same(codes, layout.unslice(layout.slices(codes, bits, run), bits, run)[:, :channels])


@pytest.mark.parametrize("encoding", [e.name for e in ENCODINGS if e.name[0] in "ui" and e.name != "i1"])
def test_stored_levels_come_back(encoding: str) -> None:
    rng = np.random.default_rng(1)
    for channels in (1, 64, 130):
        x = levels(rng, encoding, (2, 3, channels))
        forms = [Storage(parse(encoding))]
        if parse(encoding).bits in (2, 4):
            forms.append(packed(parse(encoding), channels))
        for form in forms:
            stored = form.store(x)
            assert stored.dtype == np.int8 and stored.shape == (2, 3, form.bytes(channels))
            assert_same(x, form.load(stored, channels).astype(np.int64))
            assert abs(x - form.zero).max() << form.shift <= form.max_operand


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize(("taps", "channels"), [(1, 1), (1, 300), (9, 3), (9, 40), (4, 130)])
def test_operands_of_the_fields_give_the_levels(kind: tuple[str, str, bool], taps: int, channels: int) -> None:
    """Decoded from the document's rules alone: the place of a run, the operand of a field, shift and doubling."""
    rng = np.random.default_rng(2)
    w = levels(rng, kind[0], (5, taps, channels))
    made = arrange(w, parse(kind[0]), storage(kind[1], channels, kind[2]))
    form, bits = made.form, parse(kind[0]).bits
    assert made.fields.shape == (5, form.bytes) and form.depth == taps * channels
    codes = layout.unslice(made.fields.view(np.uint8), bits, form.run)
    operands = ((codes.astype(np.int64) ^ 1 << (bits - 1)) - (1 << (bits - 1))) * 2 ** (8 - bits) + form.half
    placed = operands[:, : taps * form.runs * form.run].reshape(5, taps, -1)[:, :, :channels]
    whole = 2 * placed + 1 if form.doubled else placed >> (form.shift - form.act.shift)
    assert_same(w, whole)
    # all that the correction must give back: the zero point of the activations times what multiplies it
    assert_same(form.act.zero * (w - form.doubled).sum(axis=(1, 2)), made.correction.astype(np.int64))


@pytest.mark.parametrize("encoding", ["i8", "o8", "i4", "o4", "i2", "o2", "t2"])
@pytest.mark.parametrize(("rows", "taps"), [(1, 1), (33, 9), (130, 4)])
def test_depthwise_fields_go_tap_by_tap(encoding: str, rows: int, taps: int) -> None:
    """The rows of a tap lie as channels do, and fields are levels, or (level - 1) / 2 on an odd grid."""
    w = levels(np.random.default_rng(3), encoding, (rows, taps, 1))
    made = arrange(w, parse(encoding), Storage(parse("u8")), depthwise=True)
    bits = parse(encoding).bits
    assert made.fields.shape == (taps, made.form.bytes) and made.form.depth == taps
    assert made.fields.flags.c_contiguous
    codes = layout.unslice(made.fields.view(np.uint8), bits, made.form.run)[:, :rows].astype(np.int64)
    field = (codes ^ 1 << (bits - 1)) - (1 << (bits - 1))
    assert_same(w[:, :, 0].T, (field << made.form.half) | made.form.half)
    assert_same(w, layout.restore(made.form, made.fields))
    assert_same(128 * w.sum(axis=(1, 2)), made.correction.astype(np.int64))


def test_a_run_that_few_channels_fill_is_short() -> None:
    assert [packed(parse("u4"), c).run for c in (1, 64, 65, 128, 1000)] == [32, 32, 64, 64, 64]
    assert [packed(parse("u2"), c).run for c in (1, 1000)] == [32, 32]
    a = Storage(parse("u8"))
    runs = [layout.form_of((8, 9, c), parse("i8"), a).run for c in (3, 32, 33, 64, 100, 512)]
    assert runs == [32, 32, 64, 64, 128, 128]


@pytest.mark.parametrize(
    ("weight", "act", "fields", "says"),
    [
        ("i8", "u4", True, "no kernel for w8a4; it has w8a8, w4a8, w2a8, w4a4, w2a2"),
        ("i2", "u4", True, "no kernel for w2a4"),
        ("b1", "u8", False, "no kernel for w1a8"),
        ("u4", "u8", False, r"weights u4 \[0, 15\] do not fit"),
        ("u8", "u8", False, r"weights u8 \[0, 255\] do not fit"),
    ],
)
def test_what_no_family_computes_is_refused(weight: str, act: str, fields: bool, says: str) -> None:
    w = levels(np.random.default_rng(0), weight, (4, 1, 64))
    with pytest.raises(UnsupportedError, match=says):
        arrange(w, parse(weight), storage(act, 64, fields))


def test_activations_that_have_no_storage_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"u1\.\.u8 or i2\.\.i8, not o4"):
        Storage(parse("o4"))
    with pytest.raises(UnsupportedError, match="not u3"):
        Storage(parse("u3"), packed=True, run=32)
    with pytest.raises(UnsupportedError, match="runs of"):
        Storage(parse("u4"), packed=True, run=16)
    with pytest.raises(ValueError, match="300 is outside u8"):
        Storage(parse("u8")).store(np.array([300]))


def test_empty_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\[4, 1, 0\]"):
        arrange(np.zeros((4, 1, 0), np.int64), parse("i8"), Storage(parse("u8")))


def test_sums_of_operands_that_could_leave_int32_are_refused() -> None:
    """Operands are larger than levels: -8 * 16 times 128, K times, is 2^31 at K = 131072."""
    act = Storage(parse("u8"))
    most = INT32_MAX // (128 * 128)
    w = np.full((1, 1, most), -8, np.int64)
    assert arrange(w, parse("i4"), act).form.depth == most
    with pytest.raises(
        UnsupportedError, match=r"operands could reach 2147483648 .* above int32's 2147483647 \(row 0\)"
    ):
        arrange(np.full((1, 1, most + 1), -8, np.int64), parse("i4"), act)
    with pytest.raises(UnsupportedError, match="levels could reach 2147483648"):
        arrange(np.full((1, 1, 2**17), -128, np.int64), parse("i8"), Storage(parse("i8")))


def test_tiles_are_a_function_of_shape_and_chip() -> None:
    assert [tiles.choose("sm90", m).pixels for m in (1, 16, 17, 64, 65, 4096)] == [16, 16, 32, 64, 128, 128]
    assert tiles.choose("gfx942", 4096).stages == 2
    narrow = tiles.choose("sm90", 16)
    shared = [
        tiles.split(narrow, programs, turns, 132).splits for programs, turns in ((32, 32), (32, 8), (200, 99), (1, 3))
    ]
    assert shared == [4, 2, 1, 1]
    assert tiles.chip("sm103") == "sm100" and tiles.chip("sm87") == "sm86"
    for target in ("sm75", "gfx90a"):
        with pytest.raises(UnsupportedError, match=target):
            tiles.choose(target, 1)
