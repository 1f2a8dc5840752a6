"""Phases on a super-net that methods share: gates that move under budgets, then fine-tuning of what they chose.

`Searching` minimises CE + lambda * ln(figure) for each budget (methods A.1.5). Quantisers and gates live in
`core.supernet`, figures in `core.cost`, the projection in `core.projection`; here stand the step, the controller and
where the thresholds start. Which phases a method has, over which space and for how long, is the method's business.

Ours, where the papers are silent or we do better (methods F): the user states the budget, and a controller moves
lambda; the shared weights are first trained at the uniform point next to the budget, and on that net it is measured
what each width hurts (`core.supernet_harms`); gates start at the uniform point above the budget, thresholds at
distances that follow the harm; activation gates read running means; gates freeze once the budget is met, and harms
measured then decide what it still buys. The rates of search and fine-tuning fall once, together, and clips that
learned the widths that were chosen stay: what the search trains is not lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .cost import Budget, Choice, largest, stair_above, stair_near
from .job import Schedule
from .parallel import averaged, from_first
from .plan import GroupId, LayerId
from .projection import USED, Move, Step, exchange, fill, project, share_used, spend, trim
from .supernet import RESIDUAL_MOMENTUM, SuperNet
from .supernet_harms import Harms, looked_at, measured
from .supernet_starts import fit
from .train import FACTORS, Job, Training, backward, check_finite, cosine, evaluate, reestimate, sgd

WARM = 0.5  # share of the search in which widths are held
FAR = 9.0  # a threshold that no residual in [0, 1] passes
RAMP = 0.8  # share of the search after which the target has come down to the budget
DEADLINE = 0.9  # share after which the gates freeze though the budget is not met: the projection does the rest
CONTROL = 0.4  # lambda *= e ** CONTROL after each step in which the figure lies a whole fall above its target
LEAST_FALL = 0.1  # in ln of the figure: gates that start near the budget close one by one
LAMBDA_START, LAMBDA_LEAST, LAMBDA_MOST = 0.01, 0.001, 2.0
RATE_LEAST = 0.2  # of the thresholds' cosine: gates still move at the end
REACH = 1 / 12  # mean residual of 2 bits on uniform values (methods E): the distance of what hurts most
NEAREST = 0.05  # of its residual or score: the least distance of a threshold at the start
GATED = 1 / 4  # of a group's parts, one at least, that gates remove beside widths: the score of the next part is near,
# and a threshold that passes it does not feel that the second part hurts more than the first
# What is left, once trained, of what a choice is measured to hurt (methods F): weights move to where the grid is.
LEFT = {"w2": 0.105, "w4": 0.13, "w8": 0.5, "a2": 0.37, "a4": 0.5, "a8": 0.5, "p": 0.1}
SPARED = 0.08  # of the harm of all rounding: parts go, whatever the budget, as long as they hurt no more together
UNNOTICED = 0.012  # nats that removed parts may always hurt: where rounding hurts nothing, filters are still too many
SLIGHT = 0.003  # nats that narrower weights may hurt, together, whatever the budget: they too are bytes that go
LEAST_WORTH = 1e-6  # of a part whose removal does no measurable harm: what the budget allows is kept
SEARCH_COST, FINETUNE_COST = 4.0, 3.0  # price of a step against one of the float network; for the ETA

Loss = Callable[[Choice, Move], float]  # what a move is thought to lose
After = Callable[[Choice, Loss], tuple[Choice, list[Step]]]


def agenda(schedule: Schedule) -> tuple[tuple[str, int, float], ...]:
    """(phase, epochs, relative price of a step) of one search and its fine-tuning, after the float network."""
    return ("search", schedule.epochs_search, SEARCH_COST), ("finetune", schedule.epochs_finetune, FINETUNE_COST)


def searched(
    job: Job, net: SuperNet, *, name: str, epochs: int, budgets: Sequence[Budget], before: int = 0,
    after: After | None = None, notes: Mapping[str, Any] | None = None,
) -> SuperNet:  # fmt: skip
    """`net` after the phase `name`, or as a checkpoint kept it: frozen within the budgets, batch norms anew.

    `before`: epochs of search that went before, for the rates.
    """
    if name in job.loop.carry:
        net.load_state_dict(job.loop.carry[name])
        return net
    phase = Searching(
        job, net, name=name, epochs=epochs, budgets=budgets, before=before, after=after, notes=notes or {}
    )
    job.loop.run(phase)
    phase.settle()
    reestimate(net, job.calibration())
    job.keep(net)
    job.loop.finish(name, net.state_dict())
    return net


def finetuned(job: Job, net: SuperNet, *, before: int | None = None) -> SuperNet:
    """A frozen `net` after fine-tuning, in its best state on validation.

    `before`: epochs that trained these weights already, along whose rates it goes on; by default those of the search.
    """
    loop, schedule = job.loop, job.settings.schedule
    if "finetune" in loop.carry:
        net.load_state_dict(loop.carry["finetune"])
        return net
    tuning = Training(
        "finetune", net, rates_of(net), epochs=schedule.epochs_finetune, lr=schedule.lr_finetune, samples=job.samples,
        cost=FINETUNE_COST, teacher=job.teacher, distill=job.settings.distill,
        before=schedule.epochs_search if before is None else before,
    )  # fmt: skip
    loop.run(tuning)
    net.load_state_dict(tuning.best)
    loop.finish("finetune", net.state_dict())
    return net


def settled(job: Job, net: SuperNet, choice: Choice, trained: Choice | None = None) -> None:
    """Freezes `net` at `choice`; batch norms from the data, and the clips of widths that are not those `trained` at."""
    net.freeze(choice)
    batches = job.calibration()
    fit(net, batches, choice, trained)
    reestimate(net, batches)
    net.train()


def rates_of(net: SuperNet) -> list[dict[str, Any]]:
    """Parameter groups of a frozen net: clips do not decay."""
    return [{"params": net.parameters_of("network")}, {"params": net.parameters_of("clips"), "weight_decay": 0.0}]


class Searching:
    """The search phase: weights and clips on every step, weight and activation thresholds in turn."""

    cost = SEARCH_COST

    def __init__(
        self, job: Job, net: SuperNet, *, name: str, epochs: int, budgets: Sequence[Budget], before: int = 0,
        after: After | None = None, notes: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """`after`: a further projection of what meets the budgets; `notes` join the event of the start."""
        self.job, self.net, self.name, self.epochs, self.before = job, net, name, epochs, before
        self.budgets, self.after, self.notes = tuple(budgets), after, notes
        self.costs = net.costs
        self.bounds = {b.kind: b.bound(self.costs.whole[b.kind]) for b in self.budgets}
        self.guided = job.settings.variant != "paper"
        self.origin = reopened(net, job.start) if job.start else None  # what another search chose, to begin with
        self.base = self.origin or stair_near(self.costs, self.budgets)  # what is trained at before gates move
        schedule = job.settings.schedule
        thresholds = {
            "params": net.parameters_of("thresholds"), "lr": schedule.lr_thresholds, "weight_decay": 0.0,
        }  # fmt: skip
        self.optimizer = sgd(net, [*rates_of(net), thresholds], schedule.lr_search)
        self.rates = [float(g["lr"]) for g in self.optimizer.param_groups]
        self.weights = {b.kind: LAMBDA_START for b in self.budgets}  # lambda of each budget
        self.starts: dict[str, float] = {}  # figures when the gates begin to move
        self.warm = WARM if net.space.searched and self.guided else 0.0
        net.residual_momentum = RESIDUAL_MOMENTUM if self.guided else 1.0

    def begin(self) -> None:
        """Clips from data, for the widths of the warm-up if there is one; where another search left some, those."""
        if self.origin:
            self.net.train()
            return
        batches = self.job.calibration()
        fit(self.net, batches)
        if self.warm:
            hold_widths(self.net, self.base)
            fit(self.net, batches, self.base)
        self.net.train()

    def open_gates(self) -> None:
        """Thresholds from harms at the widths of the warm-up (the paper's stay 0); what the controller starts from."""
        harms = Harms()
        if self.guided:
            harms = self.harms(self.base)
            place_thresholds(self.net, harms, self.origin or stair_above(self.costs, self.budgets))
        self.net.clamp_thresholds()
        choice = self.net.choice()
        self.starts = {kind: float(self.costs.figure(kind, choice)) for kind in self.bounds}
        self.job.loop.event(
            "start", phase=self.name, figures=self.starts, bounds=self.bounds, harms=harms.document(), **self.notes
        )

    def harms(self, base: Choice) -> Harms:
        """Around the widths of `base`, nothing pruned, of the net as it is now."""
        base = Choice(base.weight, base.act, largest(self.net.space).parts)
        count = -(-looked_at(self.job.graph.inputs[0].shape) // self.job.loop.batch)
        images = torch.cat(self.job.batches(count))
        return from_first(measured(self.net, images, base, self.job.settings.distill, self.job.goal)).once_trained(LEFT)

    def step(self, x: Tensor, y: Tensor, done: int, total: int) -> dict[str, float]:
        """One step of the objective, then the controller; freezes the gates when it is time."""
        net, share = self.net, done / total
        warming = share < self.warm
        if warming:
            hold_widths(net, self.base)
        elif not self.starts:
            self.open_gates()
        self._set_rates(done, total)
        teacher = self.job.teacher if self.job.settings.distill else None
        with torch.no_grad():
            taught = teacher(x) if teacher is not None else None
        frozen, on_weights = net.frozen, done % 2 == 0
        ce = self.job.goal.objective(net(x), y, taught, self.job.settings.distill)
        loss, figures = ce, {}
        if not frozen:
            for kind in self.bounds if not warming else ():
                figure = net.cost(kind, weights=on_weights, acts=not on_weights)
                figures[kind] = float(figure.detach())
                loss = loss + self.weights[kind] * torch.log(figure).float()
        check_finite(loss, net, x, self.name)
        self.optimizer.zero_grad(set_to_none=True)
        backward(loss, net)
        self._rest(("w", "a", "p") if warming else ("a",) if on_weights else ("w",))
        self.optimizer.step()
        told = float(averaged(ce.detach()))
        if warming:
            drawn = {f"{kind}_of_budget": float(net.cost(kind).detach()) / bound for kind, bound in self.bounds.items()}
            return {"loss": told, **{f"lambda_{k}": 0.0 for k in self.bounds}, **drawn}
        if not frozen:
            net.clamp_thresholds(GATED if self.guided and net.space.searched else 1.0)
            self._steer(figures, share)
            if share >= DEADLINE or all(figures[k] <= self.bounds[k] for k in self.bounds):
                self.settle()
        out = {"loss": told}
        for kind, bound in self.bounds.items():
            now = self.costs.figure(kind, net.choice()) if net.frozen else figures[kind]
            out |= {f"lambda_{kind}": self.weights[kind], f"{kind}_of_budget": now / bound}
        return out

    def _set_rates(self, done: int, total: int) -> None:
        """Weights and clips: on the way to the end of fine-tuning; thresholds: to the end of this phase."""
        schedule, steps = self.job.settings.schedule, total // self.epochs
        fall = FACTORS[schedule.schedule]
        run = fall(self.before * steps + done, (schedule.epochs_search + schedule.epochs_finetune) * steps)
        factors = [run] * (len(self.rates) - 1) + [max(cosine(done, total), RATE_LEAST)]
        for group, rate, factor in zip(self.optimizer.param_groups, self.rates, factors, strict=True):
            group["lr"] = rate * factor

    def _rest(self, sides: Sequence[str]) -> None:
        """Thresholds of a side whose turn it is not stay where they are (methods A.1.5)."""
        for side in sides:
            for name in self.net.space.open if side == "p" else self.net.space.searched:
                self.net.tensor(f"{name}.threshold_{side}").grad = None

    def _steer(self, figures: Mapping[str, float], share: float) -> None:
        """lambda follows a target that falls log-linearly from the start to the budget."""
        for kind, bound in self.bounds.items():
            start, way = self.starts[kind], (share - self.warm) / (RAMP - self.warm)
            self.weights[kind] = steered(self.weights[kind], figures[kind], start=start, bound=bound, way=way)

    def settle(self) -> None:
        """Gates -> a choice within the budgets, for good.

        Harms are measured anew around what the gates say; by them the choice is brought under the budgets, widths and
        parts are traded as long as that harms less, parts go and weights become narrower where that harms little, and
        the rest is spent, by trades where no width fits it. The paper's variant knows its gates' margins alone and
        trades nothing. Then norms anew, and the clips of other widths.
        """
        net = self.net
        if net.frozen:
            return
        if not self.starts:
            self.open_gates()
        choice, loop = net.choice(), self.job.loop
        harms = self.harms(choice) if self.guided else Harms()
        harm = self._by(harms) if self.guided else self._margins()
        loop.event("gates", phase=self.name, **self._told(choice), harms=harms.document())
        phases: dict[str, list[Step]] = {}
        trimmed: set[LayerId] = set()
        choice, phases["projection"] = project(self.costs, self.budgets, choice, harm)
        if self.guided:
            choice, phases["exchange"] = exchange(self.costs, self.budgets, choice, harm, parts=True)
            if net.space.searched and "latency" not in self.bounds:  # which prices parts itself
                most = max(UNNOTICED, SPARED * sum(self._rounding(harms, choice)))
                choice, phases["trim"] = trim(self.costs, choice, harm, most)
                choice, narrower = trim(self.costs, choice, harm, SLIGHT, side="weight")
                phases["trim"] += narrower
                trimmed = {LayerId(step.move.name) for step in narrower}
        choice, phases["fill"] = self._filled(choice, harm, trimmed)
        if self.guided:
            choice, phases["widths"] = exchange(self.costs, self.budgets, choice, harm, trimmed=trimmed)
            choice, phases["spend"] = spend(self.costs, self.budgets, choice, harm, trimmed=trimmed)
            if share_used(self.costs, self.budgets, choice) < USED:  # nothing else takes what they left
                choice, wider = self._filled(choice, harm)
                phases["spend"] += wider
        choice, phases["further"] = (choice, []) if self.after is None else self.after(choice, harm)
        for kind, steps in phases.items():
            for step in steps:
                loop.event(kind, **logged(step))
        loop.event("choice", phase=self.name, **self._told(choice))
        settled(self.job, net, choice, self.base if self.guided else None)

    def _filled(
        self, choice: Choice, harm: Loss, trimmed: Container[LayerId] = ()
    ) -> tuple[Choice, list[Step]]:  # fmt: skip
        """What is left is spent. Wider never harms once trained, whatever was measured."""
        return fill(
            self.costs, self.budgets, choice, lambda c, m: max(-harm(c, m), LEAST_WORTH),
            parts="latency" in self.bounds, trimmed=trimmed,
        )  # fmt: skip

    def _margins(self) -> Loss:
        """Harm as the gates alone tell it: how far a residual or score lies above its threshold, below for a gain."""
        open_: dict[str, float] = {}
        with torch.no_grad():
            for layer in self.net.space.searched:
                residuals = {
                    "weight": self.net.weight_residuals(layer), "act": self.net.tensor(f"{layer}.mean_residual")
                }  # fmt: skip
                for side, levels in residuals.items():
                    margins = (levels - self.net.tensor(f"{layer}.threshold_{side[0]}")).tolist()
                    open_ |= {f"{side} {layer} {low}": m for low, m in zip((2, 4), margins, strict=True)}
            for group in self.net.space.open:
                scores = (self.net.part_scores(group) - self.net.tensor(f"{group}.threshold_p")).tolist()
                open_ |= {f"prune {group} {part}": score for part, score in enumerate(scores)}

        def harm(choice: Choice, move: Move) -> float:
            if move.side in ("prune", "restore"):
                margin = abs(open_[f"prune {move.name} {move.to}"])
                return max(margin, LEAST_WORTH) if move.side == "prune" else -1 / (1 + margin)
            now = (choice.weight if move.side == "weight" else choice.act)[LayerId(move.name)]
            margin = abs(open_[f"{move.side} {move.name} {min(now, move.to)}"])
            return margin if move.to < now else -1 / (1 + margin)  # the gate that is least shut opens first

        return harm

    def _rounding(self, harms: Harms, choice: Choice) -> Iterator[float]:
        """Harm of each rounding of a choice."""
        for layer in self.net.space.searched:
            yield harms.width(layer, "weight", choice.weight[layer])
            yield harms.width(layer, "act", choice.act[layer])

    def _by(self, harms: Harms) -> Loss:
        """Harm by measurement."""
        parts = {g: range(len(gate.sizes)) for g, gate in self.net.space.open.items()}

        def harm(choice: Choice, move: Move) -> float:
            if move.side in ("prune", "restore"):
                group = GroupId(move.name)
                gone = [p for p in parts[group] if p not in choice.parts[group] and p != move.to]
                lost = harms.removal(group, gone, move.to) + LEAST_WORTH
                return lost if move.side == "prune" else -lost
            widths = choice.weight if move.side == "weight" else choice.act
            return harms.width(move.name, move.side, move.to) - harms.width(
                move.name, move.side, widths[LayerId(move.name)]
            )

        return harm

    def _told(self, choice: Choice) -> dict[str, Any]:
        return {**described(choice), "figures": {k: self.costs.figure(k, choice) for k in self.bounds}}

    def epoch_end(self) -> dict[str, float]:
        """Validation of the net as the gates are."""
        points, loss = evaluate(self.net, *self.job.samples.held, self.job.goal)
        return {f"val_{self.job.goal.metric}": points, "val_loss": loss}

    def state(self) -> dict[str, Any]:
        """Network with gates and running means, optimiser, controller."""
        return {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "lambda": dict(self.weights),
            "starts": dict(self.starts),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.weights, self.starts = dict(state["lambda"]), dict(state["starts"])
        self.net.train()

    def tensors(self) -> Mapping[str, Tensor]:
        """The network's."""
        return self.net.state_dict()


def reopened(net: SuperNet, state: Mapping[str, Tensor]) -> Choice:
    """What a net of that state was frozen at; `net` in this state, with gates that move again, where they stood."""
    net.load_state_dict(state)
    choice = net.choice()
    with torch.no_grad():
        net.tensor("gates_frozen").fill_(False)
    return choice


def target(start: float, bound: float, way: float) -> float:
    """ln(figure / bound) that is asked for: it falls linearly from `start` to `bound`, of which `way` is done."""
    return max(0.0, math.log(start / bound)) * (1 - min(1.0, way))


def steered(weight: float, figure: float, *, start: float, bound: float, way: float) -> float:
    """lambda after a step, whose figure shall follow its `target`."""
    fall = max(0.0, math.log(start / bound))
    late = math.log(figure / bound) - target(start, bound, way)
    moved = weight * math.exp(CONTROL * late / max(fall, LEAST_FALL))
    return min(max(moved, LAMBDA_LEAST), LAMBDA_MOST)


def place_thresholds(net: SuperNet, harms: Harms, start: Choice) -> None:
    """Gates as in `start`, each threshold as far from its residual or score as the step that it guards hurts.

    Of a group that lost parts in `start` the gates of as many are shut, the least important ones; else all parts stay.
    A threshold moves by lambda * d ln(figure)/d(gate), so where distances of open gates are
    proportional to the harm, gates close in the order of harm per ln(figure) saved; shut ones are the nearer the more
    their opening would gain, and the loss opens first what is near. A pruning threshold is pulled by all parts of its
    group although the first to go saves only its share; that is the paper's gradient, and we let it stand: removed
    channels save bytes, memory and time in every kernel, which BOPs do not tell. An open gate is between `NEAREST` of
    the residual or score and all of it (threshold 0, the paper's start) away, a shut one `NEAREST` at least.
    """
    steps = [harms.width(name, side, 2) for name in net.space.searched for side in "wa"]
    first = {group: int(net.part_scores(group).argmin()) for group in net.space.open}
    removals = {group: harms.removal(group, (), part) for group, part in first.items()}
    worst = max(0.0, *steps, *removals.values(), 0.0) or 1.0

    def placed(level: float, harm: float, *, shut: bool = False) -> float:
        if shut:
            return level + max(REACH * (1 - harm / worst), NEAREST * level)
        return level - min(max(REACH * harm / worst, NEAREST * level), level)

    with torch.no_grad():
        for layer in net.space.searched:
            for side, widths in (("w", start.weight), ("a", start.act)):
                levels = net.weight_residuals(layer) if side == "w" else net.tensor(f"{layer}.mean_residual")
                threshold = net.tensor(f"{layer}.threshold_{side}")
                for i, low in enumerate((2, 4)):
                    harm = harms.width(layer, side, low) - harms.width(layer, side, 2 * low)
                    threshold[i] = placed(float(levels[i]), harm, shut=widths[layer] <= low)
        for group, harm in removals.items():
            scores = net.part_scores(group).sort().values
            gone = len(scores) - len(start.parts[GroupId(group)])
            level = float(scores[gone - 1]) if gone else placed(float(scores[0]), harm)
            net.tensor(f"{group}.threshold_p").fill_(level)


def hold_widths(net: SuperNet, base: Choice) -> None:
    """Every searched tensor at its width in `base`, by thresholds that its residuals all pass, or none.

    Not drawn by chance around it: with a 2-bit draw for one tensor in three, the weights of ResNet-20 lost more than an
    epoch of training, and what widths hurt relative to each other stayed the same.
    """
    with torch.no_grad():
        for layer in net.space.searched:
            for side, widths in zip("wa", (base.weight, base.act), strict=True):
                at = (FAR if widths[layer] < 4 else 0.0, FAR if widths[layer] < 8 else 0.0)
                net.tensor(f"{layer}.threshold_{side}").copy_(torch.tensor(at))


def logged(step: Step) -> dict[str, Any]:
    """A step for the log."""
    return {
        "side": step.move.side, "name": step.move.name, "to": step.move.to, "loss": step.loss,
        "figures": dict(step.figures),
    }  # fmt: skip


def described(choice: Choice) -> dict[str, Any]:
    """A choice for the log."""
    filters = {str(layer): list(widths) for layer, widths in choice.filters.items()}
    return {
        "weight": dict(choice.weight), "act": dict(choice.act),
        "parts": {str(GroupId(g)): list(p) for g, p in choice.parts.items()},
        **({"filters": filters} if filters else {}),
    }  # fmt: skip
