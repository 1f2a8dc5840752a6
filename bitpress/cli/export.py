"""`bitpress export`: RUN or X.bpk becomes an ONNX file that onnxruntime runs, and is compared with it."""

from __future__ import annotations

from typing import Any

import click

from .command import Common, Result, verb
from .tables import Column, Table, si

LAYERS = (
    Column("name", "layer"), Column("op", "op"), Column("w_bits", "w bits", "int"), Column("a_bits", "a bits", "int"),
    Column("channels_kept", "kept", "int"), Column("channels_total", "of", "int"),
    Column("container", "weights in"), Column("stored", "as"), Column("bias", "bias"),
)  # fmt: skip


@verb("export")
@click.argument("source", metavar="RUN|X.bpk")
@click.option("--onnx", "output", metavar="OUT.onnx", required=True, help="Where the ONNX file goes.")
@click.option("--native-low-bit", is_flag=True, help="Weights as INT2 and INT4 where they fit, not all as INT8.")
@click.option("--exact", is_flag=True, help="The same codes, bit by bit; scales leave the quantisers for nodes.")
@click.option("--images", type=click.IntRange(0, 65536), default=100, help="Images that onnxruntime is compared on.")
@click.option("--data", metavar="DATA", help="Images of its held-out part; default: the golden sample and noise.")
def command(
    common: Common, source: str, output: str, native_low_bit: bool, exact: bool, images: int, data: str | None
) -> Result:  # fmt: skip
    """Writes RUN (compiled for this) or X.bpk as QDQ ONNX, and says how far onnxruntime agrees with it."""
    from ..exporting import export

    document = export(
        source, output, native_low_bit=native_low_bit, exact=exact, images=images, data=data, threads=common.thread,
        progress=common.progress,
    )  # fmt: skip
    return Result(document, (Table("Layers", LAYERS, document["layers"]),), _notes(document), _failure(document))


def _notes(document: dict[str, Any]) -> list[str]:
    size, layers = si(document["file_bytes"]), len(document["layers"])
    written = f"{document['onnx']}: {size}B, opset {document['opset']}, {layers} layers"
    found = document["agreement"]
    said = f"agreement with onnxruntime left out: {document['left_out']}" if found is None else _agreement(found)
    return [written, said]


def _agreement(found: dict[str, Any]) -> str:
    from ..compiler.onnx_agreement import worst

    levels = [row for row in found["layers"] if row["held"] == "levels"]
    share = sum(row["differing"] for row in levels) / max(1, sum(row["elements"] for row in levels))
    row = worst(found)
    return (
        f"onnxruntime {found['onnxruntime']}: top-1 equal on {found['top1']:.4g} % of {found['images']} images; layer "
        f"by layer on {found['layer_images']}, {share:.2%} of codes differ, by {row['largest']:.3g} at most "
        f"({row['name']})"
    )


def _failure(document: dict[str, Any]) -> str:
    found = document["agreement"]
    if found is None or found["agrees"]:
        return ""
    if all(row["agrees"] for row in found["layers"]) and not document["exact"]:
        return (
            f"{document['onnx']}: every layer agrees, but a few other codes change the class of "
            f"{100 - found['top1']:.4g} % of {found['images']} images; give images that matter by --data, or --exact"
        )
    return f"{document['onnx']} does not compute what the network does: {_agreement(found)}"
