"""Sweeps on Ray, here: the same RUNs as one process makes, errors and signals of workers, what ends a worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bitpress.core.errors import CheckFailed, EnvironmentMissing
from bitpress.core.pareto import sweep
from bitpress.core.workers import on_ray

from ..schema.schemas import check
from .test_pareto import NET
from .test_search import NETS

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: make test-ray")
LONG = 600  # seconds until a sweep that hangs is given up


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[str]:
    """Two CPUs of this machine for all tests, whatever it has; the address of it."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def test_ray_makes_the_plans_that_one_process_makes(tmp_path: Path) -> None:
    options = {**NET, "budgets": ["bops=2.5%,3%,4%"]}
    seen: list[tuple[str, int, int]] = []
    shared = check(sweep(**options, out=tmp_path / "ray", workers="ray", point=lambda *at: seen.append(at)))
    serial = sweep(**options, out=tmp_path / "one", order="apart")
    assert shared["order"] == "apart" and shared["complete"] and seen[0] == ("bops=4%", 1, 3) and len(seen) == 3
    for point in shared["points"] + serial["points"]:
        del point["seconds"]
    assert shared == serial
    for run in (p["run"] for p in serial["points"]):
        for name in ("plan.json", "model.safetensors", "events.jsonl", "run.json"):
            assert (tmp_path / "ray" / run / name).read_bytes() == (tmp_path / "one" / run / name).read_bytes()


def test_the_error_of_a_point_is_raised_and_nothing_is_left_running(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"bops=0.01% cannot be reached"):
        sweep(**NET | {"budgets": ["bops=4%,0.01%"], "out": tmp_path / "front", "workers": "ray"})
    assert not (tmp_path / "front").exists()


def test_a_worker_that_dies_is_said() -> None:
    def dies(**_call: int) -> dict[str, Any]:  # inside: it travels by value, for workers do not find the tests
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(EnvironmentMissing, match="a worker of Ray died"):
        list(on_ray([{"threads": 1}], dies))


def test_a_signal_stops_all_points_with_their_states_saved(tmp_path: Path, _cluster: str) -> None:
    words = [
        "search", f"{NETS}:chain", "--data", f"{NETS}:bars", "--budget", "bops=3%,4%", "--workers", "ray",
        "--epochs-float", "2000", "--epochs-search", "1", "--epochs-finetune", "1", "--out", str(tmp_path / "front"),
    ]  # fmt: skip
    environment = {**os.environ, "RAY_ADDRESS": _cluster, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "bitpress", *words]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs the tests may be deaf to it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heard)
    events, until = tmp_path / "front" / "bops-4pct" / "events.jsonl", time.monotonic() + LONG
    while not (events.exists() and '"epoch": 1' in events.read_text()):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LONG)
    assert process.returncode == 130 and "the same command continues" in err and "Traceback" not in err
    epochs = [json.loads(line)["epoch"] for line in events.read_text().splitlines()]
    assert epochs and epochs == list(range(1, len(epochs) + 1))
    assert (events.parent / "checkpoint" / "state.pt").exists()
