"""Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere, nothing with -q."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_SECONDS = 10.0  # without a terminal: at most one line in this time for the same piece of work


class Progress:
    """Call it with what is under way and the share done, 0..1; `line` prints a sentence beside it.

    Without a terminal a line appears when the work under way changes, so one an epoch where epochs are told.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._what, self._printed, self._started = "", 0.0, 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, what: str, share: float) -> None:
        """`what` is under way (an epoch, a stage), `share` of the whole verb is done."""
        if self._quiet:
            return
        now = time.monotonic()
        self._started = self._started or now
        if self._terminal:
            self._show(what, share, self._left(share, now))
        elif what != self._what or now - self._printed > LINE_SECONDS:
            self._printed = now
            print(f"{what}: {100 * share:.0f} %{self._left(share, now)}", file=sys.stderr, flush=True)
        self._what = what

    def epoch(self, at: Any) -> None:
        """What training reports (core.train.Progress): a moving bar, and a line when an epoch has ended."""
        if self._quiet:
            return
        what = f"{at.phase}, epoch {min(at.epoch + 1, at.epochs)}/{at.epochs}"
        left = f", {duration(at.eta)} left"
        if at.fields:
            figures = ", ".join(f"{key} {value:.4g}" for key, value in at.fields.items())
            self.line(f"{at.phase}, epoch {at.epoch}/{at.epochs}: {figures}{left}")
        elif self._terminal:
            self._show(what, (at.epoch * at.steps + at.step) / max(1, at.epochs * at.steps), left)

    def line(self, text: str) -> None:
        """A sentence of its own: an epoch that has ended, a decision that was taken."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _left(self, share: float, now: float) -> str:
        spent = now - self._started
        if not 0.02 < share < 1 or spent < 1:
            return ""
        return f", {duration(spent * (1 - share) / share)} left"

    def _show(self, what: str, share: float, left: str) -> None:
        if self._bar is None:
            from rich import progress as bars
            from rich.console import Console

            columns = (
                bars.TextColumn("{task.description}", markup=False), bars.BarColumn(), bars.TaskProgressColumn(),
                bars.TimeElapsedColumn(), bars.TextColumn("{task.fields[left]}"),
            )  # fmt: skip
            self._bar = bars.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=1.0, left="")
            self._bar.start()
        self._bar.update(self._task, description=what, completed=share, left=left.removeprefix(", "))


def duration(seconds: float) -> str:
    """Time as people say it.

    >>> duration(5.2), duration(125)
    ('5 s', '2 min 5 s')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
