"""`python -m bitpress.benchmarks.searches keep NAME RUN [NOTE] | table`: what long searches found, kept and tabulated.

`keep` compiles a finished RUN, verifies the artifact, evaluates both, and stores the documents, without paths of this
host, in benchmarks/results/searches/NAME. `table` writes benchmarks/results/search.md and ajpq.md from what is stored;
no figure of ours in them is typed.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..core.cost import MAX_PRUNING_RATIO
from ..core.errors import BitpressError, CheckFailed, UsageError
from ..core.job import DISTILL, flag
from ..core.rundir import read_json

STORE = Path(__file__).parent / "results" / "searches"
TABLE = Path(__file__).parent / "results" / "search.md"
CLAIMS = Path(__file__).parent / "results" / "ajpq.md"
METRICS = {"top1": "top-1", "iou": "IoU"}
LEAST_USED = 0.9  # of a budget, by a method that prunes
USUAL: Mapping[str, Any] = {  # what a command leaves out where it is so
    "distill": DISTILL, "label_smoothing": 0.0, "schedule": "cosine", "max_pruning_ratio": MAX_PRUNING_RATIO,
    "residual": "int8",
}  # fmt: skip
USAGE = "usage: python -m bitpress.benchmarks.searches keep NAME RUN [NOTE] | table"


@dataclass(frozen=True, slots=True)
class Published:
    """A published figure beside ours: top-1 in percent, BOPs in the convention `sbs`."""

    method: str
    top1: float
    bops: float
    source: str


# Only networks, data and convention that are ours too (as published); ABS is the first form of SBS.
PUBLISHED: Mapping[tuple[str, str], tuple[Published, ...]] = {
    ("preresnet20", "cifar100"): (
        Published("float", 67.5, 41798.6e6, "ABS, table 1"),
        Published("W4A4", 67.8, 674.6e6, "ABS, table 1"),
        Published("ABS-P", 67.9, 28586.5e6, "ABS, table 1"),
        Published("ABS-Q", 68.1, 649.5e6, "ABS, table 1"),
        Published("ABS", 68.1, 630.6e6, "ABS, table 1"),
        Published("SAMQ", 68.6, 374.4e6, "SAQ, README"),
    ),
}


@dataclass(frozen=True)
class Kept:
    """A stored run. `settings`, `result`, `checks`: its documents; `events`: the lines of events.jsonl."""

    name: str
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    checks: Mapping[str, Any]
    events: tuple[Mapping[str, Any], ...]

    @property
    def dataset(self) -> str:
        """cifar10, cifar100, digits, or a factory's file."""
        return str(self.settings["data"]).partition(":")[0]

    @property
    def epochs(self) -> int:
        """Of search and fine-tuning together: what compares."""
        return int(self.settings["epochs_search"] + self.settings["epochs_finetune"])

    @property
    def metric(self) -> str:
        """What its accuracy counts: top1, of detectors iou."""
        return "top1" if self.result.get("iou") is None else "iou"

    @property
    def accuracy(self) -> float:
        """On the test part, in percent."""
        return _percent(self.result, self.metric)

    @property
    def baseline(self) -> float:
        """That of the float network."""
        return _percent(self.result, f"baseline_{self.metric}")

    @property
    def images(self) -> int | None:
        """Training images where they were limited."""
        limit = self.settings.get("train_images")
        return int(limit) if limit else None

    @property
    def family(self) -> tuple[str, str, int | None]:
        """Runs whose figures compare, but for the epochs."""
        return self.dataset, str(self.settings["model"]), self.images

    @property
    def share(self) -> float:
        """Percent of the float network's BOPs."""
        return 100 / float(self.result["bops_ratio"])

    @property
    def convention(self) -> str:
        """In which its BOPs were counted."""
        return str(self.settings.get("convention", "sbs"))

    @property
    def label(self) -> str:
        """Method with what makes it differ from the method's default."""
        said = [str(self.settings["method"])]
        keys = ("variant", "mode", "restrict", "filters", "bits")
        said += [str(self.settings[key]) for key in keys if self.settings.get(key)]
        if said[0] == "two-stage" and self.settings.get("stages_of", "sbs") != "sbs":
            said.insert(1, str(self.settings["stages_of"]))
        said += [f"in convention {self.convention}"] if self.convention != "sbs" else []
        return " ".join(dict.fromkeys(said))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or that of what went wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["keep"] and len(words) in (3, 4):
            keep(words[1], Path(words[2]), note=" ".join(words[3:]))
        elif words == ["table"]:
            from .claims import page

            runs = stored()
            for path, text in ((TABLE, table(runs)), (CLAIMS, page(runs))):
                path.write_text(text, encoding="utf-8")
                print(f"{path} written")
        else:
            raise UsageError(USAGE)
    except BitpressError as error:
        print(f"searches: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _percent(result: Mapping[str, Any], key: str) -> float:
    """A figure of a result in percent; intersection over union is a share there."""
    return float(result[key]) * (100 if key.endswith("iou") else 1)


def keep(name: str, run: Path, *, note: str = "", store: Path = STORE) -> Path:
    """Checks a finished RUN and stores its documents under `name`; CheckFailed where a promise does not hold.

    `note`: what a reader has to know of the run, for the page.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise UsageError(f"name {name!r}: lower-case letters, digits, '.', '_' and '-'")
    result, settings = read_json(run / "result.json"), read_json(run / "run.json")
    with tempfile.TemporaryDirectory() as folder:
        found, failed = checked(run, Path(folder) / "net.bpk", settings["data"], result)
    shares = {b: used(b, result) for b in result["budget"]}
    failed = [f"budget {b}: {100 * u:.1f} % used" for b, u in shares.items() if u > 1] + failed
    if failed:
        raise CheckFailed(f"{run}: {'; '.join(failed)}")
    ended = datetime.fromtimestamp((run / "result.json").stat().st_mtime, UTC)
    checks = {
        "date": ended.date().isoformat(), "time": ended.isoformat(timespec="seconds"), "note": note,
        "used": shares, **found,
    }  # fmt: skip
    out = store / name
    out.mkdir(parents=True, exist_ok=True)
    for file, document in {"run": _homeless(settings), "result": _homeless(result), "checks": checks}.items():
        (out / f"{file}.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    plan = json.dumps(read_json(run / "plan.json"), separators=(",", ":"), sort_keys=True)
    (out / "plan.json").write_text(plan + "\n", encoding="utf-8")
    (out / "events.jsonl").write_bytes((run / "events.jsonl").read_bytes())
    print(f"{out}: kept, verified, both evaluations give {found['predictions_sha256'][:16]}")
    return out


def checked(
    run: Path, artifact: Path, data: str, result: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Digest, bytes and layers of what a RUN compiles to, and what is wrong: not exact, or predicting otherwise."""
    from .. import compile as compile_network
    from .. import evaluate, inspect, verify

    compile_network(str(run), artifact)
    exact = verify(artifact, against=run, batches=(1, 3))["exact"]
    digests = [evaluate(path, data=data)["predictions_sha256"] for path in (run, artifact)]
    failed = [] if exact else ["verify is not exact"]
    failed += [f"eval gives {' and '.join(d[:16] for d in digests)}"] if len(set(digests)) > 1 else []
    failed += ["eval differs from the search"] if digests[0] != result["predictions_sha256"] else []
    found = {"predictions_sha256": digests[0], "artifact_bytes": artifact.stat().st_size}
    return {**found, "layers": inspect(artifact)["layers"]}, failed


def used(budget: str, result: Mapping[str, Any]) -> float:
    """Share of a budget that a result uses."""
    from ..core.cost import parse_budget

    found = parse_budget(budget)
    if found.kind == "bops":
        return float(result["bops"]) / found.bound(float(result["bops_fp32"]))
    if found.kind == "size":
        return float(result["weight_bytes"]) / found.bound(float(result["fp32_bytes"]))
    return float(result["latency"]) / found.bound(float(result["latency_table"]["w8a8"]))


def _homeless(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the data set's folder as DIR."""
    kind, _, rest = str(document["data"]).partition(":")
    return {**document, "data": f"{kind}:DIR" if rest else kind}


def stored(store: Path = STORE) -> list[Kept]:
    """Every stored run, by name."""
    out = []
    for folder in sorted(p for p in store.iterdir() if p.is_dir()) if store.is_dir() else []:
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        documents = [read_json(folder / f"{name}.json") for name in ("run", "result", "checks")]
        out.append(Kept(folder.name, documents[0], documents[1], documents[2], tuple(events)))
    return out


def front_at(points: Iterable[tuple[float, float]], share: float) -> float | None:
    """Top-1 at `share` percent on the straight lines over ln BOPs that join (share, top-1) points; None outside.

    Only points that no cheaper one equals or beats are joined: the others are no front.
    """
    rising: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):  # of equally cheap ones the best comes first
        if not rising or y > rising[-1][1]:
            rising.append((x, y))
    for (x0, y0), (x1, y1) in pairwise(rising):
        if x0 <= share <= x1:
            return y0 + (y1 - y0) * (math.log(share) - math.log(x0)) / (math.log(x1) - math.log(x0))
    if rising and math.isclose(share, rising[-1][0], rel_tol=0.02):
        return rising[-1][1]
    return None


def command(kept: Kept) -> str:
    """The command line of a stored run."""
    s = kept.settings
    words = ["bitpress", "search", str(s["model"])]
    if "weights" in s["files"]:
        words += ["--weights", "W.safetensors"]
    if str(s["data"]).partition(":")[0] in ("imagefolder", "detection"):  # photographs are cut to the input
        words += ["--in-shape", ",".join(map(str, s["in_shape"]))]
    words += ["--data", str(s["data"]), "--method", str(s["method"])]
    parts = str(s.get("stages_of", "sbs") if s["method"] == "two-stage" else s["method"])
    if parts not in ("sbs", s["method"]):
        words += ["--stages-of", parts]
    if s.get("prune_share") is not None:
        words += ["--prune-share", f"{s['prune_share']:g}"]
    if s.get("mode") and s["mode"] != "joint":
        words += ["--search", str(s["mode"])]
    if s.get("variant") and s["variant"] != "guided":
        words += ["--sbs-variant", str(s["variant"])]
    if s.get("restrict"):
        words += ["--restrict", str(s["restrict"])]
    if s.get("convention", "sbs") != "sbs":
        words += ["--convention", str(s["convention"])]
    if s.get("filters"):
        words += ["--precision", str(s["filters"]), "--episodes", str(s["episodes"])]
        words += ["--group-size", str(s["group_size"])] if s["group_size"] > 1 else []
    if s.get("bits"):
        words += ["--bits", str(s["bits"])]
    for budget in s["budget"]:
        words += ["--budget", str(budget)]
    names = ("epochs_float", "epochs_search", "epochs_finetune", "lr_search", "lr_thresholds", "lr_finetune", "batch")
    useless = {"uniform": {"epochs_search", "lr_search", "lr_thresholds"}, "sbs": set()}
    skipped = useless.get(parts, {"lr_thresholds"})
    for key in names:
        if key not in skipped and not (key == "epochs_float" and "weights" in s["files"] and not s[key]):
            words += [flag(key), f"{s[key]:g}"]
    words += ["--lr-float", f"{s['lr_float']:g}"] if s["epochs_float"] else []
    for key in ("train_images", "held_images"):
        if s.get(key):
            words += [flag(key), str(s[key])]
    for key, usual in USUAL.items():
        if s.get(key, usual) != usual:
            words += [flag(key), str(s[key])]
    words += ["--seed", str(s["seed"]), "--threads", str(s["threads"])]
    return shlex.join(words)


def table(runs: Sequence[Kept]) -> str:
    """The whole page."""
    lines = [
        "# Searches",
        "",
        "Written by `python -m bitpress.benchmarks.searches table` from the documents in [searches/](searches), which",
        "`... searches keep NAME RUN` put there: settings, result, plan and events of each run, its artifact compiled,",
        "verified exact and evaluated to the digest of the RUN. The test part was read once a run, at its end. BOPs in",
        "the convention `sbs` (8-bit ends) where the method names no other. *Front*: top-1 less that of the `uniform`",
        "points of as many epochs, means over their seeds, joined by straight lines over ln BOPs.",
    ]
    families = dict.fromkeys(run.family for run in runs)
    for family in sorted(families, key=str):
        lines += ["", *_family([run for run in runs if run.family == family])]
    return "\n".join(lines) + "\n"


def _family(runs: Sequence[Kept]) -> list[str]:
    from ..cli.tables import Column, Table, to_markdown

    dataset, model, images = runs[0].family
    part = f", {images:,} training images" if images else ""
    said = METRICS[runs[0].metric]
    rows = [
        {
            "label": run.label, "budget": ", ".join(run.settings["budget"]) or None,
            "accuracy": f"{run.accuracy:.2f}", "drop": f"{run.accuracy - run.baseline:+.2f}",
            "front": _against_front(run, runs), "bops": run.result["bops"], "share": f"{run.share:.3f}",
            "bytes": run.result["weight_bytes"], "kept": _kept(run), "widths": _widths(run), "epochs": _epochs(run),
            "seconds": f"{run.result['seconds']:.0f}", "seed": run.settings["seed"],
            "name": f"[{run.name}](searches/{run.name})",
        }
        for run in sorted(runs, key=lambda r: (-r.share, r.label, r.epochs, r.settings["seed"]))
    ]  # fmt: skip
    columns = (
        Column("label", "method"), Column("budget", "budget"), Column("accuracy", f"{said} %"),
        Column("drop", "to float"),
        Column("front", "to front"), Column("bops", "BOPs", "count"), Column("share", "% of fp32"),
        Column("bytes", "weight bytes", "int"), Column("kept", "pruned layers"),
        Column("widths", "inner layers at w/a 2, 4, 8"),
        Column("epochs", "epochs"), Column("seconds", "s"), Column("seed", "seed", "int"), Column("name", "run"),
    )  # fmt: skip
    floats = ", ".join(f"{f:.2f} %" for f in sorted({run.baseline for run in runs}))
    hosts = ", ".join(sorted({f"{r.result['host']['cpu']}, {r.settings['threads']} thread(s)" for r in runs}))
    dates = sorted({run.checks["date"] for run in runs})
    lines = [
        f"## {model}, {dataset}{part}",
        "",
        f"Float network {floats} {said} of {runs[0].result['n']:,} test images. {hosts}; {dates[0]}"
        + (f" to {dates[-1]}" if dates[-1] != dates[0] else "")
        + ". Times are those of a machine that other work shared.",
        "",
        to_markdown(Table("", columns, rows)).rstrip(),
    ]
    lines += _seeds(runs)
    if (model, dataset) in PUBLISHED and not images:
        told = [{"m": p.method, "t": f"{p.top1:.1f}", "b": p.bops, "s": p.source} for p in PUBLISHED[model, dataset]]
        heads = Column("m", "published"), Column("t", "top-1 %"), Column("b", "BOPs", "count"), Column("s", "source")
        lines += ["", to_markdown(Table("", heads, told)).rstrip()]
    for run in runs:
        if run.settings["method"] != "uniform":
            lines += ["", f"**{run.name}**: `{command(run)}`{_note(run)}", "", _layers(run)]
    uniform = [run for run in runs if run.settings["method"] == "uniform"]
    if uniform:
        lines += ["", "Uniform points:", "", *(f"- {run.name}: `{command(run)}`{_note(run)}" for run in uniform)]
    return lines


def _note(run: Kept) -> str:
    return f". {run.checks['note']}" if run.checks.get("note") else ""


def _epochs(run: Kept) -> str:
    parts = [("float", "epochs_float"), ("search", "epochs_search"), ("fine-tune", "epochs_finetune")]
    shown = [f"{run.settings[key]} {name}" for name, key in parts if run.settings[key]]
    return " + ".join(shown)


def _against_front(run: Kept, runs: Sequence[Kept]) -> str | None:
    if run.settings["method"] == "uniform" or run.convention != "sbs":
        return None
    seeds: dict[tuple[str, float], list[float]] = {}
    for r in runs:
        if r.settings["method"] == "uniform" and r.epochs == run.epochs:
            seeds.setdefault((r.label, r.share), []).append(r.accuracy)
    level = front_at([(share, statistics.fmean(tops)) for (_, share), tops in seeds.items()], run.share)
    return None if level is None else f"{run.accuracy - level:+.2f}"


def _inner(run: Kept) -> list[Mapping[str, Any]]:
    layers: list[Mapping[str, Any]] = run.checks["layers"]
    return layers[1:-1]


def _kept(run: Kept) -> str:
    cut = [row for row in run.checks["layers"] if row["channels_kept"] < row["channels_total"]]
    kept, whole = (sum(row[key] for row in cut) for key in ("channels_kept", "channels_total"))
    return f"{len(cut)} ({kept}/{whole})" if cut else "0"


def _widths(run: Kept) -> str:
    def count(key: str) -> str:
        return " ".join(str(sum(row[key] == bits for row in _inner(run))) for bits in (2, 4, 8))

    mixed = sum(row["w_bits"] is None for row in _inner(run))
    return f"{count('w_bits')}{f' + {mixed} mixed' if mixed else ''} / {count('a_bits')}"


def _layers(run: Kept) -> str:
    """One line: every layer as name wXaY, with the channels that stay where some went."""
    out = []
    for row in run.checks["layers"]:
        held = sorted((row.get("w_bits_hist") or {}).items())
        widths = row["w_bits"] or "/".join(f"{bits}:{filters}" for bits, filters in held)
        cut = row["channels_kept"] < row["channels_total"]
        out.append(
            f"{row['name']} w{widths}a{row['a_bits']}"
            + (f" ({row['channels_kept']}/{row['channels_total']})" if cut else "")
        )
    return ", ".join(out) + "."


def _seeds(runs: Sequence[Kept]) -> list[str]:
    """Mean and deviation where settings were run with several seeds; the last run of each counts."""
    alike: dict[tuple[str, ...], dict[int, Kept]] = {}
    for run in sorted(runs, key=lambda r: str(r.checks.get("time", r.checks["date"]))):
        key = (run.label, ", ".join(run.settings["budget"]), _epochs(run))
        alike.setdefault(key, {})[run.settings["seed"]] = run
    rows = []
    for (label, budget, epochs), by_seed in sorted(alike.items()):
        if len(found := [*by_seed.values()]) > 1:
            tops, shares = [r.accuracy for r in found], [r.share for r in found]
            top1 = f"{statistics.mean(tops):.2f} ± {statistics.stdev(tops):.2f}"
            rows.append(f"| {label} | {budget} | {epochs} | {len(found)} | {top1} | {statistics.mean(shares):.3f} |")
    if not rows:
        return []
    head = [
        "| method | budget | epochs | seeds | top-1 %, mean ± std | % of fp32, mean |",
        "| --- | --- | --- | --: | --: | --: |",
    ]
    return ["", *head, *rows]


if __name__ == "__main__":
    sys.exit(main())
