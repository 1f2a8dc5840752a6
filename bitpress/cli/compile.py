"""`bitpress compile`: a RUN, or a MODEL quantised without training, becomes X.bpk."""

from __future__ import annotations

from typing import Any

import click

from ..core.errors import UsageError
from ..core.factory import is_onnx
from ..core.ranges import ACT_RANGES, EQUALIZE, PERCENTILE, WEIGHT_RANGES
from .command import Common, Names, Result, verb
from .model import model_options, normal_options
from .tables import si

TERMS = (
    "calibration_images", "budget", "latency_table", "act_range", "percentile", "weight_range", "bias_correction",
    "equalize", "reduce_range", "residual",
)  # fmt: skip
NETWORK = ("classes", "in_shape", "mean", "std")  # what an ONNX file may leave open


@verb("compile", table=False)
@click.argument("source", metavar="RUN|MODEL|X.onnx")
@click.option("-o", "--output", metavar="X.bpk", help="Where the artifact goes.")
@click.option(
    "--quantize", metavar="w8a8|mixed", help="MODEL: quantise after training, these bits everywhere but at the ends."
)
@click.option("--budget", multiple=True, metavar="KIND=VALUE", help="mixed: size=20%, bops=3%: by measured harm.")
@click.option("--latency-table", metavar="TABLE.json", help="mixed: of bitpress profile, for --budget latency=0.8ms.")
@click.option("--calibrate", metavar="DATA|random:N", help="MODEL: images that the ranges are taken from.")
@click.option("--calibration-images", type=click.IntRange(1), default=512, help="At most so many of them.")
@click.option("--act-range", type=Names(*ACT_RANGES), default="mse", help="MODEL: where ranges of activations end.")
@click.option("--percentile", type=float, default=PERCENTILE, help="Of magnitudes, with --act-range percentile.")
@click.option("--weight-range", type=Names(*WEIGHT_RANGES), default="lp", help="MODEL: of filters at 2 and 4 bits.")
@click.option(
    "--bias-correction/--no-bias-correction",
    default=True,
    help="MODEL: biases make up for what rounding does to means.",
)
@click.option(
    "--equalize",
    type=Names(*EQUALIZE),
    default="off",
    help="MODEL: like ranges for all channels; exact changes no float.",
)
@click.option("--reduce-range", is_flag=True, help="MODEL: 8-bit weights within 7, faster on CPUs without VNNI.")
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

    --quantize mixed --budget size=20%: each layer has 2, 4 or 8 bits, by what they were measured to hurt.

    A quantised X.onnx says its bits and ranges itself and needs neither.
    """
    from ..delivery import Recipe, compile

    if (quantize is None) != (calibrate is None):
        raise UsageError("--quantize and --calibrate go together: bits and the images that give the ranges")
    recipe = None
    if quantize is not None or is_onnx(source):
        images = options.pop("calibration_images")
        if "percentile" in common.given and options["act_range"] != "percentile":
            raise UsageError(f"--percentile {options['percentile']:g} goes with --act-range percentile")
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
    belongs = ("weights", *TERMS, *(() if is_onnx(source) else NETWORK))
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
        *_terms(document["calibration"] or {}),
        f"{document['artifact']}{run}: {document['file_bytes']:,} bytes, of which weights {document['weight_bytes']:,} "
        f"(fp32 {document['fp32_bytes']:,}) and all else {rest:,}; {si(document['bops'])} BOPs, "
        f"1/{document['bops_ratio']:.1f} of fp32; {document['seconds']:.1f} s",
    ]


def _terms(calibration: dict[str, Any]) -> list[str]:
    """What equalisation did, and how far budgets are used."""
    out = []
    if (done := calibration.get("equalized")) is not None:
        held = f"; {done['held']} channels less than wanted, for a clip acts on them or might" if done["held"] else ""
        out.append(f"equalized: {done['channels']} channels of {done['values']} values{held}")
        if calibration["equalize"] == "seen":
            out.append("equalize seen: exact on the calibration images; others may be cut where they exceed those")
    for budget, share in calibration.get("used", {}).items():
        out.append(
            f"budget {budget}: {100 * share:.1f} % used" + (f": {calibration['why']}" if calibration["why"] else "")
        )
    return out
