"""What the environment variables may hold, checked before any verb begins. Loads nothing heavy unless one is set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec

from ..core.errors import EnvironmentMissing, UsageError, close
from ..core.host import cpu_features

REFERENCE = "reference"
RANK = "RANK"  # torchrun's: which of its processes this is
_ROW = re.compile(r'^ISA\((\w+),\s*"([^"]*)",\s*"([^"]*)"\)', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Isa:
    """One row of kernels/isa.def: name, rows that it may run too, CPU features that it needs."""

    name: str
    contains: tuple[str, ...]
    features: tuple[str, ...]


def speaks(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process prints: the first that torchrun started, or the only one."""
    return "TORCHELASTIC_RUN_ID" not in environment or environment.get(RANK, "0") == "0"


def isas() -> tuple[Isa, ...]:
    """The rows of kernels/isa.def, in its order."""
    text = files("bitpress.kernels").joinpath("isa.def").read_text(encoding="utf-8")
    return tuple(
        Isa(n, tuple(filter(None, c.split("|"))), tuple(filter(None, f.split("|")))) for n, c, f in _ROW.findall(text)
    )


def lacks(isa: str) -> tuple[str, ...]:
    """CPU features that `isa` needs and this host does not list; empty where it has all."""
    wanted = next((row.features for row in isas() if row.name == isa), (isa,))
    return tuple(sorted(set(wanted) - cpu_features()))


def require(isa: str, said: str) -> None:
    """EnvironmentMissing where this host lacks what the instruction set needs. `said`: what asks for it."""
    if missing := lacks(isa):
        usable = [name for name in _known() if name == REFERENCE or not lacks(name)]
        raise EnvironmentMissing(f"{said}: this host lacks {', '.join(missing)}; usable here: {', '.join(usable)}")


def require_all(names: str, option: str) -> None:
    """Instruction sets by comma that `option` asks for: UsageError for an unknown one, EnvironmentMissing as `require`.

    EnvironmentMissing also where kernels cannot run for want of the native module.
    """
    for isa in filter(None, (name.strip() for name in names.split(","))):
        require(_one_of({option: isa}, option, tuple(row.name for row in isas())), f"{option} {isa}")
        if os.environ.get("BITPRESS_NATIVE") == "0" or find_spec("bitpress._native") is None:
            raise EnvironmentMissing(
                f"{option} {isa} needs the native module, which is not installed or which BITPRESS_NATIVE=0 forbids: "
                "install again without it, and unset it"
            )


def check(environment: Mapping[str, str] = os.environ) -> None:
    """Refuses unknown values (UsageError lists the valid ones) and what this host lacks (EnvironmentMissing)."""
    native = _one_of(environment, "BITPRESS_NATIVE", ("0", "1"))
    _threads(environment)
    isa = _one_of(environment, "BITPRESS_FORCE_ISA", _known())
    if isa and isa != REFERENCE:
        require(isa, f"BITPRESS_FORCE_ISA={isa}")
        if native == "0":
            raise EnvironmentMissing(
                f"BITPRESS_FORCE_ISA={isa} needs the native module, which BITPRESS_NATIVE=0 forbids: unset one of them"
            )
    if environment.get("BITPRESS_FORCE_KERNEL"):
        from ..kernels.registry import ROWS

        _one_of(environment, "BITPRESS_FORCE_KERNEL", tuple(row.name for row in ROWS))


def _known() -> tuple[str, ...]:
    return (REFERENCE, *(row.name for row in isas()))


def _one_of(environment: Mapping[str, str], name: str, valid: tuple[str, ...]) -> str:
    """The value, "" if unset or empty."""
    value = environment.get(name, "")
    if value and value not in valid:
        raise UsageError(f"{name}={value!r} is unknown{close(value, valid)}; valid: {', '.join(valid)}")
    return value


def _threads(environment: Mapping[str, str]) -> None:
    value = environment.get("BITPRESS_NUM_THREADS")
    if value is not None and not (value.isascii() and value.isdigit() and 1 <= int(value) <= 256):
        raise UsageError(f"BITPRESS_NUM_THREADS={value!r}: valid values are whole numbers from 1 to 256")
