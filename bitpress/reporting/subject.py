"""What a report is about: the file, the RUN it came from, how to measure, and what could not be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.rundir import Run

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measuring:
    """How figures are measured. `data`: DATA, by default that of the network; `vs`, `seconds`: as of `bench`."""

    data: str | None = None
    vs: Sequence[str] | None = None
    batch: int = 1
    threads: int = 1
    seconds: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """What is reported. `result`: result.json of the RUN, empty without one; `missing` grows on the way."""

    artifact: Path
    inspected: Mapping[str, Any]
    run: Run | None
    result: Mapping[str, Any]
    asked: Measuring
    folder: Path  # for what is made on the way
    missing: list[Row] = field(default_factory=list)

    def lacks(self, what: str, why: object, remedy: str) -> None:
        """Notes a figure that could not be had."""
        self.missing.append({"what": what, "why": str(why), "remedy": remedy})


def run_at(path: str | Path | None) -> Run | None:
    """The RUN in a folder; None without one."""
    from ..core.rundir import load_run

    return None if path is None else load_run(path)


def compiled(run: Run, folder: Path) -> Path:
    """The artifact of a RUN, made in `folder`."""
    from ..delivery import compile

    target = folder / f"{run.path.name or 'network'}.bpk"
    compile(run.path, target)
    return target


def result_of(run: Run | None) -> dict[str, Any]:
    """result.json of a RUN; empty without one, and where the plan has been changed since."""
    from ..core.bops import count
    from ..core.rundir import RESULT, read_json

    if run is None or not (run.path / RESULT).is_file():
        return {}
    result = read_json(run.path / RESULT)
    totals = count(run.graph, run.plan, convention=result.get("bops_convention", "sbs")).totals
    same = (result.get("bops"), result.get("weight_bytes")) == (totals.bops, totals.weight_bytes)
    return result if same else {key: result.get(key) for key in ("baseline_top1", "n", "method", "data", "budget")}
