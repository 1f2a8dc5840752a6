"""`bitpress run`: inference on a .npy file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from ..core.errors import UsageError
from ..core.host import head, write_bytes
from .command import Common, Result, verb


@verb("run", table=False, gpu=True)
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

    if Path(output).is_dir():
        raise UsageError(f"--output {output or repr(output)} is a folder: give a file Y.npy")
    if not Path(output).parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {Path(output).parent}")
    model = load(artifact, threads=common.thread, device=common.device)
    images = _read(source)
    model.check(images)
    start = time.perf_counter()
    parts = []
    for at in range(0, len(images), batch):
        parts.append(model(images[at : at + batch]))
        common.progress("images", min(1.0, (at + batch) / len(images)))
    seconds = time.perf_counter() - start
    outputs = np.concatenate(parts) if parts else np.empty((0, model.outputs), np.float32)
    _write(output, outputs)
    document = {
        **head("bitpress.run", isa=model.isa, threads=common.thread, gpu=model.gpu_name),
        "artifact": artifact, "input": source, "output": output, "n": len(images), "outputs": model.outputs,
        "seconds": seconds,
    }  # fmt: skip
    return Result(document, notes=(f"{len(images)} images in {seconds:.3f} s ({model.isa}): {output}",))


def _read(path: str) -> Any:
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path} is no .npy file of numbers: {error}") from error
    if not isinstance(found, np.ndarray):
        raise UsageError(f"{path} is an archive of arrays (.npz): give one of them as .npy")
    return found


def _write(path: str, outputs: Any) -> None:
    """The whole file or none of it."""
    import io

    import numpy as np

    file = io.BytesIO()
    np.save(file, outputs, allow_pickle=False)
    write_bytes(Path(path), file.getvalue())
