"""`bitpress eval`: accuracy on the test part of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from .command import Common, Result, verb
from .tables import Column, Table

CLASSES = Column("top1", "top-1 %", "float"), Column("top5", "top-5 %", "float")
BOXES = (Column("iou", "mean IoU", "float"),)


def columns(document: Mapping[str, Any]) -> tuple[Column, ...]:
    """Those of classes, or of boxes."""
    return (
        Column("source", "network"), Column("data", "data"), *(CLASSES if document["iou"] is None else BOXES),
        Column("n", "images", "int"), Column("semantics", "computed as"),
        Column("predictions_sha256", "SHA-256 of the predictions"),
    )  # fmt: skip


@verb("eval", gpu=True)
@click.argument("source", metavar="X.bpk|RUN")
@click.option("--data", metavar="DATA", help="digits, cifar10:DIR, imagefolder:DIR, detection:DIR, ...")
def command(common: Common, source: str, data: str | None) -> Result:
    """Accuracy of X.bpk (compiled program) or of RUN (torch, without compiler and native code), bit for bit the same.

    Top-1 and top-5; on data with boxes (detection:DIR) their mean intersection over union.

    Without --data, the data set that the network was made with.
    """
    from ..evaluation import evaluate

    document = evaluate(source, data=data, threads=common.thread, device=common.device, progress=common.progress)
    return Result(document, (Table("", columns(document), [document]),))
