"""A sweep: one search a budget, each a RUN of its own in one folder, and what of them lies on the front.

The float network is trained once: all points but the first start from what that one trained, or from the weights that
were given. An interrupted sweep goes on where it was, since finished RUNs only give their results again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cost import parse_budget
from .errors import UsageError
from .host import head
from .rundir import FLOAT, SETTINGS, write_json
from .search import search

PARETO = "pareto.json"
FIGURES = {"bops": "bops", "size": "weight_bytes", "latency": "latency"}  # kind of budget -> key of a result
TOLD = ("top1", "baseline_top1", "iou", "baseline_iou", "bops", "bops_ratio", "weight_bytes", "latency", "predictions_sha256", "seconds")


def swept(budgets: Sequence[str]) -> bool:
    """Whether a budget is a list by comma, which makes the search a sweep."""
    return any("," in text for text in budgets)


def points(budgets: Sequence[str]) -> tuple[str, list[tuple[str, ...]]]:
    """(kind, budgets of each point), the tightest first: what cannot be reached is refused before any work.

    >>> points(["bops=4%,1%", "size=20%"])
    ('bops', [('bops=1%', 'size=20%'), ('bops=4%', 'size=20%')])
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
    return kind, [(b.text, *rest) for b in sorted(found, key=lambda b: b.value)]


def sweep(
    model: str,
    *,
    budgets: Sequence[str],
    out: str | Path,
    weights: str | Path | None = None,
    point: Callable[[str, int, int], None] = lambda _budget, _number, _count: None,
    **options: Any,
) -> dict[str, Any]:
    """Searches `model` under each budget of a list and gives the content of OUT/pareto.json, written after each.

    `options`, errors and resumption as of `search`; `point` is told the budget, its number and how many there are.
    UsageError: a folder that is a RUN itself.
    """
    kind, wanted = points(budgets)
    folder = Path(out)
    if (folder / SETTINGS).exists():
        raise UsageError(f"{folder} is a RUN of one search; give a sweep another --out")
    results: list[dict[str, Any]] = []
    document: dict[str, Any] = {}
    for number, texts in enumerate(wanted, 1):
        point(texts[0], number, len(wanted))
        run = folder / _name(texts[0])
        start = weights if number == 1 or weights is not None else folder / _name(wanted[0][0]) / FLOAT
        again = {"epochs_float": 0} if start is not None and weights is None else {}  # it is trained
        found = search(model, budgets=texts, out=run, weights=start, **options | again)
        results.append({"budget": list(texts), "run": run.name, **{key: found.get(key) for key in TOLD}})
        document = {
            **head("bitpress.pareto", threads=found["host"]["threads"]), "model": model, "data": found["data"],
            "method": found["method"], "mode": found["mode"], "bits": found["bits"], "seed": found["seed"],
            "kind": kind, "bops_convention": found["bops_convention"], "complete": len(results) == len(wanted),
            "points": on_front(results, FIGURES[kind]),
        }  # fmt: skip
        write_json(folder / PARETO, document)
    return document


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
