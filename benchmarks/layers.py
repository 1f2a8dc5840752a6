"""Time per layer of a loaded network, beside its operations, its bytes and its bound; segments of a layer summed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ..compiler.model import Model
from .causes import cause
from .dense import layer_table
from .roofline import Roofs, bound, work


class Layers:
    """One network on one batch: calls to time, and the rows of the table afterwards."""

    def __init__(self, model: Model, x: np.ndarray) -> None:
        """`x` float32 [batch, C, H, W], as `Model.prepare` gives it."""
        self._model, self._x = model, x
        self._rows = model.inspect_rows()
        self._times: list[np.ndarray] = []
        self._placed = None if model.gpu is None else model.gpu.put(x)

    @property
    def timed(self) -> bool:
        """Whether single steps can be timed: numpy has no clock inside."""
        return self._model.session is not None or self._model.gpu is not None

    @property
    def kernels(self) -> list[tuple[str, str]]:
        """(kernel, isa) of every step."""
        return [(str(row["kernel"]), str(row["isa"])) for row in self._rows]

    def plain(self) -> object:
        """One inference, nothing but the outputs; on a GPU from images that are there to outputs that stay there."""
        if self._model.gpu is not None and self._placed is not None:
            placed = self._model.gpu.run(self._placed)
            self._model.gpu.wait()
            return placed
        return self._model.run(self._x)

    def profile(self) -> np.ndarray:
        """One inference with a clock around every step: milliseconds [steps]."""
        if self._model.gpu is not None and self._placed is not None:
            return self._model.gpu.profile(self._placed)
        return np.asarray(self._model.session.profile(self._x), np.float64)

    def observe(self, times: np.ndarray) -> None:
        """Keeps what one `profile` gave."""
        self._times.append(times)

    def table(self, roofs: Roofs, fixed: Mapping[int, float]) -> list[dict[str, Any]]:
        """Rows in the order in which they run; steps of no conv or linear layer are rows of their own, with 0 BOPs.

        `fixed`: of steps, what `causes.fixed_parts` found.
        """
        program = self._model.program
        known = {str(row["name"]): row for row in layer_table(program)}
        groups: dict[str, list[int]] = {}
        for i, step in enumerate(program.steps):
            groups.setdefault(step.layer or step.name, []).append(i)
        return [
            {**self._row(name, numbers, known.get(name, {}), roofs), **self._why(numbers, roofs, fixed)}
            for name, numbers in groups.items()
        ]

    def _why(self, numbers: list[int], roofs: Roofs, fixed: Mapping[int, float]) -> dict[str, Any]:
        """Parts of the time of the longest of these steps, and the sentence about them."""
        found = None
        if self._times and self._model.gpu is None:
            medians = {i: float(np.median([times[i] for times in self._times])) for i in numbers}
            longest = max(numbers, key=lambda i: medians[i])
            program = self._model.program
            found = cause(
                program.steps[longest], program, self.kernels[longest][0], medians[longest], roofs,
                batch=len(self._x), fixed=fixed.get(longest),
            )  # fmt: skip
        return {"parts": None, "why": ""} if found is None else {"parts": asdict(found.parts), "why": found.why}

    def _row(self, name: str, numbers: list[int], known: Any, roofs: Roofs) -> dict[str, Any]:
        batch = len(self._x)
        steps = [self._model.program.steps[i] for i in numbers]
        jobs = [work(step, self._model.program) for step in steps]
        bounds = [bound(job, *self.kernels[i], roofs, batch) for job, i in zip(jobs, numbers, strict=True)]
        least = None if None in bounds else sum(b.least for b in bounds if b is not None)
        median = float(np.median([times[numbers].sum() for times in self._times])) if self._times else None
        return {
            "name": name,
            "op": steps[0].op,
            "kernel": "+".join(dict.fromkeys(self.kernels[i][0] for i in numbers)),
            "isa": "+".join(dict.fromkeys(self.kernels[i][1] for i in numbers)),
            "median": median,
            "macs": sum(job.macs for job in jobs),
            "bops": known.get("bops", sum(job.bit_products for job in jobs)),
            "bytes": sum(job.weight_bytes for job in jobs),
            "value_bytes": sum(job.value_bytes for job in jobs),
            "bound": least,
            "efficiency": least / median if least is not None and median else None,
        }
