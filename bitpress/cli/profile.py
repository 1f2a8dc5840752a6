"""`bitpress profile`: this machine's kernels, measured into a latency table, or on a GPU into a table of tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ..core.errors import UsageError
from .command import Common, Names, Result, verb, writable
from .model import model_options
from .tables import Column, Table

LAYERS = (
    Column("shape", "layer"), Column("count", "in networks", "int"), Column("points", "times", "int"),
    Column("w8a8", "w8a8 us", "us"), Column("w4a4", "w4a4 us", "us"), Column("w2a2", "w2a2 us", "us"),
    Column("kernel", "kernel at w8a8"),
)  # fmt: skip
TILES = (
    Column("family", "family"), Column("w_bits", "weights", "int"), Column("a_bits", "activations", "int"),
    Column("taps", "taps", "int"), Column("pixels", "pixels", "int"), Column("rows", "rows", "int"),
    Column("depth", "K", "int"), Column("ms", "us", "us"), Column("gain", "before / now", "float"),
)  # fmt: skip
NETWORKS = (
    Column("model", "network"), Column("residual", "residual"), Column("layers", "layers beyond table us", "us"),
    Column("rest", "other steps us", "us"), Column("overhead", "overhead us", "us"),
    Column("checks", "plans predicted", "int"), Column("error", "median error", "percent"),
    Column("rank", "rank correlation", "float"),
)  # fmt: skip


@verb("profile", table=False, gpu=True)
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("-o", "--output", metavar="TABLE.json", help="The table; one that is there is continued.")
@click.option("--residual", type=Names("int8", "float32"), default="int8", help="How residual streams are held.")
@click.option(
    "--seconds", type=click.FloatRange(0.0001, 3600), default=0.03, help="Time for a layer at some channels and bits."
)
@click.option("--grid", type=click.IntRange(1, 64), default=4, help="Channel counts an axis, beside a single channel.")
@click.option(
    "--left-out", type=click.IntRange(0, 64), default=2, help="Points a layer that only judge the interpolation."
)
@model_options
def command(common: Common, models: tuple[str, ...], output: str | None, **options: Any) -> Result:
    """Measures the kernels that the layers of MODELs get on this machine, at all widths and some channel counts.

    Without a MODEL: digits_cnn and resnet20. The same command goes on where one was killed; another MODEL adds to the
    table. Searches read it: --budget latency=0.8ms --latency-table TABLE.json. With --device cuda: the fastest tiles of
    GPU kernels, without -o where launches on this host find them.
    """
    if common.device == "cuda":
        return _tiles(common, models, output, seconds=options["seconds"])
    if output is None:
        raise UsageError("-o TABLE.json is missing: where shall the table go?")
    from ..benchmarks.latency_table import profile

    writable("-o", output)
    document = profile(
        models, output=output, threads=common.thread, seed=common.seed, progress=common.progress, **options
    )
    return Result(document, _tables(document), _notes(document, output))


def _tiles(common: Common, models: tuple[str, ...], output: str | None, *, seconds: float) -> Result:
    """The table of tiles; options of latency tables are refused."""
    from ..kernels import gpu

    latency = {"residual", "grid", "left_out", "weights", "classes", "in_shape"}
    if wrong := [*(["MODEL"] if models else []), *sorted(common.given & latency)]:
        raise UsageError(
            f"{', '.join(wrong)} with --device cuda: tiles are timed on problems of their own; leave it out"
        )
    if output is not None:
        writable("-o", output)
    gpu.device()
    from ..benchmarks.gpu_tiles import profile

    document = profile(output=output, seconds=seconds, seed=common.seed, progress=common.progress)
    rows = [{**row, "gain": row["usual_ms"] / row["ms"]} for row in document["rows"]]
    said = f"{document['device']}: {len(rows)} problems, every sum exact; launches read {document['table']}"
    return Result(document, (Table("Tiles", TILES, rows),), (said,))


def _tables(document: Mapping[str, Any]) -> list[Table]:
    rows = [_layer(document, number, shape) for number, shape in enumerate(document["shapes"])]
    networks = [_network(network) for network in document["networks"]]
    return [Table("Layers with all channels", LAYERS, rows), Table("Whole networks", NETWORKS, networks)]


def _layer(document: Mapping[str, Any], number: int, shape: Mapping[str, Any]) -> dict[str, Any]:
    points = [p for p in document["points"] if p["shape"] == number]
    most = max(p["in"] for p in points), max(p["out"] for p in points)
    whole = {(p["w"], p["a"]): p for p in points if (p["in"], p["out"]) == most}
    sides, window = ("x".join(map(str, shape[key])) for key in ("in_shape", "kernel"))
    return {
        "shape": f"{shape['op']} {sides} to {shape['rows']}, {window}", "count": len(shape["layers"]),
        "points": len(points), "kernel": whole[8, 8]["kernel"],
        **{f"w{b}a{b}": whole[b, b]["ms"] for b in (8, 4, 2)},
    }  # fmt: skip


def _network(network: Mapping[str, Any]) -> dict[str, Any]:
    from ..benchmarks.latency_networks import judged

    return {
        "model": network["model"], "residual": network["residual"], "layers": sum(network["extra"].values()),
        "rest": sum(step["ms"][-1] for step in network["steps"]), "overhead": network["overhead"],
        **judged(network["checks"]),
    }  # fmt: skip


def _notes(document: Mapping[str, Any], output: str) -> list[str]:
    found, host = document["interpolation"], document["host"]
    said = [f"{host['cpu']}, {host['isa']}, {host['threads']} threads; every output equals the numpy reference"]
    if found["points"]:
        said.append(
            f"between the channel counts, at {found['points']} points left out of the table: median error "
            f"{100 * found['median']:.1f} %, 90 % within {100 * found['p90']:.1f} %, at most "
            f"{100 * found['largest']:.1f} %"
        )
    models = " ".join(dict.fromkeys(str(network["model"]) for network in document["networks"]))
    return [*said, f"next: bitpress plan {models.split(' ')[0]} --budget latency=60% --latency-table {output}"]
