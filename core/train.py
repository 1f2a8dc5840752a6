"""The loop that all methods share: epochs, checkpoints, resume, events, progress.

A phase says what a step does; the loop says when. Everything a step depends on is in the checkpoint, so a run that was
killed ends as an unbroken one; clocks are read for display only. Processes that train together (core.parallel) each
take their rows of every batch; the first one keeps the files. Knows no method, prints nothing.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .cost import Budget, Space
from .data import CLASSIFICATION
from .errors import CheckFailed, CorruptError, Interrupted
from .graph import Graph
from .job import Settings
from .parallel import any_of, average, averaged, by_first, common, gathered, level, processes, rank, share, summed
from .rundir import EVENTS, SEARCHED, write_bytes, write_tensors
from .supernet import FloatNet
from .train_goals import GOALS, Goal

CHECKPOINT_VERSION = 1
# Arithmetic between two checkpoints: about 30 s of one Zen 4 core at 1e10 operations a second. A count, not a clock.
CHECKPOINT_WORK = 3e11
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
CALIBRATION_BATCHES, CALIBRATION_PIXELS = 8, 1 << 21  # that ranges and statistics are taken from, at most
EVALUATION_BATCH, EVALUATION_VALUES = 500, 1 << 25  # images at once, and numbers of the largest value, at most

ALL = slice(None)


class Draw(Protocol):
    """How a batch is drawn."""

    def __call__(
        self, numbers: np.ndarray, rng: np.random.Generator, rows: slice = ALL, /
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images float32 [N, C, H, W] normalised, labels int64 [N] or, smoothed, float32 [N, classes].

        `rows` of the batch `numbers`, whose augmentation is drawn from `rng` as a whole.
        """


@dataclass(frozen=True, slots=True)
class Samples:
    """The training part without the held-out slice (drawn with augmentation) and that slice.

    `held`: the validation images and labels int64, or what else the goal reads.
    """

    count: int
    draw: Draw
    held: tuple[np.ndarray, np.ndarray]
    goal: Goal = GOALS[CLASSIFICATION]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a caller may show. `fields`: an epoch's figures, empty within it; `eta`: seconds, of all phases."""

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    fields: Mapping[str, float]
    eta: float


class Phase(Protocol):
    """One stage of a run: what a step does. `cost` is a step's relative price, for the ETA alone."""

    name: str
    epochs: int
    cost: float

    def begin(self) -> None:
        """Called once before the first step, not on resume."""

    def step(self, x: Tensor, y: Tensor, done: int, total: int) -> dict[str, float]:
        """One optimiser step, `done` of `total` before it -> figures, averaged over the epoch."""

    def epoch_end(self) -> dict[str, float]:
        """Figures of the epoch, validation among them."""

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on: tensors, numbers, strings, lists, dictionaries."""

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""

    def tensors(self) -> Mapping[str, Tensor]:
        """What must be finite before it is saved."""


@dataclass
class _Position:
    """Where in a phase the loop stands; `sums` of the epoch's figures so far."""

    epoch: int = 0
    step: int = 0
    order: Tensor | None = None
    sums: dict[str, float] = field(default_factory=dict)


class Loop:
    """Runs phases over `samples`, keeping RUN/checkpoint and RUN/events.jsonl.

    `agenda`: (phase name, epochs, cost) of everything to come, for the ETA. `work`: operations of a step. Results of
    finished stages wait in `carry`, under their names.
    """

    def __init__(
        self, folder: Path, samples: Samples, *, batch: int, seed: int, work: float,
        agenda: Sequence[tuple[str, int, float]] = (), progress: Callable[[Progress], None] | None = None,
        device: str = "cpu", shape: str = "cosine",
    ) -> None:  # fmt: skip
        """`device`: where batches go; `shape`: of the rates of `Training` (core.job.SHAPES)."""
        self.device, self.shape = device, shape
        self.folder, self.samples, self.seed = folder, samples, seed
        self.batch = min(batch, samples.count)
        self.steps = samples.count // self.batch
        self.every = max(1, int(CHECKPOINT_WORK / max(work, 1.0)))
        self.agenda, self.progress = agenda, progress
        self.carry: dict[str, Any]
        self._pending: dict[str, Any] | None  # a phase in the middle
        self._asked = self._stop = ""  # the signal that came here; the one that all processes stop for
        self._started = time.monotonic()
        self._units_at_start: float | None = None
        saved = by_first(self._load)
        self.carry, self._pending = saved.get("carry", {}), saved.get("pending")
        self._before = saved.get("seconds", 0.0)

    # -- files --------------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """The one checkpoint file."""
        return self.folder / "checkpoint" / "state.pt"

    @property
    def events(self) -> Path:
        """One JSON document a line."""
        return self.folder / EVENTS

    @property
    def seconds(self) -> float:
        """Time spent on this run, before interruptions too."""
        return self._before + time.monotonic() - self._started

    def _load(self) -> dict[str, Any]:
        """The checkpoint, "carry", "pending", "seconds" among it, or nothing; events cut back to it."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        saved: dict[str, Any] = {}
        if self.checkpoint.exists():
            try:
                saved = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
                if saved["version"] != CHECKPOINT_VERSION:
                    raise CorruptError(f"{self.checkpoint}: version {saved['version']}, this is {CHECKPOINT_VERSION}")
                saved = {key: saved[key] for key in ("carry", "pending", "seconds", "events")}
            except (RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
                raise CorruptError(f"{self.checkpoint} is damaged ({error}); remove the RUN and start again") from error
        size = saved.get("events", 0)
        if self.events.exists() and self.events.stat().st_size > size:
            os.truncate(self.events, size)
        return saved

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one line to events.jsonl; it counts once the next checkpoint is written."""
        if rank():
            return
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": kind, **fields}) + "\n")

    def _save(self, pending: dict[str, Any] | None) -> None:
        if rank():
            return
        document = {
            "version": CHECKPOINT_VERSION, "carry": self.carry, "pending": pending, "seconds": self.seconds,
            "events": self.events.stat().st_size if self.events.exists() else 0,
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(document, buffer)
        write_bytes(self.checkpoint, buffer.getvalue())

    def finish(self, name: str, result: Mapping[str, Tensor]) -> None:
        """Keeps a stage's tensors in the checkpoint; a run that goes on later finds them in `carry`."""
        level(result.values())
        self.carry[name] = result
        self._pending = None
        self._save(None)
        if self._stops():
            raise common(self._interrupted())

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come here; for work between phases, which is done again on resume."""
        if self._asked:
            raise self._interrupted()

    def _interrupted(self, where: str = "") -> Interrupted:
        return Interrupted(
            f"{self._stop or self._asked}{where}: the state is saved in {self.checkpoint.parent}; the same command "
            "continues"
        )

    def _stops(self) -> bool:
        """Whether a signal has come to any process: all stop at the same step."""
        if any_of(bool(self._asked)):
            self._stop = next(filter(None, gathered(self._asked)))
        return bool(self._stop)

    # -- running ------------------------------------------------------------------------------------------------

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM save the state at the next step and raise `Interrupted`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt  # asked twice: at once
            self._asked = signal.Signals(number).name

        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, phase: Phase) -> None:
        """All epochs of a phase, from where a checkpoint left it."""
        rng = np.random.default_rng([self.seed, zlib.crc32(phase.name.encode())])
        at = _Position()
        if isinstance(phase, Training):
            phase.shape = self.shape
        pending, self._pending = self._pending, None
        if pending is not None and pending["phase"] == phase.name:
            phase.load(pending["state"])
            rng.bit_generator.state = json.loads(pending["rng"])
            torch.set_rng_state(pending["torch_rng"])
            at = _Position(pending["epoch"], pending["step"], pending["order"], dict(pending["sums"]))
        else:
            torch.manual_seed(self.seed)
            phase.begin()
            level(phase.tensors().values())
        while at.epoch < phase.epochs:
            self._epoch(phase, at, rng)

    def _epoch(self, phase: Phase, at: _Position, rng: np.random.Generator) -> None:
        if at.order is None:
            at.order = torch.from_numpy(rng.permutation(self.samples.count))
        order, total, rows = at.order.numpy(), phase.epochs * self.steps, share(self.batch)
        while at.step < self.steps:
            x, y = self.samples.draw(order[at.step * self.batch : (at.step + 1) * self.batch], rng, rows)
            done = at.epoch * self.steps + at.step
            images, labels = to_torch(x).to(self.device), torch.from_numpy(y).to(self.device)
            for key, value in phase.step(images, labels, done, total).items():
                at.sums[key] = at.sums.get(key, 0.0) + value
            at.step += 1
            stops = self._stops()
            if stops or (done + 1) % self.every == 0:
                self._keep(phase, at, rng)
            if stops:
                where = f"epoch {at.epoch + 1} of {phase.epochs}, step {at.step} of {self.steps}"
                raise common(self._interrupted(f" in {phase.name}, {where}"))
            self._report(phase, at, {})
        level(phase.tensors().values())
        fields = {key: value / self.steps for key, value in at.sums.items()} | phase.epoch_end()
        at.epoch, at.step, at.order, at.sums = at.epoch + 1, 0, None, {}
        self.event("epoch", phase=phase.name, epoch=at.epoch, epochs=phase.epochs, **fields)
        self._keep(phase, at, rng)
        self._report(phase, at, fields)

    def _keep(self, phase: Phase, at: _Position, rng: np.random.Generator) -> None:
        """Checkpoint in the middle of a phase; never one that holds NaN or infinity."""
        for name, value in phase.tensors().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise common(
                    CheckFailed(
                        f"{phase.name}, epoch {at.epoch + 1}: {name} became NaN or infinite; the last good state is "
                        f"kept in {self.checkpoint.parent}; lower the learning rate"
                    )
                )
        self._save(
            {
                "phase": phase.name, "epoch": at.epoch, "step": at.step, "order": at.order, "sums": dict(at.sums),
                "state": phase.state(), "rng": json.dumps(rng.bit_generator.state), "torch_rng": torch.get_rng_state(),
            }
        )  # fmt: skip

    def _report(self, phase: Phase, at: _Position, fields: Mapping[str, float]) -> None:
        if self.progress is None or rank():
            return
        names = [name for name, _, _ in self.agenda]
        done = total = 0.0
        for i, (_, epochs, cost) in enumerate(self.agenda):
            total += epochs * self.steps * cost
            if phase.name in names and i < names.index(phase.name):
                done += epochs * self.steps * cost
        done += (at.epoch * self.steps + at.step) * phase.cost
        if self._units_at_start is None:
            self._units_at_start = done - phase.cost
        speed = (time.monotonic() - self._started) / max(done - self._units_at_start, phase.cost)
        eta = max(0.0, total - done) * speed
        self.progress(Progress(phase.name, at.epoch, phase.epochs, at.step, self.steps, fields, eta))


def to_torch(x: np.ndarray) -> Tensor:
    """Images as torch's CPU convolutions like them: channels last where there are several."""
    out = torch.from_numpy(np.ascontiguousarray(x))
    return out.contiguous(memory_format=torch.channels_last) if x.ndim == 4 and x.shape[1] > 1 else out


# -- what steps are made of -----------------------------------------------------------------------------------------


def cosine(done: int, total: int) -> float:
    """Factor of the learning rate, 1 -> 0."""
    return 0.5 * (1 + math.cos(math.pi * done / max(total, 1)))


def stepwise(done: int, total: int) -> float:
    """Factor of the learning rate: 1, a tenth from half of the steps on, a hundredth from three quarters on."""
    return 0.1 ** ((2 * done >= total) + (4 * done >= 3 * total))


FACTORS: Mapping[str, Callable[[int, int], float]] = {"cosine": cosine, "step": stepwise}  # by core.job.SHAPES


def smoothed(labels: np.ndarray, classes: int, share: float) -> np.ndarray:
    """Integer labels [N] -> float32 [N, classes]: `share` of each spread evenly over all classes."""
    out = np.full((len(labels), classes), share / classes, np.float32)
    out[np.arange(len(labels)), labels] += 1 - share
    return out


def sgd(net: nn.Module, groups: list[dict[str, Any]], lr: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum; `groups` name parameters, `lr` and `weight_decay` where they differ."""
    assert isinstance(net, nn.Module)
    return torch.optim.SGD(groups, lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float], factor: float) -> None:
    """Learning rate of each group = its own rate x `factor`."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor


def check_finite(loss: Tensor, net: FloatNet, x: Tensor, phase: str) -> None:
    """CheckFailed naming the first value of `net` that is NaN or infinite, if the loss of any process is."""
    found = float(averaged(loss.detach()))
    if math.isfinite(found):
        return
    bad = ""
    with torch.no_grad():
        for name, value in net.walk(x):  # to its end: processes wait for each other in it
            if not bad and not bool(torch.isfinite(value).all()):
                bad = f"layer {name}"
    where = next(filter(None, gathered(bad)), "the loss")
    raise common(
        CheckFailed(
            f"{phase}: the loss is {found}; {where} is the first with NaN or infinity. The last good state is kept; "
            "lower the learning rate, or look at the weights and images that it started from"
        )
    )


def backward(loss: Tensor, net: FloatNet) -> None:
    """Gradients of a step, averaged over the processes, and so are the running statistics of batch norms.

    All at once after the pass: what a step costs in its objective, which is the same everywhere, stays what it is.
    """
    loss.backward()  # type: ignore[no-untyped-call]
    average([*(p.grad for p in net.parameters() if p.grad is not None), *net.running()])


def evaluate(
    net: FloatNet, images: np.ndarray, labels: np.ndarray, goal: Goal = GOALS[CLASSIFICATION]
) -> tuple[float, float]:
    """(the goal's metric in percent, mean loss) of the evaluation forward in floats; processes take turns."""
    before, device, batch = net.training, next(net.parameters()).device, at_once(net.graph)
    net.eval()
    starts = range(0, len(labels), batch)
    found = torch.zeros(len(starts), 2, dtype=torch.float64)  # points, loss: added up in order, whoever computed them
    with torch.no_grad():
        for at in range(rank(), len(starts), processes()):
            i = starts[at]
            y = torch.from_numpy(labels[i : i + batch]).to(device)
            outputs = net(to_torch(images[i : i + batch]).to(device))
            found[at, 0] = float(goal.points(outputs, y).sum())
            found[at, 1] = float(goal.loss(outputs, y)) * len(y)
    net.train(before)
    points, loss = (sum(column) for column in summed(found).T.tolist())
    return points / len(labels), loss / len(labels)


def at_once(graph: Graph) -> int:
    """Images whose largest value fits in memory beside the next."""
    largest = max(math.prod(node.shape) for node in (*graph.inputs, *graph.nodes))
    return max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // largest))


def reestimate(net: FloatNet, batches: Sequence[Tensor]) -> None:
    """Running statistics of every batch norm = the mean over `batches`; weights untouched."""
    before, momentum = net.training, net.momentum
    net.train()
    with torch.no_grad():
        for i, x in enumerate(batches):
            net.momentum = 1.0 / (i + 1)
            net(x)
    net.momentum = momentum
    net.train(before)


@dataclass(frozen=True)
class Job:
    """What a method gets. `graph`: float, trained; `teacher`: the same as a network, in evaluation mode.

    `start`: state of the net that a search of the same method left, to begin with, empty where there is none; `keeps`:
    whether another begins with what this one leaves.
    """

    settings: Settings
    graph: Graph
    space: Space
    budgets: tuple[Budget, ...]
    samples: Samples
    loop: Loop
    teacher: FloatNet
    start: Mapping[str, Tensor] = field(default_factory=dict)
    keeps: bool = False

    def keep(self, net: FloatNet) -> None:
        """Leaves the state of `net`, at the end of the search, in RUN, if another begins with it."""
        if self.keeps and rank() == 0:
            state = {name: value.cpu().numpy() for name, value in net.state_dict().items()}
            write_tensors(self.loop.folder / SEARCHED, state)

    @property
    def goal(self) -> Goal:
        """What training minimises and validation counts."""
        return self.samples.goal

    def calibration(self) -> list[Tensor]:
        """The training batches that ranges and statistics are taken from: fewer where images are large."""
        pixels = self.loop.batch * math.prod(self.settings.in_shape[1:])
        return self.batches(max(1, min(CALIBRATION_BATCHES, CALIBRATION_PIXELS // pixels)))

    def batches(self, count: int) -> list[Tensor]:
        """`count` training batches that are the same whenever they are asked for: for ranges and statistics."""
        rng = np.random.default_rng([self.settings.seed, count])
        order, size = rng.permutation(self.samples.count), self.loop.batch
        starts = [i * size for i in range(count) if (i + 1) * size <= self.samples.count]
        drawn = (to_torch(self.samples.draw(order[i : i + size], rng)[0]) for i in starts)
        return [x.to(self.loop.device) for x in drawn]


class Training:
    """A phase of plain training (the float net, or a frozen super-net): best state on validation."""

    shape = "cosine"  # of the learning rate; the loop sets it

    def __init__(
        self, name: str, net: FloatNet, groups: list[dict[str, Any]], *, epochs: int, lr: float, samples: Samples,
        cost: float = 1.0, teacher: FloatNet | None = None, distill: float = 0.0, before: int = 0,
    ) -> None:  # fmt: skip
        """`before`: epochs of other phases whose rates fell on the same way."""
        self.name, self.net, self.epochs, self.cost, self.before = name, net, epochs, cost, before
        self.samples, self.teacher, self.distill = samples, teacher, distill
        self.optimizer = sgd(net, groups, lr)
        self.rates = [float(g["lr"]) for g in self.optimizer.param_groups]
        self.best: dict[str, Tensor] = {}
        self.score: tuple[float, float] = (-1.0, 0.0)  # validation's metric, then minus its loss

    def begin(self) -> None:
        """The state before the first step is a candidate too."""
        self.net.train()
        self._judge()

    def step(self, x: Tensor, y: Tensor, done: int, total: int) -> dict[str, float]:
        """One step of SGD."""
        before = self.before * (total // self.epochs)
        set_rates(self.optimizer, self.rates, FACTORS[self.shape](before + done, before + total))
        with torch.no_grad():
            taught = self.teacher(x) if self.teacher is not None and self.distill else None
        loss = self.samples.goal.objective(self.net(x), y, taught, self.distill)
        check_finite(loss, self.net, x, self.name)
        self.optimizer.zero_grad(set_to_none=True)
        backward(loss, self.net)
        self.optimizer.step()
        return {"loss": float(averaged(loss.detach()))}

    def epoch_end(self) -> dict[str, float]:
        """Validation; keeps the best state."""
        points, loss = self._judge()
        return {f"val_{self.samples.goal.metric}": points, "val_loss": loss}

    def _judge(self) -> tuple[float, float]:
        points, loss = evaluate(self.net, *self.samples.held, self.samples.goal)
        if (points, -loss) > self.score:
            self.score, self.best = (points, -loss), copy.deepcopy(self.net.state_dict())
        return points, loss

    def state(self) -> dict[str, Any]:
        """Network, optimiser, best so far."""
        return {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best,
            "score": list(self.score),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.score = dict(state["best"]), (state["score"][0], state["score"][1])
        self.net.train()

    def tensors(self) -> Mapping[str, Tensor]:
        """The network's."""
        return self.net.state_dict()
