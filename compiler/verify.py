"""torch = integer reference = C++ = Triton, value by value; the first that differs is named.

Stages: `torch` (core.semantics of the RUN, which shares nothing with the compiler but core.integer), `reference`
(the program in numpy), `native` (the C++ session), `triton` (a GPU, where there is one). Every one is compared with the
reference. Apart from that stands the training forward of a searched RUN, in floats: its share of differing codes is
told, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import EnvironmentMissing, UnsupportedError, UsageError
from ..core.graph import Graph
from ..core.integer import integer
from ..kernels import gpu
from . import artifact
from .execute import execute, values
from .model import gpu_program, native_module
from .pipeline import Source
from .program import Program
from .prune import kept_of

TORCH, REFERENCE, NATIVE, TRITON = "torch", "reference", "native", "triton"
SEED = 0
Values = Mapping[str, np.ndarray]


def verify(
    source: str | Path | bytes,
    run: Source | str | Path | None = None,
    *,
    batches: Sequence[int] = (1, 3, 16),
    threads: Sequence[int] = (1, 2),
    data: str | np.ndarray | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Body of the `bitpress.verify` document; the face adds its head.

    `run`: the RUN of the artifact, for stage torch. Values are compared on the largest batch, outputs for every batch
    and thread count. `data`: normalised float32 images [N, C, H, W], or a data set of whose validation part they are
    taken; by default the golden sample and seeded noise. `device`: with "cuda" a GPU that is missing or cannot run the
    program is an error and no stage left out. EnvironmentMissing if fewer than two stages can run.
    """
    for name, numbers in (("batch", batches), ("threads", threads)):
        if not numbers or min(numbers) < 1:
            raise UsageError(f"{name} {','.join(map(str, numbers))}: numbers of at least 1 are needed")
    blob = source if isinstance(source, bytes) else artifact.load_bytes(source)
    program = artifact.decode(blob)
    x = images(program, data, max(batches))
    stages, left_out = _stages(blob, program, run)
    _add_triton(stages, left_out, program, wanted=device == "cuda")
    if not stages:
        raise EnvironmentMissing(
            f"only the numpy reference can run, and it cannot verify itself: {'; '.join(w for _, w in left_out)}"
        )
    report = _Report()
    want = values(program, x)
    for stage in stages:
        report.compare(stage.name, want, stage.values(x))
    outputs = execute(program, x)
    runs = [
        _run(s, x[:b], outputs[:b], t, report)
        for s in stages
        for t in threads[: 1 if s.name == TRITON else None]
        for b in batches
    ]
    golden = _golden(program, report)
    layer = {program.buffers[s.output].name: s.layer for s in program.steps}
    if report.first is not None:
        report.first["layer"] = layer.get(report.first["name"], "")
    return {
        "exact": report.first is None,
        "stages": [s.name for s in stages if s.name == TORCH]
        + [REFERENCE]
        + [s.name for s in stages if s.name != TORCH],
        "left_out": [{"stage": name, "why": why} for name, why in left_out],
        "layers": [{"name": name, "layer": layer[name], **row} for name, row in report.rows.items()],
        "first_difference": report.first,
        "runs": runs,
        "golden": golden,
        "training_forward": next((s.forward(x) for s in stages if s.forward is not None), None),
        "images": len(x),
        "isa": next((s.isa for s in stages if s.name == NATIVE), None),
        "gpu": next((s.isa for s in stages if s.name == TRITON), None),
    }


def images(program: Program, data: str | np.ndarray | None, count: int) -> np.ndarray:
    """`count` normalised images float32 [N, C, H, W]: of `data`, else the golden sample and noise, seeded."""
    shape = program.buffers[program.input].shape
    if isinstance(data, str):
        from ..core.data import load

        found = load(data, in_shape=shape)
        part = found.validation.images[:count] if len(found.validation) else found.train.images[:count]
        data = found.normalise(np.asarray(part), program.mean.tolist(), program.std.tolist())
    if data is None:
        noise = np.random.default_rng(SEED).standard_normal((count, *shape)).astype(np.float32)
        if program.golden_input is not None:
            noise[0] = program.golden_input[0]
        return noise
    if data.dtype != np.float32 or data.ndim != 4 or data.shape[1:] != shape or not len(data):
        raise UsageError(f"images are {data.dtype} {list(data.shape)}, the network takes float32 [N, {list(shape)}]")
    return np.ascontiguousarray(np.resize(data, (count, *shape)))


@dataclass(frozen=True, slots=True)
class _Stage:
    """Something that executes the network: all values by buffer name, and outputs with so many threads.

    `forward`: value -> share of codes that the training forward gives differently, None where a plan has none.
    """

    name: str
    values: Callable[[np.ndarray], Values]
    run: Callable[[np.ndarray, int], np.ndarray]
    isa: str | None = None  # or the name of a GPU
    forward: Callable[[np.ndarray], dict[str, float] | None] | None = None


@dataclass
class _Report:
    """Mismatches by value name, in the order of execution, and the first difference."""

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    first: dict[str, Any] | None = None

    def compare(self, stage: str, want: Values, found: Values) -> None:
        """Adds every value of one stage."""
        for name, expected in want.items():
            row = self.rows.setdefault(name, {"mismatches": 0, "elements": 0})
            row["mismatches"] += self.difference(stage, name, expected, found[name])
            row["elements"] += expected.size

    def difference(self, stage: str, name: str, want: np.ndarray, found: np.ndarray) -> int:
        """Number of elements that differ; remembers the first."""
        if want.shape != found.shape:
            raise UsageError(
                f"{name}: {stage} gives {list(found.shape)}, the artifact {list(want.shape)}: not the same net"
            )
        wrong = want != found
        count = int(wrong.sum())
        if count and self.first is None:
            at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            self.first = {
                "name": name, "stage": stage, "index": [int(i) for i in at],
                "expected": want[at].item(), "found": found[at].item(), "mismatches": count,
            }  # fmt: skip
        return count


def _run(stage: _Stage, x: np.ndarray, want: np.ndarray, threads: int, report: _Report) -> dict[str, Any]:
    found = stage.run(x, threads)
    count = report.difference(f"{stage.name}, batch {len(x)}, threads {threads}", "output", want, found)
    return {"stage": stage.name, "batch": len(x), "threads": threads, "mismatches": count, "elements": int(want.size)}


def _golden(program: Program, report: _Report) -> bool | None:
    if program.golden_input is None or program.golden_output is None:
        return None
    return not report.difference(
        "golden sample", "output", program.golden_output, execute(program, program.golden_input)
    )


def _stages(
    blob: bytes, program: Program, run: Source | str | Path | None
) -> tuple[list[_Stage], list[tuple[str, str]]]:
    """The stages that can run besides the reference, and (stage, why) of the others."""
    found: list[_Stage] = []
    left_out: list[tuple[str, str]] = []
    if run is None:
        left_out.append((TORCH, "stage torch needs the RUN: --against RUN"))
    elif (missing := _without_torch()) is not None:
        left_out.append((TORCH, missing))
    else:
        found.append(_torch_stage(program, run))
    native = native_module()
    if native is None:
        left_out.append((NATIVE, "the native module is not in use"))
    else:
        first = native.Session(blob, threads=1)
        found.append(
            _Stage(
                NATIVE,
                lambda x: dict(first.values(x)),
                lambda x, threads: native.Session(blob, threads=threads).run(x),
                str(first.isa),
            )
        )
    return found, left_out


def _add_triton(stages: list[_Stage], left_out: list[tuple[str, str]], program: Program, *, wanted: bool) -> None:
    """The stage of the GPU, where this host has one or it is `wanted`."""
    if gpu.missing() and not wanted:
        return
    try:
        made = gpu_program(program)
    except (EnvironmentMissing, UnsupportedError) as error:
        if wanted:
            raise
        left_out.append((TRITON, str(error)))
        return
    stages.append(_Stage(TRITON, made.values, lambda x, _threads: made(x), made.name))


def _without_torch() -> str | None:
    """Why stage torch cannot run here, naming the extra; None where it can."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return f"stage torch needs torch ({error}): pip install 'bitpress[search]'"
    return None


def _torch_stage(program: Program, run: Source | str | Path) -> _Stage:
    from ..core.semantics import Semantics

    if isinstance(run, str | Path):
        from ..core.rundir import load_run

        loaded: Source = load_run(run)
    else:
        loaded = run
    graph = integer(loaded.graph, loaded.plan, loaded.tensors)
    takes, has = program.buffers[program.input].shape, graph.inputs[0].shape
    if takes != has:
        raise UsageError(
            f"the RUN's network takes images {list(has)}, the artifact's {list(takes)}: --against wants the RUN that "
            "the artifact was compiled from"
        )
    shapes = {b.name: b.shape for b in program.buffers}
    return _Stage(
        TORCH,
        lambda x: _kept(graph, Semantics(graph).values(x), shapes),
        lambda x, threads: Semantics(graph, threads).run(x),
        forward=lambda x: _forward(loaded, graph, x),
    )


def _forward(run: Source, graph: Graph, x: np.ndarray) -> dict[str, float] | None:
    from ..core.semantics import Semantics
    from ..core.supernet import differing_codes, from_plan

    try:
        from_plan(run.graph, run.plan, run.tensors)
    except UnsupportedError:  # post-training plans, and several widths inside a layer
        return None
    return differing_codes(run.graph, run.plan, run.tensors, Semantics(graph).values(x), x)


def _kept(graph: Graph, found: Values, shapes: Mapping[str, tuple[int, int, int]]) -> dict[str, np.ndarray]:
    """torch's values as the program holds them: kept channels only, [N, C, H, W]."""
    nodes = {n.name: n for n in (*graph.inputs, *graph.nodes)}
    unknown = [name for name in shapes if name not in nodes]
    if unknown:
        raise UsageError(f"the RUN has no value {unknown[0]!r}: the artifact was made from another network or plan")
    out = {}
    for name, shape in shapes.items():
        kept = found[name][:, list(kept_of(nodes[name]))]
        if kept.size != len(kept) * int(np.prod(shape)):
            raise UsageError(f"{name}: the RUN keeps {list(kept.shape[1:])}, the artifact {list(shape)}: another plan")
        out[name] = kept.reshape(len(kept), *shape)
    return out
