"""The `bitpress.report` document: what a RUN or an artifact is, gathered from its files and measured by this call.

A figure that could not be had is absent, and `missing` says why and how to get it. Prints nothing, knows no HTML.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ..core.errors import CheckFailed, CorruptError, EnvironmentMissing, UsageError
from ..core.host import head
from .front import accuracy_of, baselines, data_of, front, here, other_run
from .layers import correlation, layer_rows, roofs
from .subject import Measuring, Row, Subject, compiled, result_of, run_at

BATCHES, THREADS = (1, 3), (1, 2)  # of `verify`
LIBRARIES = ("numpy", "torch", "onnxruntime", "openvino")

Progress = Callable[[str, float], None]

__all__ = ["Measuring", "front", "report"]


def report(
    source: str | Path,
    *,
    against: str | Path | None = None,
    others: Sequence[str | Path] = (),
    measuring: Measuring | None = None,
    progress: Progress = lambda _what, _share: None,
) -> dict[str, Any]:
    """Everything about `source`, a RUN folder (compiled for this) or a `.bpk`, which `against` names the RUN of.

    `others`: finished RUNs on the same data, points of the front. Errors as of `compile` and `bitpress.load`;
    UsageError for a RUN that does not compare, or data that were asked for and are not there.
    """
    from ..inspection import inspect

    path, asked = Path(source), measuring or Measuring()
    if path.is_dir() and against is not None:
        raise UsageError(f"--against goes with an artifact: {path} is a RUN itself")
    with TemporaryDirectory(prefix="bitpress-report-") as name:
        folder, run = Path(name), run_at(path if path.is_dir() else against)
        artifact = compiled(run, folder) if path.is_dir() and run is not None else path
        subject = Subject(artifact, inspect(artifact), run, result_of(run), asked, folder)
        compared = [other_run(subject, Path(other)) for other in others]
        progress("report, verify", 0.05)
        verified = _verify(subject)
        progress("report, bench", 0.2)
        timed = _bench(subject, lambda what, share: progress(what, 0.2 + 0.4 * share))
        progress("report, accuracy", 0.6)
        data = data_of(subject)
        accuracy = accuracy_of(subject, data, lambda what, share: progress(what, 0.6 + 0.2 * share))
        whole = baselines(subject, data, accuracy)
        progress("report, curves", 0.95)
        ends = _ends(subject)
        layers = layer_rows(subject.inspected["layers"], timed)
        document = {
            **head("bitpress.report", isa=subject.inspected["host"]["isa"], threads=asked.threads),
            "source": str(source), "kind": "run" if path.is_dir() else "artifact",
            "run": None if run is None else str(run.path), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": _machine(), "network": _network(subject), "totals": subject.inspected["totals"],
            "parts": subject.inspected["parts"], "accuracy": accuracy,
            "front": front([*here(subject, accuracy), *whole, *filter(None, compared)]), "layers": layers,
            "correlation": correlation(subject, layers), "latency": _latency(timed), "roofs": roofs(layers, timed),
            "curves": _curves(subject), "quantisers": _quantisers(ends), "ratios": _ratios(ends),
            "verify": verified, "missing": subject.missing,
        }  # fmt: skip
        progress("report", 1.0)
        return document


def _machine() -> Row:
    """The host beyond the head: system, Python, CPUs that this process may use, libraries."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), "libraries": found,
    }  # fmt: skip


def _network(subject: Subject) -> Row:
    """What the network is and how it was made; null where nothing says so."""
    found, result = subject.inspected, subject.result
    return {
        **{key: found[key] for key in ("model", "method", "data", "residual", "input", "outputs", "floats")},
        "budget": list(result.get("budget") or ()), "seed": result.get("seed"), "seconds": result.get("seconds"),
    }  # fmt: skip


def _verify(subject: Subject) -> Row | None:
    from ..inspection import verify

    against = None if subject.run is None else subject.run.path
    try:
        found = verify(subject.artifact, against=against, batches=BATCHES, threads=THREADS)
    except EnvironmentMissing as error:
        subject.lacks("verify", error, "make native, or name the RUN: --against RUN")
        return None
    return {key: value for key, value in found.items() if key not in ("schema", "schema_version", "bitpress", "host")}


def _bench(subject: Subject, progress: Progress) -> Row | None:
    """The `bench` document with its one run; None where it refuses to time a wrong answer."""
    from ..benchmarks.bench import bench

    asked = subject.asked
    try:
        found = bench(
            subject.artifact, vs=asked.vs, batches=(asked.batch,), threads=(asked.threads,),
            against=None if subject.run is None else subject.run.path, seconds=asked.seconds, seed=asked.seed,
            progress=progress,
        )  # fmt: skip
    except CheckFailed as error:
        subject.lacks("latency", error, f"bitpress verify {subject.artifact.name}")
        return None
    if found["peers_left_out"]:
        subject.lacks("other runtimes", found["peers_left_out"], "pip install 'bitpress[onnx]'")
    if all(row["median"] is None for row in found["runs"][0]["layers"]):
        subject.lacks("milliseconds per layer", "only native code has a clock inside", "make native")
    return found


def _latency(timed: Row | None) -> Row | None:
    """The one run of a `bench` document without samples and layers, with what it says of itself."""
    if timed is None:
        return None
    (run,) = timed["runs"]
    total = {key: value for key, value in run["total"].items() if key != "samples"}
    named = {key: timed[key] for key in ("peer_source", "peers_left_out", "images", "load", "memory")}
    kept = {key: run[key] for key in ("batch", "threads", "pinned", "unattributed", "peers")}
    steps = [row for row in run["layers"] if not row["macs"]]
    return {**kept, "total": {**total, "calls": len(run["total"]["samples"])}, "steps": steps, **named}


def _curves(subject: Subject) -> list[Row]:
    """Per phase: epoch numbers and the figures of each epoch, null where an epoch has none."""
    if subject.run is None:
        subject.lacks("search curves", "an artifact does not hold the events of its search", "--against RUN")
        return []
    path = subject.run.path / "events.jsonl"
    epochs = [e for e in _events(path) if e.get("event") == "epoch" and {"phase", "epoch"} <= e.keys()]
    if not epochs:
        subject.lacks("search curves", f"{subject.run.path} holds no epochs", "only a search or a training has them")
        return []
    out = []
    for phase in dict.fromkeys(event["phase"] for event in epochs):
        own = [event for event in epochs if event["phase"] == phase]
        keys = dict.fromkeys(key for event in own for key, value in event.items() if _number(value) is not None)
        series = {key: [_number(event.get(key)) for event in own] for key in keys if key not in ("epoch", "epochs")}
        out.append({"phase": phase, "epochs": [event["epoch"] for event in own], "series": series})
    return out


def _ends(subject: Subject) -> list[tuple[Row, Row]]:
    """Of each phase whose quantisers learn steps and ranges (DJPQ): the events of its start and of its end."""
    if subject.run is None:
        return []
    events = [e for e in _events(subject.run.path / "events.jsonl") if "ln_ratios" in e and "layers" in e]
    starts = {e["phase"]: e for e in events if e["event"] == "start"}
    return [(starts[e["phase"]], e) for e in events if e["event"] == "gates" and e["phase"] in starts]


def _quantisers(ends: Sequence[tuple[Row, Row]]) -> list[Row]:
    """What DJPQ's quantisers learned, layer by layer: d, q_m, t from and to; bits learned and as held at the end."""
    return [
        {
            "phase": end["phase"], "layer": layer, "side": side,
            **{key: [start["layers"][layer][side][key], found[key]] for key in ("d", "q_m", "t")},
            "bits": found["bits"], "restricted": found["restricted"],
        }
        for start, end in ends
        for layer, sides in end["layers"].items()
        for side, found in sides.items()
    ]  # fmt: skip


def _ratios(ends: Sequence[tuple[Row, Row]]) -> list[Row]:
    """ln(sigma^2 / mu^2) of the channels of DJPQ's gates: the least, the median, the largest; how many stayed."""
    return [
        {
            "phase": end["phase"], "group": group, "channels": len(found), "kept": len(end["parts"].get(group, found)),
            "least": min(found), "median": median(found), "most": max(found),
        }
        for _, end in ends
        for group, found in end["ln_ratios"].items()
    ]  # fmt: skip


def _number(value: Any) -> float | None:
    """A finite number as it is, None for all else."""
    return value if type(value) in (int, float) and isfinite(value) else None


def _events(path: Path) -> list[Row]:
    """Lines of events.jsonl; none where there is no such file."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    except (OSError, ValueError) as error:
        raise CorruptError(f"{path} is damaged: {error}") from error
    if not all(isinstance(event, dict) for event in found):
        raise CorruptError(f"{path} is damaged: a line holds no object")
    return found
