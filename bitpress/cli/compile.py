"""`bitpress compile`: a RUN, or a MODEL quantised without training, becomes X.bpk."""

from __future__ import annotations

from typing import Any

import click

from ..core.errors import UsageError
from ..core.factory import is_onnx
from .command import Common, Names, Result, verb
from .model import model_options, normal_options
from .tables import si

NETWORK = ("classes", "in_shape", "mean", "std")  # what an ONNX file may leave open


@verb("compile", table=False)
@click.argument("source", metavar="RUN|MODEL|X.onnx")
@click.option("-o", "--output", metavar="X.bpk", help="Where the artifact goes.")
@click.option(
    "--quantize", metavar="w8a8", help="MODEL: quantise after training, these bits everywhere but at the ends."
)
@click.option("--calibrate", metavar="DATA|random:N", help="MODEL: images that the ranges are taken from.")
@click.option("--calibration-images", type=click.IntRange(1), default=512, help="At most so many of them.")
@click.option("--residual", type=Names("int8", "float32"), default="int8", help="MODEL: how residual streams are held.")
@click.option("--run", metavar="RUN", help="MODEL: keep what was made as a RUN.")
@click.option("--target", metavar="ISA", help="Name kernels of that ISA as hints; default: the baseline, on any host.")
@click.option("--stop-after", metavar="STAGE", help="Stop there and write no artifact.")
@click.option("--dump", metavar="DIR", help="Write what every stage made as text.")
@normal_options
@model_options
def command(
    common: Common, source: str, output: str | None, quantize: str | None, calibrate: str | None, run: str | None,
    target: str | None, stop_after: str | None, dump: str | None, **options: Any,
) -> Result:  # fmt: skip
    """Prunes, integerises, fuses, packs and lowers RUN, or MODEL with --quantize and --calibrate, into X.bpk.

    A quantised X.onnx says its bits and ranges itself and needs neither.
    """
    from ..delivery import Recipe, compile

    if (quantize is None) != (calibrate is None):
        raise UsageError("--quantize and --calibrate go together: bits and the images that give the ranges")
    recipe = None
    if quantize is not None or is_onnx(source):
        images = options.pop("calibration_images")
        recipe = Recipe(quantize, calibrate, images=images, seed=common.seed, **options)
    if quantize is None:
        _refuse_model_options(common, source)
    document = compile(
        source, output, recipe=recipe, run=run, target=target, stop_after=stop_after, dump_dir=dump,
        progress=common.progress,
    )  # fmt: skip
    return Result(document, notes=_notes(document, dump))


def _refuse_model_options(common: Common, source: str) -> None:
    what = "an ONNX file" if is_onnx(source) else "a RUN"
    belongs = ("weights", "calibration_images", "residual", *(() if is_onnx(source) else NETWORK))
    if given := [f"--{name.replace('_', '-')}" for name in belongs if name in common.given]:
        raise UsageError(
            f"{', '.join(given)}: {source} is {what}, which says this already; such flags go with --quantize"
        )


def _notes(document: dict[str, Any], dump: str | None) -> list[str]:
    if document["artifact"] is None:
        return [f"stopped after {document['stages'][-1]}" + (f"; stages as text in {dump}" if dump else "")]
    rest = document["file_bytes"] - document["weight_bytes"]
    run = f", RUN {document['run']}" if document["run"] else ""
    return [
        f"{document['artifact']}{run}: {document['file_bytes']:,} bytes, of which weights {document['weight_bytes']:,} "
        f"(fp32 {document['fp32_bytes']:,}) and all else {rest:,}; {si(document['bops'])} BOPs, "
        f"1/{document['bops_ratio']:.1f} of fp32; {document['seconds']:.1f} s"
    ]
