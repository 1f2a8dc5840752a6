"""The search phase of AJPQ: episodes in which two controllers make a plan, and a short training says what it is worth.

The walk is `core.walk`'s, the controllers are `core.agents`', filters of different widths train in
`core.supernet_filters`. The steps of the search are shared out among the episodes, so that a search costs what those of
the other methods cost. What the controllers are rewarded with comes from the held-out slice of the training part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .agents import Agent, Controls
from .cost import Choice, largest
from .plan import GroupId, LayerId
from .supernet import FloatNet, importance
from .supernet_filters import FilterNet
from .supernet_levels import level
from .supernet_norms import norms_of
from .supernet_rounding import EVEN
from .supernet_starts import fit, fit_weights
from .train import Job, check_finite, evaluate, reestimate, sgd
from .train_gates import SEARCH_COST, described, rates_of, settled
from .walk import LAYER, Ranks, Walk

NAME = "search"
REWARD = 0.1  # of a point of top-1 against the float network (HAQ)
DOUBT = 1.0  # of a nat of loss against the float network, which tells plans apart where none of them errs (ours)
SPARED = 0.2  # of all channels that may go, so two points of top-1: they save what the budget may not tell (ours)
WARMUP = 1 / 8  # share of the episodes in which everything is drawn by chance (AMC)
SPREAD, SPREAD_LAST = 0.5, 0.01  # standard deviation of what is tried, falling geometrically after that
JUDGED = 1024  # images of the held-out slice that judge an episode, at most


def allotted(job: Job) -> FilterNet:
    """The net at the best plan of all episodes, or as a checkpoint kept it: float weights, clips and norms fitted."""
    net = FilterNet(job.graph, job.space, residual=job.settings.residual, grid=EVEN)
    if NAME in job.loop.carry:
        net.load_state_dict(job.loop.carry[NAME])
        return net
    phase = Episodes(job, net)
    job.loop.run(phase)
    phase.settle()
    job.loop.finish(NAME, net.state_dict())
    return net


def ranked(net: FilterNet) -> tuple[Ranks, dict[str, list[float]]]:
    """Filters and parts by importance, the most important first, and the importance of each filter and part."""
    scores = {n: importance(net.tensor(net.graph.value(n).consts["weight"]).detach()) for n in net.space.searched}
    parts = {g: net.part_scores(g).detach() for g in net.space.open}
    told = {**{str(n): v.tolist() for n, v in scores.items()}, **{f"{g}.parts": v.tolist() for g, v in parts.items()}}
    return Ranks({n: _order(v) for n, v in scores.items()}, {g: _order(v) for g, v in parts.items()}), told


def _order(scores: Tensor) -> list[int]:
    """Numbers by falling score, ties in order."""
    found: list[int] = torch.argsort(scores, descending=True, stable=True).tolist()
    return found


class Episodes:
    """One plan an episode: decided at its first step, trained from the float weights, judged at its last one."""

    cost = SEARCH_COST
    name = NAME

    def __init__(self, job: Job, net: FilterNet) -> None:
        self.job, self.net, self.epochs = job, net, job.settings.schedule.epochs_search
        assert job.settings.episodes is not None, "the registry gives some to this method"
        self.episodes = job.settings.episodes
        ranks, self.importance = ranked(net)
        level(net)
        self.batches = job.calibration()
        fit(net, self.batches)
        self.start = {name: value.clone() for name, value in net.state_dict().items()}
        self.walk = Walk(job.graph, net.costs, job.budgets, ranks)
        roles = dict.fromkeys(turn.role for turn in self.walk.turns)
        self.envs = {role: Controls(self.walk, role) for role in roles}
        self.agents = {role: Agent(env, job.settings.seed + at) for at, (role, env) in enumerate(self.envs.items())}
        for role, env in self.envs.items():
            env.other = next((agent.decide for other, agent in self.agents.items() if other != role), env.other)
        plain = FloatNet(job.graph)
        level(plain)
        self.norms = norms_of(plain, self.batches)
        self.ranges: dict[int, dict[str, float]] = {}  # width of inputs -> clip -> what rounds best at it
        self.told: dict[str, Any] = {}  # of the episode that runs
        self.best: dict[str, Any] = {}
        self.float_top1, self.float_loss = 0.0, 0.0
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.SGD:
        return sgd(self.net, rates_of(self.net), self.job.settings.schedule.lr_search)

    def begin(self) -> None:
        """What everything is measured against: the float network on the same images; ranges of inputs, once for all."""
        self.float_top1, self.float_loss = evaluate(self.job.teacher, *self._judges(), self.job.goal)
        whole = largest(self.net.space)
        for bits in self.net.space.widths:
            choice = replace(whole, act={**whole.act, **dict.fromkeys(self.net.space.acts, bits)})
            self.net.load_state_dict(self.start)
            self.net.freeze(choice)
            fit(self.net, self.batches, choice)
            self.ranges[bits] = {clip: float(self.net.tensor(clip).detach()) for clip in self.net.domains}
        figures = {b.kind: b.bound(self.net.costs.whole[b.kind]) for b in self.job.budgets}
        self.job.loop.event(
            "start", phase=NAME, bounds=figures, float_top1=self.float_top1, float_loss=self.float_loss,
            importance=self.importance,
            turns=[{"controller": turn.role, "layer": turn.layer} for turn in self.walk.turns],
        )  # fmt: skip

    def _judges(self) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.job.samples.held
        return images[:JUDGED], labels[:JUDGED]

    def step(self, x: Tensor, y: Tensor, done: int, total: int) -> dict[str, float]:
        """One step of SGD on the plan of the episode, which begins or ends where the steps have been shared out so."""
        count = min(self.episodes, total)
        now = done * count // total
        if done == 0 or (done - 1) * count // total < now:
            self._decide(now, count)
        teacher = self.job.teacher if self.job.settings.distill else None
        with torch.no_grad():
            taught = teacher(x) if teacher is not None else None
        loss = self.job.goal.objective(self.net(x), y, taught, self.job.settings.distill)
        check_finite(loss, self.net, x, NAME)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if (done + 1) * count // total > now:
            self._judge(now, count)
        return {"loss": float(loss.detach())}

    def _decide(self, number: int, count: int) -> None:
        """The controllers' plan of an episode; the net as it was before the first one, at that plan.

        The first plan asks for everything, which the budgets then narrow: no search ends below that (ours).
        """
        for at, agent in enumerate(self.agents.values()):
            drawn = np.random.default_rng([self.job.settings.seed, number, at])
            agent.begin(drawn, spread(number / count), whole=number == 0)
        role, env = next(iter(self.envs.items()))
        seen, _ = env.reset()
        ended = False
        while not ended:
            seen, _, ended, _, _ = env.step(self.agents[role].decide(seen))
        record = self.walk.record
        self.told = {
            "episode": number, LAYER: {n: {"asked": a, "kept": k} for n, (a, k) in record.kept.items()},
            "channel": record.shares, "walled": record.walled, "spent": record.spent, "merged": record.merged,
        }  # fmt: skip
        self._place(self.walk.choice)

    def _place(self, choice: Choice) -> None:
        """Float weights, frozen at a choice; clips of weights and norms fitted, inputs in the ranges of their widths.

        An episode is short: to fit the ranges anew would take most of it.
        """
        net = self.net
        net.load_state_dict(self.start)
        net.freeze(choice)
        fit_weights(net, choice)
        with torch.no_grad():
            for clip in net.domains:
                layer = net.layer_of(clip)
                bits = choice.act[layer] if layer in net.space.acts else max(self.ranges)
                net.tensor(clip).fill_(self.ranges[bits][clip])
        reestimate(net, self.batches)
        self.norms.move(net)
        net.train()
        self.optimizer = self._optimizer()

    def _judge(self, number: int, count: int) -> None:
        """The reward of an episode, from the held-out slice; both controllers learn from it."""
        choice = self.net.choice()
        top1, loss = evaluate(self.net, *self._judges(), self.job.goal)
        spared = self._spared(choice)
        reward = REWARD * (top1 - self.float_top1) - DOUBT * (loss - self.float_loss) + SPARED * spared
        chosen = {**described(choice), "top1": top1, "loss": loss, "reward": reward}
        better = not self.best or reward > self.best["reward"]
        if better:
            self.best = chosen
        figures = {b.kind: self.net.costs.figure(b.kind, choice) for b in self.job.budgets}
        self.job.loop.event(
            "episode", phase=NAME, **self.told, figures=figures, top1=top1, loss=loss, spared=spared, reward=reward,
            best=better,
        )  # fmt: skip
        seed = int(np.random.SeedSequence([self.job.settings.seed, number]).generate_state(1)[0])
        for agent in self.agents.values():
            agent.learn(reward, steps=len(agent.decided) if number >= WARMUP * count else 0, seed=seed)

    def _spared(self, choice: Choice) -> float:
        """Share of the channels that may go which a choice gives up, the mean over the groups."""
        gates = self.net.space.open
        gone = [(len(gate.sizes) - len(choice.parts[group])) / gate.removable for group, gate in gates.items()]
        return sum(gone) / max(len(gone), 1)

    def settle(self) -> None:
        """The best plan, and the net at it."""
        if not self.best:  # no step, no episode
            self._decide(0, 1)
        choice = chosen(self.best) if self.best else self.walk.choice
        figures = {b.kind: self.net.costs.figure(b.kind, choice) for b in self.job.budgets}
        self.job.loop.event("choice", phase=NAME, **described(choice), figures=figures)
        self.net.load_state_dict(self.start)
        settled(self.job, self.net, choice)
        self.norms.move(self.net)

    def epoch_end(self) -> dict[str, float]:
        """Validation of the best plan so far, as its episode left it."""
        return {f"val_{self.job.goal.metric}": self.best["top1"], "val_loss": self.best["loss"]} if self.best else {}

    def state(self) -> dict[str, Any]:
        """The net at the plan of the episode that runs, its optimiser, both controllers, the best plan."""
        return {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best,
            "told": self.told, "float": (self.float_top1, self.float_loss), "ranges": self.ranges,
            "agents": {role: agent.state() for role, agent in self.agents.items()},
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.told, self.ranges = state["best"], state["told"], state["ranges"]
        self.float_top1, self.float_loss = state["float"]
        for role, agent in self.agents.items():
            agent.load(state["agents"][role])
        self.net.train()

    def tensors(self) -> Mapping[str, Tensor]:
        """The network's and the controllers'."""
        found = dict(self.net.state_dict())
        for agent in self.agents.values():
            found |= agent.tensors()
        return found


def spread(share: float) -> float:
    """How far the controllers stray when `share` of the episodes is over; infinite while they draw by chance."""
    if share < WARMUP:
        return math.inf
    return SPREAD * (SPREAD_LAST / SPREAD) ** ((share - WARMUP) / (1 - WARMUP))


def chosen(told: Mapping[str, Any]) -> Choice:
    """Inverse of `described`."""
    return Choice(
        {LayerId(n): b for n, b in told["weight"].items()}, {LayerId(n): b for n, b in told["act"].items()},
        {GroupId(g): tuple(p) for g, p in told["parts"].items()},
        {LayerId(n): tuple(f) for n, f in told.get("filters", {}).items()},
    )  # fmt: skip
