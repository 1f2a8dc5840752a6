"""`bitpress report`: one HTML page of everything that is known and measured of a RUN or an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..core.errors import UsageError
from ..core.host import write_text
from .command import Common, Result, Words, verb


@verb("report", table=False)
@click.argument("source", metavar="RUN|X.bpk")
@click.option("-o", "--output", metavar="HTML", required=True, help="Where the page goes.")
@click.option("--against", metavar="RUN", help="X.bpk: the RUN that it was compiled from.")
@click.option("--with", "others", multiple=True, metavar="RUN", help="Another RUN on the same data, for the front.")
@click.option("--data", metavar="DATA", help="Data whose test part gives the top-1; default: those of the network.")
@click.option("--vs", type=Words(), help="Other runtimes by comma, as of bench. Default: onnxruntime where installed.")
@click.option("--batch", type=click.IntRange(1, 65536), default=1, help="Images a timed call.")
@click.option("--seconds", type=click.FloatRange(0.01, 3600), default=2.0, help="Time to measure latency.")
def command(
    common: Common, source: str, output: str, against: str | None, others: tuple[str, ...], data: str | None,
    vs: tuple[str, ...] | None, batch: int, seconds: float,
) -> Result:  # fmt: skip
    """Verifies, times and evaluates RUN (compiled for this) or X.bpk, and writes it all as one page without a network.

    The float and the 8-bit baseline are counted on the same test part. What could not be had is named on the page.
    """
    from ..page import render
    from ..reporting import Measuring, report

    if not Path(output).parent.is_dir():
        raise UsageError(f"-o {output}: there is no folder {Path(output).parent}")
    measuring = Measuring(data, vs, batch=batch, threads=common.thread, seconds=seconds, seed=common.seed)
    document = report(source, against=against, others=others, measuring=measuring, progress=common.progress)
    write_text(Path(output), render(document))
    return Result(document, notes=_notes(document, output), failure=_failure(document))


def _notes(document: dict[str, Any], output: str) -> list[str]:
    said = [f"{row['what']}: {row['why']} ({row['remedy']})" for row in document["missing"]]
    return [f"{output}: {document['source']}, {len(document['layers'])} layers", *(f"missing: {row}" for row in said)]


def _failure(document: dict[str, Any]) -> str:
    if document["verify"] is not None and not document["verify"]["exact"]:
        return f"{document['source']} is not exact: {document['verify']['first_difference']['name']} differs"
    if document["accuracy"] is not None and document["accuracy"]["agrees"] is False:
        return f"{document['source']}: the artifact predicts otherwise than result.json says"
    return ""
