"""Cross-layer equalisation: channels of one value brought to like ranges, what reads them scaled back.

Nagel et al. 2019, Data-Free Quantization, section 4.1.

An activation has one scale for all channels, so that a channel a hundred times smaller than the largest is rounded to a
few levels or to none. Multiplying channel c by f[c] in the layer that makes it, and dividing what reads it by f[c],
changes nothing where what stands between is homogeneous. Factors are powers of two: then the float network gives the
same bits as before, and a test says so.

A filter has a scale of its own here, so that only ranges of activations and of weights along the input channels count:
a depthwise layer pays nothing for any factor, others share the range between both sides, f = sqrt(columns / values).

ReLU is homogeneous; a clip at `hi` (ReLU6) is not, and one bound holds for all channels. A channel is scaled across a
clip only as far as the bound never acts on it, before and behind: "exact", where intervals of the layer's inputs prove
that; "seen", where no calibration image reaches the bound, which is no proof: on another image the channel may be cut
at hi / f[c] instead of hi. Channels that reach the bound stay as they are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .calibrate import batches
from .graph import Graph, Node
from .groups import is_depthwise
from .storage import LAYERS, PASS, POOLS, Chain, act_encoding, analyse
from .supernet import FloatNet

MOST = 16  # exponent of a factor, at most
ROUNDING = 1e-3  # share by which float32 sums may exceed what intervals say
Consts = Mapping[str, np.ndarray]
Bounds = tuple[np.ndarray, np.ndarray]  # least and largest value of each channel, float64 [C]


@dataclass(frozen=True, slots=True)
class Equalized:
    """What was done. `values`: stored values with a factor other than 1; `channels`: so many have one.

    `held`: channels that a clip keeps from the factor that they should have; `largest`: ratio between two factors of
    one value, at most.
    """

    values: int = 0
    channels: int = 0
    held: int = 0
    largest: float = 1.0


@dataclass(frozen=True, slots=True)
class _Joint:
    """A stored value whose channels can be scaled: the end of `chain`, read by `readers` alone.

    `hi`: bound of the clip that the chain ends with, infinite without one.
    """

    chain: Chain
    readers: tuple[Node, ...]
    hi: float


def equalize(
    graph: Graph, images: np.ndarray, *, seen: bool = False, progress: Callable[[float], None] = lambda _share: None
) -> tuple[Graph, Equalized]:
    """The float graph with other constants. `images`: normalised, float32 [n, C, H, W]; `seen`: see the module."""
    joints = tuple(_joints(graph))
    tops = _tops(graph, images, [joint.chain.end for joint in joints], progress)
    bounds = _bounds(graph)
    consts = dict(graph.consts)
    done = Equalized()
    for joint in joints:
        top = tops[joint.chain.end]
        proved = bounds[graph.value(joint.chain.acts[0]).inputs[0]][1] if joint.chain.acts else top
        wanted = _wanted(joint, top, graph.consts)
        power = _allowed(wanted, joint.hi, np.minimum(proved, top) if seen else proved)
        done = _added(done, power, wanted)
        if power.any():
            _scale(graph, joint, np.exp2(power).astype(np.float32), consts)
    return graph.with_nodes(graph.nodes, consts), done


def _joints(graph: Graph) -> Iterator[_Joint]:
    """In the order of the graph; constants that several nodes share stay as they are."""
    storage = analyse(graph, {n.name: act_encoding(graph, n.name, 8) for n in graph.nodes if n.op in LAYERS}, "int8")
    consumers = graph.consumers()
    shared = {name for name, uses in Counter(c for n in graph.nodes for c in n.consts.values()).items() if uses > 1}
    for chain in storage.chains:
        readers = _readers(graph, consumers, chain.end)
        acts = [graph.value(name) for name in chain.acts]
        makes = chain.norms or (chain.start and graph.value(chain.start).op in LAYERS)
        touched = [n for n in (*readers, *(graph.value(m) for m in (*chain.norms, chain.start) if m))]
        whole = all(act.op == "relu" or act.attrs["lo"] == 0 for act in acts)
        if (
            makes
            and readers
            and whole
            and not chain.add
            and not shared & {c for n in touched for c in n.consts.values()}
        ):
            yield _Joint(chain, readers, min((a.attrs["hi"] for a in acts if a.op == "clip"), default=math.inf))


def _readers(graph: Graph, consumers: Mapping[str, tuple[Node, ...]], value: str) -> tuple[Node, ...]:
    """The layers that read `value`, through pools and views that keep its channels; none where anything else does."""
    out: list[Node] = []
    for node in consumers[value]:
        if node.op in LAYERS and (node.op == "linear" or _plain(graph, node)):
            out.append(node)
        elif node.op in POOLS | PASS and node.op != "slice" and not (node.op == "pad" and any(node.attrs["pads"][0])):
            behind = _readers(graph, consumers, node.name)
            if not behind:
                return ()
            out += behind
        else:
            return ()
    return () if value in graph.outputs else tuple(out)


def _plain(graph: Graph, conv: Node) -> bool:
    return conv.attrs["groups"] == 1 or is_depthwise(conv, graph.value(conv.inputs[0]).shape[0])


def _tops(
    graph: Graph, images: np.ndarray, values: Sequence[str], progress: Callable[[float], None]
) -> dict[str, np.ndarray]:
    """Value -> the largest magnitude of each channel, float64 [C]."""
    net = FloatNet(graph).eval()
    tops = {value: np.zeros(graph.value(value).shape[0]) for value in values}
    for share, x in batches(images):
        with torch.no_grad():
            for name, value in net.walk(x):
                if name in tops:
                    found = value.abs().transpose(0, 1).flatten(1).amax(1).double().numpy()
                    tops[name] = np.maximum(tops[name], found)
        progress(share)
    return tops


def _wanted(joint: _Joint, top: np.ndarray, consts: Consts) -> np.ndarray:
    """Exponents of the factors that balance best, the largest value staying as large; 0 where nothing was seen."""
    dense = [r for r in joint.readers if r.op == "linear" or r.attrs["groups"] == 1]
    columns = np.ones(len(top))
    if dense:
        columns = np.max([_columns(consts[r.consts["weight"]], len(top)) for r in dense], axis=0)
    active = (top > 0) & (columns > 0)
    if not active.any():
        return np.zeros(len(top))
    value, weight = np.where(active, top, top.max()), np.where(active, columns, 1.0)
    power = np.log2(weight / value) / 2 if dense else -np.log2(value)
    power += np.log2(value.max()) - (power + np.log2(value))[active].max()
    return np.where(active, np.clip(np.round(power), -MOST, MOST), 0.0)


def _columns(weight: np.ndarray, channels: int) -> np.ndarray:
    """Largest weight of each input channel, float64 [channels], as a share of the filter's largest."""
    table = np.abs(weight.astype(np.float64)).reshape(len(weight), channels, -1).max(axis=2)
    rows = table.max(axis=1, keepdims=True)
    shares: np.ndarray = (table / np.where(rows > 0, rows, 1.0)).max(axis=0)
    return shares


def _allowed(wanted: np.ndarray, hi: float, most: np.ndarray) -> np.ndarray:
    """Exponents with which a clip at `hi` acts on no channel, before and behind; `most`: how large each gets."""
    if math.isinf(hi):
        return wanted
    most = most * (1 + ROUNDING)
    room = np.floor(np.log2(hi / np.clip(most, hi * 2.0**-MOST, hi * 2.0**MOST)))
    return np.where(most < hi, np.minimum(wanted, room), 0.0)


def _added(done: Equalized, power: np.ndarray, wanted: np.ndarray) -> Equalized:
    moved = int((power != 0).sum())
    return Equalized(
        done.values + bool(moved), done.channels + moved, done.held + int((power != wanted).sum()),
        max(done.largest, float(2.0 ** (power.max() - power.min()))),
    )  # fmt: skip


def _scale(graph: Graph, joint: _Joint, factors: np.ndarray, consts: dict[str, np.ndarray]) -> None:
    """Channels of the joint's value times `factors`, float32 [C], what reads them divided by those."""
    maker = graph.value(joint.chain.norms[-1] if joint.chain.norms else joint.chain.start)
    for role in ("weight", "bias"):
        if role in maker.consts:
            _multiply(consts, maker.consts[role], factors, axis=0)
    for reader in joint.readers:
        depthwise = reader.op == "conv2d" and reader.attrs["groups"] > 1
        _multiply(consts, reader.consts["weight"], 1 / factors, axis=0 if depthwise else 1)


def _multiply(consts: dict[str, np.ndarray], name: str, factors: np.ndarray, *, axis: int) -> None:
    """One constant along an axis that has one or more entries for each factor."""
    old = consts[name]
    each = np.repeat(factors, old.shape[axis] // len(factors))
    consts[name] = (old * each.reshape([-1 if i == axis else 1 for i in range(old.ndim)])).astype(np.float32)


def _bounds(graph: Graph) -> dict[str, Bounds]:
    """What each channel of every value can be at least and at most, whatever the image shows: interval arithmetic."""
    (image,) = graph.inputs
    wide = np.full(image.shape[0], math.inf)
    out: dict[str, Bounds] = {image.name: (-wide, wide)}
    for node in graph.nodes:
        consts = {role: graph.consts[name].astype(np.float64) for role, name in node.consts.items()}
        out[node.name] = _through(node, consts, [out[name] for name in node.inputs])
    return out


def _through(node: Node, consts: Consts, ins: list[Bounds]) -> Bounds:
    """Bounds of a node; infinite where its op is not worth a rule."""
    lo, hi = ins[0]
    if any(node.attrs.get("padding", ())):
        lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
    if node.op == "conv2d" and np.isfinite(lo).all() and np.isfinite(hi).all():
        return _convolved(node, consts, lo, hi)
    if node.op == "batch_norm":
        scale = consts["weight"] / np.sqrt(consts["var"] + node.attrs["eps"])
        with np.errstate(invalid="ignore"):  # infinity times 0
            ends = [np.where(scale == 0, 0, (x - consts["mean"]) * scale) + consts["bias"] for x in (lo, hi)]
        return np.minimum(*ends), np.maximum(*ends)
    if node.op in ("relu", "clip"):
        low, high = (node.attrs["lo"], node.attrs["hi"]) if node.op == "clip" else (0.0, math.inf)
        return np.clip(lo, low, high), np.clip(hi, low, high)
    if node.op in POOLS | {"max_pool2d"}:
        return lo, hi
    if node.op == "pad" and not any(node.attrs["pads"][0]):
        return np.minimum(lo, 0), np.maximum(hi, 0)
    wide = np.full(node.shape[0], math.inf)
    return -wide, wide


def _convolved(node: Node, consts: Consts, lo: np.ndarray, hi: np.ndarray) -> Bounds:
    weight, groups = consts["weight"], node.attrs["groups"]
    rows = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    up, down = np.maximum(rows, 0).sum(axis=3), np.minimum(rows, 0).sum(axis=3)
    low, high = (x.reshape(groups, -1, 1) for x in (lo, hi))
    bias = consts.get("bias", 0.0)
    return (up @ low + down @ high).reshape(-1) + bias, (up @ high + down @ low).reshape(-1) + bias
