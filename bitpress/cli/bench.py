"""`bitpress bench`: milliseconds per layer beside BOPs, bytes and bounds; peers timed in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ..core.errors import UsageError
from .command import FORMS, Common, Numbers, Result, Words, verb
from .tables import Column, Table

LAYERS = (
    Column("name", "layer"), Column("median", "ms", "ms"), Column("share", "share", "percent"),
    Column("bops", "BOPs", "count"), Column("bytes", "bytes", "int"), Column("bound", "bound ms", "ms"),
    Column("efficiency", "of bound", "percent"), Column("kernel", "kernel"), Column("isa", "ISA"),
)  # fmt: skip
PEERS = (
    Column("name", "runtime"), Column("version", "version"), Column("median", "ms", "ms"),
    Column("ratio", "peer / ours", "float"), Column("output_matches", "same top-1", "percent"),
)  # fmt: skip


@verb("bench", lists=True, gpu=True)
@click.argument("artifact", metavar="X.bpk")
@click.option(
    "--vs",
    type=Words(),
    help="Peers by comma: onnxruntime, openvino, litert, torch, or other .bpk files; '' for none. "
    "Default: onnxruntime where installed.",
)
@click.option("--against", metavar="RUN", help="The peers' dense network is that of RUN.")
@click.option("--model", metavar="MODEL", help="The peers' dense network is MODEL.")
@click.option("--weights", metavar="F", help="Weights of --model.")
@click.option("--batch", type=Numbers(1, 65536), default="1", help="Batch sizes by comma.")
@click.option(
    "--seconds", type=click.FloatRange(0.01, 3600), default=2.0, help="Time for each batch size and thread count."
)
def command(
    common: Common, artifact: str, vs: tuple[str, ...] | None, against: str | None, model: str | None,
    weights: str | None, batch: tuple[int, ...], seconds: float,
) -> Result:  # fmt: skip
    """Times X.bpk layer by layer and against its peers, interleaved in one run.

    Without --against and --model the peers run the dense network rebuilt from the artifact. --device cuda times X.bpk
    on a GPU, without peers. `bitpress bench gemm` times single kernels; a file of that name is ./gemm.
    """
    from ..benchmarks.bench import bench

    if artifact in FORMS["bench"]:
        raise UsageError(f"`bitpress bench {artifact}` takes the word first, options behind it; a file is ./{artifact}")
    document = bench(
        artifact, vs=vs, batches=batch, threads=common.threads, against=against, model=model, weights=weights,
        seconds=seconds, seed=common.seed, device=common.device, progress=common.progress,
    )  # fmt: skip
    parts = ", ".join(f"{name} {size:,}" for name, size in document["memory"].items() if size is not None)
    notes = (
        f"loaded in {document['load']:.1f} ms; bytes: {parts}",
        f"peers run: {document['peer_source']}; images: {document['images']}", document["peers_left_out"],
    )  # fmt: skip
    return Result(document, tables(document), (*filter(None, notes), *worst(document)))


def worst(document: Mapping[str, Any], most: int = 3) -> list[str]:
    """Why those layers are slow that lose most against their bound, of the first run."""
    run = document["runs"][0]
    slow = [row for row in run["layers"] if row["why"]]
    slow.sort(key=lambda row: row["bound"] - row["median"])
    return [f"{row['name']}: {row['why']}" for row in slow[:most]]


def tables(document: Mapping[str, Any]) -> list[Table]:
    """Per run: the layers with a footer of totals, then ours beside the peers."""
    out = []
    for run in document["runs"]:
        total = run["total"]["median"]
        setting = f"batch {run['batch']}, {run['threads']} thread{'s' if run['threads'] > 1 else ''}"
        rows = [{**row, "share": None if row["median"] is None else row["median"] / total} for row in run["layers"]]
        if run["unattributed"] is not None:
            rows.append({"name": "unattributed", "median": run["unattributed"], "share": run["unattributed"] / total})
        footer = {
            "name": "total", "median": total, "share": 1.0, "bops": sum(row["bops"] for row in run["layers"]),
            "bytes": sum(row["bytes"] for row in run["layers"]),
        }  # fmt: skip
        out.append(Table(f"Layers, {setting}", LAYERS, rows, footer))
        ours = {"name": "bitpress", "version": document["bitpress"], "median": total, "ratio": 1.0}
        out.append(Table(f"Runtimes, {setting}", PEERS, [ours, *run["peers"]]))
    return out
