"""The `bitpress.report` document: what a RUN or an artifact is, gathered from its files and measured by this call.

A figure that could not be had is absent, and `missing` says why and how to get it. Prints nothing, knows no HTML.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .core.errors import BitpressError, CheckFailed, CorruptError, EnvironmentMissing, UsageError
from .core.host import head

if TYPE_CHECKING:
    from .core.data import Data
    from .core.rundir import Run

BATCHES, THREADS = (1, 3), (1, 2)  # of `verify`
OUTLIER = 2.0  # a layer is named whose time per BOP is that many times the median layer's, or that part of it
LEAST_LAYERS = 3  # for a rank correlation
INT8 = 8
LIBRARIES = ("numpy", "torch", "onnxruntime", "openvino")

Progress = Callable[[str, float], None]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measuring:
    """How figures are measured. `data`: DATA, by default that of the network; `vs`, `seconds`: as of `bench`."""

    data: str | None = None
    vs: Sequence[str] | None = None
    batch: int = 1
    threads: int = 1
    seconds: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class _Subject:
    """What is reported: the file, the RUN it came from with its result.json (empty without one), and what is missing."""

    artifact: Path
    inspected: Mapping[str, Any]
    run: Run | None
    result: Mapping[str, Any]
    asked: Measuring
    folder: Path  # for what is made on the way
    missing: list[Row] = field(default_factory=list)

    def lacks(self, what: str, why: object, remedy: str) -> None:
        """Notes a figure that could not be had."""
        self.missing.append({"what": what, "why": str(why), "remedy": remedy})


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
    from .inspection import inspect

    path, asked = Path(source), measuring or Measuring()
    if path.is_dir() and against is not None:
        raise UsageError(f"--against goes with an artifact: {path} is a RUN itself")
    with TemporaryDirectory(prefix="bitpress-report-") as name:
        folder, run = Path(name), _run(path if path.is_dir() else against)
        artifact = _compiled(run, folder) if path.is_dir() and run is not None else path
        subject = _Subject(artifact, inspect(artifact), run, _result(run), asked, folder)
        compared = [_other(subject, Path(other)) for other in others]
        progress("report, verify", 0.05)
        verified = _verify(subject)
        progress("report, bench", 0.2)
        timed = _bench(subject, lambda what, share: progress(what, 0.2 + 0.4 * share))
        progress("report, accuracy", 0.6)
        data = _data(subject)
        accuracy = _accuracy(subject, data, lambda what, share: progress(what, 0.6 + 0.2 * share))
        baselines = _baselines(subject, data, accuracy)
        progress("report, curves", 0.95)
        layers = _layers(subject.inspected["layers"], timed)
        document = {
            **head("bitpress.report", isa=subject.inspected["host"]["isa"], threads=asked.threads),
            "source": str(source), "kind": "run" if path.is_dir() else "artifact",
            "run": None if run is None else str(run.path), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": _machine(), "network": _network(subject), "totals": subject.inspected["totals"],
            "parts": subject.inspected["parts"], "accuracy": accuracy,
            "front": front([*_here(subject, accuracy), *baselines, *filter(None, compared)]), "layers": layers,
            "correlation": _correlation(subject, layers), "latency": _latency(timed), "roofs": _roofs(layers, timed),
            "curves": _curves(subject), "verify": verified, "missing": subject.missing,
        }  # fmt: skip
        progress("report", 1.0)
        return document


def _run(path: str | Path | None) -> Run | None:
    from .core.rundir import load_run

    return None if path is None else load_run(path)


def _compiled(run: Run, folder: Path) -> Path:
    from .delivery import compile

    target = folder / f"{run.path.name or 'network'}.bpk"
    compile(run.path, target)
    return target


def _result(run: Run | None) -> dict[str, Any]:
    """result.json of a RUN; empty without one, and where the plan has been changed since."""
    from .core.bops import count
    from .core.rundir import RESULT, read_json

    if run is None or not (run.path / RESULT).is_file():
        return {}
    result = read_json(run.path / RESULT)
    totals = count(run.graph, run.plan, convention=result.get("bops_convention", "sbs")).totals
    same = (result.get("bops"), result.get("weight_bytes")) == (totals.bops, totals.weight_bytes)
    return result if same else {key: result.get(key) for key in ("baseline_top1", "n", "method", "data", "budget")}


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


def _network(subject: _Subject) -> Row:
    """What the network is and how it was made; null where nothing says so."""
    found, result = subject.inspected, subject.result
    epochs = result.get("epochs")
    return {
        **{key: found[key] for key in ("model", "method", "data", "residual", "input", "outputs", "floats")},
        "budget": list(result.get("budget") or ()), "seed": result.get("seed"), "seconds": result.get("seconds"),
        "epochs": epochs if isinstance(epochs, dict) else {},
    }  # fmt: skip


def _verify(subject: _Subject) -> Row | None:
    from .inspection import verify

    against = None if subject.run is None else subject.run.path
    try:
        found = verify(subject.artifact, against=against, batches=BATCHES, threads=THREADS)
    except EnvironmentMissing as error:
        subject.lacks("verify", error, "make native, or name the RUN: --against RUN")
        return None
    return {key: value for key, value in found.items() if key not in ("schema", "schema_version", "bitpress", "host")}


def _bench(subject: _Subject, progress: Progress) -> Row | None:
    """The `bench` document with its one run; None where it refuses to time a wrong answer."""
    from .benchmarks.bench import bench

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


# -- accuracy -------------------------------------------------------------------------------------------------------


def _spec(subject: _Subject) -> str | None:
    found = subject.asked.data or subject.inspected["data"]
    return found if isinstance(found, str) else None


def _data(subject: _Subject) -> Data | None:
    """The data set, where it is at hand and fits; an error only where it was asked for."""
    from .core.data import load

    spec, (c, h, w) = _spec(subject), subject.inspected["input"]["shape"]
    if spec is None:
        subject.lacks("accuracy", "the network does not say which data belong to it", "--data DATA")
        return None
    try:
        found = load(spec, in_shape=(c, h, w))
        found.require_fit((c, h, w), subject.inspected["outputs"])
    except (BitpressError, OSError) as error:
        if subject.asked.data is not None:
            raise
        subject.lacks("accuracy of the artifact", error, "--data DATA")
        return None
    return found


def _accuracy(subject: _Subject, data: Data | None, progress: Progress) -> Row | None:
    """Top-1 of the artifact, counted here; without data that of result.json, which the search counted."""
    from .evaluation import evaluate

    result, keys = subject.result, ("data", "top1", "top5", "n", "predictions_sha256")
    if data is not None:
        found = evaluate(subject.artifact, data=data.spec, threads=subject.asked.threads, progress=progress)
        said = result.get("predictions_sha256") if data.spec == result.get("data") else None
        agrees = None if said is None else said == found["predictions_sha256"]
        return {**{key: found[key] for key in keys}, "counted": "here", "agrees": agrees}
    if result.get("top1") is None:
        return None
    return {**{key: result.get(key) for key in keys}, "counted": "by the search", "agrees": None}


def _here(subject: _Subject, accuracy: Row | None) -> list[Row]:
    if accuracy is None or subject.inspected["totals"]["bops"] is None:
        return []
    name = subject.run.path.name if subject.run is not None else subject.artifact.name
    return [_point(name, "this", accuracy["top1"], subject.inspected["totals"])]


def _point(name: str, role: str, top1: float, totals: Mapping[str, Any]) -> Row:
    return {
        "name": name, "role": role, "top1": top1, "bops": totals["bops"], "bops_fp32": totals["bops_fp32"],
        "weight_bytes": totals["weight_bytes"],
    }  # fmt: skip


def _baselines(subject: _Subject, data: Data | None, accuracy: Row | None) -> list[Row]:
    """The float network and its post-training w8a8 form, each with a top-1 counted on the same images."""
    if subject.run is None:
        subject.lacks("float and 8-bit baselines", "an artifact does not hold its float network", "--against RUN")
        return []
    if accuracy is None:
        return []
    found = [_float(subject, data, accuracy), _int8(subject, data)]
    return [row for row in found if row is not None]


def _float(subject: _Subject, data: Data | None, accuracy: Row) -> Row | None:
    """The float network: result.json's top-1 where it speaks of the same images, else counted here in torch."""
    from .core.rundir import float_graph

    run, totals, top1 = subject.run, subject.inspected["totals"], subject.result.get("baseline_top1")
    assert run is not None, "the caller has one"
    if accuracy["data"] != subject.result.get("data"):
        top1 = None
    if top1 is None and data is not None:
        from .benchmarks.peers_torch import function

        top1 = _counted(function(float_graph(run)), run, data)
    if top1 is None:
        subject.lacks("float baseline", "no float top-1 is recorded, and there are no data to count it", "--data DATA")
        return None
    whole = {"bops": totals["bops_fp32"], "bops_fp32": totals["bops_fp32"], "weight_bytes": totals["fp32_bytes"]}
    return _point("float network", "fp32", top1, whole)


def _int8(subject: _Subject, data: Data | None) -> Row | None:
    """The float network at w8a8 without training, compiled and evaluated."""
    from .compiler import artifact
    from .compiler.model import load
    from .compiler.pipeline import compile_run
    from .core.bops import count
    from .core.calibrate import calibrate
    from .core.rundir import float_graph
    from .delivery import CALIBRATION_IMAGES

    run = subject.run
    if data is None or run is None:
        subject.lacks("8-bit baseline", "it is calibrated and counted on the network's data", "--data DATA")
        return None
    graph, mean, std = float_graph(run), *_normal(run)
    images = data.normalise(data.train.images[:CALIBRATION_IMAGES], mean, std)
    plan, tensors = calibrate(graph, images, weight_bits=INT8, act_bits=INT8, residual=run.plan.residual)
    target = subject.folder / "int8.bpk"
    artifact.write(compile_run(replace(run, graph=graph, plan=plan, tensors=tensors)), target)
    totals = count(graph, plan, convention=subject.inspected["totals"]["bops_convention"]).totals
    known = {"bops": totals.bops, "bops_fp32": totals.bops_fp32, "weight_bytes": totals.weight_bytes}
    top1 = _counted(load(target, threads=subject.asked.threads), run, data)
    return _point("w8a8 without training", "int8", top1, known)


def _counted(function: Callable[[Any], Any], run: Run, data: Data) -> float:
    """Top-1 in percent on the test part."""
    from .core.evaluate import evaluate

    test, (mean, std) = data.test(), _normal(run)
    found = evaluate(
        function, test.images, test.labels,  # type: ignore[arg-type]
        prepare=lambda x: data.normalise(x, mean, std),
    )  # fmt: skip
    return found.top1


def _normal(run: Run) -> tuple[Sequence[float], Sequence[float]]:
    channels = run.graph.inputs[0].shape[0]
    return run.meta.get("mean", [0.0] * channels), run.meta.get("std", [1.0] * channels)


def _other(subject: _Subject, folder: Path) -> Row | None:
    """A point of another RUN; UsageError unless it is finished and was counted on the same images."""
    run = _run(folder)
    found = _result(run)
    if run is None or found.get("bops") is None:
        raise UsageError(f"--with {folder}: its result.json is missing or older than its plan; finish the search first")
    ours, theirs = str(_spec(subject) or ""), str(found.get("data") or "")
    convention = subject.inspected["totals"]["bops_convention"]
    n, m = subject.result.get("n"), found.get("n")
    if not ours:
        raise UsageError(f"--with {folder}: the network does not say which data belong to it: give --data")
    if ours.partition(":")[0] != theirs.partition(":")[0] or (n and m and n != m):
        raise UsageError(f"--with {folder}: counted on {theirs} ({m} images), this on {ours} ({n}): no common front")
    if found.get("bops_convention") != convention:
        raise UsageError(f"--with {folder}: BOPs of the convention {found.get('bops_convention')}, here {convention}")
    if found.get("top1") is None:
        subject.lacks(f"point of {folder}", "its result.json holds no top-1", f"bitpress report {folder}")
        return None
    return _point(folder.name or str(folder), "other", found["top1"], found)


def front(points: Iterable[Row]) -> list[Row]:
    """The points, each with `best`: no other costs as few BOPs and is as good, one of both better.

    >>> [p["best"] for p in front([{"top1": 90.0, "bops": 5}, {"top1": 91.0, "bops": 9}, {"top1": 89.0, "bops": 6}])]
    [True, True, False]
    """
    found = list(points)

    def beaten(p: Row) -> bool:
        return any(
            q["bops"] <= p["bops"] and q["top1"] >= p["top1"] and (q["bops"], q["top1"]) != (p["bops"], p["top1"])
            for q in found
        )

    return [{**p, "best": not beaten(p)} for p in found]


# -- layers ---------------------------------------------------------------------------------------------------------


def _layers(rows: Sequence[Mapping[str, Any]], timed: Row | None) -> list[Row]:
    """Rows of `inspect` with time, share, bound, MACs a byte and a second; `relative`: time per BOP to the median's."""
    run: Row = {"layers": [], "batch": 1, "total": {"median": None}} if timed is None else timed["runs"][0]
    times = {row["name"]: row for row in run["layers"]}
    out = []
    for row in rows:
        found = times.get(row["name"], {})
        ms, macs = found.get("median"), run["batch"] * row["macs"]
        touched = found["bytes"] + run["batch"] * found["value_bytes"] if found else 0
        out.append(
            {
                **row, "median": ms, "share": ms / run["total"]["median"] if ms else None,
                "bound": found.get("bound"), "efficiency": found.get("efficiency"),
                "intensity": macs / touched if touched else None, "rate": 1e3 * macs / ms if ms else None,
            }
        )  # fmt: skip
    costs = {row["name"]: row["median"] / row["bops"] for row in out if row["median"] and row["bops"]}
    middle = median(costs.values()) if costs else None
    return [{**row, "relative": costs[row["name"]] / middle if row["name"] in costs else None} for row in out]  # type: ignore[operator]


def _correlation(subject: _Subject, layers: Sequence[Row]) -> Row | None:
    """Spearman's rank correlation of BOPs with milliseconds over the layers, and the layers that stand out."""
    from scipy.stats import spearmanr

    known = [row for row in layers if row["relative"] is not None]
    if len(known) < LEAST_LAYERS or len({row["bops"] for row in known}) < 2 or len({r["median"] for r in known}) < 2:
        subject.lacks(
            "rank correlation", f"{len(known)} layers have BOPs and a time, {LEAST_LAYERS} that differ are needed",
            "a larger network, the native module",
        )  # fmt: skip
        return None
    found = spearmanr([row["bops"] for row in known], [row["median"] for row in known])
    far = [row for row in known if not 1 / OUTLIER < row["relative"] < OUTLIER]
    return {
        "rank": float(found.statistic), "layers": len(known), "factor": OUTLIER,
        "outliers": [
            {"name": row["name"], "relative": row["relative"]}
            for row in sorted(far, key=lambda row: -max(row["relative"], 1 / row["relative"]))
        ],
    }  # fmt: skip


def _roofs(layers: Sequence[Row], timed: Row | None) -> Row:
    """MACs a second at most, per kernel family and (bit-serial) pair of widths in use; bytes a second."""
    from .benchmarks.roofline import family

    if timed is None:
        return {"bytes_per_second": None, "macs": []}
    (run,) = timed["runs"]
    found: dict[str, float] = {}
    for row in layers:
        kind = family(row["kernel"] or "")
        rate = run["roofs"].get(f"{kind}_{row['isa']}")
        if rate is None:
            continue
        if kind != "bitserial":
            found[f"{kind} {row['isa']}"] = rate
        elif row["w_bits"] is not None:
            pair = f"w{row['w_bits']}a{row['a_bits']}"
            found[f"{kind} {row['isa']} {pair}"] = rate / (row["w_bits"] * row["a_bits"])
    return {
        "bytes_per_second": run["roofs"]["bytes_per_second"],
        "macs": [{"name": name, "macs_per_second": rate} for name, rate in found.items()],
    }


# -- the search -----------------------------------------------------------------------------------------------------


def _curves(subject: _Subject) -> list[Row]:
    """Per phase: epoch numbers and the figures of each epoch, null where an epoch has none."""
    if subject.run is None:
        subject.lacks("search curves", "an artifact does not hold the events of its search", "--against RUN")
        return []
    path = subject.run.path / "events.jsonl"
    epochs = [event for event in _events(path) if event.get("event") == "epoch"]
    if not epochs:
        subject.lacks("search curves", f"{subject.run.path} holds no epochs", "only a search or a training has them")
        return []
    out = []
    for phase in dict.fromkeys(event["phase"] for event in epochs):
        own = [event for event in epochs if event["phase"] == phase]
        keys = dict.fromkeys(k for e in own for k, v in e.items() if isinstance(v, int | float))
        series = {key: [event.get(key) for event in own] for key in keys if key not in ("epoch", "epochs")}
        out.append({"phase": phase, "epochs": [event["epoch"] for event in own], "series": series})
    return out


def _events(path: Path) -> list[Row]:
    """Lines of events.jsonl; none where there is no such file."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    except (OSError, ValueError) as error:
        raise CorruptError(f"{path} is damaged: {error}") from error
    if not all(isinstance(event, dict) for event in found):
        raise CorruptError(f"{path} is damaged: a line holds no object")
    return found
