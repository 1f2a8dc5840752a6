"""`bitpress inspect`: what an artifact holds, layer by layer and byte by byte."""

from __future__ import annotations

from typing import Any

import click

from .command import Common, Result, verb
from .tables import Column, Table, si

LAYERS = (
    Column("name", "layer"), Column("op", "op"), Column("in_shape", "input", "shape"),
    Column("out_shape", "output", "shape"), Column("w", "w"), Column("a_bits", "a", "int"),
    Column("channels", "channels"), Column("macs", "MACs", "count"), Column("bops", "BOPs", "count"),
    Column("bytes", "bytes", "int"), Column("kernel", "kernel"), Column("isa", "ISA"), Column("why", "why"),
)  # fmt: skip
PARTS = (Column("name", "part"), Column("bytes", "bytes", "int"), Column("share", "share", "percent"))


@verb("inspect", gpu=True)
@click.argument("artifact", metavar="X.bpk")
def command(common: Common, artifact: str) -> Result:
    """Lists the layers of X.bpk with bits, channels, costs and the kernel that runs them here; and the file's parts."""
    from ..inspection import inspect

    document = inspect(artifact, device=common.device)
    return Result(document, tables(document), _notes(document))


def tables(document: dict[str, Any]) -> list[Table]:
    """Layers and parts, each with its sum."""
    totals = document["totals"]
    layers = [
        {**row, "w": _widths(row), "channels": f"{row['channels_kept']}/{row['channels_total']}"}
        for row in document["layers"]
    ]
    foot = {"name": "total", "macs": totals["macs"], "bops": totals["bops"], "bytes": totals["weight_bytes"]}
    size = totals["file_bytes"]
    parts = [{**part, "share": part["bytes"] / size} for part in document["parts"]]
    return [
        Table(f"Layers of {document['artifact']}", LAYERS, layers, foot),
        Table("Parts of the file", PARTS, parts, {"name": "total", "bytes": size, "share": 1.0}),
    ]


def _widths(row: dict[str, Any]) -> str:
    """One width, or how many filters have which."""
    if row["w_bits"] is not None:
        return str(row["w_bits"])
    return " ".join(f"{bits}:{count}" for bits, count in row["w_bits_hist"].items())


def _notes(document: dict[str, Any]) -> list[str]:
    totals = document["totals"]
    ratio = "" if totals["bops_ratio"] is None else f", 1/{totals['bops_ratio']:.1f} of fp32"
    bops = "unknown" if totals["bops"] is None else si(totals["bops"])
    floats = ", ".join(document["floats"]) or "nothing"
    source = document["input"]
    return [
        f"{bops} BOPs{ratio} (convention {totals['bops_convention']}); weights {totals['weight_bytes']:,} bytes, "
        f"{totals['fp32_bytes']:,} in fp32; file {totals['file_bytes']:,}; arena {document['arena_bytes']:,} an image",
        f"from {document['model']} by {document['method']}; input {source['name']} {source['shape']}, "
        f"mean {source['mean']}, std {source['std']}; residual streams {document['residual']}; in floats: {floats}",
    ]
