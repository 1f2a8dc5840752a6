"""Accuracy, and the points of the front: this network, its float and 8-bit baselines, other RUNs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BitpressError, UsageError
from .subject import Row, Subject, result_of, run_at

if TYPE_CHECKING:
    from ..core.data import Data
    from ..core.rundir import Run

INT8 = 8
Progress = Callable[[str, float], None]


def _spec(subject: Subject) -> str | None:
    found = subject.asked.data or subject.inspected["data"]
    return found if isinstance(found, str) else None


def data_of(subject: Subject) -> Data | None:
    """The data set, where it is at hand and fits; an error only where it was asked for."""
    from ..core.data import CLASSIFICATION, load

    spec, (c, h, w) = _spec(subject), subject.inspected["input"]["shape"]
    if spec is None:
        subject.lacks("accuracy", "the network does not say which data belong to it", "--data DATA")
        return None
    try:
        found = load(spec, in_shape=(c, h, w))
        found.require_fit((c, h, w), subject.inspected["outputs"])
        if found.task != CLASSIFICATION:
            raise UsageError(f"{spec} has boxes, and the page counts classes: bitpress eval counts the boxes")
    except (BitpressError, OSError) as error:
        if subject.asked.data is not None:
            raise
        subject.lacks("accuracy of the artifact", error, "--data DATA")
        return None
    return found


def accuracy_of(subject: Subject, data: Data | None, progress: Progress) -> Row | None:
    """Top-1 of the artifact, counted here; without data that of result.json, which the search counted."""
    from ..evaluation import evaluate

    result, keys = subject.result, ("data", "top1", "top5", "n", "predictions_sha256")
    if data is not None:
        found = evaluate(subject.artifact, data=data.spec, threads=subject.asked.threads, progress=progress)
        said = result.get("predictions_sha256") if data.spec == result.get("data") else None
        agrees = None if said is None else said == found["predictions_sha256"]
        return {**{key: found[key] for key in keys}, "counted": "here", "agrees": agrees}
    if result.get("top1") is None:
        return None
    return {**{key: result.get(key) for key in keys}, "counted": "by the search", "agrees": None}


def here(subject: Subject, accuracy: Row | None) -> list[Row]:
    """The point of this network; none where its top-1 or its BOPs are unknown."""
    if accuracy is None or subject.inspected["totals"]["bops"] is None:
        return []
    name = subject.run.path.name if subject.run is not None else subject.artifact.name
    return [_point(name, "this", accuracy["top1"], subject.inspected["totals"])]


def _point(name: str, role: str, top1: float, totals: Mapping[str, Any]) -> Row:
    return {
        "name": name, "role": role, "top1": top1, "bops": totals["bops"], "bops_fp32": totals["bops_fp32"],
        "weight_bytes": totals["weight_bytes"],
    }  # fmt: skip


def baselines(subject: Subject, data: Data | None, accuracy: Row | None) -> list[Row]:
    """The float network and its post-training w8a8 form, each with a top-1 counted on the same images."""
    if subject.run is None:
        subject.lacks("float and 8-bit baselines", "an artifact does not hold its float network", "--against RUN")
        return []
    if accuracy is None:
        return []
    found = [_float(subject, data, accuracy), _int8(subject, data)]
    return [row for row in found if row is not None]


def _float(subject: Subject, data: Data | None, accuracy: Row) -> Row | None:
    """The float network: result.json's top-1 where it speaks of the same images, else counted here in torch."""
    from ..core.rundir import float_graph

    run, totals, top1 = subject.run, subject.inspected["totals"], subject.result.get("baseline_top1")
    assert run is not None, "the caller has one"
    if accuracy["data"] != subject.result.get("data"):
        top1 = None
    if top1 is None and data is not None:
        from ..benchmarks.peers_torch import function

        top1 = _counted(function(float_graph(run)), run, data)
    if top1 is None:
        subject.lacks("float baseline", "no float top-1 is recorded, and there are no data to count it", "--data DATA")
        return None
    whole = {"bops": totals["bops_fp32"], "bops_fp32": totals["bops_fp32"], "weight_bytes": totals["fp32_bytes"]}
    return _point("float network", "fp32", top1, whole)


def _int8(subject: Subject, data: Data | None) -> Row | None:
    """The float network at w8a8 without training, compiled and evaluated."""
    from ..compiler import artifact
    from ..compiler.model import load
    from ..compiler.pipeline import compile_run
    from ..core.bops import count
    from ..core.calibrate import calibrate
    from ..core.rundir import float_graph
    from ..delivery import CALIBRATION_IMAGES

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
    from ..core.evaluate import evaluate

    test, (mean, std) = data.test(), _normal(run)
    found = evaluate(
        function, test.images, test.labels, prepare=lambda x: data.normalise(x, mean, std)
    )  # fmt: skip
    assert found.top1 is not None, "the data have classes"
    return found.top1


def _normal(run: Run) -> tuple[Sequence[float], Sequence[float]]:
    channels = run.graph.inputs[0].shape[0]
    return run.meta.get("mean", [0.0] * channels), run.meta.get("std", [1.0] * channels)


def other_run(subject: Subject, folder: Path) -> Row | None:
    """A point of another RUN; UsageError unless it is finished and was counted on the same images."""
    run = run_at(folder)
    found = result_of(run)
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
