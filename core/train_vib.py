"""The search phase of DJPQ: cross entropy, information and BOPs in one loss, annealed under budgets (methods A.2).

Quantisers and gates live in `core.supernet_vib`, figures and the projection in `core.cost`. At the end widths are
powers of two, the projection makes good what is missing, and exponents and gates are folded, so that fine-tuning has an
ordinary frozen super-net.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .cost import Choice, Move, fill, largest, project, search_space
from .errors import CheckFailed
from .plan import GroupId, LayerId
from .supernet import SuperNet, inherit
from .supernet_rounding import EVEN
from .supernet_starts import fit
from .supernet_vib import BITS_MOST, LN_RATIO_LEAST, PRUNED_ABOVE, VibNet
from .train import FACTORS, Job, check_finite, cosine, evaluate, objective, set_rates, sgd
from .train_gates import (
    CALIBRATION_BATCHES,
    LAMBDA_START,
    LEAST_WORTH,
    RAMP,
    RATE_LEAST,
    SEARCH_COST,
    Loss,
    described,
    logged,
    rates_of,
    settled,
    steered,
)

GAMMA = 1e-2  # of the information, once annealed; per nat and channel
RESTRICTED_FROM = 0.5  # share of the search from which widths are powers of two, if they are restricted
# How far Adam, whose steps are about as long as its rate, could carry a parameter in a whole search: ln d, ln q_m and
# the gates' from one end of their range to the other, exponents less.
REACH, REACH_EXPONENT = 12.0, 1.0
NAME = "search"


def annealed(job: Job) -> SuperNet:
    """A frozen net within the budgets, or as a checkpoint kept it: symmetric grids, exponents and gates folded."""
    plain = SuperNet(job.graph, job.space, residual=job.settings.residual, grid=EVEN)
    if NAME in job.loop.carry:
        plain.load_state_dict(job.loop.carry[NAME])
        return plain
    phase = Annealing(job, VibNet(job.graph, job.space, residual=job.settings.residual))
    job.loop.run(phase)
    phase.settle(plain)
    job.loop.finish(NAME, plain.state_dict())
    return plain


class Annealing:
    """Weights by SGD; steps, ranges, exponents and gates by Adam, on every step."""

    cost = SEARCH_COST
    name = NAME

    def __init__(self, job: Job, net: VibNet) -> None:
        self.job, self.net, self.epochs = job, net, job.settings.schedule.epochs_search
        self.bounds = {b.kind: b.bound(net.costs.whole[b.kind]) for b in job.budgets}
        self.weights = sgd(net, rates_of(net), job.settings.schedule.lr_search)
        steps = max(1, self.epochs * job.loop.steps)
        reach = {"quantisers": REACH, "gates": REACH, "exponents": REACH_EXPONENT}
        groups = [{"params": net.parameters_of(kind), "lr": way / steps} for kind, way in reach.items()]
        self.rest = torch.optim.Adam([group for group in groups if group["params"]])
        self.rates = [float(g["lr"]) for g in self.rest.param_groups]
        self.betas = dict.fromkeys(self.bounds, LAMBDA_START)
        self.starts: dict[str, float] = {}  # figures before the first step

    def begin(self) -> None:
        """Clips from data at 8 bits, widths there, gates all but silent."""
        net, batches = self.net, self.job.batches(CALIBRATION_BATCHES)
        source = SuperNet(net.graph, net.space, residual=net.residual, grid=EVEN)
        fit(source, batches)
        fit(source, batches, largest(net.space))
        inherit(net, source)
        net.start(source)
        net.train()
        choice = net.choice()
        self.starts = {kind: float(net.costs.figure(kind, choice)) for kind in self.bounds}
        self.job.loop.event(
            "start", phase=NAME, figures=self.starts, bounds=self.bounds, without_norm=self._without_norm(),
            **net.document(),
        )  # fmt: skip

    def _without_norm(self) -> list[str]:
        """Groups that stay whole because no norm could take the means of their gates."""
        said = self.job.settings
        found = search_space(self.net.graph, group_size=said.group_size, max_pruning_ratio=said.max_pruning_ratio)
        return [str(group) for group in found.gates if group not in self.net.space.gates]

    def step(self, x: Tensor, y: Tensor, done: int, total: int) -> dict[str, float]:
        """One step of CE + gamma * information + sum of beta * figure / bound, then the controller.

        The penalty counts continuous bits; the controller reads the figure of the bits that are held.
        """
        net, share = self.net, done / total
        self._restrict(done, total)
        self._set_rates(done, total)
        anneal = (1 + done * self.epochs // total) / self.epochs
        teacher = self.job.teacher if self.job.settings.distill else None
        with torch.no_grad():
            taught = teacher(x) if teacher is not None else None
        ce = objective(net(x), y, taught, self.job.settings.distill)
        information = net.information()
        figures = {kind: net.cost(kind) for kind in self.bounds}
        penalty = sum((self.betas[k] * figure / self.bounds[k] for k, figure in figures.items()), torch.zeros(()))
        loss = ce + anneal * (GAMMA * information + penalty.to(ce))
        check_finite(loss, net, x, NAME)
        for optimizer in (self.weights, self.rest):
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._check_exponents()
        for optimizer in (self.weights, self.rest):
            optimizer.step()
        net.clamp()
        out = {"loss": float(ce.detach()), "information": float(information.detach())}
        for kind, bound in self.bounds.items():
            figure = float(net.costs.figure(kind, net.choice()) if net.restricted else figures[kind].detach())
            self.betas[kind] = steered(self.betas[kind], figure, start=self.starts[kind], bound=bound, way=share / RAMP)
            out |= {f"beta_{kind}": anneal * self.betas[kind], f"{kind}_of_budget": figure / bound}
        return out

    def _restrict(self, done: int, total: int) -> None:
        """Powers of two from `RESTRICTED_FROM` on; what that changes is logged once."""
        first = math.ceil(RESTRICTED_FROM * total)
        self.net.restricted = self.job.settings.restrict == "pow2" and done >= first
        if self.net.restricted and done == first:
            self.job.loop.event("restrict", phase=NAME, **self.net.document())

    def _set_rates(self, done: int, total: int) -> None:
        """Weights and clips: on the way to the end of fine-tuning; the rest: to the end of this phase."""
        schedule, steps = self.job.settings.schedule, total // self.epochs
        rates = [schedule.lr_search] * len(self.weights.param_groups)
        whole = (schedule.epochs_search + schedule.epochs_finetune) * steps
        set_rates(self.weights, rates, FACTORS[schedule.schedule](done, whole))
        factor = max(cosine(done, total), RATE_LEAST)
        set_rates(self.rest, self.rates, factor)

    def _check_exponents(self) -> None:
        """CheckFailed names a layer whose exponent got a gradient of NaN: powers of tiny weights can do that."""
        for layer in self.net.space.searched:
            grad = self.net.tensor(f"{layer}.exponent").grad
            if grad is not None and not bool(torch.isfinite(grad)):
                raise CheckFailed(
                    f"{NAME}: the gradient of {layer}'s exponent t is {float(grad)}; the last good state is kept; "
                    "lower the learning rate, or look at the weights that it started from"
                )

    def settle(self, plain: SuperNet) -> None:
        """Widths and parts for good, within the budgets, in `plain`: the nearest powers of two, then the projection."""
        net, loop, budgets = self.net, self.job.loop, self.job.budgets
        net.restricted = self.job.settings.restrict == "pow2"
        net.last.prune = {g: net.part_gates(g) for g in net.space.gates}
        learned, harm = net.choice(), margins(net)
        free = {kind: float(net.cost(kind).detach()) for kind in self.bounds}
        loop.event("gates", phase=NAME, **self._told(learned), free_figures=free, **net.document())
        choice, lowered = project(net.costs, budgets, learned, harm)
        choice, spent = fill(net.costs, budgets, choice, lambda c, m: -harm(c, m), parts=True)
        for kind, steps in (("projection", lowered), ("fill", spent)):
            for step in steps:
                loop.event(kind, **logged(step))
        loop.event("choice", phase=NAME, **self._told(choice))
        net.fold()
        inherit(plain, net)
        settled(self.job, plain, choice, learned)

    def _told(self, choice: Choice) -> dict[str, Any]:
        return {**described(choice), "figures": {k: self.net.costs.figure(k, choice) for k in self.bounds}}

    def epoch_end(self) -> dict[str, float]:
        """Validation without noise, parts gone that would go."""
        top1, loss = evaluate(self.net, *self.job.samples.held)
        return {"val_top1": top1, "val_loss": loss}

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


def margins(net: VibNet) -> Loss:
    """Harm as the quantisers and gates tell it: how far bits or a ratio lie from where they would be given up.

    Each as a share of its range. Wider is always worth something, first what lies nearest; a part comes back only where
    its gate says that it tells something.
    """
    with torch.no_grad():
        bits = {(layer, side): float(net.bits(layer, side)) for layer, side in net.sides()}
        ratios = {group: net.ln_ratios(group).tolist() for group in net.space.open}

    def harm(choice: Choice, move: Move) -> float:
        if move.side in ("prune", "restore"):
            ratio = ratios[GroupId(move.name)][move.to]
            away = (PRUNED_ABOVE - ratio) / (PRUNED_ABOVE - LN_RATIO_LEAST)
            return -away if move.side == "restore" else max(away, LEAST_WORTH)
        now = (choice.weight if move.side == "weight" else choice.act)[LayerId(move.name)]
        away = (bits[LayerId(move.name), move.side[0]] - move.to) / BITS_MOST
        return max(away, LEAST_WORTH) if move.to < now else -1 / (1 + abs(away))

    return harm
