"""`python -m bitpress.benchmarks.methods RUNS --latency-table T.json`: every search method under every kind of budget.

On digits, from one float network, with short trainings: is a budget kept and used, does what comes out compile, is it
exact, and do RUN and artifact predict alike. How well a method searches is not asked here. A row that is done stays in
methods.json; the same command goes on with the others. Not part of CI: it takes about an hour of one core.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..core.cost import KINDS, Costs, hold_bits, hold_channels, largest, parse_budget, plan_cost, search_space
from ..core.encoding import parse_bits
from ..core.errors import BitpressError, CheckFailed, Interrupted, UsageError
from ..core.graph import Graph
from ..core.host import head, write_text
from ..core.job import sha256
from ..core.plan import WEIGHT_BITS
from ..core.rundir import FLOAT, load_run, read_json, write_json
from .searches import LEAST_USED, checked, used

MODEL, DATA = "digits_cnn", "digits"
STORE = Path(__file__).parent / "results"
NAME = "methods"
LATENCY_SLACK = 0.02  # of a budget of time, as predicted
ACT_BITS = (2, 4, 8)  # of uniform points
EPOCHS = {"epochs_search": 3, "epochs_finetune": 1}
EPISODES = 40
# Shares of BOPs and bytes in floats, and of the time at w8a8. The least of each is one that a uniform point reaches.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "bops": ("2%", "1%", "0.5%"), "size": ("16%", "10%", "7%"), "latency": ("85%", "75%", "65%"),
}  # fmt: skip
assert tuple(TARGETS) == KINDS


@dataclass(frozen=True, slots=True)
class Contender:
    """A method with the options that make it another row of the table. `pruning`: held to `LEAST_USED` of a budget."""

    name: str
    options: Mapping[str, Any]
    pruning: bool = True


CONTENDERS = (
    Contender("sbs", {"method": "sbs"} | EPOCHS),
    Contender("djpq", {"method": "djpq"} | EPOCHS),
    Contender("ajpq", {"method": "ajpq", "episodes": EPISODES} | EPOCHS),
    Contender("bayesian-bits", {"method": "bayesian-bits"} | EPOCHS),
    Contender("two-stage", {"method": "two-stage"} | EPOCHS),
    Contender("two-stage --stages-of djpq", {"method": "two-stage", "stages_of": "djpq"} | EPOCHS),
    Contender("uniform", {"method": "uniform", "epochs_finetune": sum(EPOCHS.values())}, pruning=False),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where a promise does not hold, with the row named; or that of what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m bitpress.benchmarks.methods", description=__doc__)
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder for the RUNs and the float network")
    parser.add_argument("--latency-table", type=Path, required=True, help=f"of `bitpress profile {MODEL}`")
    parser.add_argument("-o", type=Path, default=STORE, metavar="DIR", help="where methods.json and methods.md go")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        return run(options.runs, options.latency_table, options.o, options.threads)
    except BitpressError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return error.exit_code


def cases() -> Iterator[tuple[Contender, str]]:
    """Every row's method and budget: all methods at one target of each kind before the next."""
    for shares in zip(*TARGETS.values(), strict=True):
        for (kind, share), contender in itertools.product(zip(KINDS, shares, strict=True), CONTENDERS):
            yield contender, f"{kind}={share}"


def run(runs: Path, table: Path, store: Path, threads: int) -> int:
    """Makes the rows that are not there yet; 1 if a promise does not hold in one of all."""
    document = _document(store / f"{NAME}.json", table, threads)
    weights = _float(runs / "float", threads)
    todo = [case for case in cases() if _key(*case) not in document["rows"]]
    began = time.monotonic()
    for number, (contender, budget) in enumerate(todo):
        key = _key(contender, budget)
        row = _row(contender, budget, runs / key.replace(" ", "_"), weights, table, threads)
        document["rows"][key] = row
        _write(store, document)
        left = (time.monotonic() - began) / (number + 1) * (len(todo) - number - 1)
        failed = "; ".join(row["failed"]) or "ok"
        print(f"{len(document['rows'])}/{len([*cases()])} {key}: {failed}; {left / 60:.0f} min left", file=sys.stderr)
    _write(store, document)
    return int(any(row["failed"] for row in document["rows"].values()))


def _key(contender: Contender, budget: str) -> str:
    return f"{contender.name} {budget}"


def _document(path: Path, table: Path, threads: int) -> dict[str, Any]:
    """What is done already, rows that failed left out; UsageError where it was done otherwise."""
    terms = {
        "model": MODEL, "data": DATA, "epochs": EPOCHS, "episodes": EPISODES, "threads": threads,
        "latency_table": sha256(table),
    }  # fmt: skip
    fresh = {**head("bitpress.methods", threads=threads), "terms": terms, "rows": {}}
    if not path.exists():
        return fresh
    found = read_json(path)
    if found["terms"] != terms or found["host"] != fresh["host"]:
        raise UsageError(f"{path} holds rows of {found['terms']} on {found['host']}; give another -o DIR")
    return {**found, "rows": {key: row for key, row in found["rows"].items() if not row["failed"]}}


def _float(folder: Path, threads: int) -> Path:
    """Weights of the float network that all rows start from, trained as `search` trains it."""
    from ..core.search import search

    search(MODEL, data=DATA, out=folder, method="uniform", bits="w8a8", epochs_finetune=1, threads=threads)
    return folder / FLOAT


def _row(
    contender: Contender, budget: str, out: Path, weights: Path, table: Path, threads: int
) -> dict[str, Any]:  # fmt: skip
    """One search, what came of it, and in `failed` every promise that does not hold."""
    from ..core.search import search

    options: dict[str, Any] = {**contender.options, "data": DATA, "weights": weights, "threads": threads}
    options |= {"budgets": [budget], "latency_table": table}
    row: dict[str, Any] = {"method": contender.name, "budget": budget, "bits": None, "failed": []}
    row["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    try:
        if not contender.pruning:
            row["bits"] = options["bits"] = widest(budget, table)
            row["failed"] += _not_refused(options["bits"], out, options)
        result = search(MODEL, out=out, **options)
        with tempfile.TemporaryDirectory() as folder:
            checks, failed = checked(out, Path(folder) / "net.bpk", DATA, result)
        row["failed"] += failed + _figures(out, table, result)
        (row["used"],) = (used(text, result) for text in result["budget"])
        row["failed"] += _budget_kept(contender, budget, row["used"])
        row |= {key: result[key] for key in ("top1", "baseline_top1", "bops", "weight_bytes", "latency", "seconds")}
        row |= {"predictions_sha256": checks["predictions_sha256"], **_plan(checks["layers"])}
    except Interrupted:
        raise
    except BitpressError as error:
        row["failed"].append(f"{type(error).__name__}: {error}")
    return row


def _budget_kept(contender: Contender, budget: str, share: float) -> list[str]:
    most = 1 + LATENCY_SLACK if budget.startswith("latency") else 1
    least = LEAST_USED if contender.pruning else 0
    return [] if least <= share <= most else [f"{100 * share:.2f} % of the budget used"]


def _figures(out: Path, table: Path, result: Mapping[str, Any]) -> list[str]:
    """Whether the plan, priced anew from the RUN and the table, costs what the result says."""
    from ..core.search import on_target

    run = load_run(out)
    found = plan_cost(run.graph, run.plan, "sbs", on_target(table, run.graph, MODEL, run.plan.residual))
    keys = {"bops": "bops", "size": "weight_bytes", "latency": "latency"}
    return [
        f"{kind} of the plan is {found[kind]:.10g}, the result says {result[key]:.10g}"
        for kind, key in keys.items() if abs(found[kind] - result[key]) > 1e-9 * found[kind]
    ]  # fmt: skip


def widest(budget: str, table: Path) -> str:
    """The first of `_pairs` that a budget allows; CheckFailed: none."""
    fitting = [bits for bits in _pairs() if _fits(bits, budget, table)]
    if not fitting:
        raise CheckFailed(f"budget {budget}: no uniform widths fit")
    return fitting[0]


def _pairs() -> list[str]:
    """Uniform widths, the largest product first; of equal ones the most even, then those of the wider activations."""
    found = sorted(itertools.product(WEIGHT_BITS, ACT_BITS), key=lambda p: (-p[0] * p[1], -min(p), -p[1]))
    return [f"w{w}a{a}" for w, a in found]


def _fits(bits: str, budget: str, table: Path) -> bool:
    from ..core.search import on_target

    space = hold_bits(_graph(), hold_channels(search_space(_graph())), parse_bits(bits))
    costs = Costs(_graph(), replace(space, target=on_target(table, _graph(), MODEL, "int8")))
    return not costs.over(largest(costs.space), [parse_budget(budget)])


@cache
def _graph() -> Graph:
    from ..core.network import network

    return network(MODEL, floats=True).graph


def _not_refused(bits: str, out: Path, options: Mapping[str, Any]) -> list[str]:
    """Wider uniform widths that the search takes all the same; it refuses them before any work."""
    from ..core.search import search

    failed = []
    for wider in itertools.takewhile(lambda pair: pair != bits, _pairs()):
        try:
            search(MODEL, out=out.with_name(f"{out.name}-{wider}"), **{**options, "bits": wider})
        except CheckFailed:
            continue
        failed.append(f"{wider} is wider than {bits} and was not refused")
    return failed


def _plan(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Channels of the layers that lost some, and the widths of the layers between the ends."""
    cut = [row for row in layers if row["channels_kept"] < row["channels_total"]]
    inner = layers[1:-1]
    widths = [row.get("w_bits_hist") or {str(row["w_bits"]): row["channels_kept"]} for row in inner]
    return {
        "pruned_layers": len(cut), "kept": sum(row["channels_kept"] for row in layers),
        "whole": sum(row["channels_total"] for row in layers),
        "w_bits": sorted({int(bits) for row in widths for bits in row}), "a_bits": sorted({r["a_bits"] for r in inner}),
        "mixed_layers": sum(len(row) > 1 for row in widths),
    }  # fmt: skip


def _write(store: Path, document: Mapping[str, Any]) -> None:
    write_json(store / f"{NAME}.json", document)
    write_text(store / f"{NAME}.md", page(document))


def page(document: Mapping[str, Any]) -> str:
    """methods.md: what the document holds, rows in the order of the list."""
    from ..cli.tables import Column, Table, to_markdown

    keys = [_key(*case) for case in cases()]
    rows = [document["rows"][key] for key in keys if key in document["rows"]]
    columns = (
        Column("method", "method"), Column("budget", "budget"), Column("share", "used %"),
        Column("bops", "BOPs", "count"), Column("weight_bytes", "weight bytes", "int"), Column("us", "us, predicted"),
        Column("top1", "top-1 %"), Column("channels", "channels kept"), Column("pruned_layers", "pruned layers", "int"),
        Column("w", "w bits"), Column("a", "a bits"), Column("mixed_layers", "layers of several w", "int"),
        Column("checks", "checks"),
    )  # fmt: skip
    terms, dates = document["terms"], sorted({row["date"] for row in rows})
    lines = [
        "# Every method under every budget", "",
        "Written by `python -m bitpress.benchmarks.methods RUNS --latency-table T.json`; T.json by",
        f"`bitpress profile {MODEL} -o T.json`, SHA-256 {terms['latency_table'][:16]}. {document['host']['cpu']}, "
        f"{terms['threads']} thread(s), " + " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])) + ".",
        f"{len(rows)} of {len(keys)} rows" + ("." if len(rows) == len(keys) else "; the same command makes the rest."),
        "",
        f"{MODEL} on {DATA}, from one float network, {EPOCHS['epochs_search']} epochs of search and "
        f"{EPOCHS['epochs_finetune']} of fine-tuning:",
        "enough to see that budgets hold, not how well a method searches. *Checks* is ok where BOPs and bytes stay",
        f"within the budget and time within {100 * LATENCY_SLACK:g} % of it as predicted from the table (the plan",
        f"priced anew), pruning methods use {100 * LEAST_USED:g} % at least, the uniform widths are the widest",
        "that fit and wider ones are refused, the artifact is exact, and RUN, artifact and search predict alike.",
        "",
        to_markdown(Table("", columns, [_shown(row) for row in rows])).rstrip(),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    if "top1" not in row:
        return {**row, "checks": "; ".join(row["failed"])}
    return {
        **row, "method": " ".join(filter(None, (row["method"], row["bits"]))), "share": f"{100 * row['used']:.1f}",
        "us": f"{1000 * row['latency']:.1f}", "top1": f"{row['top1']:.1f}", "channels": f"{row['kept']}/{row['whole']}",
        "w": " ".join(map(str, row["w_bits"])), "a": " ".join(map(str, row["a_bits"])),
        "checks": "; ".join(row["failed"]) or "ok",
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
