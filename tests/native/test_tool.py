"""bitpress-run says what `bitpress run` says, bit by bit; its table, documents, exit codes and size."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitpress
from bitpress.compiler import artifact
from bitpress.compiler.execute import execute
from bitpress.core import quant

from ..cli.tool import good
from ..runtime.samples import Maker
from ..schema.schemas import check
from .conftest import Sample, Tree, run

_native = pytest.importorskip("bitpress._native", reason="the native module is not built")
pytestmark = pytest.mark.native
ISAS = _native.cpu_isas()
LARGEST = 1_620_000  # bytes of the tool


def infer(tree: Tree, sample: Sample, images: np.ndarray, folder: Path, *options: object, **environment: str) -> bytes:
    """Bytes of Y.npy."""
    source, target = folder / "x.npy", folder / "y.npy"
    np.save(source, images)
    run([tree.tool, sample.file, "--input", source, "--output", target, *options], **environment)
    return target.read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["straight", "everything", "deep"])
def test_outputs_are_those_of_numpy(
    name: str, isa: str, threads: int, tree: Tree, programs: dict[str, Sample], tmp_path: Path
) -> None:
    sample = programs[name]
    infer(tree, sample, sample.x, tmp_path, "--threads", threads, BITPRESS_FORCE_ISA=isa)
    got = np.load(tmp_path / "y.npy", allow_pickle=False)
    np.testing.assert_array_equal(got.view(np.int32), execute(sample.program, sample.x).view(np.int32))


@pytest.mark.parametrize("kind", ["x", "u8"])
@pytest.mark.parametrize("count", [0, 1, 3, 131])
def test_the_file_is_that_of_the_command_line(
    kind: str, count: int, tree: Tree, programs: dict[str, Sample], tmp_path: Path
) -> None:
    """Header and numbers, for images normalised and not, more and fewer than are run together."""
    sample = programs["everything"]
    some = getattr(sample, kind)
    images = some[np.arange(count) % len(some)]
    got = infer(tree, sample, images, tmp_path)
    good("run", sample.file, "--input", tmp_path / "x.npy", "--output", tmp_path / "z.npy")
    assert got == (tmp_path / "z.npy").read_bytes()


def test_images_are_normalised_as_python_does(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    """All 256 values, whatever mean and std: every operation is rounded."""
    sample = programs["straight"]
    images = np.resize(np.arange(256, dtype=np.uint8), (12, 8, 8, 3))
    floats = quant.normalize_u8(images.transpose(0, 3, 1, 2), sample.program.mean, sample.program.std)
    assert infer(tree, sample, images, tmp_path) == infer(tree, sample, np.ascontiguousarray(floats), tmp_path)


@pytest.mark.parametrize("isa", ISAS)
def test_the_table_names_every_step_and_its_kernel(
    isa: str, tree: Tree, programs: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITPRESS_FORCE_ISA", isa)
    sample = programs["everything"]
    lines = run([tree.tool, sample.file], BITPRESS_FORCE_ISA=isa).stdout.splitlines()
    rows = _native.Session(sample.file.read_bytes()).steps()
    assert lines[0].split() == ["step", "op", "output", "kernel", "ISA", "ms", "share"]
    for line, row, step in zip(lines[1:], rows, sample.program.steps, strict=False):
        shape = "x".join(map(str, sample.program.buffers[step.output].shape))
        assert line.split()[:5] == [row["name"], row["op"], shape, row["kernel"], row["isa"]]
    assert lines[len(rows) + 1].startswith("total")


def test_documents_keep_to_their_schema(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    sample = programs["everything"]
    timed = check(json.loads(run([tree.tool, sample.file, "--bench", "0.05", "--json", "-", "--threads=2"]).stdout))
    total = timed["bench"]["total"]
    assert total["min"] <= total["median"] <= total["p90"] and min(total["samples"]) == total["min"]
    assert timed["host"]["threads"] == 2 and timed["bitpress"] == bitpress.__version__
    assert [row["name"] for row in timed["steps"]] == [step.name for step in sample.program.steps]
    assert all(row["median"] >= 0 for row in timed["steps"])
    done = run([tree.tool, "--json", tmp_path / "d.json", sample.file, "--verify"])
    verified = check(json.loads((tmp_path / "d.json").read_text()))
    assert verified["first"] is None and timed["first"] > 0
    assert verified["golden"] == {"exact": True, "difference": None} and verified["bench"] is None
    assert "comes out exactly" in done.stdout and verified["memory"]["file"] == sample.file.stat().st_size
    np.save(tmp_path / "x.npy", sample.x)
    ran = check(json.loads(run([
        tree.tool, sample.file, "--json", "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy",
    ]).stdout))  # fmt: skip
    assert ran["run"]["n"] == 3 and ran["run"]["outputs"] == 10 and ran["golden"] is None


def test_a_golden_sample_that_comes_out_differently_is_exit_code_1(
    tree: Tree, programs: dict[str, Sample], tmp_path: Path
) -> None:
    program = programs["everything"].program
    assert program.golden_output is not None
    wrong = program.golden_output.copy()
    wrong[0, 3] += 1
    artifact.write(replace(program, golden_output=wrong), tmp_path / "wrong.bpk")
    done = run([tree.tool, tmp_path / "wrong.bpk", "--verify"], code=1)
    assert "1 of 10 values of the golden sample differ; value 3 is" in done.stderr
    found = json.loads(run([tree.tool, tmp_path / "wrong.bpk", "--verify", "--json"], code=1).stdout)
    assert found["golden"]["exact"] is False and "value 3" in found["golden"]["difference"]
    assert "no golden sample" in run([tree.tool, programs["deep"].file, "--verify"], code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "says"),
    [
        ([], {}, 2, "no X.bpk is given"),
        (["{bpk}", "{bpk}"], {}, 2, "is too much"),
        (["{bpk}", "--inptu", "x"], {}, 2, "unknown option --inptu"),
        (["{bpk}", "--input", "x.npy"], {}, 2, "come together"),
        (["{bpk}", "--output"], {}, 2, "--output needs a value"),
        (["{bpk}", "--threads", "0"], {}, 2, "--threads='0': valid values are whole numbers from 1 to 256"),
        (["{bpk}", "--threads=1x"], {}, 2, "--threads='1x'"),
        (["{bpk}", "--bench=fast"], {}, 2, "0.01 to 3600"),
        (["{bpk}", "--bench", "1e9"], {}, 2, "0.01 to 3600"),
        (["{bpk}", "--verify=1"], {}, 2, "takes no value"),
        (["--json", "{bpk}"], {}, 2, "no X.bpk is given"),
        (["--bench-kernel", "i8dot_z80", "4x4x4:i2xu2"], {}, 2, "i8dot_generic"),
        (["--bench-kernel", "i8dot_generic", "4x4:i2xu2"], {}, 2, "MxKxN:WxA is expected"),
        (["--bench-kernel", "i8dot_generic", "4x4x0:i2xu2"], {}, 2, "MxKxN:WxA is expected"),
        (["--bench-kernel", "i8dot_generic", "99999999x4x4:i2xu2"], {}, 2, "MxKxN:WxA is expected"),
        (["--bench-kernel", "i8dot_generic", "1048576x1048576x1048576:i2xu2"], {}, 2, "MxKxN:WxA is expected"),
        (["--bench-kernel", "i8dot_generic", "4x4x4:i3xu2"], {}, 2, "MxKxN:WxA is expected"),
        (["--bench-kernel", "i8dot_generic", "4x4x4:i2xf32"], {}, 2, "MxKxN:WxA is expected"),
        (["--bench-kernel", "i8dot_generic"], {}, 2, "--bench-kernel needs a value"),
        (["{bpk}", "--bench-kernel", "i8dot_generic", "4x4x4:i2xu2"], {}, 2, "needs no X.bpk"),
        (["--bench-kernel", "requantize_generic", "4x4x4:i2xu2"], {}, 3, "computes requantize, not conv2d"),
        (["--bench-kernel", "lut_neon", "4x4x4:i2xu2"], {}, 5, "the host lacks asimd"),
        (["nowhere.bpk"], {}, 2, "cannot read nowhere.bpk: No such file"),
        (["{folder}"], {}, 2, "no regular file"),
        (["/dev/null"], {}, 2, "no regular file"),
        (["{bpk}"], {"BITPRESS_NUM_THREADS": "many"}, 2, "BITPRESS_NUM_THREADS='many'"),
        (["{bpk}"], {"BITPRESS_NATIVE": "2"}, 2, "valid values are 0 and 1"),
        (["{bpk}"], {"BITPRESS_NATIVE": "0"}, 5, "forbids native code"),
        (["{bpk}"], {"BITPRESS_FORCE_ISA": "sse9"}, 2, "valid values are"),
        (["{bpk}"], {"BITPRESS_FORCE_ISA": "neon"}, 5, "neon"),
        (["{bpk}"], {"BITPRESS_FORCE_ISA": "reference"}, 5, "reference"),
        (["{bpk}"], {"BITPRESS_FORCE_KERNEL": "i8dot_z80"}, 2, "i8dot_generic"),
        (["{bpk}", "--json", "{folder}/no/where.json"], {}, 2, "cannot write"),
        (["{bpk}", "--input", "{bpk}", "--output", "y.npy"], {}, 2, "does not begin as a .npy"),
    ],
)
def test_mistakes_are_one_sentence_and_an_exit_code(
    arguments: list[str], environment: dict[str, str], code: int, says: str, tree: Tree, programs: dict[str, Sample],
    tmp_path: Path,
) -> None:  # fmt: skip
    places = {"bpk": programs["straight"].file, "folder": tmp_path}
    done = run([tree.tool, *(a.format(**places) for a in arguments)], code=code, **environment)
    assert done.stderr.startswith("bitpress-run: ") and says in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_a_full_disk_is_said_and_leaves_the_old_file(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    sample = programs["straight"]
    np.save(tmp_path / "x.npy", sample.x)
    done = run([tree.tool, sample.file, "--input", tmp_path / "x.npy", "--output", "/dev/full/y.npy"], code=2)
    assert "cannot write /dev/full/y.npy" in done.stderr
    with Path("/dev/full").open("w") as full:
        code = subprocess.run([tree.tool, sample.file], stdout=full, stderr=subprocess.PIPE, check=False).returncode
    assert code == 2


def test_lack_of_memory_and_of_threads_is_exit_code_5(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    """Address space for the program, but not for what it wants: a line on stderr, and no thread left behind."""

    def within(megabytes: int, *arguments: object) -> str:
        limited = f'ulimit -v {megabytes * 1024} && exec "$@"'
        return run(["sh", "-c", limited, "sh", tree.tool, *arguments], code=5).stderr

    maker = Maker((3, 1024, 1024))
    pooled = maker.pool("sum_pool2d", "pool", maker.quantize(), "f32", (1024, 1024), (1, 1))
    artifact.write(maker.program(pooled), tmp_path / "wide.bpk")
    assert "out of memory" in within(12, tmp_path / "wide.bpk")
    assert "no thread can be started" in within(64, programs["everything"].file, "--threads", 256)


def test_forced_kernel_and_isa_are_seen_in_the_table(tree: Tree, programs: dict[str, Sample]) -> None:
    sample = programs["everything"].file
    rows = json.loads(run([tree.tool, sample, "--verify", "--json"], BITPRESS_FORCE_KERNEL="bitserial_generic").stdout)
    assert {row["kernel"] for row in rows["steps"] if row["op"] == "conv2d"} >= {"bitserial_generic"}
    rows = json.loads(run([tree.tool, sample, "--verify", "--json"], BITPRESS_FORCE_ISA="generic").stdout)
    assert {row["isa"] for row in rows["steps"]} == {"generic"} and rows["host"]["isa"] == "generic"


@pytest.mark.parametrize(
    "kernel", [row["name"] for row in _native.kernels() if row["op"] == "conv2d" and row["usable"]]
)
def test_one_kernel_is_timed_alone(kernel: str, tree: Tree) -> None:
    for shape in ("17x40x29:o2xi2", "1x1x1:i2xu2"):
        if kernel.startswith("winograd"):  # has nothing to do in a matrix product
            refused = run([tree.tool, "--bench-kernel", kernel, shape], code=3)
            assert f"{kernel} computes windows of 3 x 3, one pixel apart ({shape})" in refused.stderr
            continue
        done = run([tree.tool, "--bench-kernel", kernel, shape, "--bench", "0.01"])
        found = re.fullmatch(rf"{kernel} {shape}: median (\S+) ms, best (\S+), .* (\d+) runs; .*\n", done.stdout)
        assert found is not None and float(found[2]) <= float(found[1]) and int(found[3]) >= 5, done


def test_version_help_and_size(tree: Tree) -> None:
    assert run([tree.tool, "--version"]).stdout == f"bitpress-run {bitpress.__version__}\n"
    assert "--bench [SECONDS]" in run([tree.tool, "--help"]).stdout
    assert tree.tool.stat().st_size < LARGEST


def test_memory_is_file_layouts_arena_and_little_more(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    """Over what a model of a few kilobytes takes, of a file with megabytes of weights."""
    maker = Maker((64, 16, 16))
    x = maker.quantize()
    for number in range(6):
        x = maker.conv(f"conv{number}", x, (256, "u8"), "i8" if number % 2 else "i4")
    x = maker.pool("sum_pool2d", "pool", x, "u8", (16, 16), (1, 1))
    program = maker.program(maker.conv("fc", x, (10, "f32"), "i8", kernel=(1, 1), padding=(0, 0, 0, 0)))
    golden = np.zeros((1, 64, 16, 16), np.float32)
    program = replace(program, golden_input=golden, golden_output=execute(program, golden))
    artifact.write(program, tmp_path / "large.bpk")
    small, large = (
        json.loads(run([tree.tool, file, "--verify", "--json"]).stdout)["memory"]
        for file in (programs["everything"].file, tmp_path / "large.bpk")
    )
    assert large["file"] > 2e6 and large["layouts"] > 3e6
    assert large["peak_rss"] > small["peak_rss"] + large["layouts"]
    for memory in (small, large):
        parts = sum(memory[part] for part in ("program", "file", "layouts", "arena"))
        assert memory["rest"] == max(memory["peak_rss"] - parts, 0) <= 2**20
    assert large["program"] < small["program"] + 2**18 < 2**21


@pytest.mark.timed
@pytest.mark.slow
@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w2a2"])
def test_resnet20_is_loaded_and_run_within_10_ms(bits: str, tree: Tree, real_data: Path, tmp_path: Path) -> None:
    """Process started, best of ten; and over the program's own memory, file + layouts + arena + 1 MB on every ISA."""
    weights, file = real_data / "weights" / "cifar10_resnet20.safetensors", tmp_path / "x.bpk"
    good("compile", "resnet20", "--weights", weights, "--quantize", bits, "--calibrate", "random:16", "-o", file)

    def timed(**environment: str) -> dict[str, Any]:
        found: dict[str, Any] = check(json.loads(run([tree.tool, file, "--json"], **environment).stdout))
        return found

    runs = [timed() for _ in range(10)]
    assert min(found["load"] + found["first"] for found in runs) < 10, runs
    for isa in ISAS:
        memory = timed(BITPRESS_FORCE_ISA=isa)["memory"]
        assert memory["rest"] <= 2**20, (isa, memory)
