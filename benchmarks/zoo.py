"""`python -m bitpress.benchmarks.zoo run [--weights DIR] [--photos DIR] [--cifar DIR] | table`: all networks.

Each network of the zoo is planned, quantised without training to w8a8, compiled, verified, and evaluated on every test
image of a real data set: as a RUN by torch's integer semantics, as the compiled program, and as the float network that
it came from. `run` stores a document a network in benchmarks/results/zoo and leaves out those that are there; `table`
writes benchmarks/results/zoo.md from them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import CheckFailed
from ..core.host import head
from ..core.rundir import read_json, write_json
from .ptq import WEIGHTS, run_or_table

if TYPE_CHECKING:
    import numpy as np

    from ..core.evaluate import Evaluation

STORE = Path(__file__).parent / "results" / "zoo"
TABLE = Path(__file__).parent / "results" / "zoo.md"
BITS = "w8a8"
IMAGES = 100  # that ranges are taken from
BATCHES, THREADS = (1, 3), (1, 2)  # of verify


@dataclass(frozen=True, slots=True)
class Row:
    """A network, the kind of its data set, the option with that set's folder, and the file of its public weights."""

    model: str
    data: str
    folder: str = ""
    weights: str = ""

    def spec(self, folders: Mapping[str, str | None]) -> str | None:
        """DATA, or None where its folder was not given."""
        if not self.folder:
            return self.data
        return f"{self.data}:{folders[self.folder]}" if folders[self.folder] else None


ROWS = (
    Row("digits_cnn", "digits"),
    Row("resnet20", "cifar10", "cifar", WEIGHTS["resnet20"]),
    Row("resnet56", "cifar10", "cifar", WEIGHTS["resnet56"]),
    Row("preresnet20", "cifar100", "cifar"),
    Row("preresnet56", "cifar100", "cifar"),
    Row("vgg7", "cifar10", "cifar"),
    Row("resnet18", "imagefolder", "photos"),
    Row("resnet50", "imagefolder", "photos"),
    Row("mobilenet_v1", "imagefolder", "photos"),
    Row("mobilenet_v1_075", "imagefolder", "photos", WEIGHTS["mobilenet_v1_075"]),
    Row("mobilenet_v2", "imagefolder", "photos"),
    Row("mobilenet_v2_tf", "imagefolder", "photos", "imagenet_mobilenetv2_1.0_224_dequant.safetensors"),
    Row("mobilenet_v3_small", "imagefolder", "photos"),
    Row("efficientnet_lite0", "imagefolder", "photos"),
    Row("skynet", "detection", "photos", "skynet_dac.safetensors"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or that of what went wrong."""
    return run_or_table("zoo", __doc__, arguments, _run, lambda: (TABLE, table(stored())))


def _run(weights: Path | None, folders: Mapping[str, str | None]) -> None:
    STORE.mkdir(parents=True, exist_ok=True)
    left = [(row, spec) for row in ROWS if not _path(row).is_file() and (spec := row.spec(folders))]
    for i, (row, spec) in enumerate(left, 1):
        document = measured(row, spec, None if weights is None or not row.weights else weights / row.weights)
        write_json(_path(row), document)
        print(f"{i} of {len(left)}, {row.model}: exact, {document['seconds']:.0f} s", flush=True)


def _path(row: Row) -> Path:
    return STORE / f"{row.model}.json"


def measured(row: Row, spec: str, weights: Path | None) -> dict[str, Any]:
    """The document of a network; CheckFailed where anything is not exact."""
    from ..delivery import Recipe, compile
    from ..evaluation import evaluate
    from ..inspection import verify
    from ..planning import plan

    start = time.perf_counter()
    given = None if weights is None else str(weights)
    planned = plan(row.model, weights=given)
    if planned["unsupported"]:
        raise CheckFailed(f"{row.model}: {planned['unsupported']} cannot be compiled; bitpress plan says why")
    with tempfile.TemporaryDirectory() as folder:
        run, artifact = Path(folder) / "run", Path(folder) / "net.bpk"
        recipe = Recipe(BITS, spec, images=IMAGES, weights=given)
        made = compile(row.model, artifact, recipe=recipe, run=run)
        verified = verify(artifact, against=run, batches=BATCHES, threads=THREADS)
        semantics, (floats, ours) = evaluate(run, data=spec), answers(run, artifact, spec)
        if not verified["exact"] or semantics["predictions_sha256"] != ours.sha256:
            raise CheckFailed(
                f"{row.model}: torch and the compiled program differ; bitpress verify {artifact.name} --against RUN "
                f"says where: {verified['first_difference']}"
            )
    return {
        **head("bitpress.zoo", threads=1),
        "model": row.model, "data": row.data, "weights": row.weights if weights else None,
        "in_shape": planned["in_shape"], "layers": len(planned["layers"]), "macs": planned["totals"]["macs"],
        "file_bytes": made["file_bytes"], "stages": verified["stages"], "exact": verified["exact"],
        "n": ours.n, "predictions_sha256": ours.sha256, "top1": ours.top1, "iou": ours.iou,
        "float_top1": floats.top1, "float_iou": floats.iou,
        "agrees": agreement(floats, ours), "date": datetime.now(UTC).date().isoformat(),
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def answers(folder: Path, artifact: Path, spec: str) -> Iterator[Evaluation]:
    """What the float network of a RUN and an artifact answer on the test images."""
    import torch

    from ..compiler.model import load
    from ..core.data import load as load_data
    from ..core.evaluate import evaluate
    from ..core.rundir import load_run
    from ..core.supernet import FloatNet

    made = load_run(folder)
    c, h, w = made.graph.inputs[0].shape
    net, data = FloatNet(made.graph).eval(), load_data(spec, in_shape=(c, h, w))

    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.from_numpy(x)).numpy()

    test = data.test()
    for one in (run, load(artifact, threads=1)):
        yield evaluate(
            one, test.images, test.labels, task=data.task, batch=50,
            prepare=lambda x: data.normalise(x, made.meta["mean"], made.meta["std"]),
        )  # fmt: skip


def agreement(floats: Evaluation, ours: Evaluation) -> float:
    """Percent of the images with the same class, or the mean overlap of the boxes in percent."""
    from ..core.detection import iou

    if floats.iou is None:
        return 100.0 * float((floats.predictions == ours.predictions).mean())
    return 100.0 * float(iou(floats.predictions, ours.predictions).mean())


def stored(store: Path = STORE) -> list[dict[str, Any]]:
    """The documents that are there, in the order of the rows."""
    paths = [store / f"{row.model}.json" for row in ROWS]
    return [read_json(path) for path in paths if path.is_file()]


def table(documents: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    from ..cli.tables import Column, Table, to_markdown

    columns = (
        Column("model", "network"), Column("weights", "weights"), Column("data", "test images"),
        Column("layers", "layers", "int"), Column("macs", "M MACs", "int"), Column("bytes", "file, bytes", "int"),
        Column("exact", "exact"), Column("float", "float"), Column("ours", "w8a8"), Column("agrees", "agrees %"),
    )  # fmt: skip
    rows = [
        {
            "model": d["model"], "weights": "public" if d["weights"] else "random",
            "data": f"{d['n']:,} of {d['data']}, {'x'.join(map(str, d['in_shape']))}", "layers": d["layers"],
            "macs": round(d["macs"] / 1e6), "bytes": d["file_bytes"], "exact": " = ".join(d["stages"]),
            "float": _points(d["float_top1"], d["float_iou"]), "ours": _points(d["top1"], d["iou"]),
            "agrees": f"{d['agrees']:.1f}",
        }
        for d in documents
    ]  # fmt: skip
    hosts, dates = sorted({d["host"]["cpu"] for d in documents}), sorted({d["date"] for d in documents})
    return "\n".join([
        "# Every network, the whole way",
        "",
        "Written by `python -m bitpress.benchmarks.zoo table` from the documents in [zoo/](zoo), one a network, which",
        f"`... zoo run` made: planned, quantised to {BITS} from {IMAGES} training images, compiled, verified on",
        "batches of 1 and 3 with 1 and 2 threads, and evaluated on every test image by torch's integer semantics and",
        "by the compiled program, whose digests are the same; what is not the same is no row. *Agrees*: share of the",
        "test images with the float network's answer; for detectors the mean overlap of the boxes. Random weights",
        "learned nothing: their answers lie close together, and only the equalities say something.",
        "",
        f"{', '.join(hosts)}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}." if dates else "No rows yet.",
        "",
        to_markdown(Table("", columns, rows)).rstrip(),
        "",
    ])  # fmt: skip


def _points(top1: float | None, iou: float | None) -> str:
    return f"{top1:.2f} %" if iou is None else f"IoU {100 * iou:.2f} %"


if __name__ == "__main__":
    sys.exit(main())
