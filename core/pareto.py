"""A sweep: one search a budget, each a RUN of its own in one folder, and what of them lies on the front.

The float network is trained once: all points but the first start from what that one trained, or from the weights that
were given. The largest budget comes first; `warm`, each search begins with the net that the one before left, so that
gates only have to close further; `apart`, none waits for another but for the float network. An interrupted sweep goes
on where it was, since finished RUNs only give their results again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cost import parse_budget
from .errors import UsageError, close
from .host import head
from .parallel import joined, processes, rank, ready
from .rundir import EVENTS, FLOAT, SETTINGS, read_json, write_json
from .search import SEARCHES, method_of, search
from .train import Progress
from .workers import RAY, on_ray

PARETO = "pareto.json"
FIGURES = {"bops": "bops", "size": "weight_bytes", "latency": "latency"}  # kind of budget -> key of a result
WARM, APART = "warm", "apart"
WORKERS = ("", RAY)
TOLD = (
    "top1", "baseline_top1", "iou", "baseline_iou", "bops", "bops_ratio", "weight_bytes", "latency",
    "predictions_sha256", "seconds",
)  # fmt: skip


def swept(budgets: Sequence[str]) -> bool:
    """Whether a budget is a list by comma, which makes the search a sweep."""
    return any("," in text for text in budgets)


def points(budgets: Sequence[str]) -> tuple[str, list[tuple[str, ...]]]:
    """(kind, budgets of each point), the largest first.

    >>> points(["bops=1%,4%", "size=20%"])
    ('bops', [('bops=4%', 'size=20%'), ('bops=1%', 'size=20%')])
    """
    lists = [text for text in budgets if "," in text]
    if len(lists) != 1:
        raise UsageError(f"budgets {' '.join(budgets)}: a sweep moves one of them, the others are one bound each")
    kind, _, amounts = lists[0].partition("=")
    found = [parse_budget(f"{kind}={amount.strip()}") for amount in amounts.split(",")]
    if len({b.relative for b in found}) > 1:
        raise UsageError(f"budget {lists[0]!r}: give all bounds in % or none, so that they have an order")
    if len({b.value for b in found}) < len(found):
        raise UsageError(f"budget {lists[0]!r}: the same bound twice")
    rest = [text for text in budgets if text is not lists[0]]
    return kind, [(b.text, *rest) for b in sorted(found, key=lambda b: -b.value)]


@joined
def sweep(
    model: str,
    *,
    budgets: Sequence[str],
    out: str | Path,
    weights: str | Path | None = None,
    order: str | None = None,
    workers: str = "",
    point: Callable[[str, int, int], None] = lambda _budget, _number, _count: None,
    **options: Any,
) -> dict[str, Any]:
    """Searches `model` under each budget of a list and gives the content of OUT/pareto.json, written after each.

    `order`: `warm` or `apart`; by default warm where the method can and no `workers` are asked for. `workers`: "ray",
    processes of Ray in which points that are apart are searched beside each other, the first one before them where it
    has a float network to train. `options`, errors and resumption as of `search`; `point` is told the budget, its
    number and how many there are. UsageError: a folder that is a RUN itself, an order that makes no sense.
    """
    kind, wanted = points(budgets)
    folder = Path(out)
    if (folder / SETTINGS).exists():
        raise UsageError(f"{folder} is a RUN of one search; give a sweep another --out")
    method = options.get("method", next(iter(SEARCHES)))
    warm = _order(order, method, workers) == WARM
    ready()
    runs = [folder / _name(texts[0]) for texts in wanted]
    calls = [
        {
            "model": model, "budgets": texts, "out": runs[i],
            "weights": weights if i == 0 or weights is not None else runs[0] / FLOAT,
            "start": runs[i - 1] if warm and i else None,
            "followed": wanted[i + 1 :] if warm or not i else (),
            **options, **({"epochs_float": 0} if i and weights is None else {}),  # the first one has trained it
        }
        for i, texts in enumerate(wanted)
    ]  # fmt: skip
    found: dict[int, dict[str, Any]] = {}
    document: dict[str, Any] = {}
    for number, result in _results(calls, workers, point):
        found[number] = result
        results = [_told(result, found, i) | {"run": runs[i].name} for i, result in sorted(found.items())]
        document = {
            **head("bitpress.pareto", threads=result["host"]["threads"]), "model": model, "data": result["data"],
            "method": result["method"], "mode": result["mode"], "bits": result["bits"], "seed": result["seed"],
            "kind": kind, "bops_convention": result["bops_convention"], "order": WARM if warm else APART,
            "complete": len(found) == len(wanted), "points": on_front(results, FIGURES[kind]),
        }  # fmt: skip
        if rank() == 0:
            write_json(folder / PARETO, document)
    return document


def _order(said: str | None, method: str, workers: str) -> str:
    """warm or apart; UsageError for another word, or where the method or the workers cannot do it."""
    if workers not in WORKERS:
        raise UsageError(f"--workers {workers!r} is unknown{close(workers, WORKERS)}; valid: {RAY}")
    if said not in (None, WARM, APART):
        raise UsageError(f"--sweep {said!r} is none of {WARM}, {APART}{close(str(said), (WARM, APART))}")
    if workers and processes() > 1:
        raise UsageError(f"--workers {workers} under torchrun: start the sweep without torchrun")
    if said == WARM and workers:
        raise UsageError(
            f"--sweep {WARM} is a chain, each search waits for the one before; --workers {workers} goes with "
            f"--sweep {APART}"
        )
    can = method_of(method).warm
    if said == WARM and not can:
        names = ", ".join(name for name, row in SEARCHES.items() if row.warm)
        raise UsageError(f"--sweep {WARM} does nothing with --method {method}; it goes with {names}")
    return said or (WARM if can and not workers else APART)


def _results(
    calls: Sequence[dict[str, Any]], workers: str, point: Callable[[str, int, int], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of a point, its result), as they come."""
    if workers:
        look = _Look([Path(call["out"]) for call in calls], calls[0].get("progress"))
        shared: dict[str, Any] = {"progress": None, "threads": calls[0].get("threads") or 1}
        alone = calls[:1] if calls[0]["weights"] is None else ()  # trains what all others start from
        for first, some in ((0, alone), (len(alone), calls[len(alone) :])):
            for i, result in on_ray([{**call, **shared} for call in some], search, look):
                point(calls[first + i]["budgets"][0], first + i + 1, len(calls))
                yield first + i, result
        return
    for i, call in enumerate(calls):
        point(call["budgets"][0], i + 1, len(calls))
        yield i, search(**call)


class _Look:
    """Epochs that the RUNs of workers have logged, told as they come."""

    def __init__(self, runs: Sequence[Path], progress: Callable[[Progress], None] | None) -> None:
        self.progress, self.told, self.started = progress, 0, time.monotonic()
        self.seen = {run: len(_epochs(run)) for run in runs}

    def __call__(self) -> None:
        for run, seen in self.seen.items():
            for event in _epochs(run)[seen:]:
                self.seen[run], self.told = self.seen[run] + 1, self.told + 1
                fields = {k: v for k, v in event.items() if k not in ("event", "phase", "epoch", "epochs")}
                what = f"{run.name}: {event['phase']}"
                if self.progress is not None:
                    self.progress(Progress(what, event["epoch"], event["epochs"], 0, 1, fields, self._left()))

    def _left(self) -> float:
        """Seconds, if all epochs took alike; a RUN that has not begun is taken for one that trains no float network."""
        begun = [read_json(run / SETTINGS) for run in self.seen if (run / SETTINGS).exists()]
        each = [sum(found[f"epochs_{phase}"] for phase in ("float", "search", "finetune")) for found in begun]
        total = sum(each) + (len(self.seen) - len(each)) * min(each)
        return (time.monotonic() - self.started) / self.told * max(0, total - sum(self.seen.values()))


def _epochs(run: Path) -> list[dict[str, Any]]:
    """Events of epochs that a RUN holds, whole lines alone."""
    path = run / EVENTS
    lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == "epoch"]


def _told(result: Mapping[str, Any], found: Mapping[int, Mapping[str, Any]], number: int) -> dict[str, Any]:
    """A point of the document. `epochs_before`: that its net had been trained for when its own `epochs` began."""
    start, float_epochs = result["start"], found[0]["epochs"]["float"] if 0 in found else 0
    trained = {"float": float_epochs} if number and float_epochs else {}
    return {
        "budget": list(result["budget"]), "start": start and start["run"], "epochs": result["epochs"],
        "epochs_before": start["epochs"] if start else trained, **{key: result.get(key) for key in TOLD},
    }  # fmt: skip


def _name(budget: str) -> str:
    """Folder of a point."""
    return budget.replace("=", "-").replace("%", "pct")


def on_front(results: Sequence[Mapping[str, Any]], figure: str) -> list[dict[str, Any]]:
    """The results with `front`: whether no other is at least as good in accuracy and in the figure, and better in one.

    Accuracy is top-1, of detectors intersection over union.

    >>> [r["front"] for r in on_front([{"top1": 90, "bops": 2}, {"top1": 89, "bops": 3}], "bops")]
    [True, False]
    """

    def good(result: Mapping[str, Any]) -> float:
        return float(result["iou"] if result["top1"] is None else result["top1"])

    def beaten(mine: Mapping[str, Any]) -> bool:
        return any(
            (good(other) >= good(mine) and other[figure] <= mine[figure])
            and (good(other) > good(mine) or other[figure] < mine[figure])
            for other in results
        )

    return [{**result, "front": not beaten(result)} for result in results]
