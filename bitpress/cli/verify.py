"""`bitpress verify`: torch = numpy = native = GPU, value by value; the first difference is named."""

from __future__ import annotations

from typing import Any

import click

from .command import Common, Numbers, Result, verb
from .tables import Column, Table

LAYERS = (Column("name", "value"), Column("mismatches", "mismatches", "int"), Column("elements", "elements", "int"))
RUNS = (
    Column("stage", "outputs of"), Column("batch", "batch", "int"), Column("threads", "threads", "int"),
    Column("mismatches", "mismatches", "int"), Column("elements", "elements", "int"),
)  # fmt: skip
THREADS = (1, 2)


@verb("verify", lists=True, gpu=True)
@click.argument("artifact", metavar="X.bpk")
@click.option("--against", metavar="RUN", help="The RUN that X.bpk was compiled from; adds stage torch.")
@click.option("--batch", type=Numbers(1, 4096), default="1,3,16", help="Batch sizes by comma.")
@click.option("--data", metavar="DATA", help="Images of its held-out part; default: the golden sample and noise.")
def command(common: Common, artifact: str, against: str | None, batch: tuple[int, ...], data: str | None) -> Result:
    """Compares every value of X.bpk as torch, numpy and native code compute it; all must be equal, bit by bit.

    A GPU that is there computes them too; --device cuda insists on it. --threads is 1,2 unless given.
    """
    from ..inspection import verify

    threads = common.threads if "threads" in common.given else THREADS
    common.progress("verify", 0.0)
    document = verify(artifact, against=against, batches=batch, threads=threads, data=data, device=common.device)
    common.progress("verify", 1.0)
    tables = (Table("Values", LAYERS, document["layers"]), Table("Outputs", RUNS, document["runs"]))
    return Result(document, tables, _notes(document), _failure(artifact, document["first_difference"]))


def _failure(artifact: str, first: dict[str, Any] | None) -> str:
    if first is None:
        return ""
    return (
        f"{artifact} is not exact: {first['name']}{first['index']} is {first['found']} in {first['stage']}, "
        f"{first['expected']} in the reference ({first['mismatches']} values differ there)"
    )


def _notes(document: dict[str, Any]) -> list[str]:
    stages = " = ".join(document["stages"])
    said = f"exact: {stages}" if document["exact"] else f"not exact: {stages}"
    forward = document["training_forward"]
    worst = max(forward, key=forward.get) if forward else ""
    return [
        f"{said}; {document['images']} images, ISA {document['host']['isa']}",
        *(
            [f"the training forward, in floats, gives at most {forward[worst]:.2%} of codes differently ({worst})"]
            if worst
            else ()
        ),
        *(f"left out: {row['stage']} ({row['why']})" for row in document["left_out"]),
    ]
