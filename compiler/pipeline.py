"""compile(): the stages in order, each a line; what each made can be dumped, verified and stopped after.

float Graph, plan, tensors -> integer -> prune -> fuse -> pack -> lower -> finish = Program (artifact.py writes it)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np

from ..core.bops import count
from ..core.errors import EnvironmentMissing, UsageError
from ..core.graph import Graph, verify
from ..core.integer import integer
from ..core.plan import CompressionPlan
from ..kernels.native import isas
from ..kernels.registry import BASELINE, baseline, find
from .check import check
from .execute import execute
from .fuse import fuse
from .lower import lower
from .model import native_module
from .pack import Packed, pack
from .program import Program
from .prune import prune

STAGES = ("integer", "prune", "fuse", "pack", "lower", "finish")
_GRAPH_STAGES = {"integer": "integer", "prune": "pruned", "fuse": "fused"}
GOLDEN_SEED = 0
RECORDED = ("model", "data", "method", "calibration")  # what meta repeats from a RUN

Stage = Graph | Packed | Program


class Source(Protocol):
    """What compilation takes from a RUN (core.rundir.Run)."""

    @property
    def graph(self) -> Graph:
        """Float, constants filled."""

    @property
    def plan(self) -> CompressionPlan:
        """Bits and channels."""

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """Weights, batch norms and clips by name."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """Model, data, mean and std, labels."""


@overload
def compile_run(
    run: Source, *, stop_after: None = None, dump_dir: str | Path | None = None, target: str | None = None
) -> Program: ...
@overload
def compile_run(
    run: Source, *, stop_after: str, dump_dir: str | Path | None = None, target: str | None = None
) -> Stage: ...
def compile_run(
    run: Source, *, stop_after: str | None = None, dump_dir: str | Path | None = None, target: str | None = None
) -> Stage:
    """Program of a RUN; see `compile_graph`."""
    made = stages(run.graph, run.plan, run.tensors, run.meta, target)
    return _last(made, stop_after, dump_dir)


def compile_graph(
    graph: Graph,
    plan: CompressionPlan,
    tensors: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    *,
    target: str | None = None,
) -> Program:
    """Program of a float graph under a plan; the same inputs give the same program on every host.

    `meta`: mean, std, labels, and what `RECORDED` lists, where known. `target`: ISA whose rows are hinted, the baseline
    if None. CorruptError: tensors or plan do not fit. UnsupportedError: an op, a width or a shape without a kernel.
    """
    out = _last(stages(graph, plan, tensors, meta, target), None, None)
    assert isinstance(out, Program)
    return out


def stages(
    graph: Graph,
    plan: CompressionPlan,
    tensors: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    target: str | None = None,
) -> Iterator[tuple[str, Stage]]:
    """(name, result) of every stage, in the order of `STAGES`."""
    whole = integer(graph, plan, tensors)
    yield "integer", whole
    small = prune(whole)
    yield "prune", small
    fused = fuse(small)
    yield "fuse", fused
    packed = pack(fused)
    yield "pack", packed
    program = lower(fused, packed, **_normalisation(graph, meta), choose=_chooser(target))
    yield "lower", program
    yield "finish", finish(program, graph, plan, tensors, meta)


def finish(
    program: Program,
    graph: Graph,
    plan: CompressionPlan,
    tensors: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
) -> Program:
    """The program with labels, golden sample and metadata, none of which changes what it computes."""
    shape = (1, *graph.inputs[0].shape)
    golden = tensors.get("golden_input")
    if golden is None:
        golden = np.random.default_rng(GOLDEN_SEED).standard_normal(shape)
    golden = np.ascontiguousarray(golden, np.float32).reshape(shape)
    labels = tuple(str(name) for name in meta.get("labels") or ())
    return replace(
        program,
        labels=labels,
        golden_input=golden,
        golden_output=execute(program, golden),
        meta=describe(graph, plan, meta),
    )


def describe(graph: Graph, plan: CompressionPlan, meta: Mapping[str, Any]) -> dict[str, object]:
    """Metadata of an artifact: only what cannot be read off its steps and buffers. Plain JSON, no host facts."""
    counts = count(graph, plan)
    rows = [
        {"name": r.name, "op": r.op, "channels_total": r.channels_total, "macs": r.macs, "bops": r.bops}
        for r in counts.layers
    ]
    totals = {
        key: getattr(counts.totals, key) for key in ("macs", "bops", "bops_fp32", "bops_convention", "fp32_bytes")
    }
    known = {key: meta[key] for key in RECORDED if meta.get(key) is not None}
    return {**known, "graph": plan.graph, "residual": plan.residual, "layers": rows, "totals": totals}


def text(result: Stage) -> str:
    """Stable, diffable listing of what a stage made."""
    if isinstance(result, Graph):
        return result.text()
    if isinstance(result, Program):
        return _program_text(result)
    rows = ((name, i, r.weight) for name, segments in result.items() for i, r in enumerate(segments))
    return "".join(f"%{name}#{i}: {w.encoding}{list(w.shape)} {w.fields.size} bytes\n" for name, i, w in rows)


def _program_text(program: Program) -> str:
    lines = [f"arena {program.arena_bytes}"]
    lines += [f"buffer {i} {b.name}: {b.storage}{list(b.shape)} at {b.offset}" for i, b in enumerate(program.buffers)]
    for step in program.steps:
        weight = f" {step.weight.encoding}{list(step.weight.shape)}" if step.weight is not None else ""
        bounds = f" clamp {step.epilogue.lo:g}..{step.epilogue.hi:g}" if step.epilogue is not None else ""
        inputs = ", ".join(map(str, step.inputs))
        lines.append(f"step {step.name}: {step.output} = {step.op}({inputs}){weight}{bounds} {step.hint}")
    return "\n".join(lines) + "\n"


def _last(made: Iterator[tuple[str, Stage]], stop_after: str | None, dump_dir: str | Path | None) -> Stage:
    """Runs the stages, verifies and dumps each; result of the last one, or of `stop_after`."""
    if stop_after is not None and stop_after not in STAGES:
        raise UsageError(f"there is no stage {stop_after!r}; stages are {', '.join(STAGES)}")
    result: Stage | None = None
    for number, (name, result) in enumerate(made, 1):
        if isinstance(result, Graph):
            verify(result, _GRAPH_STAGES[name])
        elif isinstance(result, Program):
            check(result)
        if dump_dir is not None:
            _dump(Path(dump_dir), f"{number:02d}_{name}.txt", text(result))
        if name == stop_after:
            break
    assert result is not None, "there is at least one stage"
    return result


def _dump(folder: Path, name: str, listing: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(listing)
    except OSError as error:
        raise UsageError(f"cannot write {folder / name}: {error.strerror}") from error


def _normalisation(graph: Graph, meta: Mapping[str, Any]) -> dict[Literal["mean", "std"], np.ndarray]:
    c = graph.inputs[0].shape[0]
    mean, std = meta.get("mean"), meta.get("std")
    return {
        "mean": np.zeros(c, np.float32) if mean is None else np.asarray(mean, np.float32),
        "std": np.ones(c, np.float32) if std is None else np.asarray(std, np.float32),
    }


def _chooser(target: str | None) -> Any:
    """The choice of hints; UsageError for a target that there is not, EnvironmentMissing for one of another host."""
    if target is None:
        return baseline
    if target not in isas():
        raise UsageError(f"target {target!r} is unknown; valid: {', '.join(isas())}")
    module = native_module()
    usable = (BASELINE,) if module is None else module.cpu_isas()
    if target not in usable:
        raise EnvironmentMissing(
            f"target {target}: its kernels cannot be chosen here, where there are those of {', '.join(usable)}; "
            "without a target a file names the baseline's and still runs the best that its host has"
        )
    return lambda problem: find(problem, isa=target)
