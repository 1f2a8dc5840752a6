"""What AJPQ's paper claims, and what kept runs of it found (docs/methods.md A.3): a page of benchmarks/results.

Ours and theirs are not the same experiment: other data, and a search far shorter than theirs can have been. The page
says how much was done of each run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .searches import Kept

FP32 = 32 * 32  # BOPs of a MAC


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of the abstract. `model`: how the names of networks begin that it speaks of; the rest as published."""

    model: str
    network: str
    precision: str
    size: str
    compute: str
    accuracy: str


CLAIMS = (
    Claim("mobilenet_v1", "MobileNet, ImageNet", "mixed", "5", "-", "top-5 -1.06"),
    Claim("skynet", "SkyNet, remote sensing", "fixed", "> 5", "2", "IoU slightly better"),
)
METRICS: Mapping[str, tuple[str, ...]] = {"top1": ("top5", "top1"), "iou": ("iou",)}  # the first is the claim's
NAMES = {"top1": "top-1", "top5": "top-5", "iou": "IoU"}


def page(runs: Sequence[Kept]) -> str:
    """The whole page."""
    from ..cli.tables import Column, Table, to_markdown

    mine = [(claim, run) for claim in CLAIMS for run in runs if _speaks(claim, run)]
    rows = [row for claim in CLAIMS for row in (_published(claim), *(_row(run) for c, run in mine if c is claim))]
    columns = (
        Column("who", "run"), Column("precision", "precision"), Column("bytes", "weight bytes", "int"),
        Column("size", "size, x smaller"), Column("compute", "MACs, x fewer"), Column("bops", "BOPs", "count"),
        Column("ratio", "BOPs, x fewer"), Column("accuracy", "to float, points"), Column("said", "found, of float"),
    )  # fmt: skip
    lines = [
        "# AJPQ: what the paper claims, what we found",
        "",
        "Written by `python -m bitpress.benchmarks.searches table` from the documents in [searches/](searches). Of the",
        "paper only the abstract was found: its rows are what that says. Size and BOPs against fp32, MACs against the",
        "network with all channels. Accuracy on test photographs that nothing before had seen, by the integer",
        "semantics, to which RUN and artifact were evaluated equal.",
        "",
        to_markdown(Table("", columns, rows)).rstrip(),
    ]
    for _, run in mine:
        lines += ["", *_told(run)]
    return "\n".join(lines) + "\n"


def _speaks(claim: Claim, run: Kept) -> bool:
    settings = run.settings
    return (
        settings["method"] == "ajpq"
        and str(settings["model"]).startswith(claim.model)
        and str(settings["filters"]).startswith(claim.precision)
    )


def _published(claim: Claim) -> dict[str, Any]:
    return {
        "who": f"paper: {claim.network}", "precision": claim.precision, "bytes": None, "size": claim.size,
        "compute": claim.compute, "bops": None, "ratio": None, "accuracy": claim.accuracy, "said": None,
    }  # fmt: skip


def _row(run: Kept) -> dict[str, Any]:
    result, metrics = run.result, METRICS[run.metric]
    pairs = {m: (_points(result, m), _points(result, f"baseline_{m}")) for m in metrics}
    return {
        "who": f"[{run.name}](searches/{run.name})", "precision": run.settings["filters"],
        "bytes": result["weight_bytes"], "size": f"{result['fp32_bytes'] / result['weight_bytes']:.2f}",
        "compute": f"{result['bops_fp32'] / FP32 / sum(row['macs'] for row in run.checks['layers']):.2f}",
        "bops": result["bops"], "ratio": f"{result['bops_ratio']:.1f}",
        "accuracy": ", ".join(f"{NAMES[m]} {now - before:+.2f}" for m, (now, before) in pairs.items()),
        "said": ", ".join(f"{NAMES[m]} {now:.2f} of {before:.2f} %" for m, (now, before) in pairs.items()),
    }  # fmt: skip


def _points(result: Mapping[str, Any], key: str) -> float:
    """In percent; intersection over union is a share in documents."""
    return float(result[key]) * (100 if key.endswith("iou") else 1)


def _told(run: Kept) -> list[str]:
    """How a run came about."""
    from .searches import command

    s, result = run.settings, run.result
    trained = f"{s['train_images']:,}" if s["train_images"] else "all"
    held = f"{s['held_images']:,}" if s.get("held_images") else "all held-out"
    episodes = [event for event in run.events if event["event"] == "episode"]
    epochs = " + ".join(f"{count} {name}" for name, count in result["epochs"].items() if count)
    note = f" {run.checks['note']}" if run.checks.get("note") else ""
    return [
        f"**{run.name}**: `{command(run)}`.{note} Input {'x'.join(map(str, s['in_shape']))}; {trained} images trained, "
        f"{held} judged {len(episodes)} episodes, {result['n']} tested; epochs {epochs}; "
        f"{result['host']['cpu']}, {s['threads']} thread(s), {result['seconds']:.0f} s on a machine that other work "
        f"shared; {run.checks['date']}.",
    ]
