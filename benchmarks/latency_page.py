"""Time, predicted and measured: a latency table's word on plans that it did not learn from, and RUNs that were searched
for a time, timed against their own network at w8a8, unpruned.

    python -m bitpress.benchmarks.latency_page TABLE.json [NAME=RUN ...] -o benchmarks/results/latency.md
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..cli.tables import Column, Table, to_markdown
from ..compiler import artifact
from ..compiler.model import Model
from ..compiler.pipeline import compile_graph
from ..core.cost import largest, search_space
from ..core.errors import BitpressError, CheckFailed, UsageError
from ..core.host import cpu_name, write_text
from ..core.latency import load_table, read_document
from ..core.rundir import RESULT, Run, load_run, read_json
from .harness import measure, ratio
from .latency_networks import judged, noise_net, verified_model

SECONDS = 5.0  # of timing for each RUN
NETWORKS = (
    Column("model", "network"), Column("checks", "plans", "int"), Column("error", "median error"),
    Column("largest", "largest"), Column("rank", "rank correlation"), Column("range", "measured, ms"),
)  # fmt: skip
RUNS = (
    Column("name", "run"), Column("method", "method"), Column("budget", "budget"), Column("top1", "top-1 %"),
    Column("bops", "BOPs", "count"), Column("w8a8", "w8a8 ms"), Column("ms", "ms"),
    Column("predicted", "share predicted"), Column("measured", "share measured"),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code as everywhere."""
    parser = argparse.ArgumentParser(prog="python -m bitpress.benchmarks.latency_page", description=__doc__)
    parser.add_argument("table", metavar="TABLE.json", type=Path, help="of bitpress profile, on this machine")
    parser.add_argument("runs", metavar="NAME=RUN", nargs="*", help="searched with a budget of latency")
    parser.add_argument("-o", "--output", type=Path, help="page to write; default: stdout")
    asked = parser.parse_args(arguments)
    try:
        text = page(asked.table, dict(_named(word) for word in asked.runs))
        print(text, end="") if asked.output is None else write_text(asked.output, text)
    except BitpressError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _named(word: str) -> tuple[str, str]:
    name, equals, run = word.partition("=")
    if not equals:
        raise UsageError(f"{word!r} is no NAME=RUN")
    return name, run


def page(table: Path, runs: Mapping[str, str]) -> str:
    """The page; UsageError where the table is of another machine."""
    host = load_table(table).document()
    if host["cpu"] != cpu_name():
        raise UsageError(f"{table} was made on {host['cpu']}, not on {cpu_name()}: run bitpress profile here")
    document = read_document(table)
    models = " ".join(dict.fromkeys(network["model"] for network in document["networks"]))
    words = " ".join(["table.json", *(f"{name}=runs/{name}" for name in runs)])
    lines = [
        "# Time, predicted and measured",
        "",
        f"Written by `bitpress profile {models} -o table.json` and",
        f"`python -m bitpress.benchmarks.latency_page {words}`",
        f"on {datetime.date.today()}: {host['cpu']}, {host['isa']}, {host['threads']} thread(s). Plans are spread from",
        "the narrowest to the whole network; the table learned from others.",
        "",
        to_markdown(Table("", NETWORKS, [_network(network) for network in document["networks"]])).rstrip(),
    ]  # fmt: skip
    if runs:
        rows = [_row(name, load_run(run), host["threads"]) for name, run in runs.items()]
        lines += [
            "",
            "Searched for a share of the network's own time at w8a8, unpruned; both networks in turns, in one process,",
            "the share measured being the median of the ratios of neighbouring blocks. Outputs equal those of numpy.",
            "",
            to_markdown(Table("", RUNS, rows)).rstrip(),
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _network(network: Mapping[str, Any]) -> dict[str, Any]:
    checks = network["checks"]
    found, measured = judged(checks), [check["measured"] for check in checks]
    return {
        "model": network["model"], "checks": found["checks"], "error": _percent(found["error"]),
        "largest": _percent(max(abs(c["predicted"] / c["measured"] - 1) for c in checks)),
        "rank": f"{found['rank']:.2f}", "range": f"{min(measured):.3f} to {max(measured):.3f}",
    }  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _row(name: str, run: Run, threads: int) -> dict[str, Any]:
    result = read_json(run.path / RESULT)
    if not result.get("latency"):
        raise UsageError(f"{run.path} was searched without a budget of latency")
    net, image = noise_net(run.graph, search_space(run.graph), run.plan.residual, seed=0)
    models = {
        "w8a8": verified_model(net, largest(net.space), threads),
        "searched": Model(artifact.encode(compile_graph(run.graph, run.plan, run.tensors, run.meta)), threads=threads),
    }
    if not models["searched"].golden_check():
        raise CheckFailed(f"{run.path}, compiled, differs from the numpy reference on its golden sample")
    times = measure({key: partial(model.session.run, image) for key, model in models.items()}, seconds=SECONDS)
    return {
        "name": name, "method": result["method"], "budget": ", ".join(result["budget"]),
        "top1": f"{result['top1']:.2f}", "bops": result["bops"], "w8a8": f"{times['w8a8'].median:.3f}",
        "ms": f"{times['searched'].median:.3f}",
        "predicted": _percent(result["latency"] / result["latency_table"]["w8a8"]),
        "measured": _percent(ratio(times["searched"], times["w8a8"])),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
