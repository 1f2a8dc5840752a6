"""`bitpress compare`: the gate of continuous integration; is NEW worse than BASE, in facts or in time?

Exit code 1 where it is, 5 where that cannot be said on this host.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import click

from ..benchmarks.facts import KEYS, WORSE
from ..core.errors import UsageError
from ..core.host import write_bytes
from . import environment
from .command import Common, Result, Words, verb, writable
from .tables import Column, Table, cell

CHECKS = (
    Column("what", "fact"), Column("base_text", "BASE"), Column("new_text", "NEW"), Column("change", "NEW is"),
    Column("state", ""),
)  # fmt: skip
TIMES = (
    Column("pairs", "pairs", "int"), Column("base", "BASE ms", "ms"), Column("new", "NEW ms", "ms"),
    Column("ratio", "NEW / BASE", "float"), Column("lo", "from", "float"), Column("hi", "to", "float"),
    Column("detectable", "detectable", "float"),
)  # fmt: skip
TRIALS = (Column("ratio", "planted", "float"), Column("share", "failed", "percent"))


@verb("compare")
@click.argument("base", metavar="BASE")
@click.argument("new", metavar="[NEW]", required=False)
@click.option("--self-check", is_flag=True, help="Compare BASE with itself: how sharp is this host?")
@click.option("--facts", is_flag=True, help="Leave times out: bytes, BOPs, launches, kernels and outputs only.")
@click.option("--allow", type=Words(), metavar="KEY,KEY", default="",
              help=f"Accept a change: {', '.join(KEYS)}.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit 1 where the verdict is inconclusive, too.")
@click.option("--tolerance", type=click.FloatRange(0, 10), default=0.05, help="Share by which NEW may be slower.")
@click.option("--floor", type=click.FloatRange(0), default=0.001, metavar="MS", help="Never a slow-down, below that.")
@click.option("--pairs", type=click.IntRange(1, 1000), default=96, help="Pairs of processes of one batch, at most.")
@click.option("--seconds", type=click.FloatRange(0.01, 60), default=0.3, help="Time for each process.")
@click.option("--batch", type=click.IntRange(1, 65536), default=1, help="Images at a time.")
@click.option("--max-ms", type=click.FloatRange(0, min_open=True), metavar="MS", help="Budget of NEW, on --host only.")
@click.option("--host", metavar="CPU", help="Processor for which --max-ms holds, as doctor names it.")
@click.option("--runtime-base", metavar="F", help="BASE runs in this build of bitpress-run.")
@click.option("--runtime-new", metavar="F", help="NEW runs in this build of bitpress-run.")
@click.option("--env-base", metavar="K=V", multiple=True, help="A BITPRESS_ variable for BASE; repeatable.")
@click.option("--env-new", metavar="K=V", multiple=True, help="A BITPRESS_ variable for NEW; repeatable.")
@click.option("--junit", metavar="PATH", help="Write what was found there as a JUnit file, too.")
def command(
    common: Common, base: str, new: str | None, *, self_check: bool, facts: bool, allow: tuple[str, ...], strict: bool,
    tolerance: float, floor: float, pairs: int, seconds: float, batch: int, max_ms: float | None, host: str | None,
    runtime_base: str | None, runtime_new: str | None, env_base: tuple[str, ...], env_new: tuple[str, ...],
    junit: str | None,
) -> Result:  # fmt: skip
    """Checks that NEW is not worse than BASE: facts first, then times of interleaved pairs of processes.

    BASE and NEW are .bpk files, or .json files that --json of this verb or pytest-benchmark wrote: these have facts,
    and times that are held against --max-ms only. Without NEW: BASE again, in --runtime-new or under --env-new.
    """
    from ..benchmarks.compare import Request, Setting, compare
    from ..benchmarks.gate import FAIL, INCONCLUSIVE, Rule
    from . import junit as xml

    if junit is not None:
        import junitparser  # noqa: F401  (missing: said before anything is timed)

        writable("--junit", junit)
    request = Request(
        base=base, new=new, base_setting=Setting(runtime_base, _variables("base", env_base)),
        new_setting=Setting(runtime_new, _variables("new", env_new)), self_check=self_check, allow=allow,
        timed=not facts, rule=Rule(tolerance=tolerance, floor=floor, most=pairs), seconds=seconds, batch=batch,
        threads=common.thread, seed=common.seed, max_ms=max_ms, host=host,
    )  # fmt: skip
    document = compare(request, common.progress)
    if junit is not None:
        write_bytes(Path(junit), xml.to_junit(document, strict=strict))
    failed = document["verdict"] == FAIL or (strict and document["verdict"] == INCONCLUSIVE)
    return Result(document, tables(document), _notes(document), document["why"] if failed else "")


def _variables(side: str, given: tuple[str, ...]) -> dict[str, str]:
    """K=V pairs as a mapping, each with a value that its variable may have."""
    out = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--env-{side} {text}: NAME=VALUE expected")
        out[key] = value
    if out:
        environment.check({**os.environ, **out})
    return out


def tables(document: Mapping[str, Any]) -> list[Table]:
    """Facts; times, where there are any; what a self-check found."""
    rows = [
        {**row, "base_text": _text(row, "base"), "new_text": _text(row, "new"), "state": _state(row)}
        for row in document["deterministic"]["checks"]
    ]
    out = [Table("Facts", CHECKS, rows)]
    if document["paired"]:
        pairs = [pair for batch in document["paired"]["batches"] for pair in batch]
        lo, hi = document["ci"]
        row = {
            "pairs": len(pairs), "base": median(b for b, _ in pairs), "new": median(n for _, n in pairs),
            "ratio": document["ratio"], "lo": lo, "hi": hi, "detectable": document["detectable"],
        }  # fmt: skip
        out.append(Table("Time", TIMES, [row]))
    if document["self_check"]:
        found = document["self_check"]
        planted = [{"ratio": 1.0, "share": found["false_alarms"]}, *found["caught"]]
        out.append(Table(f"The rule on this host's noise, {found['trials']} resampled decisions each", TRIALS, planted))
    return out


def _text(row: Mapping[str, Any], side: str) -> str:
    value = row[side]
    if isinstance(value, Mapping):
        cost = "" if value["cost"] is None else f" ({value['cost']:.3g} us)"
        return f"{value['kernel']}{cost}"
    return str(value)[:12] if row["key"] == "output" else cell(value, "int" if isinstance(value, int) else "text")


def _state(row: Mapping[str, Any]) -> str:
    if not row["passed"]:
        return "FAILS"
    return "allowed" if row["allowed"] and row["change"] in WORSE else ""


def _notes(document: Mapping[str, Any]) -> list[str]:
    paired, said = document["paired"], [f"{document['verdict']}: {document['why']}"]
    if document["left_out"]:
        said.append(f"times were not compared: {document['left_out']}")
    if paired and document["detectable"] > 1 + 2 * paired["tolerance"]:
        said.append(
            f"this host cannot see slow-downs below {document['detectable']:.3f}: more --pairs, or a quieter host"
        )
    return said
