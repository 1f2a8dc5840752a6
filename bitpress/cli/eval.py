"""`bitpress eval`: accuracy on the test part of a data set."""

from __future__ import annotations

import click

from .command import Common, Result, verb
from .tables import Column, Table

COLUMNS = (
    Column("source", "network"), Column("data", "data"), Column("top1", "top-1 %", "float"),
    Column("top5", "top-5 %", "float"), Column("n", "images", "int"), Column("semantics", "computed as"),
    Column("predictions_sha256", "SHA-256 of the predictions"),
)  # fmt: skip


@verb("eval")
@click.argument("source", metavar="X.bpk|RUN")
@click.option("--data", metavar="DATA", help="digits, cifar10:DIR, cifar100:DIR, imagefolder:DIR, file.py:factory.")
def command(common: Common, source: str, data: str | None) -> Result:
    """Accuracy of X.bpk (compiled program) or of RUN (torch, without compiler and native code), bit for bit the same.

    Without --data, the data set that the network was made with.
    """
    from ..evaluation import evaluate

    document = evaluate(source, data=data, threads=common.thread, progress=common.progress)
    return Result(document, (Table("", COLUMNS, [document]),))
