"""`bench gemm`: which rows there are, that wrong ones are never timed, peers, roofs, what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitpress.benchmarks import gemm, peers_gemm, roofline, shapes
from bitpress.benchmarks.gemm import bench_gemm
from bitpress.benchmarks.peers_gemm import FAMILIES, GemmPeer, Layer
from bitpress.benchmarks.shapes import Shape, case, encodings
from bitpress.compiler import artifact
from bitpress.compiler.model import Model
from bitpress.core.errors import CheckFailed, UsageError
from bitpress.core.graph import Node
from bitpress.core.ops import conv_products
from bitpress.kernels.packed import unpack
from bitpress.kernels.registry import ROWS

from ..cli.tool import good, refused
from ..schema.schemas import check

QUICK: dict[str, Any] = {"vs": (), "seconds": 0.001}
STRIDED = Shape((4, 9, 7), 6, (3, 3), (2, 1), (1, 0, 2, 1))
DEPTHWISE = Shape((20, 8, 6), 20, (3, 3), padding=(1, 1, 1, 1), groups=20)
GROUPED = Shape((12, 5, 5), 8, (1, 1), groups=2)
NATIVE = pytest.mark.native


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITPRESS_NATIVE", "BITPRESS_FORCE_ISA", "BITPRESS_FORCE_KERNEL"):
        monkeypatch.delenv(name, raising=False)


def host() -> list[str]:
    from bitpress import _native

    return _native.cpu_isas()


def expected(shape: str, bits: str, isas: list[str]) -> set[str]:
    """Rows of kernels.def that say that they compute it, less those whose 16-bit sums could overflow."""
    (made,) = shapes.shapes([shape])
    pair = shapes.encodings(tuple(int(n) for n in bits[1:].split("a")))  # type: ignore[arg-type]
    rows = [row for row in ROWS if row.isa in isas and row.fits(made.problem(*pair)) is None]
    wide = 2 * pair[0].max_abs * pair[1].hi > 32767 // 2
    return {row.name for row in rows if not (row.family == "i8dot16" and wide)}


@NATIVE
def test_every_row_of_the_list_that_computes_it_is_a_row() -> None:
    said: list[float] = []
    document = check(
        bench_gemm(
            ("9x40x5", "17x1x1"), bits=("w2a2", "w8a8", "w1a3"), threads=(1, 2),
            progress=lambda _what, share: said.append(share), **QUICK,
        )
    )  # fmt: skip
    assert said == sorted(said) and said[-1] == 1
    assert document["isas"] == host() and [roof["threads"] for roof in document["roofs"]] == [1, 2]
    for shape in ("9x40x5", "17x1x1"):
        for bits in ("w2a2", "w8a8", "w1a3"):
            rows = [row for row in document["rows"] if (row["shape"], row["bits"]) == (shape, bits)]
            assert {row["kernel"] for row in rows} == expected(shape, bits, host())
            assert sum(row["chosen"] for row in rows) == 2  # once for each number of threads
            assert len(rows) == 2 * len({row["kernel"] for row in rows})
    row = document["rows"][0]
    assert row["macs"] == 9 * 40 * 5 and row["gmacs"] == pytest.approx(1e-6 * row["macs"] / row["median"])
    assert row["efficiency"] is None or row["efficiency"] == pytest.approx(row["bound"] / row["median"])
    for row in document["rows"]:
        assert (row["cycles"] is None) == (row["threads"] > 1) == (row["peak_cycles"] is None or not row["peak"])
        assert row["cycles"] is None or 1e5 < 1e3 * row["cycles"] / row["min"] < 1e10  # no clock is so low or so high
    first, second = document["roofs"]
    assert set(first["operations_per_cycle"]) == set(first["operations_per_second"])
    assert all(rate > 1 for rate in first["operations_per_cycle"].values()) and not second["operations_per_cycle"]


@pytest.mark.parametrize(("bits", "share", "want"), [
    ((2, 2), 0.2, 0.2), ((8, 8), 0.62, 0.62), ((2, 2), None, 0.75), ((2, 2), 0.0, 0.0), ((1, 1), 0.2, 1.0),
])  # fmt: skip
def test_weights_have_as_many_zeros_as_asked(bits: tuple[int, int], share: float | None, want: float) -> None:
    made, _ = shapes.program(shapes.Shape((64, 1, 1), 300), *shapes.encodings(bits), nonzero=share)
    weight = made.steps[shapes.CONV].weight
    assert weight is not None
    assert np.mean(unpack(weight) != 0) == pytest.approx(want, abs=4 * (want * (1 - want) / (64 * 300)) ** 0.5)


@NATIVE
def test_what_no_kernel_computes_is_listed() -> None:
    document = check(bench_gemm(("9x40x5",), bits=("w3a3", "w2a2", "w9a2"), isas=("generic",), **QUICK))
    idle = {row["bits"]: row["why"] for row in document["rows"] if row["kernel"] is None}
    assert (
        "stored in 1, 2, 4, 8 bits, not 3" in idle["w3a3"]
        and "not w9" in idle["w9a2"]
        and set(idle) == {"w3a3", "w9a2"}
    )
    assert {(m["bits"], m["kernel"]) for m in document["misfits"]} >= {
        ("w3a3", "i8dot_generic"),
        ("w9a2", "i8dot_generic"),
    }
    found = check(
        json.loads(good("bench", "gemm", "--shapes", "9x40x5", "--bits", "w3a3", "--vs", "", "--json", "-").out)
    )
    assert {row["isa"] for row in found["rows"]} == set(host()) and all(row["median"] is None for row in found["rows"])


@NATIVE
def test_a_forced_kernel_leaves_the_other_isas_idle_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", "i8dot_generic")
    document = check(bench_gemm(("9x40x5",), bits=("w2a2",), **QUICK))
    assert [row["kernel"] for row in document["rows"]] == ["i8dot_generic"] + [None] * (len(host()) - 1)
    assert [row["isa"] for row in document["rows"]] == host()
    assert all("BITPRESS_FORCE_KERNEL=i8dot_generic fits" in row["why"] for row in document["rows"][1:])
    assert os.environ["BITPRESS_FORCE_KERNEL"] == "i8dot_generic"


@NATIVE
def test_a_kernel_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **kwargs: Any) -> shapes.Case:
        made = case(*args, **kwargs)
        made.want[0, 7] += 1
        return made

    monkeypatch.setattr(gemm, "case", wrong)
    monkeypatch.setattr(gemm, "measure", lambda *_a, **_k: pytest.fail("it was timed"))
    with pytest.raises(CheckFailed, match=r"generic on 9x40x5 at w2a2: .* 1 of 45 outputs differ"):
        bench_gemm(("9x40x5",), bits=("w2a2",), isas=("generic",), **QUICK)


@pytest.mark.parametrize("bits", [(2, 2), (1, 8), (4, 4), (8, 8)])
@pytest.mark.parametrize("shape", [Shape((40, 1, 5), 9), STRIDED, DEPTHWISE, GROUPED])
def test_a_case_is_the_shape_with_data_that_fills_its_levels(shape: Shape, bits: tuple[int, int]) -> None:
    w, a = encodings(bits)
    made = case(shape, w, a)
    assert made.step.op == shape.op and made.program.buffers[made.step.output].shape == shape.out_shape
    x = made.x.astype(int)
    assert set(np.unique(x)) <= set(range(a.hi + 1)) and len(np.unique(x)) > a.hi / 4
    # the same by the definition of the float stage: nothing of the compiler
    attrs = {name: getattr(shape, name) for name in ("stride", "padding", "dilation", "groups")}
    assert made.step.weight is not None and made.step.epilogue is not None
    levels = unpack(made.step.weight).reshape(shape.rows, *shape.kernel, -1).transpose(0, 3, 1, 2)
    sums = conv_products(Node("conv2d", "x", ("i",), shape.out_shape, attrs=attrs), levels, x).astype(np.float32)
    t = sums * made.step.epilogue.m.reshape(-1, 1, 1) + made.step.epilogue.b.reshape(-1, 1, 1)
    want = np.clip(np.rint(t), 0, a.hi)
    np.testing.assert_array_equal(made.want.reshape(want.shape), want)
    assert len(np.unique(want)) > min(a.hi, want.size / 8) / 4
    assert shape.macs == shape.rows * prod(levels.shape[1:]) * prod(shape.out_shape[1:])


@NATIVE
@pytest.mark.parametrize("shape", [STRIDED, DEPTHWISE, GROUPED])
def test_layers_of_networks_run_as_what_they_are(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "shapes", lambda _asked: (shape,))
    document = bench_gemm(("net",), bits=("w4a4",), **QUICK)
    assert {row["op"] for row in document["rows"]} == {shape.op}
    assert {row["kernel"] for row in document["rows"] if row["kernel"]} >= {
        "depthwise_generic" if shape is DEPTHWISE else "i8dot_generic"
    }
    assert Model(artifact.encode(case(shape, *encodings((4, 4))).program)).inspect_rows()[1]["op"] == shape.op


def test_a_network_is_its_distinct_layers() -> None:
    pytest.importorskip("torch", reason="the zoo needs torch")
    found = shapes.shapes(["resnet20", "16x144x1024", "resnet20"])
    assert [str(s) for s in found] == [
        "16x27x1024", "16x144x1024", "32x144x256", "32x288x256", "64x288x64", "64x576x64", "10x64x1", "16x144x1024",
    ]  # fmt: skip
    conv = found[1]
    assert len(conv.layers) == 12 and conv.layers[0] == "resnet20:layer1.0.conv1"  # six, asked for twice
    assert conv.kernel == (3, 3) and not conv.plain and found[7].plain and found[7].layers == ()
    assert found[2].stride == (2, 2)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--shapes", "resnet2"), "did you mean resnet20"),
        (("--shapes", "64x576"), "no M x K x N such as 64x576x64"),
        (("--shapes", "0x1x1"), "1 to 65535"),
        (("--shapes", "60000x60000x1"), "3,600,000,000 values"),
        (("--shapes", ""), "--shapes is empty"),
        (("--bits", "w2"), "not of the form w2a8"),
        (("--isa", "avx3"), "did you mean avx2"),
        (("--isa", ""), "--isa is empty"),
        (("--vs", "tvm"), "valid: onnxruntime, openvino, torch"),
    ],
)
@NATIVE
def test_what_is_refused(args: tuple[str, ...], says: str) -> None:
    assert says in refused(2, "bench", "gemm", *args)


@NATIVE
def test_isas_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = "neon" if "neon" not in host() else "avx2"
    assert "this host lacks" in refused(5, "bench", "gemm", "--isa", foreign)
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "generic")
    if len(host()) > 1:
        assert "leaves it out" in refused(5, "bench", "gemm", "--isa", host()[1])
    document = bench_gemm(("9x40x5",), bits=("w2a2",), **QUICK)
    assert document["isas"] == ["generic"]
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "reference")
    assert "native module" in refused(5, "bench", "gemm")


@NATIVE
def test_the_word_comes_first_and_a_file_is_spelled_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "takes the word first" in refused(2, "bench", "--vs", "", "gemm")
    assert "./gemm" in refused(2, "bench", "./gemm")


@NATIVE
def test_a_configuration_file_has_a_table_of_its_own_for_the_form(tmp_path: Path) -> None:
    config = tmp_path / "bench.toml"
    config.write_text('["bench gemm"]\nshapes = ["9x40x5"]\nbits = "w2a2"\nisa = "generic"\nvs = []\nseconds = 0.001\n')
    found = json.loads(good("bench", "gemm", "--config", config, "--json", "-").out)
    assert (found["shapes"], found["bits"], found["isas"]) == (["9x40x5"], ["w2a2"], ["generic"])
    assert "See `bitpress bench gemm --help`" in refused(2, "bench", "gemm", "--shape", "1x1x1")


@NATIVE
def test_formats() -> None:
    args = ("bench", "gemm", "--shapes", "9x40x5", "--bits", "w2a2", "--isa", "generic", "--vs", "", "--seconds", 0.001)
    markdown = good(*args, "-o", "md").out
    assert (
        "| M x K x N | layers | bits | kernel | chosen | us | GMAC/s |" in markdown
        and "| 9x40x5 | - | w2a2 |" in markdown
    )
    rows = list(csv.DictReader(io.StringIO(good(*args, "-o", "csv").out)))
    assert {row["kernel"] for row in rows} == expected("9x40x5", "w2a2", ["generic"])
    lines = [json.loads(line) for line in good(*args, "-o", "jsonl").out.splitlines()]
    assert [line["kernel"] for line in lines] == [row["kernel"] for row in rows] and lines[0]["median"] > 0
    check(json.loads(good(*args, "-o", "json").out))


@NATIVE
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [Shape((40, 1, 5), 9), STRIDED, DEPTHWISE])
def test_peers_compute_the_same_layer(name: str, shape: Shape) -> None:
    for module in FAMILIES[name].modules:
        pytest.importorskip(module, reason=f"{module} is not installed")
    layer = Layer(shape)
    assert len(np.unique(layer.want)) > 20
    with FAMILIES[name].make(layer, 1) as peer:
        assert layer.matches(peer) > 0.99
    layer.want = layer.want + 2
    assert layer.matches(peer) == 0


@NATIVE
def test_a_peer_that_computes_something_else_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    def make(layer: Layer, _threads: int, off: int) -> Any:
        peer = GemmPeer(f"p{off}", "1", lambda: None, lambda: layer.want + off, copies=4)
        return nullcontext(peer)

    rows = {f"p{off}": peers_gemm.Row((), "", lambda layer, t, off=off: make(layer, t, off)) for off in (0, 2)}
    monkeypatch.setattr(peers_gemm, "FAMILIES", rows)
    document = check(bench_gemm(("9x40x5",), bits=("w2a2",), isas=("generic",), seconds=0.001))
    good_one, wrong = document["rows"][0]["peers"]
    assert good_one["output_matches"] == 1 and good_one["ratio"] > 0 and good_one["median"] > 0
    assert wrong == {"name": "p2", "version": "1", "median": None, "ratio": None, "output_matches": 0.0}


def test_bytes_are_read_from_the_nearest_cache_that_holds_them(tmp_path: Path) -> None:
    for number, (level, kind, size) in enumerate(
        [("1", "Data", "32K"), ("1", "Instruction", "64K"), ("2", "Unified", "512K"), ("3", "Unified", "8192K")]
    ):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    assert roofline.cache_sizes(tmp_path) == {1: (32 << 10, False), 2: (512 << 10, False), 3: (8 << 20, True)}
    assert roofline.cache_sizes(tmp_path / "none") == {}

    class Native:
        def read_rate(self, block: int, _seconds: float) -> float:
            return float(block)

    sizes = roofline.cache_sizes(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "cache_sizes", lambda: sizes)
        found = roofline.levels(Native(), 2)  # type: ignore[arg-type]
    assert [(one.name, one.bytes, one.block) for one in found] == [
        ("L1", 64 << 10, 16 << 10), ("L2", 1 << 20, 256 << 10), ("L3", 8 << 20, 2 << 20), ("memory", None, 16 << 20),
    ]  # fmt: skip
    assert found[0].bytes_per_second == 2 * (16 << 10)  # both threads
    assert roofline.rate_for(64 << 10, found) == 32 << 10 and roofline.rate_for(9 << 20, found) == 32 << 20
    assert roofline.rate_for(1, ()) is None


def test_the_bound_is_the_larger_of_two_times() -> None:
    job = roofline.Work(macs=1000, bit_products=4000, bit_additions=2000, weight_bytes=50, value_bytes=50)
    names = ("i8dot", "i8dot16", "bitserial", "bitsliced")
    roofs = roofline.Roofs(dict.fromkeys(((name, "avx2") for name in names), 1e6), 1e6)
    found = roofline.bound(job, "i8dot16_avx2", "avx2", roofs, 2)
    assert found is not None and (found.arithmetic, found.memory) == (2.0, pytest.approx(0.15))
    assert (found.least, found.limit) == (2.0, "arithmetic")
    bits = roofline.bound(job, "bitserial_avx2", "avx2", roofs, 1)
    assert bits is not None and bits.arithmetic == 4.0
    added = roofline.bound(job, "bitsliced_avx2", "avx2", roofs, 1)
    assert added is not None and added.arithmetic == 2.0
    bytes_ = roofline.bound(replace(job, macs=0), "gather_generic", "generic", roofs, 1)
    assert bytes_ is not None and (bytes_.least, bytes_.limit) == (pytest.approx(0.1), "bytes")
    assert roofline.bound(job, "lut_neon", "neon", roofs, 1) is None
    tiles, dots = (roofline.bound(job, name, "avx2", roofs, 1) for name in ("winograd16_avx2", "i8dot_avx2"))
    assert tiles is not None and dots is not None and tiles.arithmetic == pytest.approx(dots.arithmetic * 16 / 36)


def test_a_depth_whose_sums_may_overflow_is_refused() -> None:
    with pytest.raises(UsageError, match="262140 products of i8 x u8 may overflow int32, at most 65793"):
        shapes.check_depth(Shape((65535, 1, 1), 1, (2, 2)), *encodings((8, 8)))
