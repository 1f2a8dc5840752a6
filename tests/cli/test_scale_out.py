"""Several processes through the command line: torchrun from start to end, Ray that is not there, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bitpress.cli.environment import speaks
from bitpress.cli.errors import code_of
from bitpress.core import search as searches
from bitpress.core.errors import UsageError
from bitpress.core.job import Settings

from ..schema.schemas import check
from ..search.test_search import NETS
from .test_compile import BLOBS, CHAIN
from .test_search import SEARCH
from .tool import refused

TORCHRUN = (sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
BARS = (
    "search", f"{NETS}:chain", "--data", f"{NETS}:bars", "--budget", "bops=3%", "--epochs-float", "40",
    "--epochs-search", "2", "--epochs-finetune", "1", "--batch", "20", "--threads", "1",
)  # fmt: skip
LONG = 300  # seconds until a run that hangs is given up


def _torchrun(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*TORCHRUN, "bitpress", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _said(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("bitpress: ")]


@pytest.mark.slow
def test_torchrun_trains_one_run_stops_together_and_goes_on(tmp_path: Path) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = _torchrun(*BARS, "--out", str(broken))
    until = time.monotonic() + LONG
    while not ((broken / "events.jsonl").exists() and '"epoch": 2' in (broken / "events.jsonl").read_text()):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LONG)
    assert process.returncode != 0 and not (broken / "result.json").exists()
    (said,) = _said(err)
    assert said.startswith("bitpress: SIGINT in float") and "the same command continues" in said

    words = refused(2, *BARS, "--out", broken)
    assert "processes of torchrun (--nproc-per-node times --nnodes): 2 there, 1 now" in words

    results: list[dict[str, Any]] = []
    for out in (broken, whole):
        process = _torchrun(*BARS, "--out", str(out), "--json", "-")
        printed, err = process.communicate(timeout=LONG)
        assert process.returncode == 0, err
        results.append(check(json.loads(printed)))  # one document, of one process
        lines = [
            line for line in err.splitlines() if line.startswith(("float, epoch", "search, epoch", "finetune, epoch"))
        ]
        assert len(lines) == len(set(lines)), lines
    assert [r["processes"] for r in results] == [2, 2]
    for name in ("plan.json", "model.safetensors", "events.jsonl"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_torchrun_says_an_error_once(tmp_path: Path) -> None:
    process = _torchrun(*BARS, "--out", str(tmp_path / "run"), "--batch", "21")
    _, err = process.communicate(timeout=LONG)
    assert process.returncode != 0 and not (tmp_path / "run").exists()
    assert _said(err) == [
        "bitpress: 2 processes of torchrun cannot share a batch of 21 images evenly; give --batch a multiple of 2"
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--method", "ajpq"), "--method ajpq does not run in 2 processes of torchrun"),
        (("--batch", "7"), "cannot share a batch of 7 images evenly"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(
    words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "processes", lambda: 2)
    assert says in refused(2, *SEARCH, *words, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_number_of_processes_belongs_to_a_run() -> None:
    assert Settings.__dataclass_fields__["processes"].default == 1  # what RUNs without it were made by


def test_one_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [{}, {"RANK": "1"}, {"RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, {"RANK": "1", "TORCHELASTIC_RUN_ID": "x"}]
    assert [speaks(rank) for rank in ranks] == [True, True, True, False]
    error = UsageError("of all")
    error.told = True
    assert code_of(error) == 2 and capsys.readouterr().err == ""
    for name, value in ranks[-1].items():
        monkeypatch.setenv(name, value)
    assert code_of(KeyboardInterrupt()) == 130 and capsys.readouterr().err == ""
    assert code_of(UsageError("here alone")) == 2 and "here alone" in capsys.readouterr().err


def test_ray_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    sweep = ("search", CHAIN, "--data", BLOBS, "--budget", "bops=10%,20%", "--workers", "ray")
    said = refused(5, *sweep, "--out", tmp_path / "front")
    assert said == "bitpress: ray is not installed; it comes with the extra [ray]: pip install 'bitpress[ray]'"
    assert not (tmp_path / "front").exists()


@pytest.mark.parametrize(
    ("budget", "words", "says"),
    [
        ("bops=10%", ("--workers", "ray"), "--workers does nothing for one search"),
        ("bops=10%", ("--sweep", "warm"), "--sweep does nothing for one search"),
        ("bops=10%,20%", ("--workers", "dask"), "'dask' is unknown"),
        ("bops=10%,20%", ("--workers", "ray", "--sweep", "warm"), "goes with --sweep apart"),
        ("bops=10%,20%", ("--method", "ajpq", "--sweep", "warm"), "does nothing with --method ajpq"),
    ],
)
def test_words_of_a_sweep_that_make_no_sense(budget: str, words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    args = ("search", CHAIN, "--data", BLOBS, "--budget", budget, *words, "--out", tmp_path / "front")
    assert says in refused(2, *args)
    assert not (tmp_path / "front").exists()
