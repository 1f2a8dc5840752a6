"""The `bitpress.compile` document: a RUN, or a network quantised without training, becomes an artifact. Prints nothing.

A post-training RUN holds what a searched one holds; nothing is written before everything has succeeded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import UsageError
from .core.factory import is_onnx
from .core.host import head
from .core.ranges import PERCENTILE, Ranges

if TYPE_CHECKING:
    import numpy as np

    from .core.cost import Budget
    from .core.graph import Graph
    from .core.network import Network
    from .core.plan import CompressionPlan

PTQ = "ptq"
MIXED = "mixed"  # in place of bits: widths by measured harm under a budget
CALIBRATION_IMAGES = 512
Progress = Callable[[str, float], None]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is quantised without training.

    `quantize`: "w8a8", or "mixed" with `budget`; `calibrate`: DATA or "random:N", `images` of its training part; both
    None for a quantised ONNX file, which says its bits and ranges itself. `act_range` to `reduce_range`: as
    `core.ranges.Ranges`. The rest says what MODEL is.
    """

    quantize: str | None = None
    calibrate: str | None = None
    images: int = CALIBRATION_IMAGES
    residual: str = "int8"
    classes: int | None = None
    in_shape: Shape | None = None
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0
    budget: tuple[str, ...] = ()
    latency_table: str | None = None
    act_range: str = "mse"
    percentile: float = PERCENTILE
    weight_range: str = "lp"
    bias_correction: bool = True
    equalize: str = "off"
    reduce_range: bool = False

    @property
    def ranges(self) -> Ranges:
        """How clips and biases are found; UsageError for what no value can be."""
        return Ranges(
            self.act_range, self.percentile, self.weight_range, self.bias_correction, self.equalize, self.reduce_range
        )


@dataclass(frozen=True, slots=True)
class _Source:
    """What compilation takes: as `core.rundir.Run`. `floats`: the network before it was equalised, where it was."""

    graph: Graph
    plan: CompressionPlan
    tensors: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]
    floats: Graph | None = None


def compile(
    source: str | Path,
    output: str | Path | None,
    *,
    recipe: Recipe | None = None,
    run: str | Path | None = None,
    target: str | None = None,
    stop_after: str | None = None,
    dump_dir: str | Path | None = None,
    progress: Progress = lambda _what, _share: None,
) -> dict[str, Any]:
    """Compiles the RUN folder `source`, or with a `recipe` the MODEL that it names, into the file `output`.

    `run`: folder that keeps what the recipe made. `stop_after` a stage: nothing is written but `dump_dir`. Refusals
    leave earlier files as they were.
    """
    from .compiler import artifact
    from .compiler.pipeline import STAGES, compile_run

    start = time.perf_counter()
    path = Path(source)
    _check_request(path, output, recipe, run, stop_after)
    if stop_after is not None and stop_after not in STAGES:
        raise UsageError(f"--stop-after {stop_after!r}: stages are {', '.join(STAGES)}")
    if recipe is not None:
        made = quantise(str(source), recipe, progress=progress)
    else:
        from .core.rundir import load_run

        loaded = load_run(path)
        made = _Source(loaded.graph, loaded.plan, loaded.tensors, loaded.meta)
    progress("compile", 0.9)
    if stop_after is not None:
        compile_run(made, stop_after=stop_after, dump_dir=dump_dir, target=target)
        size = None
    else:
        program = compile_run(made, dump_dir=dump_dir, target=target)
        if run is not None:
            assert recipe is not None, "checked above"
            keep(run, str(source), made, recipe, time.perf_counter() - start)
        assert output is not None, "checked above"
        size = artifact.write(program, output)
    progress("compile", 1.0)
    method = PTQ if recipe is not None else made.meta.get("method")
    return {
        **head("bitpress.compile"),
        "source": str(source), "artifact": None if stop_after else str(output),
        "run": None if run is None else str(run),
        "method": method, "quantize": None if recipe is None else recipe.quantize,
        "calibration": made.meta.get("calibration"), **_figures(made), "file_bytes": size,
        "stages": list(STAGES if stop_after is None else STAGES[: STAGES.index(stop_after) + 1]),
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def quantise(model: str, recipe: Recipe, *, progress: Progress = lambda _what, _share: None) -> _Source:
    """The network `model` with ranges from data. An unknown op is refused before any work.

    Without `recipe.quantize` bits and ranges are those of a quantised ONNX file.
    """
    from .core.network import network, refuse_quantised

    loaded = network(
        model, classes=recipe.classes, in_shape=recipe.in_shape, weights=recipe.weights, mean=recipe.mean,
        std=recipe.std, floats=recipe.quantize is not None, seed=recipe.seed,
    )  # fmt: skip
    meta = {
        "model": model, "in_shape": list(loaded.in_shape), "classes": loaded.classes, "mean": list(loaded.mean),
        "std": list(loaded.std), "labels": list(loaded.labels), "method": PTQ, "data": None, "seed": recipe.seed,
    }  # fmt: skip
    if recipe.quantize is not None and recipe.calibrate is not None:
        refuse_quantised(loaded, f"--quantize {recipe.quantize} chooses other codes")
        return _calibrated(loaded, recipe, meta, progress)
    if loaded.codes is None:
        raise UsageError(f"{model} holds floats: give --quantize and --calibrate, the bits and images for the ranges")
    return _Source(loaded.graph, loaded.codes.plan, loaded.codes.tensors, meta)


def _calibrated(loaded: Network, recipe: Recipe, meta: Mapping[str, Any], progress: Progress) -> _Source:
    import numpy as np

    from .core.data import load as load_data
    from .core.graph import refuse_unknown

    assert recipe.calibrate is not None, "checked by the caller"
    if recipe.images < 1:
        raise UsageError(f"--calibration-images {recipe.images}: at least 1 is needed")
    _wanted(recipe)
    refuse_unknown(loaded.graph, loaded.spec)
    data = load_data(recipe.calibrate, in_shape=loaded.in_shape, seed=recipe.seed)
    if data.classes:
        data.require_fit(loaded.in_shape, loaded.graph.value(loaded.graph.outputs[0]).shape)
    images = data.normalise(np.asarray(data.train.images[: recipe.images]), loaded.mean, loaded.std)
    known = {"labels": list(loaded.labels or data.labels), "data": recipe.calibrate if data.classes else None}
    return calibrated(loaded, images, recipe, {**meta, **known}, progress)


def calibrated(
    loaded: Network, images: np.ndarray, recipe: Recipe, meta: Mapping[str, Any], progress: Progress
) -> _Source:
    """The network quantised on normalised images, float32 [n, C, H, W]: equalised, planned, its ranges taken."""
    from .core.calibrate import check, tensors_for

    wanted, ranges, said = _wanted(recipe), recipe.ranges, f", {len(images)} images"
    first, second = _shares(recipe)
    check(loaded.graph, images)
    graph, equalized = _equalized(loaded.graph, images, ranges, lambda s: progress(f"equalize{said}", first * s))
    plan, chosen = _planned(
        graph, images, recipe, wanted, loaded.spec,
        lambda s: progress(f"measure harms{said}", first + (second - first) * s),
    )  # fmt: skip
    tensors = tensors_for(
        graph, plan, images, ranges=ranges, progress=lambda s: progress(f"calibrate{said}", second + (0.9 - second) * s)
    )
    terms = {"quantize": recipe.quantize, "images": len(images), **ranges.document(), "equalized": equalized, **chosen}
    return _Source(
        graph, plan, tensors, {**meta, "calibration": terms}, loaded.graph if equalized is not None else None
    )


def _shares(recipe: Recipe) -> tuple[float, float]:
    """Of the work: done when the network is equalised, and when widths are chosen."""
    first = 0.1 if recipe.equalize != "off" else 0.0
    return first, 0.8 if recipe.quantize == MIXED else first


def _wanted(recipe: Recipe) -> tuple[int, int] | tuple[Budget, ...]:
    """The bits of `quantize`, or for mixed ones the budgets; UsageError where both or neither are given."""
    from .core.cost import parse_budget
    from .core.encoding import parse_bits

    assert recipe.quantize is not None, "checked by the caller"
    if recipe.quantize == MIXED:
        if not recipe.budget:
            raise UsageError("--quantize mixed needs --budget, for example size=20%: what the widths may cost together")
        return tuple(parse_budget(text) for text in recipe.budget)
    try:
        bits = parse_bits(recipe.quantize)
    except ValueError as error:
        raise UsageError(f"--quantize: {error}, or mixed with a --budget") from error
    if recipe.budget or recipe.latency_table:
        raise UsageError(
            f"--quantize {recipe.quantize} gives all layers the same bits: --budget and --latency-table go with "
            "--quantize mixed"
        )
    return bits


def _equalized(
    graph: Graph, images: np.ndarray, ranges: Ranges, progress: Callable[[float], None]
) -> tuple[Graph, dict[str, Any] | None]:
    """The graph as `ranges.equalize` wants it, and what was done; None where nothing was asked for."""
    from dataclasses import asdict

    if ranges.equalize == "off":
        return graph, None
    from .core.equalize import equalize

    graph, done = equalize(graph, images, seen=ranges.equalize == "seen", progress=progress)
    return graph, asdict(done)


def _planned(
    graph: Graph, images: np.ndarray, recipe: Recipe, wanted: tuple[int, int] | tuple[Budget, ...], model: str,
    progress: Callable[[float], None],
) -> tuple[CompressionPlan, dict[str, Any]]:  # fmt: skip
    """The plan, and for mixed widths what the metadata say of the budget."""
    from .core.calibrate import uniform_plan

    if recipe.quantize != MIXED:
        w, a = wanted
        return uniform_plan(graph, w, a, residual=recipe.residual), {}  # type: ignore[arg-type]
    from .core.search import on_target
    from .core.sensitivity import mixed

    table = recipe.latency_table
    found = mixed(
        graph, images, wanted, ranges=recipe.ranges, residual=recipe.residual,  # type: ignore[arg-type]
        target=None if table is None else on_target(table, graph, model, recipe.residual), progress=progress,
    )  # fmt: skip
    return found.plan, {"budget": list(recipe.budget), "used": dict(found.used), "harm": found.harm, "why": found.why}


def keep(run: str | Path, model: str, made: _Source, recipe: Recipe, seconds: float) -> None:
    """Writes what a recipe made as a RUN: graph, plan, tensors, result and the values that made it."""
    from .core.bops import count
    from .core.job import RUN_SCHEMA, RUN_VERSION
    from .core.rundir import FLOAT, RESULT, SETTINGS, write_json, write_run, write_tensors

    totals = count(made.graph, made.plan).totals
    result = {
        **head("bitpress.search"),
        "method": PTQ, "baseline_top1": None, "top1": None, "bops": totals.bops, "bops_fp32": totals.bops_fp32,
        "bops_ratio": totals.bops_ratio, "bops_convention": totals.bops_convention,
        "weight_bytes": totals.weight_bytes, "latency": None, "budget": list(recipe.budget), "epochs": 0,
        "seconds": seconds, "data": made.meta["data"], "seed": recipe.seed,
    }  # fmt: skip
    values = {
        "schema": RUN_SCHEMA, "schema_version": RUN_VERSION, "method": PTQ, "model": model,
        "quantize": recipe.quantize, "calibrate": recipe.calibrate, "calibration": made.meta.get("calibration"),
        "calibration_images": recipe.images, "residual": recipe.residual, "classes": made.meta["classes"],
        "in_shape": made.meta["in_shape"], "mean": made.meta["mean"], "std": made.meta["std"], "seed": recipe.seed,
        "data": made.meta["data"], "files": _digests(model, recipe.weights),
    }  # fmt: skip
    folder = Path(run)
    write_run(folder, made.graph, made.plan, made.tensors, made.meta)
    (folder / FLOAT).unlink(missing_ok=True)
    if made.floats is not None:
        write_tensors(folder / FLOAT, made.floats.consts)
    write_json(folder / RESULT, result)
    write_json(folder / SETTINGS, values)


def _digests(model: str, weights: str | None) -> dict[str, str]:
    from .core.job import sha256

    read = {"model": model if is_onnx(model) else None, "weights": weights}
    return {what: sha256(Path(path)) for what, path in read.items() if path is not None}


def _figures(made: _Source) -> dict[str, Any]:
    from .core.bops import count

    totals = count(made.graph, made.plan).totals
    return {
        "weight_bytes": totals.weight_bytes, "fp32_bytes": totals.fp32_bytes, "bops": totals.bops,
        "bops_ratio": totals.bops_ratio,
    }  # fmt: skip


def _check_request(
    path: Path, output: str | Path | None, recipe: Recipe | None, run: str | Path | None, stop_after: str | None
) -> None:
    """What contradicts itself, and folders in which nothing can be written, before any work."""
    if output is None and stop_after is None:
        raise UsageError("-o X.bpk is missing: where shall the artifact go?")
    if recipe is None and run is not None:
        raise UsageError("--run keeps what --quantize makes: it needs --quantize and --calibrate")
    if recipe is not None and path.is_dir():
        raise UsageError(
            f"{path} is a RUN, its plan says the bits: leave out --quantize and --calibrate, or name a MODEL"
        )
    if recipe is None and not path.is_dir():
        raise UsageError(
            f"{path} is no RUN folder; to compile a MODEL without a search give --quantize and --calibrate"
        )
    if output is not None and not Path(output).parent.is_dir():
        raise UsageError(f"-o {output}: there is no folder {Path(output).parent}")
    if run is not None:
        _check_run(Path(run))


def _check_run(folder: Path) -> None:
    """A RUN may replace a post-training one, nothing else that exists."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        method = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("method")
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"--run {folder} exists and is no RUN: name another folder") from None
    if method != PTQ:
        raise UsageError(f"--run {folder} holds a RUN of method {method}: name another folder")
