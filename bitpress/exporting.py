"""The `bitpress.export` document: a RUN or an artifact as ONNX, and whether onnxruntime agrees. Prints nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import CheckFailed, EnvironmentMissing, UsageError
from .core.host import head, write_bytes

if TYPE_CHECKING:
    import numpy as np

    from .compiler.onnx_qdq import Qdq
    from .compiler.program import Program

IMAGES = 100
Progress = Callable[[str, float], None]


def export(
    source: str | Path,
    output: str | Path,
    *,
    native_low_bit: bool = False,
    exact: bool = False,
    images: int = IMAGES,
    data: str | None = None,
    threads: int = 1,
    progress: Progress = lambda _what, _share: None,
) -> dict[str, Any]:
    """Writes `source` (a RUN folder or a `.bpk`) as QDQ ONNX into the file `output`, and runs that in onnxruntime.

    `native_low_bit`: weights of 2 and 4 bits in INT2 and INT4, not INT8. `exact`: the same codes, bit by bit, at the
    price of scales that are not in the quantisers. `images`: how many the file is tried on, the golden sample and
    seeded noise, or of DATA `data`; with 0, or without onnxruntime, key `agreement` is None and `left_out` says why.
    Refusals leave an earlier file as it was. CheckFailed where onnxruntime cannot load the file, but for one with INT2
    and INT4, which older ones do not know.
    """
    from .compiler.onnx_qdq import to_qdq
    from .compiler.onnx_writer import require_onnx
    from .compiler.verify import images as try_on

    start = time.perf_counter()
    _check_request(Path(source), Path(output), images)
    require_onnx()
    progress("export", 0.0)
    program, known = _program(Path(source))
    x = try_on(program, data, images) if images else None
    exported = to_qdq(program, native_low_bit=native_low_bit, exact=exact, known=known)
    blob = exported.model.SerializeToString(deterministic=True)
    write_bytes(Path(output), blob)
    progress("export", 0.2)
    found, left_out = None, "no images were asked for (--images 0)"
    if x is not None:
        found, left_out = _agreement(program, exported, x, threads=threads)
    progress("export", 1.0)
    return {
        **head("bitpress.export", isa=None if found is None else found.pop("isa"), threads=threads),
        "source": str(source), "onnx": str(output), "weights": "native" if native_low_bit else "int8",
        "exact": exact,
        "file_bytes": len(blob), **_facts(program, exported), "agreement": found, "left_out": left_out or None,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def _facts(program: Program, exported: Qdq) -> dict[str, Any]:
    """What one must know to run the file, and what its layers hold."""
    from .compiler.onnx_qdq import PREPROCESSING, SAID

    model, buffer = exported.model, program.buffers[program.input]
    keys = ("name", "op", *SAID, "container", "stored", "bias")
    return {
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        "input": {
            "name": buffer.name, "shape": list(buffer.shape), "mean": program.mean.tolist(),
            "std": program.std.tolist(), "preprocessing": PREPROCESSING,
        },
        "output": model.graph.output[0].name,
        "outputs": math.prod(program.buffers[program.output].shape),
        "labels": len(program.labels),
        "layers": [{key: row[key] for key in keys if key in row} for row in exported.layers],
    }  # fmt: skip


def _check_request(source: Path, output: Path, images: int) -> None:
    """What contradicts itself, and places where nothing can be written, before any work."""
    if images < 0:
        raise UsageError(f"--images {images}: 0 or more are needed")
    if not output.parent.is_dir():
        raise UsageError(f"--onnx {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise UsageError(f"--onnx {output} is a folder: name a file")
    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError(f"--onnx {output} is the file that is exported: name another")


def _program(source: Path) -> tuple[Program, Mapping[str, float] | None]:
    """The program to export, and what a level of each value is worth where a RUN tells."""
    if not source.is_dir():
        from .compiler import artifact

        return artifact.read(source), None
    from .compiler.pipeline import compile_run
    from .core.integer import level_values
    from .core.rundir import load_run

    run = load_run(source)
    return compile_run(run), level_values(run.graph, run.plan, run.tensors)


def _agreement(program: Program, exported: Qdq, x: np.ndarray, *, threads: int) -> tuple[dict[str, Any] | None, str]:
    """How onnxruntime agrees on the images `x`, and with which ISA of ours; else why that was left out."""
    from .compiler import artifact
    from .compiler.model import Model
    from .compiler.onnx_agreement import agreement

    model = Model(artifact.encode(program), threads=threads)
    try:
        return {**agreement(program, exported, x, model, threads=threads), "isa": model.isa}, ""
    except EnvironmentMissing as error:
        return None, str(error)
    except CheckFailed as error:
        if exported.bits == 8:
            raise
        return None, str(error)
