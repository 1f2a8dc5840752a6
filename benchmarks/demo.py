"""`make demo`: the main job from end to end by the verbs that a user types, each echoed; what was promised is checked.

Every verb runs as the installed tool in a process of its own. Exits 1 with a sentence where a promise does not hold.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..core.errors import BitpressError, CheckFailed

MODEL, DATA, BUDGET = "digits_cnn", "digits", "bops=2%"
THREADS = (
    "1"  # images of 8x8 are too small to share: torch's threads would wait for one another, on a busy host for long
)
SHARE = 0.02  # what BUDGET allows of the float network's BOPs
POINTS = 2.0  # of accuracy that the search may cost
WIDTHS = 2  # different weight widths among the inner layers, at least


@dataclass(frozen=True, slots=True)
class Files:
    """Where the demo leaves what it makes."""

    folder: Path

    @property
    def run(self) -> Path:
        """The RUN."""
        return self.folder / "demo"

    @property
    def artifact(self) -> Path:
        """The compiled network."""
        return self.folder / "demo.bpk"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where every verb succeeded and every promise holds."""
    parser = argparse.ArgumentParser(prog="python -m bitpress.benchmarks.demo", description=__doc__)
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave RUN, artifact and documents there")
    chosen = parser.parse_args(arguments)
    start = time.perf_counter()
    with nullcontext(str(chosen.keep)) if chosen.keep else tempfile.TemporaryDirectory(prefix="bitpress-demo-") as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            documents = run(Files(folder))
            check(documents)
        except BitpressError as error:
            print(f"demo: {error}", file=sys.stderr)
            return error.exit_code
    print(summary(documents, time.perf_counter() - start))
    return 0


def run(files: Files) -> dict[str, Any]:
    """Runs the verbs in order; their documents by name. CheckFailed names the one that did not succeed."""
    made: dict[str, Any] = {}
    search = ["search", MODEL, "--data", DATA, "--method", "sbs", "--budget", BUDGET, "--threads", THREADS]
    for name, verb in {
        "search": [*search, "--out", files.run],
        "compile": ["compile", files.run, "-o", files.artifact],
        "inspect": ["inspect", files.artifact],
        "verify": ["verify", files.artifact, "--against", files.run],
        "eval_run": ["eval", files.run, "--data", DATA],
        "eval_artifact": ["eval", files.artifact, "--data", DATA],
        "bench": ["bench", files.artifact, "--against", files.run, "--vs", "onnxruntime"],
    }.items():
        made[name] = _verb([str(word) for word in verb], files.folder / f"{name}.json")
    return made


def _verb(words: list[str], document: Path) -> Any:
    print(f"\n$ bitpress {shlex.join(words)}", flush=True)
    command = [sys.executable, "-P", "-m", "bitpress", *words, "--json", str(document)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise CheckFailed(f"`bitpress {shlex.join(words)}` ended with exit code {code}")
    return json.loads(document.read_text(encoding="utf-8"))


def check(documents: Mapping[str, Any]) -> None:
    """CheckFailed with the numbers where a promise does not hold."""
    found = documents["search"]
    loss = found["baseline_top1"] - found["top1"]
    if loss > POINTS:
        raise CheckFailed(
            f"the search costs {loss:.2f} points ({found['baseline_top1']:.2f} -> {found['top1']:.2f}), "
            f"{POINTS:g} are allowed"
        )
    if found["bops"] > SHARE * found["bops_fp32"]:
        raise CheckFailed(f"{found['bops']} BOPs are more than {SHARE:.0%} of {found['bops_fp32']}")
    layers = documents["inspect"]["layers"]
    widths = sorted({bits for row in layers[1:-1] for bits in _widths(row)})
    if len(widths) < WIDTHS:
        raise CheckFailed(f"the plan is not mixed: the inner layers hold {widths} bits, {WIDTHS} widths are promised")
    if not shrunk(layers):
        raise CheckFailed("no layer lost filters whose consumer lost input channels with them")
    digests = {documents[name]["predictions_sha256"] for name in ("eval_run", "eval_artifact")}
    if len(digests) != 1 or documents["eval_artifact"]["top1"] != found["top1"]:
        raise CheckFailed(f"RUN and artifact differ in their predictions: {' and '.join(sorted(digests))}")
    if not documents["verify"]["exact"]:
        raise CheckFailed(f"verify is not exact: {documents['verify']['first_difference']}")


def _widths(row: Mapping[str, Any]) -> list[int]:
    return [row["w_bits"]] if row["w_bits"] is not None else [int(bits) for bits in row["w_bits_hist"]]


def shrunk(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(layer, next layer) where filters were removed and the next layer's input became as narrow; for plain chains.

    Pooling keeps channels and a flatten multiplies them by the pixels, so the input's first number decides.
    """
    return [
        (a["name"], b["name"])
        for a, b in pairwise(layers)
        if a["channels_kept"] < a["channels_total"] and b["in_shape"][0] == a["channels_kept"]
    ]


def summary(documents: Mapping[str, Any], seconds: float) -> str:
    """What came out, in a few lines."""
    found, totals = documents["search"], documents["inspect"]["totals"]
    timed = documents["bench"]["runs"][0]
    layers = documents["inspect"]["layers"]
    widths = ", ".join(f"{row['name']} {'+'.join(map(str, _widths(row)))}" for row in layers)
    cut = ", ".join(
        f"{row['name']} {row['channels_kept']}/{row['channels_total']}"
        for row in layers
        if row["channels_kept"] < row["channels_total"]
    )
    peers = ", ".join(f"{p['name']} {p['median']:.4f} ms ({p['ratio']:.2f}x ours)" for p in timed["peers"])
    return "\n".join(
        [
            "",
            f"accuracy   {found['top1']:.2f} % of {documents['eval_run']['n']} test images, "
            f"float {found['baseline_top1']:.2f} %",
            f"BOPs       1/{totals['bops_ratio']:.1f} of the float network's ({100 / totals['bops_ratio']:.2f} %)",
            f"size       {totals['file_bytes']:,} bytes, of which weights {totals['weight_bytes']:,}; "
            f"fp32 weights {totals['fp32_bytes']:,}",
            f"weights    {widths} bits",
            f"pruned     {cut} filters kept",
            f"exact      {' = '.join(documents['verify']['stages'])}",
            f"latency    {timed['total']['median']:.4f} ms an image; {peers}",
            f"all this   {seconds:.0f} s",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
