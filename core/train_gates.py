"""Phases on a super-net that methods share: gates that move under budgets, then fine-tuning of what they chose.

`Searching` minimises CE + lambda * ln(figure) for each budget (methods A.1.5). Quantisers and gates live in
`core.supernet`, figures and the projection in `core.cost`; here stand the step, the controller and where the thresholds
start. Which phases a method has, over which space and for how long, is the method's business.

Ours, where the papers are silent or we do better (methods F): the user states the budget, and a controller moves
lambda; thresholds start at distances that are proportional to how much each step hurts by itself; activation gates read
running means; gates freeze once the budget is met, and a projection makes sure that it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .cost import Budget, Choice, Move, Step, fill, project
from .plan import GroupId
from .supernet import TINY, SuperNet
from .supernet_starts import fit, sensitivities
from .train import Job, Training, check_finite, cosine, evaluate, objective, reestimate, set_rates, sgd

RAMP = 0.8  # share of the search after which the target has come down to the budget
DEADLINE = 0.9  # share after which the gates freeze though the budget is not met: the projection does the rest
CONTROL = 0.2  # lambda *= (figure / target) ** CONTROL after each step
LAMBDA_START, LAMBDA_LEAST, LAMBDA_MOST = 0.01, 0.001, 2.0
RATE_LEAST = 0.2  # of the cosine schedule: gates still move at the end
REACH = 1 / 12  # mean residual of 2 bits on uniform values (methods E): the distance of what hurts most
NEAREST = 0.05  # of its residual or score: the least distance of a threshold at the start
LEAST_WORTH = 1e-6  # of a part whose removal does no measurable harm: what the budget allows is kept
CALIBRATION_BATCHES = 8
SEARCH_COST, FINETUNE_COST = 4.0, 3.0  # price of a step against one of the float network; for the ETA

Loss = Callable[[Choice, Move], float]  # what a move is thought to lose
After = Callable[[Choice, Loss], tuple[Choice, list[Step]]]


def searched(
    job: Job, net: SuperNet, *, name: str, epochs: int, budgets: Sequence[Budget], after: After | None = None,
    notes: Mapping[str, Any] | None = None,
) -> SuperNet:  # fmt: skip
    """`net` after the phase `name`, or as a checkpoint kept it: frozen within the budgets, batch norms anew."""
    if name in job.loop.carry:
        net.load_state_dict(job.loop.carry[name])
        return net
    phase = Searching(job, net, name=name, epochs=epochs, budgets=budgets, after=after, notes=notes or {})
    job.loop.run(phase)
    phase.settle()
    reestimate(net, job.batches(CALIBRATION_BATCHES))
    job.loop.finish(name, net.state_dict())
    return net


def finetuned(job: Job, net: SuperNet) -> SuperNet:
    """A frozen `net` after fine-tuning, in its best state on validation."""
    loop, schedule = job.loop, job.settings.schedule
    if "finetune" in loop.carry:
        net.load_state_dict(loop.carry["finetune"])
        return net
    tuning = Training(
        "finetune", net, rates_of(net), epochs=schedule.epochs_finetune, lr=schedule.lr_finetune, samples=job.samples,
        cost=FINETUNE_COST, teacher=job.teacher, distill=job.settings.distill,
    )  # fmt: skip
    loop.run(tuning)
    net.load_state_dict(tuning.best)
    loop.finish("finetune", net.state_dict())
    return net


def settled(job: Job, net: SuperNet, choice: Choice) -> None:
    """Freezes `net` at `choice`; clips and batch norms from the data."""
    net.freeze(choice)
    batches = job.batches(CALIBRATION_BATCHES)
    fit(net, batches, choice)
    reestimate(net, batches)
    net.train()


def rates_of(net: SuperNet) -> list[dict[str, Any]]:
    """Parameter groups of a frozen net: clips do not decay."""
    return [{"params": net.parameters_of("network")}, {"params": net.parameters_of("clips"), "weight_decay": 0.0}]


class Searching:
    """The search phase: weights and clips on every step, weight and activation thresholds in turn."""

    cost = SEARCH_COST

    def __init__(
        self, job: Job, net: SuperNet, *, name: str, epochs: int, budgets: Sequence[Budget], after: After | None = None,
        notes: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """`after`: a further projection of what meets the budgets; `notes` join the event of the start."""
        self.job, self.net, self.name, self.epochs = job, net, name, epochs
        self.budgets, self.after, self.notes = tuple(budgets), after, notes
        self.costs = net.costs
        self.bounds = {b.kind: b.bound(self.costs.whole[b.kind]) for b in self.budgets}
        schedule = job.settings.schedule
        thresholds = {
            "params": net.parameters_of("thresholds"), "lr": schedule.lr_thresholds, "weight_decay": 0.0,
        }  # fmt: skip
        self.optimizer = sgd(net, [*rates_of(net), thresholds], schedule.lr_search)
        self.rates = [float(g["lr"]) for g in self.optimizer.param_groups]
        self.weights = {b.kind: LAMBDA_START for b in self.budgets}  # lambda of each budget
        self.starts: dict[str, float] = {}  # figures at the beginning
        self.hurts: dict[str, float] = {}  # sensitivities

    def begin(self) -> None:
        """Clips from data, thresholds from sensitivities."""
        batches = self.job.batches(CALIBRATION_BATCHES)
        fit(self.net, batches)
        self.hurts = sensitivities(self.net, self.job.teacher, torch.cat(batches))
        self.net.train()
        place_thresholds(self.net, self.hurts)
        self.net.clamp_thresholds()
        choice = self.net.choice()
        self.starts = {kind: float(self.costs.figure(kind, choice)) for kind in self.bounds}
        self.job.loop.event(
            "start", phase=self.name, figures=self.starts, bounds=self.bounds, sensitivities=self.hurts, **self.notes
        )

    def step(self, x: Tensor, y: Tensor, done: int, total: int) -> dict[str, float]:
        """One step of the objective, then the controller; freezes the gates when it is time."""
        net, share = self.net, done / total
        set_rates(self.optimizer, self.rates, max(cosine(done, total), RATE_LEAST))
        teacher = self.job.teacher if self.job.settings.distill else None
        with torch.no_grad():
            taught = teacher(x) if teacher is not None else None
        frozen, on_weights = net.frozen, done % 2 == 0
        ce = objective(net(x), y, taught, self.job.settings.distill)
        loss, figures = ce, {}
        if not frozen:
            for kind in self.bounds:
                figure = net.cost(kind, weights=on_weights, acts=not on_weights)
                figures[kind] = float(figure.detach())
                loss = loss + self.weights[kind] * torch.log(figure).float()
        check_finite(loss, net, x, self.name)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._rest("threshold_a" if on_weights else "threshold_w")
        self.optimizer.step()
        if not frozen:
            net.clamp_thresholds()
            self._steer(figures, share)
            if share >= DEADLINE or all(figures[k] <= bound for k, bound in self.bounds.items()):
                self.settle()
        out = {"loss": float(ce.detach())}
        for kind, bound in self.bounds.items():
            now = self.costs.figure(kind, net.choice()) if net.frozen else figures[kind]
            out |= {f"lambda_{kind}": self.weights[kind], f"{kind}_of_budget": now / bound}
        return out

    def _rest(self, leaf: str) -> None:
        """The side whose turn it is not stays where it is (methods A.1.5)."""
        for layer in self.net.space.searched:
            self.net.tensor(f"{layer}.{leaf}").grad = None

    def _steer(self, figures: Mapping[str, float], share: float) -> None:
        """lambda follows a target that falls log-linearly from the start to the budget."""
        for kind, bound in self.bounds.items():
            start = max(self.starts[kind], bound)
            target = math.exp(math.log(start) + (math.log(bound) - math.log(start)) * min(1.0, share / RAMP))
            moved = self.weights[kind] * (figures[kind] / target) ** CONTROL
            self.weights[kind] = min(max(moved, LAMBDA_LEAST), LAMBDA_MOST)

    def settle(self) -> None:
        """Gates -> a choice within the budgets, for good: projection, what is left spent, clips and norms anew."""
        net = self.net
        if net.frozen:
            return
        choice = net.choice()
        margins = margins_of(net)
        loop = self.job.loop

        def loss(choice: Choice, move: Move) -> float:
            return margins[_key(choice, move)]

        loop.event(
            "gates",
            phase=self.name,
            **_described(choice),
            figures={k: self.costs.figure(k, choice) for k in self.bounds},
        )
        choice, lowered = project(self.costs, self.budgets, choice, loss)
        choice, raised = fill(self.costs, self.budgets, choice, self._worth)
        choice, further = (choice, []) if self.after is None else self.after(choice, loss)
        for kind, steps in (("projection", lowered), ("fill", raised), ("further", further)):
            for step in steps:
                loop.event(kind, **_logged(step))
        loop.event(
            "choice",
            phase=self.name,
            **_described(choice),
            figures={k: self.costs.figure(k, choice) for k in self.bounds},
        )
        settled(self.job, net, choice)

    def _worth(self, choice: Choice, move: Move) -> float:
        """What giving a width back is worth: the harm of the narrower one less that of the wider. A part: its score's
        share of the harm that the weakest does."""
        if move.side == "restore":
            with torch.no_grad():
                scores = self.net.part_scores(move.name)
            return (self.hurts[f"{move.name}.p"] + LEAST_WORTH) * float(scores[move.to] / scores.min().clamp_min(TINY))
        side = "w" if move.side == "weight" else "a"
        before = (choice.weight if side == "w" else choice.act)[move.name]  # type: ignore[index]
        return self.hurts[f"{move.name}.{side}{before}"] - self.hurts.get(f"{move.name}.{side}{move.to}", 0.0)

    def epoch_end(self) -> dict[str, float]:
        """Validation of the net as the gates are."""
        top1, loss = evaluate(self.net, *self.job.samples.held)
        return {"val_top1": top1, "val_loss": loss}

    def state(self) -> dict[str, Any]:
        """Network with gates and running means, optimiser, controller, sensitivities."""
        return {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "lambda": dict(self.weights),
            "starts": dict(self.starts), "hurts": dict(self.hurts),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.weights, self.starts, self.hurts = dict(state["lambda"]), dict(state["starts"]), dict(state["hurts"])
        self.net.train()

    def tensors(self) -> Mapping[str, Tensor]:
        """The network's."""
        return self.net.state_dict()


def place_thresholds(net: SuperNet, hurts: Mapping[str, float]) -> None:
    """Each threshold so far below its residual or score as the step that it guards hurts, relative to the worst.

    A threshold moves by lambda * d ln(figure)/d(gate), so with distances proportional to the harm, gates close in the
    order of harm per ln(figure) saved. A pruning threshold is pulled by all parts of its group although the first to go
    saves only its share; that is the paper's gradient, and we let it stand: removed channels save bytes, memory and
    time in every kernel, which BOPs do not tell. Distances lie between `NEAREST` of the residual or score and all of it
    (threshold 0, the paper's start).
    """
    worst = max([v for k, v in hurts.items() if k.endswith("2")] or hurts.values(), default=0.0) or 1.0

    def below(level: float, harm: float) -> float:
        return level - min(max(REACH * harm / worst, NEAREST * level), level)

    with torch.no_grad():
        for layer in net.space.searched:
            for side, levels in (("w", net.weight_residuals(layer)), ("a", net.tensor(f"{layer}.mean_residual"))):
                threshold = net.tensor(f"{layer}.threshold_{side}")
                harm4, harm2 = hurts[f"{layer}.{side}4"], hurts[f"{layer}.{side}2"]
                threshold[0] = below(float(levels[0]), max(harm2 - harm4, 0.0))
                threshold[1] = below(float(levels[1]), harm4)
        for group in net.space.open:
            score = float(net.part_scores(group).min())
            net.tensor(f"{group}.threshold_p").fill_(below(score, hurts[f"{group}.p"]))


def margins_of(net: SuperNet) -> dict[str, float]:
    """How far each gate is open, at least 0."""
    out = {}
    with torch.no_grad():
        for layer in net.space.searched:
            for side, levels in (
                ("weight", net.weight_residuals(layer)),
                ("act", net.tensor(f"{layer}.mean_residual")),
            ):
                open_ = (levels - net.tensor(f"{layer}.threshold_{side[0]}")).clamp_min(0)
                out[f"{side} {layer} 2"], out[f"{side} {layer} 4"] = float(open_[0]), float(open_[1])
        for group in net.space.open:
            scores = (net.part_scores(group) - net.tensor(f"{group}.threshold_p")).clamp_min(0)
            out |= {f"prune {group} {i}": float(s) for i, s in enumerate(scores)}
    return out


def _key(_choice: Choice, move: Move) -> str:
    return f"{move.side} {move.name} {move.to}"


def _logged(step: Step) -> dict[str, Any]:
    return {
        "side": step.move.side, "name": step.move.name, "to": step.move.to, "loss": step.loss,
        "figures": dict(step.figures),
    }  # fmt: skip


def _described(choice: Choice) -> dict[str, Any]:
    return {
        "weight": dict(choice.weight), "act": dict(choice.act),
        "parts": {str(GroupId(g)): list(p) for g, p in choice.parts.items()},
    }  # fmt: skip
