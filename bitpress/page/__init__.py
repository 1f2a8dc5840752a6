"""A `bitpress.report` document as one HTML page that needs nothing else: template, style sheet and script lie here.

Formats what the document holds; measures and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..cli.tables import Column, Table, cell, si
from .figures import histogram, plots

Row = Mapping[str, Any]

LAYERS = (
    Column("name", "layer"), Column("op", "op"), Column("w", "weight bits"), Column("a_bits", "input bits", "int"),
    Column("channels_kept", "filters", "int"), Column("channels_total", "of", "int"), Column("macs", "MACs", "count"),
    Column("bops", "BOPs", "count"), Column("bytes", "bytes", "int"), Column("median", "ms", "ms"),
    Column("share", "share", "percent"), Column("relative", "time per BOP, median = 1", "float"),
    Column("bound", "bound ms", "ms"), Column("efficiency", "of bound", "percent"), Column("kernel", "kernel"),
    Column("isa", "ISA"), Column("why", "why this kernel"),
)  # fmt: skip
STEPS = (
    Column("name", "step"), Column("op", "op"), Column("median", "ms", "ms"), Column("bound", "bound ms", "ms"),
    Column("kernel", "kernel"), Column("isa", "ISA"),
)  # fmt: skip
FRONT = (
    Column("number", "point", "int"), Column("name", "network"), Column("what", "what"),
    Column("top1", "top-1 %", "float"), Column("bops", "BOPs", "count"), Column("share", "% of fp32", "float"),
    Column("weight_bytes", "weight bytes", "int"), Column("best", "on the front", "yes"),
)  # fmt: skip
RUNTIMES = (
    Column("name", "runtime"), Column("version", "version"), Column("median", "ms", "ms"),
    Column("min", "least ms", "ms"), Column("ratio", "time / ours", "float"),
    Column("output_matches", "same top-1", "percent"),
)  # fmt: skip
VALUES = (Column("name", "value"), Column("mismatches", "mismatches", "int"), Column("elements", "elements", "int"))
OUTPUTS = (
    Column("stage", "outputs of"), Column("batch", "batch", "int"), Column("threads", "threads", "int"),
    Column("mismatches", "mismatches", "int"), Column("elements", "elements", "int"),
)  # fmt: skip
QUANTISERS = (
    Column("phase", "phase"), Column("layer", "layer"), Column("side", "of"), Column("d", "d"), Column("q_m", "q_m"),
    Column("t", "t"), Column("bits", "bits learned", "float"), Column("restricted", "bits restricted", "int"),
)  # fmt: skip
RATIOS = (
    Column("phase", "phase"), Column("group", "gates of"), Column("channels", "channels", "int"),
    Column("kept", "on", "int"), Column("least", "least ln(sigma^2 / mu^2)", "float"),
    Column("median", "median", "float"), Column("most", "largest", "float"),
)  # fmt: skip
PARTS = (Column("name", "part"), Column("bytes", "bytes", "int"), Column("share", "share", "percent"))
ROLES = {"this": "this network", "fp32": "float baseline", "int8": "8-bit baseline", "other": "other RUN"}


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the summary, with what stands below it."""

    name: str
    value: str
    note: str


def render(document: Row) -> str:
    """The page of a `bitpress.report` document."""
    environment = Environment(
        loader=PackageLoader("bitpress", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    own = files(__package__)
    drawn = plots(document)
    return environment.get_template("page.html").render(
        doc=document, tiles=tiles(document), slow=slow(document), tables=tables(document), missing=document["missing"],
        plots={name: None if plot is None else Markup(plot.svg) for name, plot in drawn.items()},
        css=Markup(own.joinpath("page.css").read_text(encoding="utf-8")),
        js=Markup(own.joinpath("page.js").read_text(encoding="utf-8")), cell=cell, si=si,
    )  # fmt: skip


def tiles(document: Row) -> list[Tile]:
    """The summary: accuracy, BOPs, bytes, time, exactness; each only where it is known."""
    totals, found = document["totals"], document["accuracy"]
    out = []
    if found is not None:
        whole = next((p["top1"] for p in document["front"] if p["role"] == "fp32"), None)
        said = "" if whole is None else f"; float {whole:.2f} %"
        count = f"{found['n']:,} test images, " if found["n"] else ""
        out.append(Tile("top-1", f"{found['top1']:.2f} %", f"{count}counted {found['counted']}{said}"))
    if totals["bops"] is not None:
        share = f"1/{totals['bops_ratio']:.1f} of float" if totals["bops_ratio"] else ""
        out.append(Tile("bit operations", si(totals["bops"]), f"{share}, convention {totals['bops_convention']}"))
    less = totals["fp32_bytes"] / totals["weight_bytes"]
    size = f"1/{less:.1f} of float; the file {totals['file_bytes']:,}"
    out.append(Tile("weights", f"{totals['weight_bytes']:,} bytes", size))
    timed = document["latency"]
    if timed is not None:
        total, threads = timed["total"], timed["threads"]
        setting = f"batch {timed['batch']}, {threads} thread{'s' if threads > 1 else ''}"
        spread = f"10 to 90 %: {cell(total['p10'], 'ms')} to {cell(total['p90'], 'ms')}"
        said = f"median of {total['calls']:,}, {setting}; {spread}"
        out.append(Tile("latency", f"{cell(total['median'], 'ms')} ms", said))
    if document["verify"] is not None:
        stages = " = ".join(document["verify"]["stages"])
        exact = document["verify"]["exact"]
        out.append(Tile("verified", "exact" if exact else "NOT exact", stages if exact else "see Verification"))
    return out


def slow(document: Row) -> list[Row]:
    """Layers with a cause for taking longer than their bound, those first that lose most time."""
    found = [row for row in document["layers"] if row["slow"] and row["median"] is not None]
    return sorted(found, key=lambda row: row["bound"] - row["median"])


def tables(document: Row) -> dict[str, Table]:
    """Every table of the page, by name, those without rows too."""
    timed, verified, totals = document["latency"], document["verify"], document["totals"]
    size = {"name": "total", "bytes": totals["file_bytes"], "share": 1.0}
    foot = {"name": "total", "macs": totals["macs"], "bops": totals["bops"], "bytes": totals["weight_bytes"]}
    if timed is not None:
        foot |= {"median": timed["total"]["median"], "share": 1.0}
    points = [
        {**p, "number": n, "what": ROLES[p["role"]], "share": 100 * p["bops"] / p["bops_fp32"]}
        for n, p in enumerate(document["front"], 1)
    ]
    return {
        "front": Table("Points of the front", FRONT, points),
        "layers": Table(
            "Layers: convolutions and linear layers", LAYERS, [{**r, "w": _widths(r)} for r in document["layers"]], foot
        ),
        "steps": Table("Steps without weights", STEPS, timed["steps"] if timed else ()),
        "runtimes": Table("Runtimes, interleaved in one run", RUNTIMES, _runtimes(document)),
        "values": Table("Values compared", VALUES, verified["layers"] if verified else ()),
        "outputs": Table("Outputs compared", OUTPUTS, verified["runs"] if verified else ()),
        "quantisers": Table("Quantisers, from their start to the end of the phase", QUANTISERS, _moved(document)),
        "ratios": Table("Noise of the gates", RATIOS, document["ratios"]),
        "parts": Table("Parts of the file", PARTS, _shared(document["parts"]), size),
    }


def _moved(document: Row) -> list[Row]:
    sides = {"w": "weights", "a": "input"}
    return [
        {**row, "side": sides[row["side"]]}
        | {key: " to ".join(f"{value:.4g}" for value in row[key]) for key in ("d", "q_m", "t")}
        for row in document["quantisers"]
    ]


def _widths(row: Row) -> str:
    """One width, or how many filters have which."""
    found = histogram(row)
    return str(next(iter(found))) if len(found) == 1 else " ".join(f"{bits}:{count}" for bits, count in found.items())


def _shared(parts: Sequence[Row]) -> list[Row]:
    size = sum(part["bytes"] for part in parts)
    return [{**part, "share": part["bytes"] / size} for part in parts]


def _runtimes(document: Row) -> list[Row]:
    timed = document["latency"]
    if timed is None:
        return []
    ours = {"name": "bitpress", "version": document["bitpress"], "ratio": 1.0, **timed["total"]}
    return [ours, *timed["peers"]]
