"""How fast the machine is while something is timed: one small layer, timed beside everything that `profile` measures.

A table takes minutes, in which clocks and neighbours change. What it holds are ratios of neighbouring blocks to this
layer (harness.ratio), times what the layer took when the table was begun. Knows no table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ..compiler import artifact
from .harness import Timing, measure, ratio
from .shapes import CONV, Shape, case, encodings

LAYER = Shape((32, 8, 8), 32, (3, 3), padding=(1, 1, 1, 1))
NAME = "pace"
FACTOR = 30  # of the seconds of a candidate: the time for the first look
TICK = 1e-6  # milliseconds: the clock's own step, so that no ratio is infinite


class Pace:
    """The layer, loaded; `ms`: what it takes, from `first` or from a table that was begun earlier."""

    def __init__(self, module: ModuleType, threads: int, ms: float | None = None, *, seconds: float) -> None:
        made = case(LAYER, *encodings((8, 8)))
        self._module, self.threads = module, threads
        self._session, self._x = self.session(artifact.encode(made.program)), made.x
        self.ms = self._first(seconds) if ms is None else ms

    def session(self, data: bytes) -> Any:
        """A native session of a file, with as many threads."""
        return self._module.Session(data, threads=self.threads)

    def _first(self, seconds: float) -> float:
        return measure({NAME: self._run}, seconds=FACTOR * seconds, took=_layer_alone)[NAME].median

    def _run(self) -> Any:
        return self._session.profile(self._x)

    def measure(
        self, candidates: Mapping[str, Callable[[], Any]], *, alone: bool, **options: Any
    ) -> tuple[dict[str, float], dict[str, Timing]]:
        """Milliseconds of each candidate at the table's pace, and as they came.

        `alone`: a candidate gives what `Session.profile` gives of a program of one layer, of which that layer counts;
        else the whole call does. `options` as of `harness.measure`.
        """

        def took(name: str, milliseconds: float, result: Any) -> float:
            return _layer_alone(name, milliseconds, result) if alone or name == NAME else milliseconds

        timings = measure({NAME: self._run, **candidates}, took=took, **options)
        beside = timings.pop(NAME)
        return {name: self.ms * ratio(timing, beside) for name, timing in timings.items()}, timings


def _layer_alone(_name: str, _milliseconds: float, result: Any) -> float:
    return max(float(result[CONV]), TICK)
