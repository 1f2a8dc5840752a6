"""The `bitpress.eval` document: accuracy of an artifact or of a RUN, on the integer semantics. Prints nothing.

A RUN is computed in torch from what the folder holds; nothing here touches the compiler or native code for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .core.errors import UsageError
from .core.host import head

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is evaluated: images [N, C, H, W] float32 -> outputs, and what belongs to it."""

    run: Callable[[Any], Any]
    shape: tuple[int, ...]
    outputs: int
    mean: Sequence[float]
    std: Sequence[float]
    data: str | None
    isa: str | None
    semantics: str
    gpu: str | None = None


def evaluate(
    source: str | Path,
    *,
    data: str | None = None,
    threads: int = 1,
    device: str = "cpu",
    progress: Progress = lambda _what, _share: None,
) -> dict[str, Any]:
    """Accuracy of `source` (a `.bpk` or a RUN folder) on the test part of `data`, by default the one it was made with.

    `device`: "cuda" runs a `.bpk` on a GPU, with the same predictions; EnvironmentMissing without one.
    UsageError: no such file or data set, or it does not fit; CorruptError: `source` is damaged.
    """
    from .core.data import load
    from .core.evaluate import evaluate as measure

    path = Path(source)
    if device != "cpu" and path.is_dir():
        raise UsageError(
            f"{source} is a RUN, whose integers torch computes on the CPU: compile it, and give --device the X.bpk"
        )
    subject = _of_run(path, threads) if path.is_dir() else _of_artifact(path, threads, device)
    spec = data or subject.data
    if spec is None:
        raise UsageError(f"{source} does not say which data belongs to it: give --data")
    c, h, w = subject.shape
    found = load(spec, in_shape=(c, h, w))
    found.require_fit(subject.shape, subject.outputs)
    test = found.test()
    start = time.perf_counter()
    result = measure(
        subject.run, test.images, test.labels, task=found.task,
        prepare=lambda x: found.normalise(x, subject.mean, subject.std),
        progress=lambda done: progress(f"eval {spec}", done / len(test)),
    )  # fmt: skip
    return {
        **head("bitpress.eval", isa=subject.isa, threads=threads, gpu=subject.gpu),
        "source": str(source), "data": spec, "semantics": subject.semantics, "top1": result.top1, "top5": result.top5,
        "iou": result.iou, "n": result.n, "predictions_sha256": result.sha256, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def _of_artifact(path: Path, threads: int, device: str) -> _Subject:
    from .compiler.model import load

    model = load(path, threads=threads, device=device)
    program, known = model.program, model.program.meta.get("data")
    return _Subject(
        model, tuple(model.shape), model.outputs, program.mean.tolist(), program.std.tolist(),
        known if isinstance(known, str) else None, model.isa, "compiled program", model.gpu_name,
    )  # fmt: skip


def _of_run(path: Path, threads: int) -> _Subject:
    import numpy as np

    from .core.integer import integer
    from .core.rundir import load_run
    from .core.semantics import Semantics

    run = load_run(path)
    graph = integer(run.graph, run.plan, run.tensors)
    known, shape = run.meta.get("data"), run.graph.inputs[0].shape
    outputs = int(np.prod(run.graph.value(run.graph.outputs[0]).shape))
    return _Subject(
        Semantics(graph, threads).run, shape, outputs, run.meta.get("mean", [0.0] * shape[0]),
        run.meta.get("std", [1.0] * shape[0]),
        known if isinstance(known, str) else None, None, "torch integer semantics",
    )  # fmt: skip
