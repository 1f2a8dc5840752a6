"""`bitpress plan`: layers, groups, unsupported ops, search space and costs of a network, before time is spent."""

from __future__ import annotations

from typing import Any

import click

from ..planning import CONVENTIONS
from .command import Common, Names, Result, Words, verb
from .model import model_options
from .tables import Column, Table, si

LAYERS = (
    Column("name", "layer"), Column("op", "op"), Column("in_shape", "input", "shape"),
    Column("out_shape", "output", "shape"), Column("channels_total", "channels", "int"),
    Column("macs", "MACs", "count"),
    Column("w_bits", "w", "int"), Column("a_bits", "a", "int"), Column("bops", "BOPs", "count"),
    Column("bytes", "bytes", "int"),
)  # fmt: skip
GROUPS = (
    Column("id", "channel group"), Column("channels", "channels", "int"), Column("prunable", "prunable"),
    Column("layers", "made by"), Column("readers", "read by"), Column("why", "why not"),
)  # fmt: skip
UNIFORM = (
    Column("bits", "uniform"), Column("bops", "BOPs", "count"), Column("bops_ratio", "fp32 / it", "float"),
    Column("weight_bytes", "weight bytes", "int"),
)  # fmt: skip


@verb("plan")
@click.argument("model")
@click.option("--bits", type=Words(), default="", help="Count at these uniform bits, by comma: w4a4,w8a8.")
@click.option("--convention", type=Names(*CONVENTIONS), default="sbs", help="How BOPs are counted.")
@click.option("--budget", multiple=True, metavar="KIND=VALUE", help="Is it reachable? bops=2%, latency=60%.")
@click.option("--latency-table", metavar="TABLE.json", help="Of bitpress profile: the machine whose time counts.")
@click.option("--residual", type=Names("int8", "float32"), default="int8", help="Latency: how streams are held.")
@click.option("--group-size", type=click.IntRange(1), help="Filters a pruning gate.")
@click.option("--max-pruning-ratio", type=click.FloatRange(0, 1, max_open=True), help="Share of a group that may go.")
@model_options
def command(common: Common, model: str, budget: tuple[str, ...], **options: Any) -> Result:  # noqa: ARG001
    """Traces MODEL and lists layers, channel groups, unsupported ops, the search space, MACs and BOPs."""
    from ..planning import plan

    document = plan(model, budgets=budget, **options)
    groups = [{**g, "layers": _some(g["producers"]), "readers": _some(g["consumers"])} for g in document["groups"]]
    tables = [Table(f"Layers of {model}", LAYERS, document["layers"], {"name": "total", **_sums(document)})]
    tables.append(Table("Channel groups", GROUPS, groups))
    if document["uniform"]:
        tables.append(Table("Uniform bits", UNIFORM, document["uniform"]))
    if document["unsupported"]:
        columns = (Column("name", "unsupported op"), Column("op", "is"), Column("shape", "output", "shape"))
        tables.append(Table("", columns, document["unsupported"]))
    unreachable = [row["why"] for row in document["budgets"] if not row["reachable"]]
    return Result(document, tables, _notes(document), "; ".join(unreachable))


def _sums(document: dict[str, Any]) -> dict[str, Any]:
    totals = document["totals"]
    return {"macs": totals["macs"], "bops": totals["bops"], "bytes": totals["weight_bytes"]}


def _some(names: list[str]) -> str:
    """At most three names: a residual stream has dozens."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _notes(document: dict[str, Any]) -> list[str]:
    totals, space = document["totals"], document["space"]
    out = [
        f"{si(totals['macs'])} MACs, {si(totals['bops_fp32'])} BOPs in fp32 (convention {totals['bops_convention']}), "
        f"{totals['fp32_bytes']:,} bytes of fp32 weights"
    ]
    if document["unsupported"]:
        out.append(f"{len(document['unsupported'])} unsupported ops: search and compile will refuse this network")
    if space is not None:
        widths, least, most = ", ".join(map(str, space["widths"])), space["least"]["bops"], space["most"]["bops"]
        out.append(
            f"search space: {len(space['searched'])} layers x {{{widths}}} bits for weights and inputs; "
            f"{', '.join(space['ends'])} at 8 bits; {len(space['gates'])} groups to prune; "
            f"10^{space['log10_points']:.0f} plans from {si(least)} to {si(most)} BOPs"
        )
    out += [
        f"budget {row['budget']}: {'reachable' if row['reachable'] else 'not reachable'} (allows "
        f"{_amount(row['kind'], row['bound'])}, the least is {_amount(row['kind'], row['least'])})"
        for row in document["budgets"]
    ]
    return out + _times(document["latency"])


def _amount(kind: str, value: float) -> str:
    return f"{value:.4g} ms" if kind == "latency" else si(value)


def _times(latency: dict[str, Any] | None) -> list[str]:
    """What the table says of the whole network, and of layers where fewer bits save no time."""
    if latency is None:
        return []
    table, slow = latency["table"], [row["name"] for row in latency["layers"] if not row["faster"]]
    out = [
        f"on {table['cpu']}, {table['isa']}, {table['threads']} threads: {latency['w8a8']:.4g} ms at w8a8, of which "
        f"{latency['beside']:.4g} ms are no convolution or linear layer"
    ]
    if slow:
        out.append(
            f"fewer bits are not faster than w8a8 in {len(slow)} of {len(latency['layers'])} layers ({_some(slow)}): "
            "there a latency budget keeps 8 bits and removes channels"
        )
    return out
