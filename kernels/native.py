"""Rows of the native module, read as data from the one list that C++ reads too. Needs no native module."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from .kernel import Kernel

HERE = Path(__file__).resolve().parent
_ROW = re.compile(r"^(KERNEL|ISA)\((.*)\)\s*$", re.MULTILINE)


@lru_cache(maxsize=1)
def rows() -> tuple[Kernel, ...]:
    """Rows of kernels.def in their order."""
    out = []
    for _, text in _ROW.findall((HERE / "kernels.def").read_text(encoding="utf-8")):
        family, isa, op, *numbers = [part.strip() for part in text.split(",")]
        w_from, w_to, a_from, a_to, lanes, group = map(int, numbers[:6])
        bits = range(w_from, w_to + 1), range(a_from, a_to + 1)
        out.append(Kernel(f"{family}_{isa}", family, op, isa, *bits, lanes, group))
    return tuple(out)


@lru_cache(maxsize=1)
def isas() -> tuple[str, ...]:
    """Names of isa.def, best last."""
    text = (HERE / "isa.def").read_text(encoding="utf-8")
    return tuple(row.split(",")[0].strip() for kind, row in _ROW.findall(text) if kind == "ISA")


@lru_cache(maxsize=1)
def contained() -> dict[str, tuple[str, ...]]:
    """ISA of isa.def -> the ISAs whose rows it may run, itself included."""
    text = (HERE / "isa.def").read_text(encoding="utf-8")
    found = {}
    for kind, row in _ROW.findall(text):
        if kind == "ISA":
            name, contains = [part.strip() for part in row.split(",")][:2]
            found[name] = (*filter(None, contains.strip('"').split("|")), name)
    return found
