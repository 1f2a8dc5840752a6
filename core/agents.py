"""The two controllers of AJPQ: stable-baselines3's DDPG on gymnasium environments (methods A.3).

Here stand the environment that a controller meets, what it tries beside what it thinks best, and what it has learned,
as tensors for a checkpoint. Needs the extra [rl]; nothing imports this module before it is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.logger import Logger
from torch import Tensor

from .walk import Walk

# As HAQ and AMC have them (methods A.3.4), but for the rate, which the library has one of for actor and critic.
HIDDEN, RATE, TAU, DISCOUNT, BATCH = (300, 300), 1e-3, 0.01, 1.0, 64
REPLAYED = 128  # episodes that the replay buffer holds

Policy = Callable[[np.ndarray], np.ndarray]


class Controls(gymnasium.Env[np.ndarray, np.ndarray]):
    """The walk as one controller meets it: in `step` the other one decides too, until it is this one's turn again.

    Every reward is 0 here. A plan has to be trained and judged before it is known what it is worth: `Agent.learn`.
    """

    def __init__(self, walk: Walk, role: str) -> None:
        self.walk, self.role, self.other = walk, role, _half(walk)
        self.observation_space = spaces.Box(0.0, 1.0, walk.observation().shape, np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (walk.shares(role),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new walk, up to this controller's first turn."""
        super().reset(seed=seed, options=options)
        self.walk.begin()
        self._pass()
        return self.walk.observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes this controller's decision, and the other's that follow."""
        self.walk.take(action)
        self._pass()
        return self.walk.observation(), 0.0, self.walk.ended, False, {}

    def _pass(self) -> None:
        while not self.walk.ended and self.walk.turn.role != self.role:
            self.walk.take(self.other(self.walk.observation()))


def _half(walk: Walk) -> Policy:
    """A policy that says one half of everything; what stands in for the other controller until there is one."""
    return lambda _seen: np.full(walk.shares(walk.turn.role), 0.5, np.float32)


class Agent:
    """One controller: a DDPG, the decisions of its episode, and how far it strays from what it thinks best."""

    def __init__(self, env: Controls, seed: int) -> None:
        self.env = env
        turns = sum(turn.role == env.role for turn in env.walk.turns)
        with _apart(seed):
            self.model = DDPG(
                "MlpPolicy", env, learning_rate=RATE, buffer_size=REPLAYED * turns, batch_size=BATCH, tau=TAU,
                gamma=DISCOUNT, policy_kwargs={"net_arch": list(HIDDEN)}, seed=seed, device="cpu",
            )  # fmt: skip
        self.model.set_logger(Logger(None, []))
        self.decided: list[tuple[np.ndarray, np.ndarray]] = []  # what was seen, what was said
        self.rng, self.spread, self.whole = np.random.default_rng(seed), 0.0, False

    def begin(self, rng: np.random.Generator, spread: float, *, whole: bool = False) -> None:
        """A new episode. `spread`: standard deviation of what is tried; infinite: anything. `whole`: 1 of each."""
        self.decided, self.rng, self.spread, self.whole = [], rng, spread, whole

    def decide(self, seen: np.ndarray) -> np.ndarray:
        """What it says to an observation, float32 within [0, 1]; remembered until it learns."""
        best, _ = self.model.predict(seen, deterministic=True)
        if self.whole:
            said = np.ones_like(best)
        else:
            said = self.rng.normal(best, self.spread) if np.isfinite(self.spread) else self.rng.uniform(size=best.shape)
        action = np.clip(said, 0.0, 1.0).astype(np.float32)
        self.decided.append((seen, action))
        return action

    def learn(self, reward: float, *, steps: int, seed: int) -> None:
        """Remembers the episode's decisions, each with its reward as an end of its own; `steps` updates.

        The critic so learns what a whole plan is worth, and waits for nothing to come back from the last layer.
        """
        buffer = self.model.replay_buffer
        assert buffer is not None, "DDPG has one"
        for seen, action in self.decided:
            scaled = self.model.policy.scale_action(action)
            buffer.add(seen[None], seen[None], scaled[None], np.array([reward]), np.array([True]), [{}])
        self.decided = []
        if steps:
            with _apart(seed):
                self.model.train(gradient_steps=steps, batch_size=BATCH)

    def state(self) -> dict[str, Any]:
        """Networks, optimisers, replay buffer, decisions of the episode that runs."""
        buffer = self.model.replay_buffer
        assert buffer is not None, "DDPG has one"
        filled = buffer.buffer_size if buffer.full else buffer.pos
        held = {name: torch.from_numpy(getattr(buffer, name)[:filled].copy()) for name in _HELD}
        return {
            "policy": self.model.policy.state_dict(), "actor": self.model.actor.optimizer.state_dict(),
            "critic": self.model.critic.optimizer.state_dict(), "held": held, "at": buffer.pos, "full": buffer.full,
            "decided": [(torch.from_numpy(seen), torch.from_numpy(said)) for seen, said in self.decided],
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`."""
        buffer = self.model.replay_buffer
        assert buffer is not None, "DDPG has one"
        self.model.policy.load_state_dict(state["policy"])
        self.model.actor.optimizer.load_state_dict(state["actor"])
        self.model.critic.optimizer.load_state_dict(state["critic"])
        for name, values in state["held"].items():
            getattr(buffer, name)[: len(values)] = values.numpy()
        buffer.pos, buffer.full = state["at"], state["full"]
        self.decided = [(seen.numpy(), said.numpy()) for seen, said in state["decided"]]

    def tensors(self) -> dict[str, Tensor]:
        """What must stay finite."""
        return {f"{self.env.role} controller {name}": v for name, v in self.model.policy.state_dict().items()}


_HELD = ("observations", "next_observations", "actions", "rewards", "dones")


@contextmanager
def _apart(seed: int) -> Iterator[None]:
    """The library draws from the generators of the process: seeded inside, afterwards as they were."""
    before, drawn = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(drawn)
            random.setstate(before)
