"""`bitpress search`: pruning and bit-widths together, under a budget; leaves a RUN that can be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..core.errors import UsageError
from .command import Common, Names, Result, verb
from .model import model_options, normal_options
from .tables import Column, Table, si

ACCURACY = {"top1": Column("top1", "top-1 %", "float"), "iou": Column("iou", "mean IoU", "float")}
RESULT = (
    Column("bops", "BOPs", "count"), Column("share", "of fp32"), Column("weight_bytes", "weight bytes", "int"),
)  # fmt: skip
FRONT = (
    Column("bops", "BOPs", "count"), Column("share", "of fp32"), Column("weight_bytes", "weight bytes", "int"),
    Column("latency", "ms", "ms"), Column("run", "RUN"),
)  # fmt: skip
PLAN = (
    Column("name", "layer"), Column("w", "w"), Column("a_bits", "a", "int"), Column("channels", "channels"),
    Column("macs", "MACs", "count"), Column("bops", "BOPs", "count"), Column("weight_bytes", "bytes", "int"),
)  # fmt: skip


@verb("search", gpu=True)
@click.argument("model")
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="digits, cifar10:DIR, imagefolder:DIR, detection:DIR, file.py:factory, ...",
)
@click.option(
    "--budget", multiple=True, metavar="KIND=VALUE", help="bops=1.5%, size=120kB, latency=0.8ms; bops=1%,2%: a sweep."
)
@click.option("--latency-table", metavar="TABLE.json", help="Of bitpress profile: the machine whose time counts.")
@click.option("--out", required=True, metavar="RUN", help="Folder of the run; an unfinished one is resumed.")
@click.option("--method", default="sbs", help="sbs, djpq, ajpq, bayesian-bits, two-stage or uniform.")
@click.option("--search", "mode", metavar="joint|bits|prune", help="sbs: what moves; the other is left alone or given.")
@click.option(
    "--sbs-variant", "variant", metavar="guided|paper", help="sbs: gates with measured harms, or as published."
)
@click.option("--restrict", metavar="pow2|free", help="djpq: widths are powers of two while it trains, or at the end.")
@click.option("--convention", metavar="sbs|djpq", help="djpq, bayesian-bits: how BOPs are counted; djpq: all searched.")
@click.option("--bits", metavar="w4a4", help="uniform: the widths. --search prune, two-stage: while pruning, w8a8.")
@click.option("--prune-share", type=float, help="two-stage: share of the fall of ln BOPs left to pruning, 0.25.")
@click.option("--stages-of", metavar="sbs|djpq", help="two-stage: the joint method whose parts it takes, sbs.")
@click.option("--residual", type=Names("int8", "float32"), default="int8", help="How residual streams are held.")
@click.option("--epochs-float", type=int, help="Epochs of the float network; 0 by default for given weights.")
@click.option("--epochs-search", type=int, help="Epochs of the search.")
@click.option("--epochs-finetune", type=int, help="Epochs of the fine-tuning.")
@click.option("--lr-float", type=float, help="Learning rate of the float network.")
@click.option("--lr-search", type=float, help="Learning rate of weights and clips in the search.")
@click.option("--lr-thresholds", type=float, help="Learning rate of the gates.")
@click.option("--lr-finetune", type=float, help="Learning rate of the fine-tuning.")
@click.option("--batch", type=int, help="Images a step.")
@click.option("--group-size", type=int, help="Filters a pruning gate.")
@click.option("--max-pruning-ratio", type=float, help="Share of a group's channels that may go.")
@click.option("--distill", type=float, help="Share of the loss that comes from the float network.")
@click.option("--label-smoothing", type=float, help="Share of each label spread over all classes: 0 to 1, default 0.")
@click.option("--schedule", "shape", type=Names("cosine", "step"), help="Fall of the rates; step: /10 at 50 and 75 %.")
@click.option(
    "--precision",
    metavar="mixed|fixed:N|fp32|bf16",
    help="ajpq: filters of a layer may differ, or all have N bits. Of training: fp32, on a GPU bf16. Both by comma.",
)
@click.option("--episodes", type=int, help="ajpq: plans that are tried, 120; they share the steps of the search.")
@click.option(
    "--sweep", "order", metavar="warm|apart", help="Of a list of bounds: each search goes on from the last, or not."
)
@click.option("--workers", metavar="ray", help="Of a list of bounds: searched beside each other, on Ray (RAY_ADDRESS).")
@click.option("--train-images", type=int, help="Images of the training part, drawn by the seed. Default: all.")
@click.option("--held-images", type=int, help="Held-out images that judge, drawn by the seed. Default: all.")
@normal_options
@model_options
def command(common: Common, model: str, data: str, budget: tuple[str, ...], out: str, **options: Any) -> Result:
    """Searches pruning and bit-widths of MODEL together until the budget holds, fine-tunes, and leaves RUN.

    Baselines: --method uniform trains at --bits (a budget is only checked), --method two-stage prunes, then narrows.

    A list of bounds (--budget bops=0.5%,1%,2%) is a sweep: a RUN each inside of the folder, and pareto.json.

    Started by torchrun, its processes share every batch.

    Schedules default to what suits the data set. The same command continues a run that was interrupted.
    """
    from ..core.pareto import sweep, swept
    from ..core.search import search

    resumed = (Path(out) / "run.json").exists() and not (Path(out) / "result.json").exists()
    if resumed:
        common.progress.line(f"resuming {out}")
    asked = "threads" in common.given or "BITPRESS_NUM_THREADS" in os.environ
    given: dict[str, Any] = {
        "data": data, "budgets": budget, "out": out, "seed": common.seed, "threads": common.thread if asked else None,
        "device": common.device, "progress": common.progress.epoch,
        **{key: value for key, value in options.items() if value is not None},
    }  # fmt: skip
    if swept(budget):
        document = sweep(model, point=lambda b, i, n: common.progress.line(f"{b}, {i} of {n}"), **given)
        begun = "the net of the one before" if document["order"] == "warm" else "the float network"
        note = f"{out}/pareto.json: each point is a RUN of its own, whose search began with {begun}"
        return Result(document, [_front(document)], [note])
    for name, option in (("order", "--sweep"), ("workers", "--workers")):
        if name in given:
            raise UsageError(f"{option} does nothing for one search; it goes with a list, --budget bops=1%,2%")
    result = search(model, **given)
    document = {**result, "run": out}
    return Result(document, _tables(document), _notes(document))


def _front(document: dict[str, Any]) -> Table:
    """Points of a sweep, the tightest budget first."""
    points = [{**p, "budget": ", ".join(p["budget"]), "share": f"{100 / p['bops_ratio']:.3g} %"}
              for p in document["points"]]  # fmt: skip
    heads = Column("budget", "budget"), Column("front", "front", "mark"), _accuracy(points[0])
    return Table("Front, test part", (*heads, *FRONT), points)


def _accuracy(result: Mapping[str, Any]) -> Column:
    """That of classes, or of boxes."""
    return ACCURACY["top1" if result.get("iou") is None else "iou"]


def _tables(document: dict[str, Any]) -> list[Table]:
    from ..core.bops import count
    from ..core.rundir import load_run

    run = load_run(document["run"])
    counts = count(run.graph, run.plan, convention=document["bops_convention"])
    layers = [
        {
            "name": row.name, "w": _widths(row), "a_bits": row.a_bits,
            "channels": f"{row.channels_kept}/{row.channels_total}", "macs": row.macs, "bops": row.bops,
            "weight_bytes": row.weight_bytes,
        }
        for row in counts.layers
    ]  # fmt: skip
    totals = counts.totals
    foot = {"name": "total", "macs": totals.macs, "bops": totals.bops, "weight_bytes": totals.weight_bytes}
    accuracy = _accuracy(document)
    rows = [
        {"what": "float", accuracy.key: document[f"baseline_{accuracy.key}"], "bops": document["bops_fp32"],
         "share": "100 %", "weight_bytes": totals.fp32_bytes},
        {"what": _method(document), accuracy.key: document[accuracy.key], "bops": document["bops"],
         "share": f"{100 / document['bops_ratio']:.3g} %", "weight_bytes": document["weight_bytes"]},
    ]  # fmt: skip
    return [
        Table("Plan", PLAN, layers, foot),
        Table("Result, test part", (Column("what", "network"), accuracy, *RESULT), rows),
    ]


def _method(document: dict[str, Any]) -> str:
    """Method, mode and given widths; a joint search is the method itself."""
    mode = document.get("mode")
    words = (document["method"], mode if mode != "joint" else None, document.get("bits"), document.get("precision"))
    return " ".join(word for word in words if word)


def _widths(row: Any) -> str:
    if row.w_bits is not None:
        return str(row.w_bits)
    return " ".join(f"{bits}:{count}" for bits, count in sorted(row.bits_hist.items()))


def _budget(texts: list[str]) -> str:
    return f"budget {', '.join(texts)} met, " if texts else ""


def _latency(document: dict[str, Any]) -> str:
    if document["latency"] is None:
        return ""
    table = document["latency_table"]
    return f"{document['latency']:.4g} ms predicted on {table['cpu']}, {table['isa']}, {table['threads']} threads; "


def _notes(document: dict[str, Any]) -> list[str]:
    from .progress import duration

    return [
        f"{document['run']}: {_budget(document['budget'])}1/{document['bops_ratio']:.1f} of the float "
        f"network's BOPs ({si(document['bops'])}), in {duration(document['seconds'])}; "
        f"{_latency(document)}"
        f"next: bitpress compile {document['run']} -o X.bpk"
    ]
