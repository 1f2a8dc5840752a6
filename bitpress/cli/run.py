"""`bitpress run`: inference on a .npy file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from ..core.errors import UsageError
from ..core.host import head
from .command import Common, Result, verb


@verb("run", table=False)
@click.argument("artifact", metavar="X.bpk")
@click.option(
    "--input", "source", required=True, metavar="X.npy", help="float32 [N,C,H,W], normalised, or uint8 [N,H,W,C]."
)
@click.option("--output", required=True, metavar="Y.npy", help="float32 [N, outputs].")
@click.option("--batch", type=click.IntRange(1, 65536), default=256, help="Images at a time.")
def command(common: Common, artifact: str, source: str, output: str, batch: int) -> Result:
    """Runs X.bpk on the images of X.npy and writes its outputs to Y.npy."""
    import numpy as np

    from ..compiler.model import load

    if not Path(output).parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {Path(output).parent}")
    model = load(artifact, threads=common.thread)
    images = _read(source)
    model.prepare(images[:1] if images.ndim == 4 else images)  # refuses what does not fit, before any work
    start = time.perf_counter()
    parts = []
    for at in range(0, len(images), batch):
        parts.append(model(images[at : at + batch]))
        common.progress("images", min(1.0, (at + batch) / len(images)))
    seconds = time.perf_counter() - start
    outputs = np.concatenate(parts) if parts else np.empty((0, model.outputs), np.float32)
    _write(output, outputs)
    document = {
        **head("bitpress.run", isa=model.isa, threads=common.thread),
        "artifact": artifact, "input": source, "output": output, "n": len(images), "outputs": model.outputs,
        "seconds": seconds,
    }  # fmt: skip
    return Result(document, notes=(f"{len(images)} images in {seconds:.3f} s ({model.isa}): {output}",))


def _read(path: str) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path} is no .npy file of numbers: {error}") from error


def _write(path: str, outputs: Any) -> None:
    """The whole file or none of it."""
    import os

    import numpy as np

    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, outputs, allow_pickle=False)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
