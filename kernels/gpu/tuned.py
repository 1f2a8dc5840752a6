"""Tiles that were timed: one JSON table a device, made by `bitpress profile --device cuda`, over kernels/gpu/tiles.py.

A row serves its own problem and those near it; where there is none, the pure choice of tiles.py stands. Tables of
BITPRESS_CACHE_DIR come before those of the package. A tile changes times, never values. Knows no torch and no triton.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...core.errors import CorruptError
from .layout import Form
from .tiles import Tile

SCHEMA, VERSION = "bitpress.tiles", 1
TABLES = Path(__file__).parent / "tables"
REACH = 2.0  # a row serves problems whose pixels, rows and depth are at most so many times more or fewer
LIMITS = {"pixels": 256, "rows": 512, "blocks": 64, "warps": 16, "stages": 8, "splits": 64}


@dataclass(frozen=True, slots=True)
class Row:
    """The fastest tile of a family for a problem: bits of a weight and of a stored activation, taps, and sizes."""

    family: str
    w_bits: int
    a_bits: int
    taps: int
    pixels: int
    rows: int
    depth: int
    tile: Tile


def own(device: str) -> Path:
    """Where the table of this host lies that `profile` makes for the GPU of that name."""
    folder = os.environ.get("BITPRESS_CACHE_DIR") or Path.home() / ".cache" / "bitpress"
    return Path(folder) / f"tiles_{_slug(device)}.json"


def found(device: str) -> Path | None:
    """The table that launches on the GPU of that name read, None without one."""
    places = own(device), TABLES / f"{_slug(device)}.json"
    return next((path for path in places if path.is_file()), None)


@lru_cache(maxsize=8)
def table(device: str) -> tuple[Row, ...]:
    """Rows for the GPU of that name, none without a table; CorruptError where it is none. Read once a process."""
    path = found(device)
    if path is None:
        return ()
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} is no table of tiles ({error}): remove it, or make it again") from error


def parse(document: Mapping[str, Any]) -> tuple[Row, ...]:
    """Rows of a document; KeyError, TypeError, ValueError where it is none."""
    if (document["schema"], document["schema_version"]) != (SCHEMA, VERSION):
        raise ValueError(f"schema {document['schema']} {document['schema_version']}, not {SCHEMA} {VERSION}")
    sizes = [f.name for f in fields(Row) if f.type == "int"]
    return tuple(
        Row(str(r["family"]), **{name: int(r[name]) for name in sizes}, tile=_tile(r["tile"])) for r in document["rows"]
    )


def best(rows: tuple[Row, ...], family: str, form: Form, pixels: int) -> Tile | None:
    """The tile of the nearest row of the same family, widths and taps within reach; None where there is none."""
    near = [(_distance(row, form, pixels), i) for i, row in enumerate(rows) if _alike(row, family, form)]
    least = min(near, default=(math.inf, 0))
    return rows[least[1]].tile if least[0] < math.inf else None


def _alike(row: Row, family: str, form: Form) -> bool:
    mine = family, form.encoding.bits, form.act.bits, form.taps
    return (row.family, row.w_bits, row.a_bits, row.taps) == mine


def _distance(row: Row, form: Form, pixels: int) -> float:
    """Sum of the ratios' logarithms; infinite out of reach."""
    pairs = (row.pixels, pixels), (row.rows, form.rows), (row.depth, form.depth)
    ratios = [abs(math.log2(a / b)) for a, b in pairs]
    return math.inf if max(ratios) > math.log2(REACH) else sum(ratios)


def _tile(given: Mapping[str, Any]) -> Tile:
    tile = Tile(**given)
    for name, most in LIMITS.items():
        value = getattr(tile, name)
        power = isinstance(value, int) and value > 0 and (name == "stages" or value & (value - 1) == 0)
        if not power or value > most:
            raise ValueError(f"{name} of a tile is {value!r}: a power of two up to {most}, stages any number")
    return tile


def _slug(device: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in device.lower()).strip("-")
