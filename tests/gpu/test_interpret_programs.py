"""Compiled networks on the GPU runtime, by triton's interpreter: every value of every step equals compiler/execute.py.

Networks by kind of risk (grids of a search and of post-training, sums with residuals, depthwise and grouped layers,
pools, gathers, widths mixed within a layer, removed channels, images of one pixel) and steps by kind of geometry.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in a process of its own, where TRITON_INTERPRET=1: make test-gpu", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed: pip install 'bitpress[gpu]'")

from bitpress.compiler import artifact, gpu_model, gpu_steps
from bitpress.compiler.execute import execute, values
from bitpress.compiler.gpu_model import GpuProgram
from bitpress.compiler.model import load
from bitpress.compiler.program import Program
from bitpress.core.encoding import parse
from bitpress.core.errors import UnsupportedError, UsageError
from bitpress.core.integer import integer
from bitpress.kernels.gpu.rows import ROWS
from bitpress.kernels.packed import pack

from ..cli.tool import bitpress, good
from ..compiler import nets
from ..runtime import samples
from ..runtime.samples import Maker

pytestmark = pytest.mark.triton_interpret


def noise(program: Program, images: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(images, *program.buffers[program.input].shape)).astype(np.float32)


def check(program: Program, images: int = 2) -> GpuProgram:
    """Every value of the GPU runtime against numpy's."""
    made, x = GpuProgram(program), noise(program, images)
    want, got = values(program, x), made.values(x)
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        nets.assert_same(value, got[name], name)
    return made


def test_every_op_is_exact() -> None:
    made = check(samples.everything(), images=1)
    x = noise(made.program, 1)
    assert np.array_equal(made(x), execute(made.program, x))
    named = {(row.op, row.name) for row in ROWS}
    assert {(row["op"], row["kernel"]) for row in made.rows()} <= named


@pytest.mark.parametrize("weight", ["b1", "t2", "i2", "o2", "i4", "o4", "i8", "o8"])
def test_every_grid_is_exact(weight: str) -> None:
    """Weights of each grid as a convolution of u8 and, seeing their whole image, as a matrix product of u4."""
    m = Maker((3, 5, 4))
    x = m.conv("conv", m.quantize("u8"), (9, "u4"), weight)
    check(m.program(m.conv("fc", x, (5, "f32"), weight, kernel=(5, 4), padding=(0, 0, 0, 0))))


def compiled(name: str, seed: int) -> Program:
    """A small network under a random plan: widths mixed within layers, channels removed."""
    graph = nets.NETS[name](seed)
    plan = nets.random_plan(graph, np.random.default_rng(seed), "float32" if seed % 2 else "int8")
    source = integer(graph, plan, nets.tensors_of(graph, plan, seed))
    fused, channels = nets.fuse(nets.prune(source)), graph.inputs[0].shape[0]
    return nets.lower(fused, nets.pack(fused), mean=np.zeros(channels, np.float32), std=np.ones(channels, np.float32))


@pytest.mark.parametrize(
    ("name", "seed"),
    [("option_a", 4), ("preact", 5), ("flat", 4), ("shared_flat", 6), ("inverted", 5), ("inverted", 6),
     ("space_to_depth", 4), ("odd_sum", 7), ("joined_output", 4), ("signed_clip", 5), ("gated", 4), ("gated", 5)],
)  # fmt: skip
def test_networks_under_random_plans_are_exact(name: str, seed: int) -> None:
    """Even seeds hold residual streams in 8 bits, odd ones as floats."""
    check(compiled(name, seed), images=1)


def pools(m: Maker) -> int:
    """Windows that overlap, borders on one side, an image whose last rows no window sees; floats too."""
    x = m.conv("a", m.quantize(), (5, "u8"))
    x = m.pool("max_pool2d", "max", x, "u8", (3, 2), (2, 3), (2, 0, 1, 1))
    return m.pool("sum_pool2d", "sum", x, "f32", (2, 2), (1, 1), (0, 1, 1, 0))


def depthwise(m: Maker) -> int:
    """Widths mixed among channels, a residual, dilation."""
    x = m.conv("a", m.quantize("u8"), (6, "u8"), "i8")
    out = m.buffer("dw", (6, 9, 8), "i8")
    around = {"depthwise": True, "padding": (2, 1, 2, 1), "dilation": (2, 1)}
    m.conv("dw#0", x, out, "o4", out_channels=[0, 4, 5], residual=x, **around)
    m.conv("dw#1", x, out, "o2", out_channels=[1, 2, 3], **around)
    return m.conv("b", out, (3, "f32"), kernel=(1, 1), padding=(0, 0, 0, 0))


def gathers(m: Maker) -> int:
    """Of levels whose zero is no byte 0, with removed channels and borders; a float stream."""
    x = m.gather("g", m.quantize("u8"), [2, -1, 0, 0, -1], (2, 1), (1, 0, 0, 2))
    x = m.conv("a", x, (4, "f32"), residual=None)
    return m.gather("last", x, [3, -1, 1], (2, 2), (0, 1, 1, 0))


def wide(m: Maker) -> int:
    """More channels than a block holds, rows that are no whole words, strides without a window."""
    x = m.conv("a", m.quantize("u8"), (133, "u8"), "o4")
    x = m.conv("b", x, (35, "u4"), "o2", kernel=(1, 1), stride=(2, 2), padding=(0, 0, 0, 0))
    return m.conv("c", x, (70, "f32"), "o8", stride=(3, 3), residual=None)


@pytest.mark.parametrize("build", [pools, depthwise, gathers, wide])
def test_steps_by_kind_of_geometry(build: Callable[[Maker], int]) -> None:
    m = Maker((3, 9, 8))
    check(m.program(build(m), labels=()))


def test_batches_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = samples.straight("o2", "u4", channels=5)
    want = GpuProgram(program)(noise(program, 5))
    monkeypatch.setattr(gpu_model, "CHUNK", 2)
    made = GpuProgram(program)
    assert made.chunk == 2 and np.array_equal(made(noise(program, 5)), want)
    assert made(noise(program, 0)).shape == (0, 10)


def test_a_step_that_cannot_run_is_refused_by_name() -> None:
    """The deepest sums of levels that int32 holds are too deep for operands 16 times as large."""
    m = Maker((1, 1, 1))
    x = m.quantize("u8")
    big = replace(m.buffers[x], shape=(140_000, 1, 1), bytes=140_000)
    m.buffers[x] = big
    out = m.conv("deep", x, (1, "f32"), "i4", kernel=(1, 1), padding=(0, 0, 0, 0))
    m.steps[-1] = replace(m.steps[-1], weight=pack(np.full((1, 140_000), -8), parse("i4")))
    program = m.program(out)
    with pytest.raises(UnsupportedError, match=r"step deep \(conv2d\) does not run on the GPU: sums of operands"):
        GpuProgram(program)


# --- verbs with --device cuda; in the interpreter tensors lie on the CPU ---

DATA = """
import numpy as np
def factory():
    rng = np.random.default_rng(0)
    part = [(rng.normal(size=(3, 8, 8)).astype(np.float32), i % 10) for i in range(12)]
    return part, part
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled network, images as x.npy and a data set as data.py beside it."""
    folder = tmp_path_factory.mktemp("small")
    program = samples.straight("o2", "u8", channels=5)
    golden = noise(program, 1, seed=9)
    artifact.write(replace(program, golden_input=golden, golden_output=execute(program, golden)), folder / "x.bpk")
    np.save(folder / "x.npy", noise(program, 3))
    (folder / "data.py").write_text(DATA, encoding="utf-8")
    return folder / "x.bpk"


def test_load_on_a_gpu(small: Path) -> None:
    model = load(small, device="cuda")
    assert (model.isa, model.gpu_name, model.session) == ("sm90", "triton's interpreter", None)
    assert model.golden_check() and {row["isa"] for row in model.inspect_rows()} == {"sm90"}
    with pytest.raises(UsageError, match="valid: cpu, cuda"):
        load(small, device="tpu")


def test_run_and_eval_give_what_the_cpu_gives(small: Path, tmp_path: Path) -> None:
    args = ("run", small, "--input", small.with_name("x.npy"), "--output")
    made = good(*args, tmp_path / "gpu.npy", "--device", "cuda", "--json", "-").document()
    good(*args, tmp_path / "cpu.npy")
    rows = good("inspect", small, "--device", "cuda", "--json", "-").document()["layers"]
    assert [(row["kernel"], row["isa"]) for row in rows] == [("conv_gpu", "sm90"), ("gemm_gpu", "sm90")]
    assert (tmp_path / "gpu.npy").read_bytes() == (tmp_path / "cpu.npy").read_bytes()
    assert made["host"]["gpu"] == "triton's interpreter" and made["host"]["isa"] == "sm90"
    args = ("eval", small, "--data", f"{small.with_name('data.py')}:factory", "--json", "-")
    cpu, both = good(*args).document(), good(*args, "--device", "cuda").document()
    assert both["n"] == 12 and both["predictions_sha256"] == cpu["predictions_sha256"]


def test_verify_compares_the_gpu_and_names_the_first_layer_that_differs(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("verify", small, "--device", "cuda", "--batch", "1,3", "--json", "-")
    found = good(*args).document()
    assert found["exact"] and found["stages"][-1] == "triton" and found["host"]["gpu"]
    assert [(r["batch"], r["mismatches"]) for r in found["runs"] if r["stage"] == "triton"] == [(1, 0), (3, 0)]
    right = gpu_steps.gpu.conv2d
    monkeypatch.setattr(gpu_steps.gpu, "conv2d", lambda *a, **k: -right(*a, **k))
    outcome = bitpress(*args)
    first = outcome.document()["first_difference"]
    assert outcome.code == 1 and (first["name"], first["layer"], first["stage"]) == ("conv.out", "conv", "triton")


def test_bench_times_layers_on_the_gpu(small: Path) -> None:
    found = good("bench", small, "--device", "cuda", "--seconds", "0.01", "--json", "-").document()
    (run,) = found["runs"]
    assert {row["name"]: row["kernel"] for row in run["layers"]} == {
        "image.q": "average_pool_gpu", "conv": "conv_gpu", "pool": "global_average_pool_gpu", "fc": "gemm_gpu"
    }  # fmt: skip
    assert all(row["median"] > 0 and row["bound"] is None for row in run["layers"]) and run["peers"] == []
    assert "on the CPU" in found["peers_left_out"]
