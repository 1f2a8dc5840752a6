"""`search` through the command line: a RUN, its resumption, and what is refused before any work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..schema.schemas import check
from .test_compile import BLOBS, CHAIN, PTQ, STRANGE
from .tool import good, refused

QUICK = ("--epochs-float", "2", "--epochs-search", "2", "--epochs-finetune", "1", "--threads", "1")
SEARCH = ("search", CHAIN, "--data", BLOBS, "--budget", "bops=10%", *QUICK)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "run"
    outcome = good(*SEARCH, "--out", folder, "--json", "-")
    document = outcome.document()
    assert document["bops"] <= 0.1 * document["bops_fp32"] and document["method"] == "sbs"
    lines = [line for line in outcome.err.splitlines() if "epoch" in line]
    assert len(lines) == 5 and all(" left" in line for line in lines)  # one an epoch, as there is no terminal
    return folder


def test_a_run_is_evaluated_compiled_and_verified(run: Path, tmp_path: Path) -> None:
    result = check(json.loads((run / "result.json").read_text()))
    good("compile", run, "-o", tmp_path / "x.bpk")
    for source in (run, tmp_path / "x.bpk"):
        document = good("eval", source, "--data", BLOBS, "--json", "-").document()
        assert document["top1"] == pytest.approx(result["top1"])
        assert document["predictions_sha256"] == result["predictions_sha256"]
    verified = good("verify", tmp_path / "x.bpk", "--against", run, "--json", "-").document()
    assert verified["exact"] and verified["stages"][:2] == ["torch", "reference"]
    inspected = good("inspect", tmp_path / "x.bpk", "--json", "-").document()
    assert inspected["totals"]["bops"] == result["bops"]
    assert inspected["totals"]["weight_bytes"] == result["weight_bytes"] == sum(r["bytes"] for r in inspected["layers"])
    assert sum(part["bytes"] for part in inspected["parts"]) == (tmp_path / "x.bpk").stat().st_size


def test_a_finished_run_prints_its_result(run: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir() if path.is_file() and path.name != ".lock"}
    out = good(*SEARCH, "--out", run, "-o", "md").out
    assert "| linear |" in out or "| 8 |" in out
    assert "Result, test part" in out
    after = {path.name: path.stat().st_mtime_ns for path in run.iterdir() if path.is_file() and path.name != ".lock"}
    assert before == after


@pytest.mark.parametrize(
    ("changed", "flag"),
    [
        (("--seed", "3"), "--seed"), (("--budget", "size=50%"), "--budget"), (("--threads", "2"), "--threads"),
        (("--epochs-search", "3"), "--epochs-search"), (("--residual", "float32"), "--residual"),
        (("--label-smoothing", "0.1"), "--label-smoothing"), (("--schedule", "step"), "--schedule"),
        (("--precision", "bf16"), "--precision"),
    ],
)  # fmt: skip
def test_flags_that_contradict_the_run(changed: tuple[str, str], flag: str, run: Path) -> None:
    assert flag in refused(2, *SEARCH, *changed, "--out", run)


@pytest.mark.parametrize(
    ("code", "args", "says"),
    [
        (1, [CHAIN, "--data", BLOBS, "--budget", "bops=0.01%"], "cannot be reached"),
        (1, [CHAIN, "--data", BLOBS, "--budget", "size=10B"], "cannot be reached"),
        (2, ["resnet21", "--data", BLOBS, "--budget", "bops=9%"], "resnet20"),
        (2, [CHAIN, "--data", "digit", "--budget", "bops=9%"], "digits"),
        (2, [CHAIN, "--data", "digits", "--budget", "bops=9%"], "C,H,W"),
        (2, [CHAIN, "--data", BLOBS, "--budget", "bops=9%", "--classes", "4"], "3 classes"),
        (2, [CHAIN, "--data", BLOBS, "--budget", "bops"], "not a number"),
        (2, [CHAIN, "--data", BLOBS, "--budget", "bops=9%", "--method", "sbss"], "sbs"),
        (2, [CHAIN, "--data", BLOBS, "--budget", "bops=9%", "--weights", "none.pt"], "none.pt"),
        (2, [CHAIN, "--data", BLOBS, "--budget", "bops=9%", "--epochs-search", "-1"], "--epochs-search"),
        (2, [CHAIN, "--data", BLOBS], "--budget"),
        (2, [CHAIN, "--data", BLOBS, "--budget", "latency=1ms"], "needs --latency-table"),
        (3, [STRANGE, "--data", BLOBS, "--budget", "bops=9%"], "tanh"),
    ],
)  # fmt: skip
def test_what_search_refuses_before_any_work(code: int, args: list[str], says: str, tmp_path: Path) -> None:
    quick = () if "--epochs-search" in args else QUICK
    assert says in refused(code, "search", *args, *quick, "--out", tmp_path / "r")
    assert not (tmp_path / "r" / "plan.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_never_silently_the_cpu(tmp_path: Path) -> None:
    assert "leave --device out" in refused(2, *SEARCH, "--device", "cuda", "--out", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "no RUN" in refused(2, *SEARCH, "--out", tmp_path)
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_search_goes_on_and_ends_the_same(number: int, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-P", "-m", "bitpress", *SEARCH, "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("search, epoch 1"):
                break
        os.kill(process.pid, number)
        process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGTERM else -9)
    assert not (folder / "result.json").exists()
    assert f"resuming {folder}" in good(*SEARCH, "--out", folder).err
    for name in ("plan.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (run / name).read_bytes(), name


def test_the_float_network_is_kept_and_is_what_peers_run(run: Path) -> None:
    from bitpress.benchmarks.dense import _of_run
    from bitpress.core.errors import CorruptError
    from bitpress.core.rundir import FLOAT, float_graph, load_run, read_tensors, write_tensors

    loaded = load_run(run)
    kept = float_graph(loaded)
    name = next(n for n in kept.consts if n.endswith("weight"))
    assert (kept.consts[name] != loaded.graph.consts[name]).any()
    assert (_of_run(run).graph.consts[name] == kept.consts[name]).all()
    whole = read_tensors(run / FLOAT)
    write_tensors(run / FLOAT, {k: v for k, v in whole.items() if k != name})
    with pytest.raises(CorruptError, match=name):
        float_graph(loaded)
    write_tensors(run / FLOAT, whole)


def test_a_post_training_run_is_no_search(tmp_path: Path) -> None:
    good("compile", CHAIN, *PTQ, "--run", tmp_path / "run", "-o", tmp_path / "x.bpk")
    assert "RUN of other settings" in refused(2, *SEARCH, "--out", tmp_path / "run")
    good("compile", CHAIN, *PTQ, "--run", tmp_path / "run", "-o", tmp_path / "x.bpk")  # it may be made again
