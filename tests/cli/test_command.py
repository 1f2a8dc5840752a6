"""What all verbs share: options, configuration files, formats, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from bitpress.cli import command, errors
from bitpress.cli.progress import Progress
from bitpress.cli.tables import Column, Table, cell, to_csv, to_jsonl, to_markdown, to_rich
from bitpress.compiler import artifact
from bitpress.core.errors import CheckFailed, CorruptError, EnvironmentMissing, UnsupportedError, UsageError

from ..runtime import samples
from .tool import bitpress, good, refused


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "x.bpk"
    artifact.write(samples.everything(), path)
    np.save(path.with_name("x.npy"), np.random.default_rng(0).normal(size=(5, 3, 9, 11)).astype(np.float32))
    return path


def test_help_lists_the_verbs_and_needs_nothing_heavy() -> None:
    code = "import sys; from bitpress.cli.command import cli; cli(['--help'])"
    out = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    for verb in command.VERBS:
        assert f"\n  {verb} " in out.stdout
    for heavy in ("torch", "numpy", "onnx", "rich"):
        assert f" {heavy}\n" not in out.stderr


def test_import_is_quick_and_without_torch() -> None:
    code = "import sys, time; t = time.perf_counter(); import bitpress; t = time.perf_counter() - t; "
    code += "assert not {'torch', 'onnx', 'rich', 'click'} & set(sys.modules); print(t)"
    seconds = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    assert min(seconds) < 0.3


def test_python_dash_m_is_the_console_script() -> None:
    out = subprocess.run(
        [sys.executable, "-P", "-m", "bitpress", "--version"], capture_output=True, text=True, check=True
    )
    assert out.stdout.startswith("bitpress, version ")


def test_a_bare_face_names_the_remedy(tmp_path: Path) -> None:
    face = tmp_path / "bitpress"
    source = Path(command.__file__).parents[1]
    for name in ("__init__.py", "__main__.py", "_version.py"):
        face.mkdir(exist_ok=True)
        (face / name).write_text((source / name).read_text(encoding="utf-8"), encoding="utf-8")
    # -S: no site-packages, so that nothing but the folder is found
    out = subprocess.run(
        [sys.executable, "-S", "-m", "bitpress"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert out.returncode == 5 and "hides the installed package" in out.stderr and "Traceback" not in out.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["serch"], "did you mean search"),
        (["inspect", "--jsn", "-"], "--json"),
        (["doctor", "-o", "tabel"], "did you mean table"),
        (["doctor", "--device", "tpu"], "valid: cpu, cuda"),
        (["doctor", "--threads", "1,2"], "one whole number"),
        (["doctor", "--threads", "0"], "from 1 to 256"),
        (["doctor", "-q", "-v"], "contradict"),
        (["doctor", "--config", "nowhere.toml"], "No such file"),
        (["run", "x.bpk"], "--input"),
    ],
)
def test_usage_errors_are_one_sentence(args: list[str], says: str) -> None:
    assert says in refused(2, *args)


def test_cuda_is_said_to_be_absent(tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By verbs that never use it, and by those that run networks where there is no GPU."""
    from bitpress.kernels import gpu

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "on the CPU only" in refused(5, "doctor", "--device", "cuda")
    verbs = (
        ("run", "--input", sample.with_name("x.npy"), "--output", tmp_path / "y.npy"),
        ("eval", "--data", "digits"), ("verify",), ("bench",),
    )  # fmt: skip
    for lack, found in (("triton is not installed", None), ("no GPU: /dev/none does not exist", object())):
        monkeypatch.setattr(gpu, "find_spec", lambda _name, found=found: found)
        monkeypatch.setattr(gpu, "DEVICES", ("/dev/none",))
        for verb, *rest in verbs:
            assert f"GPU kernels cannot run here: {lack}" in refused(5, verb, sample, *rest, "--device", "cuda")


def test_what_a_gpu_does_not_do_is_refused(tmp_path: Path, sample: Path) -> None:
    assert "peers run on the CPU" in refused(2, "bench", sample, "--vs", "torch", "--device", "cuda")
    assert "is a RUN" in refused(2, "eval", tmp_path, "--data", "digits", "--device", "cuda")


def test_configuration_file_and_command_line(tmp_path: Path, sample: Path) -> None:
    config = tmp_path / "c.toml"
    images = sample.with_name("x.npy")
    config.write_text(f'threads = 2\n[run]\nbatch = 2\ninput = "{images}"\n', encoding="utf-8")
    args = ["run", sample, "--output", tmp_path / "y.npy", "--json", "-"]
    assert good(*args, "--config", config).document()["host"]["threads"] == 2
    assert good(*args, "--config", config, "--threads", "1").document()["host"]["threads"] == 1
    config.write_text("[run]\nbach = 2\n", encoding="utf-8")
    assert "did you mean batch" in refused(2, *args, "--config", config)
    config.write_text("[rum]\n", encoding="utf-8")
    assert "[rum] is no verb" in refused(2, *args, "--config", config)
    config.write_text("= 2", encoding="utf-8")
    assert "no TOML" in refused(2, *args, "--config", config)


def test_json_goes_where_it_is_sent(tmp_path: Path, sample: Path) -> None:
    args = ["run", sample, "--input", sample.with_name("x.npy"), "--output", tmp_path / "y.npy"]
    outcome = good(*args, "--json", tmp_path / "d.json")
    assert json.loads((tmp_path / "d.json").read_text())["n"] == 5 and "5 images" in outcome.out
    assert np.load(tmp_path / "y.npy").shape == (5, 10)
    assert "cannot write" in refused(2, *args, "--json", tmp_path / "none" / "d.json")
    assert list(tmp_path.glob(".*tmp")) == []
    assert "no folder" in refused(2, *args[:-1], tmp_path / "none" / "y.npy")
    good(*args, "--json", "/dev/null")


def test_a_folder_is_no_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample: Path) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["run", sample, "--input", sample.with_name("x.npy"), "--output"]
    for target in (".", "", "/", tmp_path):
        assert "is a folder" in refused(2, *args, target)
        assert "Is a directory" in refused(2, "inspect", sample, "--json", target)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_of_arrays_is_no_input(tmp_path: Path, sample: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    assert "archive of arrays" in refused(
        2, "run", sample, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npy"
    )
    np.save(tmp_path / "x.npy", np.zeros((5, 3, 2, 2)))
    assert "input is float64 [5, 3, 2, 2]" in refused(
        2, "run", sample, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy"
    )


def test_no_verb_is_answered_with_help() -> None:
    outcome = bitpress()
    assert outcome.code in (0, 2) and "Usage: bitpress" in outcome.err + outcome.out


def test_verbose_tells_the_options(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_NUM_THREADS", "2")
    args = ["run", sample, "--input", sample.with_name("x.npy"), "--output", tmp_path / "y.npy", "--json", "-"]
    said = good(*args, "-v").err
    assert "batch 256" in said and "threads 2" in said and "BITPRESS_NUM_THREADS=2" in said
    assert "options" not in good(*args).err


def test_formats_of_a_table() -> None:
    for format_ in ("json", "jsonl", "csv", "md", "table"):
        out = good("doctor", "-o", format_).out
        assert "i8dot_generic" in out
    rows = [json.loads(line) for line in good("doctor", "-o", "jsonl").out.splitlines()]
    assert rows[0].keys() >= {"name", "isa", "usable"}
    table = Table(
        "T", (Column("a", "A"), Column("n", "N", "count")), [{"a": "x", "n": 2_000_000, "deep": [1]}], {"n": 3}
    )
    assert to_markdown(table).splitlines()[2:] == ["| A | N |", "| --- | --: |", "| x | 2 M |", "| - | 3 |"]
    assert to_csv(table) == "a,n,deep\nx,2000000,[1]\n"
    assert json.loads(to_jsonl(table)) == {"a": "x", "n": 2_000_000, "deep": [1]}
    assert [cell(v, k) for v, k in ((None, "ms"), (0.5, "percent"), ((3, 8, 8), "shape"), (1234, "int"))] == [
        "-", "50 %", "3x8x8", "1,234"]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckFailed("x"), 1), (UsageError("x"), 2), (UnsupportedError("x"), 3), (CorruptError("x"), 4),
        (EnvironmentMissing("x"), 5), (KeyboardInterrupt(), 130), (click.UsageError("x"), 2),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 5),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx.helper"), 5),
        (ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere"), None), (ValueError("x"), None),
    ],
)  # fmt: skip
def test_exit_codes(error: BaseException, code: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.code_of(error) == code
    said = capsys.readouterr().err
    assert said.count("\n") == (code is not None)
    if isinstance(error, ImportError) and code:
        assert "pip install 'bitpress[" in said


def test_a_mistake_of_ours_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("one")

    monkeypatch.setattr("bitpress.cli.environment.check", broken)
    result = CliRunner().invoke(command.cli, ["doctor"])
    assert result.exit_code == errors.INTERNAL and "ZeroDivisionError" in result.stderr and "report it" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_with_130(number: int, sample: Path) -> None:
    args = [sys.executable, "-P", "-m", "bitpress", "bench", str(sample), "--vs", "", "--seconds", "60", "--json", "-"]
    # A parent in the background ignores SIGINT, and what it starts inherits that.
    heard = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("bench"):
                break
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and out == "" and err.endswith("bitpress: interrupted\n"), err


def test_progress_is_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=False) as progress:
        for step in range(10):
            progress(f"epoch {step // 5}", step / 10)
        progress.line("done")
    assert capsys.readouterr().err.splitlines() == ["epoch 0: 0 %", "epoch 1: 50 %", "done"]
    with Progress(quiet=True) as progress:
        progress("epoch", 0.5)
        progress.line("done")
    assert capsys.readouterr().err == ""


def test_run_refuses_what_does_not_fit(tmp_path: Path, sample: Path) -> None:
    target = tmp_path / "y.npy"
    target.write_bytes(b"earlier")

    def run(array: np.ndarray, says: str) -> None:
        np.save(tmp_path / "bad.npy", array)
        assert says in refused(2, "run", sample, "--input", tmp_path / "bad.npy", "--output", target)

    run(np.zeros((1, 3, 9, 10), np.float32), "[1, 3, 9, 10]")
    run(np.zeros((1, 3, 9, 11)), "float64")
    run(np.zeros((3, 9, 11), np.float32), "[3, 9, 11]")
    run(np.full((1, 3, 9, 11), np.nan, np.float32), "NaN")
    run(np.array(["text"]), "<U4")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    assert "no .npy" in refused(2, "run", sample, "--input", tmp_path / "bad.npy", "--output", target)
    assert "cannot read" in refused(2, "run", sample, "--input", tmp_path / "none.npy", "--output", target)
    (tmp_path / "short.bpk").write_bytes(sample.read_bytes()[:-5])
    said = refused(4, "run", tmp_path / "short.bpk", "--input", sample.with_name("x.npy"), "--output", target)
    assert "Truncated" in said
    assert target.read_bytes() == b"earlier"


def test_run_takes_images(tmp_path: Path, sample: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 9, 11, 3), np.uint8)
    np.save(tmp_path / "i.npy", images)
    document = good(
        "run", sample, "--input", tmp_path / "i.npy", "--output", tmp_path / "y.npy", "--json", "-"
    ).document()
    assert document["n"] == 3 and np.load(tmp_path / "y.npy").dtype == np.float32


def test_bench_document_and_tables(sample: Path) -> None:
    args = ["bench", sample, "--vs", "", "--seconds", "0.05", "--batch", "1,2"]
    document = good(*args, "--json", "-").document()
    assert [run["batch"] for run in document["runs"]] == [1, 2]
    assert "Layers, batch 2, 1 thread" in good(*args, "-o", "md").out
    assert "valid:" in refused(2, *args, "--vs", "tflite")
    if find_spec("litert_torch") is None:
        assert "pip install 'bitpress[search,onnx]' litert-torch" in refused(5, *args, "--vs", "litert")
    assert "--weights belongs to --model" in refused(2, *args, "--weights", "w.pt")
    assert "%" not in bitpress(*args, "-q", "--json", "-").err


def test_brackets_in_a_cell_are_no_markup() -> None:
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as shown:
        console.print(to_rich(Table("", (Column("why", "why"),), [{"why": "pip install 'bitpress[gpu]'"}])))
    assert "bitpress[gpu]" in shown.get()
