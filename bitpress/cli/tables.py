"""Tables of a document in the formats of `-o`. Knows formats, not what a column means."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WORDS = ("text", "mark")  # kinds that stand at the left
FORMATS = ("table", "md", "csv", "json", "jsonl")
SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Column:
    """Where a cell comes from, what stands over it and how it is written.

    `kind`: "text"; "count" (12.3 M); "int" (12,345); "ms"; "us" (of milliseconds); "percent" (a share); "shape";
    "float"; "mark" (a word where true). For people only.
    """

    key: str
    header: str
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a document, with the columns that people see; machine formats give every key of a row."""

    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]
    footer: Mapping[str, Any] | None = None


def si(value: float) -> str:
    """Number with a decimal prefix.

    >>> si(41_798_600), si(950)
    ('41.8 M', '950')
    """
    for factor, sign in SI:
        if abs(value) >= factor:
            return f"{value / factor:.4g} {sign}"
    return f"{value:.4g}"


def cell(value: Any, kind: str) -> str:
    """One value as people read it; "-" where it is unknown."""
    if value is None or value == "":
        return "-"
    if kind == "mark":
        return "yes" if value else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if kind == "count":
        return si(value)
    if kind == "int":
        return f"{value:,}"
    if kind == "ms":
        return f"{value:.4f}" if value < 1 else f"{value:.3f}"
    if kind == "us":
        return f"{1e3 * value:.2f}" if value < 0.1 else f"{1e3 * value:.0f}"
    if kind == "percent":
        return f"{100 * value:.0f} %"
    if kind == "float":
        return f"{value:.4g}"
    if kind == "shape":
        return "x".join(map(str, value))
    return str(value)


def to_markdown(table: Table) -> str:
    """GitHub Markdown; numbers to the right."""
    heads = [c.header for c in table.columns]
    marks = ["---" if c.kind in WORDS else "--:" for c in table.columns]
    body = [_cells(table, row) for row in (*table.rows, *([table.footer] if table.footer else ()))]
    lines = ["| " + " | ".join(row) + " |" for row in (heads, marks, *body)]
    return "\n".join([f"**{table.title}**", "", *lines, ""] if table.title else [*lines, ""])


def to_csv(table: Table) -> str:
    """Every key of the rows; nested values as JSON."""
    keys = list(dict.fromkeys(key for row in table.rows for key in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(keys)
    for row in table.rows:
        writer.writerow([_plain(row.get(key)) for key in keys])
    return out.getvalue()


def to_jsonl(table: Table) -> str:
    """One JSON object a row."""
    return "".join(json.dumps(dict(row)) + "\n" for row in table.rows)


def to_rich(table: Table) -> Any:
    """A `rich` renderable."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    out = RichTable(
        title=table.title or None, title_justify="left", box=box.SIMPLE_HEAD, show_footer=bool(table.footer)
    )
    feet = _cells(table, table.footer) if table.footer else [""] * len(table.columns)
    for column, foot in zip(table.columns, feet, strict=True):
        text = column.kind in WORDS
        out.add_column(
            column.header, foot if foot != "-" else "", justify="left" if text else "right", no_wrap=not text,
            overflow="fold",
        )  # fmt: skip
    for row in table.rows:
        out.add_row(*map(Text, _cells(table, row)))  # brackets in a cell are no markup: bitpress[gpu]
    return out


def _cells(table: Table, row: Mapping[str, Any]) -> list[str]:
    return [cell(row.get(c.key), c.kind) for c in table.columns]


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list | tuple) else value
