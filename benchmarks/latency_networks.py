"""Whole networks for `profile`: what steps beside layers take, what layers take longer in company, and how far a
prediction lies from the time of plans that it did not see. Knows no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import correlation, median
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler import artifact
from ..compiler.model import Model
from ..compiler.pipeline import compile_graph
from ..compiler.program import Program, Step
from ..core.cost import Choice, Costs, Space, largest, search_space, smallest, stairs
from ..core.errors import CheckFailed
from ..core.graph import Graph
from ..core.groups import channel_group
from ..core.latency import LatencyTable, Network, Rest, Target, layer_shape
from .pace import Pace

if TYPE_CHECKING:
    from ..core.supernet import SuperNet

RANDOM, CHECKS = 4, 10  # plans beside the corners that are learned from, and those that only judge
SHARE = 120  # of the work: a whole network against one pair of widths of one shape
FACTOR = 20  # of the seconds of a pair of widths: the time of one plan
IMAGES = 4  # of noise, for clips


@dataclass(frozen=True, slots=True)
class Timed:
    """One plan of the network: the choice, its program, medians of its steps and of a whole inference in ms."""

    choice: Choice
    program: Program
    steps: np.ndarray
    total: float


def measured_network(
    model: str, graph: Graph, residual: str, table: LatencyTable, *, pace: Pace, seconds: float, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The entry of `networks` for a graph whose layers are all in `table`."""
    space = search_space(graph)
    rng = np.random.default_rng(seed)
    corners = [largest(space), smallest(space), *stairs(space)[1:3]]
    levels = (*spread(RANDOM), *spread(CHECKS))
    choices = [*corners, *(drawn(space, rng, level) for level in levels)]
    found = timed(graph, space, choices, residual, pace=pace, seconds=seconds, seed=seed)
    seen = found[: len(corners) + RANDOM]
    network = learned(model, graph, space, table, seen)
    costs = Costs(graph, replace(space, target=Target(table, network, _shapes(graph))))
    checks = [{"predicted": costs.latency(one.choice), "measured": one.total} for one in found[len(seen) :]]
    return {
        "model": model, "graph": graph.fingerprint(), "residual": residual,
        "steps": [
            {"name": r.name, "group": r.group, "channels": list(r.channels), "ms": list(r.ms)} for r in network.rest
        ],
        "extra": dict(network.extra), "overhead": network.overhead, "checks": checks,
    }  # fmt: skip


def judged(checks: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """How far the predictions of `checks` lie from what was measured: their number, median error, rank correlation."""
    predicted, measured = ([check[key] for check in checks] for key in ("predicted", "measured"))
    errors = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
    return {
        "checks": len(errors), "error": median(errors) if errors else None,
        "rank": correlation(_ranks(predicted), _ranks(measured)) if len(errors) > 1 else None,
    }  # fmt: skip


def _ranks(values: Sequence[float]) -> list[int]:
    return [sorted(values).index(value) for value in values]


def spread(count: int) -> tuple[float, ...]:
    """Levels of `drawn`, evenly between narrow and wide: plans drawn at one level take almost the same time."""
    return tuple((i + 0.5) / count for i in range(count))


def drawn(space: Space, rng: np.random.Generator, level: float) -> Choice:
    """A point of the space by chance: at level 0 the narrowest widths and fewest channels, at 1 the whole network."""
    whole, steps = largest(space), len(space.widths) - 1
    weight = {name: space.widths[rng.binomial(steps, level)] for name in space.searched}
    act = {name: space.widths[rng.binomial(steps, level)] for name in space.acts}
    parts = {}
    for group, gate in space.gates.items():
        gone = set(rng.permutation(len(gate.sizes))[: rng.binomial(gate.removable, 1 - level)].tolist())
        parts[group] = tuple(p for p in whole.parts[group] if p not in gone)
    return Choice({**whole.weight, **weight}, {**whole.act, **act}, parts)


def timed(
    graph: Graph, space: Space, choices: Sequence[Choice], residual: str, *, pace: Pace, seconds: float, seed: int
) -> list[Timed]:
    """Every choice compiled, verified by its golden sample, and timed against the others in one interleaved run."""
    net, image = noise_net(graph, space, residual, seed)
    models = [verified_model(net, choice, pace.threads) for choice in choices]
    steps: dict[str, list[np.ndarray]] = {f"steps {i}": [] for i in range(len(models))}
    candidates: dict[str, Callable[[], Any]] = {}
    for i, model in enumerate(models):
        candidates[f"total {i}"] = partial(model.session.run, image)
        candidates[f"steps {i}"] = partial(model.session.profile, image)

    def observe(name: str, result: Any) -> None:
        if name in steps:
            steps[name].append(np.asarray(result, np.float64))

    times, raw = pace.measure(
        candidates, alone=False, seconds=FACTOR * seconds * len(candidates), observe=observe
    )  # fmt: skip
    out = []
    for i, (choice, model) in enumerate(zip(choices, models, strict=True)):
        name = f"steps {i}"
        scale = times[name] / raw[name].median
        out.append(Timed(choice, model.program, np.median(steps[name], axis=0) * scale, times[f"total {i}"]))
    return out


def noise_net(graph: Graph, space: Space, residual: str, seed: int) -> tuple[SuperNet, np.ndarray]:
    """A net whose clips fit noise, which is all that times need, and an image of it."""
    import torch

    from ..core.supernet import SuperNet
    from ..core.supernet_starts import fit

    noise = np.random.default_rng(seed).standard_normal((IMAGES, *graph.inputs[0].shape)).astype(np.float32)
    net = SuperNet(graph, space, residual=residual).eval()
    fit(net, [torch.from_numpy(noise)])
    return net, noise[:1]


def verified_model(net: SuperNet, choice: Choice, threads: int) -> Model:
    """The choice, frozen and compiled; CheckFailed unless its golden sample comes out."""
    net.freeze(choice)
    plan, tensors = net.extract()
    model = Model(artifact.encode(compile_graph(net.graph, plan, tensors, {})), threads=threads)
    if not model.golden_check():
        raise CheckFailed("a compiled network differs from the numpy reference on its golden sample; nothing is timed")
    return model


def _shapes(graph: Graph) -> dict[str, Any]:
    from ..core.bops import layer_nodes

    return {node.name: layer_shape(graph, node) for node in layer_nodes(graph)}


def learned(model: str, graph: Graph, space: Space, table: LatencyTable, seen: Sequence[Timed]) -> Network:
    """Steps beside layers by their channels; medians of what layers and all else take beyond the table."""
    shapes = _shapes(graph)
    alone = Target(table, Network(model, (), dict.fromkeys(shapes, 0.0), 0.0), shapes)
    costs = Costs(graph, replace(space, target=alone))
    terms = {str(term.layer): term for term in costs.terms}
    beyond: dict[str, list[float]] = {layer: [] for layer in shapes}
    beside: dict[tuple[str, str], dict[int, list[float]]] = {}
    for one in seen:
        for step, ms in zip(one.program.steps, one.steps.tolist(), strict=True):
            if step.layer:
                beyond[step.layer].append(ms - costs.time_of(one.choice, terms[step.layer]))
                continue
            key = (step.name, _group(graph, space, one.program, step))
            channels = one.program.buffers[step.output].shape[0] if key[1] else 0
            beside.setdefault(key, {}).setdefault(channels, []).append(ms)
    rest = tuple(_rest(name, group, at) for (name, group), at in beside.items())
    extra = {layer: float(np.median(values)) for layer, values in beyond.items()}
    return Network(model, rest, extra, float(np.median([one.total - one.steps.sum() for one in seen])))


def _rest(name: str, group: str, at: Mapping[int, Sequence[float]]) -> Rest:
    counts = sorted(at)
    return Rest(name, group, tuple(map(float, counts)), tuple(float(np.median(at[c])) for c in counts))


def _group(graph: Graph, space: Space, program: Program, step: Step) -> str:
    """The gated group whose channels a step writes, "" for none."""
    group_of, name = channel_group(graph), program.buffers[step.output].name
    layer = name.removesuffix(".input")
    if name not in group_of and layer in group_of:  # a layer's input, requantised
        name = graph.value(layer).inputs[0]
    group = group_of.get(name, "")
    return str(group) if group in space.gates else ""
