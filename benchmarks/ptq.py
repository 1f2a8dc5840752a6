"""`python -m bitpress.benchmarks.ptq run --weights DIR [--photos DIR] [--cifar DIR] | table`: no training.

Networks with public float weights, calibrated on few images and evaluated by the compiled artifact on others that
nothing was chosen by; one option at a time against the defaults. `run` stores a document a row in
benchmarks/results/ptq, and leaves out rows that are there; `table` writes benchmarks/results/ptq.md from them.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BitpressError, UsageError
from ..core.host import head, write_text
from ..core.rundir import read_json, write_json

if TYPE_CHECKING:
    import numpy as np

    from ..core.evaluate import Evaluation
    from ..core.network import Network

STORE = Path(__file__).parent / "results" / "ptq"
TABLE = Path(__file__).parent / "results" / "ptq.md"
PHOTOGRAPHS, PICTURES = 100, 512  # images that ranges are taken from: photographs, CIFAR-10
WEIGHTS: Mapping[str, str] = {
    "mobilenet_v1_075": "imagenet_mobilenetv1_0.75_224.safetensors",
    "resnet20": "cifar10_resnet20.safetensors",
    "resnet56": "cifar10_resnet56.safetensors",
}
FLOAT = "float"
PLAIN: Mapping[str, Any] = {"act_range": "max", "weight_range": "max", "bias_correction": False}


@dataclass(frozen=True, slots=True)
class Row:
    """A network quantised in one way. `options`: of `Recipe`, those that are not the defaults."""

    model: str
    quantize: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flags(self) -> str:
        """As `compile` takes them."""
        words = []
        for key, value in self.options.items():
            flag = "--" + key.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            words += [
                f"{flag} {one}" for one in (value if isinstance(value, tuple) else (value,)) if one not in (True, False)
            ]
        return " ".join(words)

    @property
    def name(self) -> str:
        """Of its document."""
        words = f"{self.model} {self.quantize} {self.flags}".replace("_", "-").lower()
        return re.sub(r"[^a-z0-9.]+", "-", words).strip("-")


def _rows() -> tuple[Row, ...]:
    """In the order in which they are made: what says most comes first."""
    mobile, small, large = WEIGHTS
    uncorrected = {"bias_correction": False}
    out = [Row(mobile, bits) for bits in (FLOAT, "w8a8", "w4a8")]
    out += [Row(mobile, "w4a8", o) for o in (PLAIN, uncorrected, {"equalize": "seen"}, {"equalize": "exact"})]
    out += [Row(model, bits) for model in (small, large) for bits in (FLOAT, "w8a8", "w4a8", "w4a4")]
    out += [Row(mobile, "w8a8", o) for o in (PLAIN, uncorrected, {"equalize": "seen"}, {"equalize": "exact"})]
    out += [Row(mobile, "mixed", {"budget": ("size=20%",)})]
    out += [Row(mobile, "w8a8", {"act_range": by}) for by in ("max", "percentile")]
    out += [Row(mobile, "w4a8", {"weight_range": by}) for by in ("mse", "max")]
    out += [Row(mobile, "w4a4")]
    for model in (small, large):
        ranges = [{"weight_range": "mse"}, {"weight_range": "max"}, {"act_range": "max"}, {"act_range": "percentile"}]
        out += [Row(model, "w4a4", o) for o in (PLAIN, uncorrected, *ranges, {"equalize": "exact"})]
    out += [Row(model, "w8a8", {"reduce_range": True}) for model in WEIGHTS]
    return (*out, *(Row(small, "mixed", {"budget": (b,)}) for b in ("size=10%", "bops=1.6%")))


ROWS = _rows()


@dataclass(frozen=True)
class Images:
    """Raw images and labels: `calibration` uint8 [n, C, H, W], and of others those that are counted."""

    said: str
    calibration: np.ndarray
    test: np.ndarray
    labels: np.ndarray


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or that of what went wrong."""
    return run_or_table("ptq", __doc__, arguments, _run, lambda: (TABLE, table(stored())))


def run_or_table(
    name: str,
    said: str,
    arguments: Sequence[str] | None,
    run: Callable[[Path | None, Mapping[str, str | None]], None],
    page: Callable[[], tuple[Path, str]],
) -> int:
    """`run` with the folder of weights and those of images by option, or the file of `page` written; the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m bitpress.benchmarks.{name}", description=said.split("\n")[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder with the public weights")
    parser.add_argument("--photos", metavar="DIR", help="photographs with index.csv, labels 0 to 999")
    parser.add_argument("--cifar", metavar="DIR", help="binary version of CIFAR-10, for all networks CIFAR-100 too")
    asked = parser.parse_args(arguments)
    try:
        if asked.what == "run":
            run(asked.weights, {"photos": asked.photos, "cifar": asked.cifar})
        else:
            path, text = page()
            write_text(path, text)
            print(f"{path} written")
    except BitpressError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(weights: Path | None, folders: Mapping[str, str | None]) -> None:
    from ..cli.progress import duration

    if weights is None:
        raise UsageError("run needs --weights DIR, the folder with " + ", ".join(WEIGHTS.values()))
    loaded: dict[str, Images] = {}
    STORE.mkdir(parents=True, exist_ok=True)
    left = [row for row in ROWS if not (STORE / f"{row.name}.json").is_file() and folders[_kind(row.model)]]
    start = time.perf_counter()
    for i, row in enumerate(left, 1):
        kind = _kind(row.model)
        if kind not in loaded:
            loaded[kind] = _LOADERS[kind](str(folders[kind]))
        document = measured(row, loaded[kind], weights / WEIGHTS[row.model], _answers(row))
        write_json(STORE / f"{row.name}.json", document)
        rest = duration((time.perf_counter() - start) / i * (len(left) - i))
        print(f"{i} of {len(left)}, {row.name}: {document['top1']:.2f} %; {rest} left", flush=True)


def _kind(model: str) -> str:
    return "photos" if model.startswith("mobilenet") else "cifar"


def _photographs(folder: str) -> Images:
    """Calibrated on the part that `imagefolder:` tests on, every 9th, up to `PHOTOGRAPHS`; tested on all others."""
    import numpy as np

    from ..core.data import load

    data = load(f"imagefolder:{folder}", in_shape=(3, 224, 224))
    few = data.test()
    parts = [(split.images[:], split.labels) for split in (data.train, data.validation)]
    parts.append((few.images[PHOTOGRAPHS:], few.labels[PHOTOGRAPHS:]))
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Images("photographs", few.images[:PHOTOGRAPHS], images, labels)


def _cifar(folder: str) -> Images:
    import numpy as np

    from ..core.data import load

    data = load(f"cifar10:{folder}")
    test = data.test()
    return Images("CIFAR-10", data.train.images[:PICTURES], np.asarray(test.images), test.labels)


_LOADERS: Mapping[str, Callable[[str], Images]] = {"photos": _photographs, "cifar": _cifar}


def _answers(row: Row) -> np.ndarray | None:
    """What the float network answered, int32 [n]; None where this is its row."""
    import numpy as np

    if row.quantize == FLOAT:
        return None
    known = read_json(STORE / f"{Row(row.model, FLOAT).name}.json")["predictions"]
    return np.frombuffer(zlib.decompress(base64.b64decode(known)), "<i4")


def measured(row: Row, images: Images, weights: Path, floats: np.ndarray | None) -> dict[str, Any]:
    """The document of a row: accuracy of the artifact on the test images, bytes, BOPs, and what calibration did.

    `floats`: answers of the float network, of which `agrees` says the share in percent; the float row holds its own.
    """
    from ..core.network import network

    start = time.perf_counter()
    found = network(row.model, weights=weights)
    result, facts = _float(found, images) if row.quantize == FLOAT else _quantised(found, row, images)
    return {
        **head("bitpress.ptq", threads=1),
        "model": row.model, "quantize": row.quantize, "flags": row.flags, "images": images.said,
        "calibration_images": len(images.calibration), "n": result.n, "top1": result.top1, "top5": result.top5,
        "agrees": None if floats is None else 100 * float((result.predictions == floats).mean()),
        "predictions": base64.b64encode(zlib.compress(result.predictions.tobytes())).decode()
        if floats is None
        else None,
        "predictions_sha256": result.sha256, **facts,
        "date": datetime.now(UTC).date().isoformat(), "seconds": time.perf_counter() - start,
    }  # fmt: skip


def _float(found: Network, images: Images) -> tuple[Evaluation, dict[str, Any]]:
    import torch

    from ..core.bops import count
    from ..core.evaluate import evaluate
    from ..core.supernet import FloatNet

    net, totals = FloatNet(found.graph).eval(), count(found.graph).totals

    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.from_numpy(x)).numpy()

    result = evaluate(run, images.test, images.labels, prepare=lambda x: _normal(found, x), batch=50)
    return result, {"weight_bytes": totals.fp32_bytes, "bops": totals.bops_fp32, "bops_share": 1.0, "calibration": None}


def _quantised(found: Network, row: Row, images: Images) -> tuple[Evaluation, dict[str, Any]]:
    from ..compiler import artifact
    from ..compiler.model import load
    from ..compiler.pipeline import compile_run
    from ..core.bops import count
    from ..core.evaluate import evaluate
    from ..delivery import Recipe, calibrated

    recipe = Recipe(row.quantize, images.said, images=len(images.calibration), **row.options)
    meta = {"mean": list(found.mean), "std": list(found.std)}
    made = calibrated(found, _normal(found, images.calibration), recipe, meta, lambda _what, _share: None)
    with tempfile.TemporaryDirectory() as folder:
        artifact.write(compile_run(made), Path(folder) / "net.bpk")
        model = load(Path(folder) / "net.bpk", threads=1)
    result = evaluate(model, images.test, images.labels, prepare=lambda x: _normal(found, x), batch=50)
    totals = count(made.graph, made.plan).totals
    return result, {
        "weight_bytes": totals.weight_bytes, "bops": totals.bops,
        "bops_share": float(totals.bops or 0) / totals.bops_fp32, "calibration": made.meta["calibration"],
    }  # fmt: skip


def _normal(found: Network, images: np.ndarray) -> np.ndarray:
    import numpy as np

    from ..core.quant import normalize_u8

    return normalize_u8(images, np.array(found.mean, np.float32), np.array(found.std, np.float32))


def stored(store: Path = STORE) -> list[dict[str, Any]]:
    """The documents that are there, in the order of the rows."""
    paths = [store / f"{row.name}.json" for row in ROWS]
    return [read_json(path) for path in paths if path.is_file()]


def table(documents: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    lines = [
        "# Quantised without training",
        "",
        "Written by `python -m bitpress.benchmarks.ptq table` from the documents in [ptq/](ptq), one a row, which",
        "`... ptq run` made: public float weights, ranges from the calibration images, accuracy of the compiled",
        "artifact on test images that nothing was chosen by. Flags are those of `compile` that differ from its",
        "defaults. *Agrees*: share of the images with the float network's answer, which says more than labels where a",
        "point is few images.",
    ]
    for model in WEIGHTS:
        mine = [d for d in documents if d["model"] == model]
        if mine:
            lines += ["", *_section(model, mine)]
    return "\n".join(lines) + "\n"


def _section(model: str, documents: Sequence[Mapping[str, Any]]) -> list[str]:
    from ..cli.tables import Column, Table, to_markdown

    columns = (
        Column("quantize", "bits"), Column("flags", "flags"), Column("top1", "top-1 %"), Column("drop", "to float"),
        Column("top5", "top-5 %"), Column("agrees", "agrees %"), Column("bytes", "weight bytes", "int"),
        Column("share", "BOPs, % of fp32"), Column("note", "what was done"),
    )  # fmt: skip
    floats = next((d["top1"] for d in documents if d["quantize"] == FLOAT), None)
    rows = [
        {
            "quantize": d["quantize"], "flags": f"`{d['flags']}`" if d["flags"] else None, "top1": f"{d['top1']:.2f}",
            "drop": None if floats is None or d["quantize"] == FLOAT else f"{d['top1'] - floats:+.2f}",
            "top5": f"{d['top5']:.2f}", "agrees": None if d["agrees"] is None else f"{d['agrees']:.1f}",
            "bytes": d["weight_bytes"], "share": f"{100 * d['bops_share']:.3g}", "note": _note(d["calibration"] or {}),
        }
        for d in documents
    ]  # fmt: skip
    first = documents[0]
    hosts, dates = sorted({d["host"]["cpu"] for d in documents}), sorted({d["date"] for d in documents})
    return [
        f"## {model}",
        "",
        f"{first['images']}: {first['calibration_images']} to calibrate, {first['n']:,} to test. {', '.join(hosts)}; "
        + " to ".join(dict.fromkeys((dates[0], dates[-1]))) + ".",
        "",
        to_markdown(Table("", columns, rows)).rstrip(),
    ]  # fmt: skip


def _note(calibration: Mapping[str, Any]) -> str | None:
    said = [f"{100 * share:.1f} % of {budget}" for budget, share in calibration.get("used", {}).items()]
    if done := calibration.get("equalized"):
        said.append(f"{done['channels']} channels of {done['values']} values scaled, {done['held']} held by a clip")
    return "; ".join(said) or None


if __name__ == "__main__":
    sys.exit(main())
