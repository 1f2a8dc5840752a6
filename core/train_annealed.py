"""The search phase of methods that learn widths and channels by gradient under one loss: DJPQ, Bayesian Bits.

Weights by SGD, quantisers and gates by Adam, a controller for each budget. At the end the projection makes good what is
missing and what was learned is folded into an ordinary frozen super-net, which fine-tuning knows. What a method adds to
the loss is its `Objective`; quantisers and gates are its net's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .cost import Budget, Choice, largest
from .parallel import averaged
from .projection import USED, Move, fill, project, spend
from .supernet import SuperNet, inherit
from .supernet_bits import BitsNet
from .supernet_rounding import EVEN
from .supernet_starts import fit
from .supernet_vib import VibNet
from .train import FACTORS, Job, backward, check_finite, cosine, evaluate, set_rates, sgd
from .train_gates import (
    LAMBDA_START,
    RAMP,
    RATE_LEAST,
    SEARCH_COST,
    After,
    Loss,
    described,
    logged,
    rates_of,
    settled,
    steered,
    target,
)


@dataclass(frozen=True, slots=True)
class Pull:
    """What a budget asks for in a step. `weight`: the controller's; `target`: the figure by now, `bound` at the end."""

    weight: float
    target: float
    bound: float


@dataclass(frozen=True)
class Penalty:
    """What joins the cross entropy: the term, budget kind -> figure as the method counts it, and what the log shows."""

    loss: Tensor
    figures: Mapping[str, Tensor]
    logged: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """What a method adds to the phase.

    `reach`: how far Adam could carry a kind of parameter in a whole search; `anneals`: whether the penalty grows with
    the epochs, linearly, to what it says.
    """

    reach: Mapping[str, float]
    anneals: bool

    def turn(self, done: int, total: int) -> str:
        """Before a step; the event that tells what it changed, "" where there is nothing to tell."""

    def penalty(self, pulls: Mapping[str, Pull]) -> Penalty:
        """After a forward, given what each kind of budget asks for."""

    def reading(self, kind: str, figure: Tensor) -> float:
        """After a step: what the controller reads, given the penalty's figure."""

    def check(self) -> None:
        """CheckFailed where a gradient makes no sense."""

    def harm(self) -> Loss:
        """What moves lose, as quantisers and gates tell it."""


@dataclass(frozen=True)
class Stage:
    """A phase's part of a method. `before`: search epochs that went before; `after`: a further projection."""

    name: str
    epochs: int
    budgets: Sequence[Budget]
    before: int = 0
    after: After | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)  # join the event of the start


def annealed(job: Job, net: VibNet | BitsNet, objective: Objective, stage: Stage) -> SuperNet:
    """A frozen net within the budgets, or as a checkpoint kept it: symmetric grids, what was learned folded."""
    plain = SuperNet(job.graph, net.space, residual=net.residual, grid=EVEN)
    if stage.name in job.loop.carry:
        plain.load_state_dict(job.loop.carry[stage.name])
        return plain
    phase = Annealing(job, net, objective, stage)
    job.loop.run(phase)
    job.keep(net)
    phase.settle(plain)
    job.loop.finish(stage.name, plain.state_dict())
    return plain


class Annealing:
    """Weights by SGD; what the objective reaches by Adam, on every step."""

    cost = SEARCH_COST

    def __init__(self, job: Job, net: VibNet | BitsNet, objective: Objective, stage: Stage) -> None:
        self.job, self.net, self.objective, self.stage = job, net, objective, stage
        self.name, self.epochs = stage.name, stage.epochs
        self.bounds = {b.kind: b.bound(net.costs.whole[b.kind]) for b in stage.budgets}
        self.weights = sgd(net, rates_of(net), job.settings.schedule.lr_search)
        steps = max(1, self.epochs * job.loop.steps)
        groups = [{"params": net.parameters_of(kind), "lr": way / steps} for kind, way in objective.reach.items()]
        self.rest = torch.optim.Adam([group for group in groups if group["params"]])
        self.rates = [float(g["lr"]) for g in self.rest.param_groups]
        self.betas = dict.fromkeys(self.bounds, LAMBDA_START)
        self.starts: dict[str, float] = {}  # figures before the first step

    def begin(self) -> None:
        """Clips from data at 8 bits, widths there, gates all but silent; where another search left some, those."""
        net = self.net
        if self.job.start:
            net.load_state_dict(self.job.start)
        else:
            self._fit()
        net.train()
        choice = net.choice()
        self.starts = {kind: float(net.costs.figure(kind, choice)) for kind in self.bounds}
        self.job.loop.event(
            "start", phase=self.name, figures=self.starts, bounds=self.bounds, **self.stage.notes, **net.document()
        )

    def _fit(self) -> None:
        net, batches = self.net, self.job.calibration()
        source = SuperNet(net.graph, net.space, residual=net.residual, grid=EVEN)
        inherit(source, net)
        fit(source, batches)
        fit(source, batches, largest(net.space))
        inherit(net, source)
        net.start(source)

    def step(self, x: Tensor, y: Tensor, done: int, total: int) -> dict[str, float]:
        """One step of cross entropy and the method's penalty, then the controller."""
        net, share = self.net, done / total
        if turned := self.objective.turn(done, total):
            self.job.loop.event(turned, phase=self.name, **net.document())
        self._set_rates(done, total)
        anneal = (1 + done * self.epochs // total) / self.epochs if self.objective.anneals else 1.0
        teacher = self.job.teacher if self.job.settings.distill else None
        with torch.no_grad():
            taught = teacher(x) if teacher is not None else None
        ce = self.job.goal.objective(net(x), y, taught, self.job.settings.distill)
        penalty = self.objective.penalty(self._pulls(share / RAMP))
        loss = ce + anneal * penalty.loss.to(ce)
        check_finite(loss, net, x, self.name)
        for optimizer in (self.weights, self.rest):
            optimizer.zero_grad(set_to_none=True)
        backward(loss, net)
        self.objective.check()
        for optimizer in (self.weights, self.rest):
            optimizer.step()
        net.clamp()
        out = {"loss": float(averaged(ce.detach())), **penalty.logged}
        for kind, bound in self.bounds.items():
            figure = self.objective.reading(kind, penalty.figures[kind].detach())
            self.betas[kind] = steered(self.betas[kind], figure, start=self.starts[kind], bound=bound, way=share / RAMP)
            out |= {f"beta_{kind}": anneal * self.betas[kind], f"{kind}_of_budget": figure / bound}
        return out

    def _pulls(self, way: float) -> dict[str, Pull]:
        asked = {k: bound * math.exp(target(self.starts[k], bound, way)) for k, bound in self.bounds.items()}
        return {kind: Pull(self.betas[kind], asked[kind], bound) for kind, bound in self.bounds.items()}

    def _set_rates(self, done: int, total: int) -> None:
        """Weights and clips: on the way to the end of fine-tuning; the rest: to the end of this phase."""
        schedule, steps = self.job.settings.schedule, total // self.epochs
        rates = [schedule.lr_search] * len(self.weights.param_groups)
        whole = (schedule.epochs_search + schedule.epochs_finetune) * steps
        set_rates(self.weights, rates, FACTORS[schedule.schedule](self.stage.before * steps + done, whole))
        factor = max(cosine(done, total), RATE_LEAST)
        set_rates(self.rest, self.rates, factor)

    def settle(self, plain: SuperNet) -> None:
        """Widths and parts for good, within the budgets, in `plain`: what was learned, then the projection.

        Wider, and parts that still tell something, come back as far as the budgets allow; others as far as `USED`, for
        which widths are traded too.
        """
        net, loop, budgets = self.net, self.job.loop, self.stage.budgets
        net.hold()
        learned, harm = net.choice(), self.objective.harm()
        free = {kind: float(net.cost(kind).detach()) for kind in self.bounds}
        loop.event("gates", phase=self.name, **self._told(learned), free_figures=free, **net.document())
        choice, lowered = project(net.costs, budgets, learned, harm)
        choice, spent = fill(net.costs, budgets, choice, lambda c, m: -harm(c, m), parts=True)
        most = [replace(b, value=b.value * USED) for b in budgets]
        choice, back = fill(net.costs, most, choice, lambda c, m: _nearest(harm(c, m), m), parts=True)
        choice, traded = spend(net.costs, budgets, choice, harm)
        choice, further = (choice, []) if self.stage.after is None else self.stage.after(choice, harm)
        for kind, steps in (("projection", lowered), ("fill", spent + back), ("spend", traded), ("further", further)):
            for step in steps:
                loop.event(kind, **logged(step))
        loop.event("choice", phase=self.name, **self._told(choice))
        net.fold()
        inherit(plain, net)
        settled(self.job, plain, choice, learned)

    def _told(self, choice: Choice) -> dict[str, Any]:
        return {**described(choice), "figures": {k: self.net.costs.figure(k, choice) for k in self.bounds}}

    def epoch_end(self) -> dict[str, float]:
        """Validation without noise, parts gone that would go."""
        points, loss = evaluate(self.net, *self.job.samples.held, self.job.goal)
        return {f"val_{self.job.goal.metric}": points, "val_loss": loss}

    def state(self) -> dict[str, Any]:
        """Network with quantisers and gates, optimisers, controller."""
        return {
            "net": self.net.state_dict(), "weights": self.weights.state_dict(), "rest": self.rest.state_dict(),
            "betas": dict(self.betas), "starts": dict(self.starts),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.net.load_state_dict(state["net"])
        self.weights.load_state_dict(state["weights"])
        self.rest.load_state_dict(state["rest"])
        self.betas, self.starts = dict(state["betas"]), dict(state["starts"])
        self.net.train()

    def tensors(self) -> Mapping[str, Tensor]:
        """The network's."""
        return self.net.state_dict()


def _nearest(harm: float, move: Move) -> float:
    """Gain of a part that its gate would leave out: the more, the less is missing."""
    return 1 / (1 + max(harm, 0.0)) if move.side == "restore" else 0.0
