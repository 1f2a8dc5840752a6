"""Float graphs as trainable torch modules: plain, and with the quantisers and gates of SBS (methods A.1).

`FloatNet` interprets a float graph; `SuperNet` rounds where `core.storage` says that values are stored and lets gates
choose widths and channels, until `freeze` fixes them; `extract` gives plan and tensors back. Objectives and schedules
are the methods' business, codes and multipliers are `core.integer`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cost import END_BITS, WIDTHS, Choice, Costs, Gate, Space, Term, to_plan
from .encoding import Encoding, odd, twos
from .errors import UnsupportedError
from .graph import Graph, Node
from .groups import channel_group, groups
from .integer import weight_clip
from .parallel import averaged
from .plan import CompressionPlan, GroupId, LayerId
from .storage import LAYERS, STREAM_BITS, act_encoding, analyse
from .supernet_rounding import (
    EVEN,
    ODD,
    TINY,
    UNIT,
    clipped,
    clipped_by_gates,
    decomposed,
    mean_residuals,
    rounded_to,
    split,
    steps,
)
from .torch_ops import TORCH_OPS

BATCH_NORM_MOMENTUM = 0.1
RESIDUAL_MOMENTUM = 0.02  # of the running means that activation gates read; ours (methods F)
SAMPLE = 1 << 15  # values looked at to choose a clip
CANDIDATES = 60  # clips tried between nothing and the largest magnitude


def hard_gate(score: Tensor, threshold: Tensor) -> Tensor:
    """1 where score > threshold, else 0; backward as sigmoid(score - threshold) (methods A.1.3)."""
    soft = torch.sigmoid(score - threshold)
    return (score > threshold).to(soft.dtype) - soft.detach() + soft


def width(gates: tuple[Tensor, Tensor]) -> Tensor:
    """Bits as a differentiable scalar: 2 + 2 g_4 + 4 g_4 g_8, the telescoped sum of methods A.1.5."""
    g4, g8 = gates
    return 2 + 2 * g4 + 4 * g4 * g8


def importance(weight: Tensor) -> Tensor:
    """Of each filter: its mean |w| after division by the tensor's largest |w|, [O] (methods A.1.4)."""
    return (weight.abs() / weight.detach().abs().max().clamp_min(TINY)).flatten(1).mean(1)


def sampled(values: Tensor) -> Tensor:
    """About `SAMPLE` of the values, at an odd stride: an even one may meet the same columns of every image."""
    flat = values.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE) | 1]


def best_clip(values: Tensor, domain: str, bits: int) -> float:
    """The clip of least squared rounding error on `values`, among `CANDIDATES` shares of the largest magnitude."""
    flat = sampled(values).double()
    top = float(flat.abs().max())
    if top == 0:
        return 1.0
    n = steps(domain, bits)
    best, least = top, float("inf")
    for i in range(CANDIDATES, 0, -1):
        v = top * i / CANDIDATES
        if domain == ODD:
            rounded = v * (2 * torch.round((torch.clamp(flat / v, -1, 1) + 1) / 2 * n) / n - 1)
        else:
            rounded = v * torch.round(torch.clamp(flat / v, -1.0 if domain == EVEN else 0.0, 1) * n) / n
        error = float(((rounded - flat) ** 2).sum())
        if error < least:
            best, least = v, error
    return best


@dataclass
class Gates:
    """What the last forward decided: layer -> (g_4, g_8) of weights and activations, group -> gates of its parts."""

    weight: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    act: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    prune: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where networks compute: a torch device, and fp32 or bf16 for what autocast takes (convolutions, products)."""

    device: str = "cpu"
    precision: str = "fp32"


_HERE = Place()
_PLACE: ContextVar[Place] = ContextVar("place", default=_HERE)


@contextmanager
def placed(place: Place) -> Iterator[None]:
    """Networks that are made inside live at `place`; images and labels are brought there by their callers."""
    token = _PLACE.set(place)
    try:
        yield
    finally:
        _PLACE.reset(token)


class FloatNet(nn.Module):
    """A float graph in torch. Parameters and running statistics bear the names of the graph's constants."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.place = _PLACE.get()
        self.momentum = BATCH_NORM_MOMENTUM  # of running statistics; `train.reestimate` averages instead
        self.tree = nn.Module()  # a tree of its own: a layer may be called as one of our attributes
        self._tensors: dict[str, tuple[nn.Module, str]] = {}
        self._last_use = _last_use(graph)
        roles = {const: role for n in graph.nodes for role, const in n.consts.items()}
        for name, role in roles.items():
            self._hold(name, torch.from_numpy(np.array(graph.consts[name], np.float32)), learnt=role in _LEARNT)

    def _hold(self, name: str, value: Tensor, *, learnt: bool) -> None:
        """Registers `value` so that its key in `state_dict` is `name`, dots and all."""
        *path, leaf = name.split(".")
        module, value = self.tree, value.to(self.place.device)
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        if learnt:
            module.register_parameter(leaf, nn.Parameter(value))
        else:
            module.register_buffer(leaf, value)
        self._tensors[name] = (module, leaf)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """By the names of the graph's constants."""
        return self.tree.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Inverse of `state_dict`."""
        return self.tree.load_state_dict(state_dict, strict, assign)

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of that name."""
        module, leaf = self._tensors[name]
        value: Tensor = getattr(module, leaf)
        return value

    def consts(self, node: Node) -> dict[str, Tensor]:
        """Role -> tensor of a node."""
        return {role: self.tensor(name) for role, name in node.consts.items()}

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, C, H, W] -> outputs [N, classes], float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.place.precision == "bf16"):
            for _, value in self.walk(x):
                x = value
        return x.float()

    def walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Every (value name, value) in order; the output is the last."""
        values = {self.graph.inputs[0].name: self.entered(x)}
        yield self.graph.inputs[0].name, values[self.graph.inputs[0].name]
        for i, node in enumerate(self.graph.nodes):
            ins = self.read(node, [values[name] for name in node.inputs])
            values[node.name] = self.left(node, self.compute(node, ins))
            yield node.name, values[node.name]
            for name in [v for v in values if self._last_use.get(v, -1) <= i and v not in self.graph.outputs]:
                del values[name]
        if self.graph.nodes and self.graph.nodes[-1].name != self.graph.outputs[0]:
            yield self.graph.outputs[0], values[self.graph.outputs[0]]

    def entered(self, x: Tensor) -> Tensor:
        """The network's input as the graph sees it."""
        return x

    def read(self, node: Node, ins: list[Tensor]) -> list[Tensor]:  # noqa: ARG002
        """Inputs of a node as it reads them."""
        return ins

    def left(self, node: Node, value: Tensor) -> Tensor:  # noqa: ARG002
        """The value of a node as it is stored."""
        return value

    def compute(self, node: Node, ins: list[Tensor]) -> Tensor:
        """One op; batch norms use the batch's statistics while training."""
        if node.op == "batch_norm" and self.training:
            c = self.consts(node)
            return F.batch_norm(
                ins[0], c["mean"], c["var"], c["weight"], c["bias"], True, self.momentum, node.attrs["eps"]
            )
        return TORCH_OPS[node.op](node, self.consts(node), *ins)

    def running(self) -> list[Tensor]:
        """Running statistics of all batch norms."""
        norms = (node for node in self.graph.nodes if node.op == "batch_norm")
        return [self.tensor(node.consts[role]) for node in norms for role in ("mean", "var")]

    def float_tensors(self) -> dict[str, np.ndarray]:
        """The graph's constants as they are now, float32 copies."""
        return {name: self.tensor(name).detach().cpu().numpy().copy() for name in self.graph.consts}


_LEARNT = ("weight", "bias")


def _last_use(graph: Graph) -> dict[str, int]:
    last = {n.name: -1 for n in graph.inputs}
    for i, node in enumerate(graph.nodes):
        last.setdefault(node.name, i)
        last.update(dict.fromkeys(node.inputs, i))
    return last


class SuperNet(FloatNet):
    """The float graph with quantisers at every stored value and gates over widths and channels.

    Searching: hard gates with a sigmoid's gradient. Frozen: the widths and parts of one `Choice`. `last` holds the
    gates of the latest forward, from which `cost` computes the differentiable figures.
    """

    def __init__(self, graph: Graph, space: Space, *, residual: str = "int8", grid: str = ODD) -> None:
        """`grid` of the weights: ODD, standardised and without a zero, or EVEN, symmetric around one."""
        super().__init__(graph)
        self.space, self.residual, self.grid = space, residual, grid
        self.layers = tuple(LayerId(n.name) for n in graph.nodes if n.op in LAYERS)
        self.costs = Costs(graph, space)
        self.last = Gates()
        self.residual_momentum = RESIDUAL_MOMENTUM  # 1: activation gates read the last batch, as published
        self.watch: Callable[[str, Tensor], bool] | None = None  # told (clip, values); False: they pass unrounded
        self._plan_storage()
        self._group_of = channel_group(graph)
        values = {v: g for g in groups(graph) if g.id in space.gates for v in g.values}
        self._masked = {v: (g.id, graph.value(v).shape[0] // g.channels) for v, g in values.items()}
        self._hold_parameters()

    def _plan_storage(self) -> None:
        """Which clip rounds which value, where it is stored and where it is read."""
        act: dict[str, Encoding] = {
            name: act_encoding(self.graph, name, END_BITS) for name in self.layers
        }  # widths do not move the points
        storage = analyse(self.graph, act, self.residual)
        ends = {n.name for n in self.graph.inputs} | {c.end for c in storage.chains}
        self._stored = {v: s.clip for v, s in storage.stored.items() if v in ends and s.encoding is not None}
        self._reads = {
            n.name: storage.reads[n.name].clip
            for n in self.graph.nodes
            if n.name in storage.reads and storage.reads[n.name] != storage.stored[n.inputs[0]]
        }
        self.domains: dict[str, str] = {}  # clip -> domain of what it rounds
        for point in storage.points:
            self.domains[point.clip] = EVEN if point.encoding.lo < 0 else UNIT
        self._layer_of = {f"{name}.act_clip": name for name in self.layers}

    def _hold_parameters(self) -> None:
        for clip in self.domains:
            self._hold(clip, torch.ones(()), learnt=True)
        for name in self.layers:
            self._hold(f"{name}.weight_clip", torch.ones(self._clips_of(name)), learnt=True)
            self._hold(f"{name}.bits", torch.tensor(self.space.given(name)), learnt=False)
        for group, gate in self.space.gates.items():
            stay = self.space.cut.get(group, range(len(gate.sizes)))
            parts = [float(i in stay) for i in range(len(gate.sizes))]
            self._hold(f"{group}.parts", torch.tensor(parts), learnt=False)
        self._hold_gates()
        self._hold("gates_frozen", torch.zeros((), dtype=torch.bool), learnt=False)

    def _clips_of(self, layer: LayerId) -> tuple[int, ...]:  # noqa: ARG002
        """Shape of the clips of a layer's weights: one."""
        return ()

    def _hold_gates(self) -> None:
        """What a search moves beside weights and clips."""
        for name in self.space.searched:
            self._hold(f"{name}.threshold_w", torch.zeros(2), learnt=True)
            self._hold(f"{name}.threshold_a", torch.zeros(2), learnt=True)
            self._hold(f"{name}.mean_residual", torch.zeros(2), learnt=False)
        for group in self.space.open:
            self._hold(f"{group}.threshold_p", torch.zeros(()), learnt=True)

    # -- parameters by kind -------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether widths and channels are fixed."""
        return bool(self.tensor("gates_frozen"))

    def parameters_of(self, kind: str) -> list[nn.Parameter]:
        """`network` (the graph's own), `clips`, or `thresholds`."""
        out = []
        for name, (module, leaf) in self._tensors.items():
            value = getattr(module, leaf)
            if isinstance(value, nn.Parameter) and self.kind(name) == kind:
                out.append(value)
        return out

    def kind(self, name: str) -> str:
        """Of a parameter, as `parameters_of` takes it."""
        if name in self.graph.consts:
            return "network"
        return "thresholds" if ".threshold_" in name else "clips"

    def stored_clip(self, value: str) -> str | None:
        """The clip that a stored value is rounded by; None where it is no end of a chain, or held in floats."""
        return self._stored.get(value)

    def read_clip(self, layer: str) -> str | None:
        """The clip that a layer rounds its input by where it is stored otherwise; None where it is read as stored."""
        return self._reads.get(layer)

    def layer_of(self, clip: str) -> LayerId | None:
        """The layer whose input a clip rounds; None for streams and pools."""
        return self._layer_of.get(clip)

    # -- rounding -----------------------------------------------------------------------------------------------

    def entered(self, x: Tensor) -> Tensor:
        """The image, rounded, if it is stored as codes; also takes this forward's pruning gates."""
        self.last = Gates()
        self.last.prune = {g: self.part_gates(g) for g in self.space.gates}
        return self._round(x, self._stored.get(self.graph.inputs[0].name))

    def read(self, node: Node, ins: list[Tensor]) -> list[Tensor]:
        """Requantised from the stored code where the reader holds its input otherwise."""
        return [self._round(ins[0], self._reads.get(node.name)), *ins[1:]]

    def left(self, node: Node, value: Tensor) -> Tensor:
        """Masked and rounded where a chain ends: removed channels are zero there, which every grid holds."""
        clip = self._stored.get(node.name)
        if clip is not None and node.name in self._masked and self._hides(node.name):
            mask = self.mask(node.name).to(value.dtype)
            value = value * mask.view(1, -1, *(1,) * (value.dim() - 2))
        return self._round(value, clip)

    def masked_end(self, group: str) -> str:
        """The last value of a group that is masked and stored: behind it its channels are read no more."""
        of = {value: at for value, (at, _) in self._masked.items()}
        return [n.name for n in self.graph.nodes if n.name in self._stored and of.get(n.name) == group][-1]

    def _hides(self, value: str) -> bool:
        """Whether masking a value does anything: to its channels, or to the gates by their gradient."""
        gates = self.last.prune[self._masked[value][0]]
        return gates.requires_grad or bool((gates != 1).any())

    def mask(self, value: str) -> Tensor:
        """Gate of every channel (or flattened column) of a value, [C]."""
        group, spread = self._masked[value]
        gates, sizes = self.last.prune[group], self.space.gates[GroupId(group)].sizes
        times = torch.tensor(sizes, device=gates.device)
        return gates.repeat_interleave(times, output_size=sum(sizes)).repeat_interleave(spread)

    def _round(self, x: Tensor, clip: str | None) -> Tensor:
        if clip is None or (self.watch is not None and not self.watch(clip, x)):
            return x
        domain = self.domains[clip]
        v = self.tensor(clip).abs() + TINY
        layer = self._layer_of.get(clip)
        if layer is None or layer not in self.space.searched or self.frozen:
            return clipped(x, v, STREAM_BITS if layer is None else int(self.tensor(f"{layer}.bits")[1]), domain)
        return self.searched_act(layer, x, v, domain)

    def searched_act(self, layer: LayerId, x: Tensor, v: Tensor, domain: str) -> Tensor:
        """The input of a layer whose width is searched, rounded within the positive clip `v`."""
        if not self.training:
            gates = self.last.act[layer] = self.act_gates(layer)
            return clipped(x, v, gated_bits(gates), domain)
        parts, means = split(x, v, domain)
        self.tensor(f"{layer}.mean_residual").lerp_(averaged(means), self.residual_momentum)
        gates = self.last.act[layer] = self.act_gates(layer)
        return clipped_by_gates(x, v, gates, parts, domain)

    def consts(self, node: Node) -> dict[str, Tensor]:
        """As stored, but for a layer's weight, which comes rounded."""
        out = super().consts(node)
        if node.op in LAYERS:
            out["weight"] = self.rounded_weight(LayerId(node.name))
        return out

    def rounded_weight(self, layer: LayerId) -> Tensor:
        """Weight on the net's grid: std * |v| * (2 D(u) - 1) on the odd one, |v| * D(z) on the symmetric one.

        Linear layers have no mean and std (methods A.1.1), and nothing has on the symmetric grid (A.2.1).
        """
        if layer in self.space.searched and not self.frozen:
            return self.searched_weight(layer)
        z, scale = self.normalised_weight(layer)
        return self._on_grid(rounded_to(self._unit(z), self.weight_steps(layer)), scale)

    def weight_steps(self, layer: LayerId) -> int | Tensor:
        """Steps of the grid of a frozen layer's weights, one number or one for each filter."""
        return steps(self.grid, int(self.tensor(f"{layer}.bits")[0]))

    def searched_weight(self, layer: LayerId) -> Tensor:
        """`rounded_weight` of a layer whose width is searched."""
        z, scale = self.normalised_weight(layer)
        u = self._unit(z)
        gates = self.last.weight[layer] = self.weight_gates(layer, u)
        direct = not self.training
        rounded = rounded_to(u, steps(self.grid, gated_bits(gates))) if direct else decomposed(u, *gates, self.grid)
        return self._on_grid(rounded, scale)

    def _unit(self, z: Tensor) -> Tensor:
        """Normalised weights where their grid is rounded: within [0, 1] for the odd one, [-1, 1] for the symmetric."""
        z = torch.clamp(z, -1.0, 1.0)
        return (z + 1) / 2 if self.grid == ODD else z

    def _on_grid(self, rounded: Tensor, scale: Tensor) -> Tensor:
        """Back from `_unit` to values, float32."""
        return (scale * (2 * rounded - 1 if self.grid == ODD else rounded)).float()

    def normalised_weight(self, layer: LayerId) -> tuple[Tensor, Tensor]:
        """(w' / |v|, real value of 1): w' standardised over the part that stays, mean and std without gradient.

        float64, as `core.integer` computes it: a weight that lands on another level moves a whole channel.
        """
        w, std = self.standardised_weight(layer)
        v = self.weight_range(layer)
        return w / v, v * std

    def standardised_weight(self, layer: LayerId) -> tuple[Tensor, Tensor]:
        """(w', std), float64; linear layers, and all on the symmetric grid, as they are."""
        node = self.graph.value(layer)
        weight = self.tensor(node.consts["weight"]).double()
        if node.op == "linear" or self.grid != ODD:
            return weight, torch.ones((), dtype=torch.float64, device=weight.device)
        mean, std = self.statistics(layer)
        return (weight - mean) / std, std

    def weight_range(self, layer: LayerId) -> Tensor:
        """|v| of a layer's weights, float64, to divide them by."""
        return self.tensor(f"{layer}.weight_clip").double().abs() + TINY

    def set_clip(self, layer: LayerId, bits: int, v: float) -> None:  # noqa: ARG002
        """The clip of a layer's weights at `bits`."""
        with torch.no_grad():
            self.tensor(f"{layer}.weight_clip").fill_(v)

    def fit_clip(self, layer: LayerId, bits: int) -> None:
        """The clip of a layer's weights that rounds them best to `bits`."""
        self.set_clip(layer, bits, best_clip(self.standardised_weight(layer)[0], self.grid, bits))

    def statistics(self, layer: LayerId) -> tuple[Tensor, Tensor]:
        """Mean and population std over kept filters x kept input channels, computed in float64."""
        node = self.graph.value(layer)
        with torch.no_grad():
            w = self.tensor(node.consts["weight"]).double()
            if layer in self._masked and GroupId(self._masked[layer][0]) in self.space.gates:
                w = w[self.mask(layer) > 0.5]
            if node.inputs[0] in self._masked and node.attrs["groups"] == 1:
                w = w[:, self.mask(node.inputs[0]) > 0.5]
            mean = w.mean()
            return mean, ((w - mean) ** 2).mean().sqrt() + TINY

    # -- gates --------------------------------------------------------------------------------------------------

    def weight_gates(self, layer: str, u: Tensor) -> tuple[Tensor, Tensor]:
        """(g_4, g_8) of a layer's weights, from their residuals now."""
        g = hard_gate(mean_residuals(u, self.grid), self.tensor(f"{layer}.threshold_w"))
        return g[0], g[1]

    def weight_residuals(self, layer: str) -> Tensor:
        """[A_4, A_8] of a layer's weights now."""
        with torch.no_grad():
            z, _ = self.normalised_weight(LayerId(layer))
            return mean_residuals(self._unit(z), self.grid)

    def act_gates(self, layer: str) -> tuple[Tensor, Tensor]:
        """(g_4, g_8) of a layer's input, from the running mean of its residuals."""
        g = hard_gate(self.tensor(f"{layer}.mean_residual").clone(), self.tensor(f"{layer}.threshold_a"))
        return g[0], g[1]

    def part_scores(self, group: str) -> Tensor:
        """Mean importance of the filters of each part, over its scored convolutions."""
        gate = self.space.gates[GroupId(group)]
        scores: Tensor = torch.zeros(len(gate.sizes), device=self.place.device)
        for layer in gate.scored:
            rows = importance(self.tensor(self.graph.value(layer).consts["weight"]))
            scores = scores + torch.stack([part.mean() for part in torch.split(rows, list(gate.sizes))])
        return scores / len(gate.scored)

    def part_gates(self, group: str) -> Tensor:
        """Gate of each part, [parts]."""
        if self.frozen or GroupId(group) in self.space.cut:
            return self.tensor(f"{group}.parts")
        return hard_gate(self.part_scores(group), self.tensor(f"{group}.threshold_p"))

    def clamp_thresholds(self, share: float = 1.0) -> None:
        """Thresholds at least 0; pruning's at most the score that the k-th smallest part has (methods A.1.5).

        `share`: of a group's parts that may go, one at least, where that is less than the space allows.
        """
        with torch.no_grad():
            for layer in self.space.searched:
                self.tensor(f"{layer}.threshold_w").clamp_(min=0)
                self.tensor(f"{layer}.threshold_a").clamp_(min=0)
            for group, gate in self.space.open.items():
                most = min(gate.removable, max(1, int(share * len(gate.sizes))))
                cap = float(self.part_scores(group).sort().values[most - 1])
                self.tensor(f"{group}.threshold_p").clamp_(0, cap)

    def choice(self) -> Choice:
        """What the gates say now, or the frozen choice."""
        with torch.no_grad():
            self.last.prune = {g: self.part_gates(g) for g in self.space.gates}
            parts = {
                GroupId(g): tuple(int(i) for i in torch.nonzero(v > 0.5).flatten()) for g, v in self.last.prune.items()
            }
            weight: dict[LayerId, int] = {}
            act: dict[LayerId, int] = {}
            for layer in self.layers:
                fixed = self.tensor(f"{layer}.bits")
                if layer not in self.space.searched or self.frozen:
                    weight[layer], act[layer] = int(fixed[0]), int(fixed[1])
                else:
                    weight[layer], act[layer] = self.searched_bits(layer)
        return Choice(weight, act, parts)

    def searched_bits(self, layer: LayerId) -> tuple[int, int]:
        """(weight, input) widths of a searched layer as a choice would hold them now."""
        gates = hard_gate(self.weight_residuals(layer), self.tensor(f"{layer}.threshold_w"))
        return gated_bits((gates[0], gates[1])), gated_bits(self.act_gates(layer))

    def freeze(self, choice: Choice) -> None:
        """Fixes widths and channels; gates and thresholds play no part from here on."""
        with torch.no_grad():
            for layer in self.layers:
                self.tensor(f"{layer}.bits").copy_(torch.tensor([choice.weight[layer], choice.act[layer]]))
            for group in self.space.gates:
                parts = self.tensor(f"{group}.parts")
                parts.zero_()
                parts[list(choice.parts[group])] = 1
            self.tensor("gates_frozen").fill_(True)

    # -- figures ------------------------------------------------------------------------------------------------

    def cost(self, kind: str, *, weights: bool = True, acts: bool = True) -> Tensor:
        """BOPs, bytes or milliseconds of the latest forward's gates, differentiable (methods A.1.5).

        `weights`, `acts`: whether the gates of that side receive the gradient; pruning gates always do. Milliseconds
        are the table's, their gradient is that of its chords (core.latency).
        """
        total = self._time_beside() if kind == "latency" else torch.zeros((), dtype=torch.float64)
        for term in self.costs.terms:
            w, a = (torch.tensor(bits, dtype=torch.float64) for bits in self.space.given(term.layer))
            if term.layer in self.space.searched:
                w, a = (
                    side if learns else side.detach()
                    for side, learns in zip(self.widths(term.layer), (weights, acts), strict=True)
                )
            c_in, c_out = self._count(term.inside, term.c_in), self._count(term.outside, term.c_out)
            if kind == "latency":
                total = total + self._time(term, (c_in * term.columns, c_out, w, a))
            else:
                total = total + c_in * c_out * (w * a * term.unit if kind == "bops" else w * (term.depth / 8))
        return total

    def _time(self, term: Term, at: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Milliseconds of a layer at (input channels, filters, w bits, a bits)."""
        c_in, c_out, w, a = (round(float(x.detach()), 4) for x in at)  # gates are 0 and 1 but for rounding
        low, high = min(WIDTHS), max(WIDTHS)
        point = c_in, c_out, min(max(w, low), high), min(max(a, low), high)  # continuous bits may lie beyond
        ms, slopes = self.costs.target.tangent(term.layer, point)
        return sum((k * (x - x.detach()) for k, x in zip(slopes, at, strict=True)), torch.tensor(ms).double())

    def _time_beside(self) -> Tensor:
        """Milliseconds of what is no layer."""
        target = self.costs.target
        sizes = {g: self._count(g, 0) for g in {step.group for step in target.network.rest} & self.space.gates.keys()}
        total = torch.tensor(target.beside(lambda g: float(sizes[g].detach()) if g in sizes else math.inf)).double()
        for step in target.network.rest:
            if step.group in sizes:
                total = total + step.slope * (sizes[step.group] - sizes[step.group].detach())
        return total

    def widths(self, layer: LayerId) -> tuple[Tensor, Tensor]:
        """(weight, input) bits that the latest forward gave a searched layer, float64, differentiable."""
        return width(self.last.weight[layer]).double(), width(self.last.act[layer]).double()

    def _count(self, group: str, whole: int) -> Tensor:
        gate = self.space.gates.get(GroupId(group))
        if gate is None:
            return torch.tensor(float(whole), dtype=torch.float64)
        gates = self.last.prune[group].double()
        return (gates * torch.tensor(gate.sizes, dtype=torch.float64, device=gates.device)).sum()

    # -- out ----------------------------------------------------------------------------------------------------

    def extract(self) -> tuple[CompressionPlan, dict[str, np.ndarray]]:
        """Plan and float32 tensors of what the gates say now: the constants, the clips, and no threshold.

        "{layer}.weight_clip.{bits}" are clips of least squared error for the widths that were not chosen, for whoever
        edits the plan.
        """
        choice = self.choice()
        spelled = odd if self.grid == ODD else twos
        plan = to_plan(self.graph, self.space, choice, residual=self.residual, weight=spelled)
        tensors = self.float_tensors()
        clips = {name: float(self.tensor(name).detach().abs()) for name in self.domains}
        for layer in self.layers:
            clips |= self.weight_clips(layer, choice)
        tensors |= {name: np.array(clip, np.float32) for name, clip in clips.items()}
        for layer in self.layers:
            if self.grid != ODD:  # two's complement has a level below the symmetric grid, which training never uses
                weight = self.graph.value(layer).consts["weight"]
                most = (self.weight_range(layer) - TINY).detach().cpu().numpy().astype(np.float32)
                tensors[weight] = np.clip(tensors[weight], -most, most)
        return plan, tensors

    def weight_clips(self, layer: LayerId, choice: Choice) -> dict[str, float]:
        """The clips of a layer's weights by the names that a RUN gives them."""
        weight = self.standardised_weight(layer)[0].detach()
        others = [bits for bits in WIDTHS if bits != choice.weight[layer]]
        found = {f"{layer}.weight_clip.{bits}": best_clip(weight, self.grid, bits) for bits in others}
        return {f"{layer}.weight_clip": float(self.tensor(f"{layer}.weight_clip").detach().abs()), **found}


def inherit(net: SuperNet, source: SuperNet) -> None:
    """Weights, statistics and clips of `source`, a net of the same graph."""
    names = {*source.graph.consts, *source.domains, *(f"{layer}.weight_clip" for layer in source.layers)}
    with torch.no_grad():
        for name in sorted(names):
            net.tensor(name).copy_(source.tensor(name))


def from_plan(graph: Graph, plan: CompressionPlan, tensors: Mapping[str, np.ndarray]) -> SuperNet:
    """The frozen net of a plan on one kind of grid, one clip a width: the training forward of a searched RUN.

    UnsupportedError for any other plan: it has no training forward.
    """
    from .supernet_filters import FilterNet  # which builds on this module

    grid = _grid(plan)
    channels = {g.id: g.channels for g in groups(graph)}
    gates = {g: Gate(g, channels[g], 1, 0, ()) for g in plan.keep}
    layers = tuple(LayerId(n.name) for n in graph.nodes if n.op in LAYERS)
    ends = tuple(dict.fromkeys((layers[0], layers[-1])))
    filters = {name: _widths(graph, name, plan) for name in layers if len(plan.bits[name].weight) > 1}
    ends = tuple(name for name in ends if name not in filters)
    space = Space(tuple(name for name in layers if name not in ends), ends, gates)
    kind = FilterNet if filters else SuperNet
    net = kind(graph, space, residual=plan.residual, grid=grid)
    weight = {name: max(s.encoding.bits for s in plan.bits[name].weight) for name in layers}
    act = {name: plan.bits[name].act.bits for name in layers}
    with torch.no_grad():
        for name in net.domains:
            net.tensor(name).copy_(torch.from_numpy(np.asarray(tensors[name], np.float32)))
    for name in layers:
        for bits in {s.encoding.bits for s in plan.bits[name].weight}:
            clip = np.asarray(tensors[weight_clip(tensors, name, bits)], np.float32)
            if clip.size != 1:
                raise UnsupportedError(f"{name}: {clip.size} weight clips; only one a layer and width has been trained")
            net.set_clip(name, bits, float(clip.reshape(())))
    net.freeze(Choice(weight, act, dict(plan.keep), filters))
    return net.eval()


def _widths(graph: Graph, layer: LayerId, plan: CompressionPlan) -> tuple[int, ...]:
    """Width of every filter of a layer, 0 where a plan removes it."""
    each = dict.fromkeys(range(graph.value(layer).shape[0]), 0)
    for segment in plan.bits[layer].weight:
        each |= dict.fromkeys(segment.filters, segment.encoding.bits)
    return tuple(each.values())


def _grid(plan: CompressionPlan) -> str:
    """The kind of grid that all weights of a plan lie on."""
    kinds = set()
    for layer, bits in plan.bits.items():
        for found in (segment.encoding for segment in bits.weight):
            kinds.add({odd(found.bits): ODD, twos(found.bits): EVEN}.get(found, ""))
        if kinds not in ({ODD}, {EVEN}):
            raise UnsupportedError(
                f"{layer} ({bits}): only plans with one kind of weight grid, all odd or all even, have been trained"
            )
    return kinds.pop() if kinds else ODD


def stored_levels(net: SuperNet, x: np.ndarray) -> dict[str, np.ndarray]:
    """Stored value -> its levels in a frozen net's forward, int32; what is held in floats is left out."""
    out = {}
    with torch.no_grad():
        for name, value in net.walk(torch.from_numpy(np.ascontiguousarray(x))):
            clip = net.stored_clip(name)
            if clip is not None:
                layer = net.layer_of(clip)
                bits = STREAM_BITS if layer is None else int(net.tensor(f"{layer}.bits")[1])
                top = steps(net.domains[clip], bits)
                out[name] = torch.round(value * (top / net.tensor(clip).abs())).to(torch.int32).numpy()
    return out


def differing_codes(
    graph: Graph, plan: CompressionPlan, tensors: Mapping[str, np.ndarray], integers: Mapping[str, np.ndarray],
    x: np.ndarray,
) -> dict[str, float]:  # fmt: skip
    """Stored value -> share of codes that the training forward and the integer semantics give differently.

    `integers`: the integer graph's values on `x` (core.semantics). Not zero: floats are rounded in another order, and a
    residual sum starts from them. UnsupportedError where a plan has no training forward.
    """
    image = graph.inputs[0].name
    return {
        name: float((levels != integers[f"{image}.q" if name == image else name]).mean())
        for name, levels in stored_levels(from_plan(graph, plan, tensors), x).items()
    }


def gated_bits(gates: tuple[Tensor, Tensor]) -> int:
    """Width that (g_4, g_8) leave: 8 only where 4 is on."""
    if float(gates[0].detach()) < 0.5:
        return 2
    return 4 if float(gates[1].detach()) < 0.5 else 8
