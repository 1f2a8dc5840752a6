"""`bitpress bench gemm`: every kernel on layers as M x K x N, beside the host's roofs and peers in the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from .command import Common, Result, Words, verb
from .tables import Column, Table

KERNELS = (
    Column("shape", "M x K x N"), Column("layer_count", "layers", "int"), Column("bits", "bits"),
    Column("kernel", "kernel"), Column("chosen", "chosen", "mark"), Column("median", "us", "us"),
    Column("gmacs", "GMAC/s", "float"), Column("peak", "peak GMAC/s", "float"),
    Column("efficiency", "of bound", "percent"), Column("limit", "bound by"),
)  # fmt: skip
THREADS = Column("threads", "threads", "int")
ROOFS = (
    THREADS, Column("name", "what"), Column("rate", "a second", "count"), Column("cycle", "a cycle", "float"),
    Column("bytes", "bytes", "int"),
)  # fmt: skip


@verb("bench gemm", lists=True)
@click.option(
    "--shapes", type=Words(), default="resnet20,4096x4096x1",
    help="By comma: MxKxN (output channels, depth, pixels), or networks, whose distinct layers are taken.",
)  # fmt: skip
@click.option("--bits", type=Words(), default="w2a2,w2a8,w4a4,w8a8", help="Bit pairs by comma.")
@click.option(
    "--isa", type=Words(), default="all", help="Kernels of these instruction sets, by comma; all: of this host."
)
@click.option(
    "--vs", type=Words(), help="Peers by comma: onnxruntime, openvino, torch; '' for none. Default: those installed."
)
@click.option(
    "--seconds", type=click.FloatRange(0.001, 3600), default=0.05,
    help="Time for each kernel and peer on a shape at one bit pair.",
)  # fmt: skip
@click.option(
    "--nonzero", type=click.FloatRange(0, 1),
    help="Share of weights that are not 0, on grids that have a 0. Default: as evenly drawn levels have it.",
)  # fmt: skip
def command(
    common: Common, shapes: tuple[str, ...], bits: tuple[str, ...], isa: tuple[str, ...], vs: tuple[str, ...] | None,
    seconds: float, nonzero: float | None,
) -> Result:  # fmt: skip
    """Times every kernel that can compute each shape at each bit pair, output verified first, peers interleaved.

    A shape of a network is timed as its convolution, MxKxN as a matrix product; both end in 8-bit levels or fewer.
    """
    from ..benchmarks.gemm import bench_gemm

    document = bench_gemm(
        shapes, bits=bits, isas=isa, vs=vs, threads=common.threads, seconds=seconds, seed=common.seed,
        nonzero=nonzero, progress=common.progress,
    )  # fmt: skip
    return Result(document, tables(document), notes(document))


def tables(document: Mapping[str, Any]) -> list[Table]:
    """Kernels with a pair of columns for each peer; the best of each instruction set; roofs."""
    rows, several = document["rows"], len(document["roofs"]) > 1
    columns = [*KERNELS]
    for name in _peers(document):
        columns += [Column(name, f"{name} us", "us"), Column(f"{name}_ratio", f"{name} / ours", "float")]
    if any(row["why"] for row in rows):
        columns.append(Column("why", "why not"))
    if several:
        columns.insert(3, THREADS)
    roofs = [row for roof in document["roofs"] for row in _roofs(roof)]
    return [
        Table("Kernels", tuple(columns), [_flat(row) for row in rows]),
        best(document),
        Table("Roofs", ROOFS, roofs),
    ]


def best(document: Mapping[str, Any]) -> Table:
    """GMAC/s of the fastest kernel of each instruction set, and of the peers, on every shape at every bit pair."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in document["rows"]:
        key = (row["shape"], *row["layers"], row["bits"], row["threads"])
        line = found.setdefault(key, {"shape": row["shape"], "bits": row["bits"], "threads": row["threads"]})
        if row["kernel"] is None:
            continue
        line[row["isa"]] = max(row["gmacs"], line.get(row["isa"], 0.0))
        if row["gmacs"] > line.get("gmacs", 0.0):
            line |= {"gmacs": row["gmacs"], "kernel": row["kernel"], "efficiency": row["efficiency"]}
        line |= {peer["name"]: 1e-6 * row["macs"] / peer["median"] for peer in row["peers"] if peer["median"]}
    columns = (
        Column("shape", "M x K x N"), Column("bits", "bits"), *([THREADS] if len(document["roofs"]) > 1 else []),
        *(Column(name, name, "float") for name in (*document["isas"], *_peers(document))),
        Column("kernel", "fastest"), Column("efficiency", "of bound", "percent"),
    )  # fmt: skip
    return Table("GMAC/s, the fastest kernel of each instruction set", columns, list(found.values()))


def _peers(document: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(peer["name"] for row in document["rows"] for peer in row["peers"]))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the document without nesting: milliseconds and ratio of each peer under its name."""
    out = {key: value for key, value in row.items() if key not in ("peers", "layers")}
    out |= {"layers": " ".join(row["layers"]), "layer_count": len(row["layers"]) or None}
    for peer in row["peers"]:
        out |= {peer["name"]: peer["median"], f"{peer['name']}_ratio": peer["ratio"]}
    return out


def _roofs(roof: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    operations = [
        {"name": f"{name} operations", "rate": rate, "cycle": roof["operations_per_cycle"].get(name)}
        for name, rate in roof["operations_per_second"].items()
    ]
    reads = [
        {"name": f"bytes from {level['name']}", "rate": level["bytes_per_second"], "bytes": level["bytes"]}
        for level in roof["levels"]
    ]
    return [{"threads": roof["threads"], **row} for row in (*operations, *reads)]


def notes(document: Mapping[str, Any]) -> tuple[str, ...]:
    """What is not in the tables."""
    threads = ",".join(str(roof["threads"]) for roof in document["roofs"])
    said = [
        f"{document['host']['cpu']}, threads {threads}; every output equals the numpy reference; an operation is a "
        "multiply-accumulate, of bitserial a product of two bits; peers compute with 8 bits",
        *(f"{row['kernel']} at {row['bits']}: {row['why']}" for row in document["misfits"]),
        document["peers_left_out"],
    ]
    return tuple(filter(None, said))
