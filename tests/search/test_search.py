"""The search as the command line calls it: refusals before any work, end to end, resume after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from bitpress.compiler import artifact
from bitpress.compiler.pipeline import compile_run
from bitpress.compiler.verify import verify
from bitpress.core import data as datasets
from bitpress.core.bops import count
from bitpress.core.errors import CheckFailed, CorruptError, Interrupted, UnsupportedError, UsageError
from bitpress.core.evaluate import evaluate
from bitpress.core.integer import integer
from bitpress.core.rundir import load_run
from bitpress.core.search import SEARCHES, default_threads, search
from bitpress.core.semantics import Semantics
from bitpress.core.supernet import differing_codes
from bitpress.core.train import Progress

NETS = Path(__file__).parent / "nets.py"
QUICK: dict[str, Any] = {
    "data": f"{NETS}:bars", "budgets": ["bops=3%"], "epochs_float": 2, "epochs_search": 3, "epochs_finetune": 1,
    "batch": 20, "lr_float": 0.05, "lr_search": 0.01, "lr_thresholds": 0.02, "lr_finetune": 0.01, "threads": 1,
}  # fmt: skip
KEYS = {
    "method", "baseline_top1", "top1", "bops", "bops_fp32", "bops_ratio", "bops_convention", "weight_bytes", "latency",
    "budget", "epochs", "seconds", "data", "seed",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _quick(out: Path, model: str = "chain", **changes: Any) -> dict[str, Any]:
    return search(f"{NETS}:{model}", out=out, **(QUICK | changes))


@pytest.mark.parametrize(("model", "residual"), [("chain", "int8"), ("block", "int8"), ("block", "float32")])
def test_a_search_leaves_a_run_whose_accuracy_is_that_of_the_integer_semantics(
    tmp_path: Path, model: str, residual: str
) -> None:
    out = tmp_path / "run"
    seen: list[Progress] = []
    before = len(datasets.test_reads)
    result = _quick(out, model, residual=residual, progress=seen.append)
    assert len(datasets.test_reads) == before + 1  # the test part, once
    assert set(result) >= KEYS
    assert result["latency"] is None
    assert result["bops"] <= 0.03 * result["bops_fp32"]
    assert {p.phase for p in seen} == {"float", "search", "finetune"}
    run = load_run(out)
    totals = count(run.graph, run.plan).totals
    assert (result["bops"], result["weight_bytes"]) == (totals.bops, totals.weight_bytes)
    assert run.plan.residual == residual
    test = datasets.load(QUICK["data"]).test()
    semantics = Semantics(integer(run.graph, run.plan, run.tensors))
    found = evaluate(semantics.run, test.images, test.labels)
    assert (found.top1, found.sha256) == (result["top1"], result["predictions_sha256"])
    assert run.tensors["golden_input"].shape == (1, 1, 6, 6)
    x = np.asarray(test.images[:50])
    shares = differing_codes(run.graph, run.plan, run.tensors, semantics.values(x), x)
    assert max(shares.values()) < 0.02, shares
    document = verify(artifact.encode(compile_run(run)), run, batches=(50,), threads=(1,), data=x)
    assert document["exact"] and document["training_forward"] == shares
    kinds = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert {"epoch", "start", "gates", "choice"} <= set(kinds)


def test_a_finished_run_returns_its_result_at_once(tmp_path: Path) -> None:
    result = _quick(tmp_path / "run")
    reads = len(datasets.test_reads)
    assert _quick(tmp_path / "run") == result
    assert len(datasets.test_reads) == reads
    with pytest.raises(UsageError, match="--seed"):
        _quick(tmp_path / "run", seed=1)


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    _quick(tmp_path / "a")
    _quick(tmp_path / "b")
    _assert_same(tmp_path / "a", tmp_path / "b")


def test_a_size_budget_bounds_the_weight_bytes(tmp_path: Path) -> None:
    result = _quick(tmp_path / "run", budgets=["size=12%", "bops=4%"])
    assert result["weight_bytes"] <= 0.12 * result["fp32_bytes"]
    assert result["bops"] <= 0.04 * result["bops_fp32"]
    assert result["budget"] == ["bops=4%", "size=12%"]


def test_weights_that_are_given_are_not_trained_again(tmp_path: Path) -> None:
    from bitpress.core.models import load

    module = load(f"{NETS}:chain").module
    state = {k: v.numpy() for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    result = _quick(tmp_path / "run", weights=tmp_path / "w.safetensors", epochs_search=1, epochs_float=None)
    assert result["epochs"]["float"] == 0
    state["fc.bias"] = state["fc.bias"] + 1
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="--weights"):
        _quick(tmp_path / "run", weights=tmp_path / "w.safetensors", epochs_search=1, epochs_float=None)


# refused before any work


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"budgets": ["bops=0.001%"]}, CheckFailed, "the least is"),
        ({"budgets": []}, UsageError, "needs a budget"),
        ({"budgets": ["bops=2%", "bops=3%"]}, UsageError, "one bound of a kind"),
        ({"budgets": ["latency=1ms"]}, UsageError, "needs --latency-table"),
        ({"method": "magic"}, UsageError, "unknown --method"),
        ({"residual": "int4"}, UsageError, "--residual"),
        ({"distill": 1.5}, UsageError, "--distill"),
        ({"label_smoothing": 1.0}, UsageError, "--label-smoothing"),
        ({"shape": "linear"}, UsageError, "--schedule"),
        ({"precision": "fp16"}, UsageError, "--precision"),
        ({"device": "tpu"}, UsageError, "--device"),
        ({"threads": 0}, UsageError, "--threads"),
        ({"classes": 7}, UsageError, "classes"),
        ({"max_pruning_ratio": 1.0}, UsageError, "pruning ratio"),
        ({"data": "digits"}, UsageError, "1,8,8"),
        ({"data": "nothing"}, UsageError, "unknown data"),
        ({"weights": "missing.safetensors"}, UsageError, "missing.safetensors"),
    ],
)
def test_nonsense_is_refused_before_a_folder_is_made(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        _quick(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_cuda_without_a_gpu_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device here; leave --device out"):
        _quick(tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()


def test_training_options_are_recorded_change_the_run_and_must_match(tmp_path: Path) -> None:
    options = {"label_smoothing": 0.1, "shape": "step", "precision": "bf16"}
    _quick(tmp_path / "run", epochs_search=1, **options)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    keys = ("label_smoothing", "schedule", "precision", "device")
    assert [recorded[key] for key in keys] == [0.1, "step", "bf16", "cpu"]
    said = r"--label-smoothing: 0\.1 there, 0\.0 now; --precision: bf16 .* --schedule: step"
    with pytest.raises(UsageError, match=said):
        _quick(tmp_path / "run", epochs_search=1)


def test_an_unknown_op_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="1 unsupported op: erf"):
        _quick(tmp_path / "run", "odd")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UsageError, match="no RUN of a search"):
        _quick(tmp_path)
    assert (tmp_path / "plan.json").read_text() == "{}"


def test_the_test_part_stays_closed_until_the_end(tmp_path: Path) -> None:
    """A set whose test part fails to open lets the whole search run, and fails then."""
    with pytest.raises(UsageError, match="the test part was opened"):
        _quick(tmp_path / "run", data=f"{NETS}:no_test")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert events[-1]["phase"] == "finetune"
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_damaged_checkpoint_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        _quick(tmp_path / "run", data=f"{NETS}:no_test")
    path = tmp_path / "run" / "checkpoint" / "state.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CorruptError, match="damaged"):
        _quick(tmp_path / "run", data=f"{NETS}:no_test")


def test_small_steps_get_one_thread_where_nobody_says(tmp_path: Path) -> None:
    assert default_threads(4e8) == 1  # digits
    assert default_threads(3e10) == len(os.sched_getaffinity(0))  # ResNet-20
    _quick(tmp_path / "run", threads=None, epochs_search=1, epochs_float=1)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["threads"] == 1
    assert torch.get_num_threads() == 1


def test_every_method_is_listed_once() -> None:
    assert list(SEARCHES) == ["sbs", "djpq", "ajpq", "bayesian-bits", "two-stage", "uniform"]


# kill -9


SCRIPT = """
import json, sys, time, torch
from bitpress.core.search import search
from bitpress.core import train_gates
options = json.loads(sys.argv[1])
pause = options.pop("pause")
step = train_gates.Searching.step
def slow(self, *args):
    time.sleep(pause)
    return step(self, *args)
train_gates.Searching.step = slow
search(**options)
"""


def _start(out: Path, pause: float) -> subprocess.Popen[bytes]:
    options = {**QUICK, "model": f"{NETS}:chain", "out": str(out), "pause": pause}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", SCRIPT, json.dumps(options)], env=environment, stderr=subprocess.PIPE
    )


def _wait_for(process: subprocess.Popen[bytes], path: Path, needle: str) -> None:
    for _ in range(6000):
        if path.exists() and needle in path.read_text():
            return
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.05)
    raise AssertionError(f"{needle} never came")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_mid_search_and_started_again_it_ends_as_an_unbroken_run(tmp_path: Path, number: int) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = _start(broken, 0.2)
    _wait_for(process, broken / "events.jsonl", '"phase": "search", "epoch": 1')
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (broken / "result.json").exists()
    result = _quick(broken)
    assert result["bops"] > 0
    _quick(whole)
    _assert_same(broken, whole)
    assert (broken / "events.jsonl").read_text() == (whole / "events.jsonl").read_text()


def _assert_same(a: Path, b: Path) -> None:
    for name in ("plan.json", "graph.json", "model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    results = [json.loads((folder / "result.json").read_text()) for folder in (a, b)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    process = _start(tmp_path / "run", 0.5)
    _wait_for(process, tmp_path / "run" / "events.jsonl", '"phase": "float"')
    try:
        with pytest.raises(UsageError, match=f"in use by process {process.pid}"):
            _quick(tmp_path / "run")
    finally:
        process.kill()
        process.communicate()


def test_interrupted_has_the_exit_code_of_a_signal() -> None:
    assert Interrupted.exit_code == 130


# the demo


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_under_two_percent_stay_within_two_points_mixed_and_pruned(tmp_path: Path, seed: int) -> None:
    result = search("digits_cnn", data="digits", budgets=["bops=2%"], out=tmp_path / "run", seed=seed, threads=1)
    assert result["baseline_top1"] - result["top1"] <= 2
    assert result["bops"] <= 0.02 * result["bops_fp32"]
    run = load_run(tmp_path / "run")
    rows = count(run.graph, run.plan).layers
    assert len({row.w_bits for row in rows[1:-1]}) >= 2
    assert any(row.channels_kept < row.channels_total for row in rows)
