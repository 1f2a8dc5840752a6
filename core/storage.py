"""Where values are stored, and as what: the one analysis that the super-net, calibration and `core.integer` share.

The float graph is cut into *chains*: something that makes accumulators (a conv, a linear, a pool) or a stored value
that is taken up again, then batch norms, a sum, activations; each chain ends in one *stored* value, and everything
between is never rounded. A stored code is the value: each consumer requantises from the code.
Knows bits of activations, nothing of weights, torch or kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .curves import CURVES
from .encoding import Encoding, twos, unsigned
from .errors import UnsupportedError
from .graph import Graph, Node

LAYERS = frozenset({"conv2d", "linear"})
POOLS = frozenset({"avg_pool2d", "global_avg_pool"})  # sums of levels, then the law
PASS = frozenset({"max_pool2d", "flatten", "slice", "pad"})  # keep codes as they are
ACTS = frozenset({"relu", "clip"})
STREAM_BITS = 8
STORED = "stored"  # attribute of a node that ends its chain though the next could go on: an imported file rounds here

POSITIVE = "positive"  # attribute of an input none of whose codes is below zero: an imported file rounds it so


@dataclass(frozen=True, slots=True)
class Stored:
    """How a value is held. `encoding` None: float32, `clip` "". Else `clip` names the tensor with its range."""

    encoding: Encoding | None
    clip: str

    @property
    def dtype(self) -> str:
        """`Node.dtype` of such a value."""
        return "f32" if self.encoding is None else self.encoding.name


@dataclass(frozen=True, slots=True)
class Chain:
    """From a stored value to the next, by node names of the float graph, in the order in which they apply.

    `start`: conv, linear, pool, mul or curve, "" where the stored value itself is taken up. `source`: value that is
    read. `norms`: batch norms. `add`: the sum, "" if none; `residual`: its other operand. `acts`: relus and clips.
    `end`: the stored value. A curve is a chain of its own: it makes codes from codes.
    """

    start: str
    source: str
    norms: tuple[str, ...]
    add: str
    residual: str
    acts: tuple[str, ...]
    end: str


@dataclass(frozen=True, slots=True)
class Point:
    """One place where floats become codes: value `value` is rounded to `encoding` with the clip tensor `clip`."""

    value: str
    encoding: Encoding
    clip: str


@dataclass(frozen=True)
class Storage:
    """Result of `analyse`.

    `chains` in execution order; `stored`: every stored value, those behind max pools, flatten, slice, pad and concat
    too; `reads`: layer, pool or curve -> how its input must be held (it is requantised to that where it is stored
    otherwise).
    """

    chains: tuple[Chain, ...]
    stored: Mapping[str, Stored]
    reads: Mapping[str, Stored]
    points: tuple[Point, ...]

    def chain_of(self, end: str) -> Chain | None:
        """The chain that ends in `end`, None for inputs and for values behind pools, slices and the like."""
        return next((c for c in self.chains if c.end == end), None)


def non_negative(graph: Graph) -> dict[str, bool]:
    """Value -> whether it can never be below zero, by structure, or by how its input is rounded."""
    out = {n.name: bool(n.attrs.get(POSITIVE)) for n in graph.inputs}
    for n in graph.nodes:
        ins = [out[i] for i in n.inputs]
        if n.op == "relu" or (n.op == "clip" and n.attrs["lo"] >= 0) or (n.op in CURVES and not CURVES[n.op].signed):
            out[n.name] = True
        elif n.op in PASS | POOLS | {"add", "mul", "concat", "clip"}:
            out[n.name] = all(ins)
        else:
            out[n.name] = False
    return out


def act_encoding(graph: Graph, layer: str, bits: int) -> Encoding:
    """Encoding of the input of `layer` at `bits` bits: unsigned where it is never negative, else signed symmetric."""
    return unsigned(bits) if non_negative(graph)[graph.value(layer).inputs[0]] else twos(max(bits, 2))


def analyse(graph: Graph, act: Mapping[str, Encoding], residual: str) -> Storage:
    """Chains, storage and quantisation points of a float graph.

    `act`: layer -> encoding of its input (plan.bits[layer].act), for every conv and linear. `residual`: "int8" or
    "float32" (core.plan.RESIDUALS). UnsupportedError names an unknown op, or a layer without bits.
    """
    for node in graph.nodes:
        if node.op == "unknown":
            raise UnsupportedError(f"{node.name}: op {node.attrs.get('target')!r} is not supported")
        if node.op in LAYERS and node.name not in act:
            raise UnsupportedError(f"{node.name}: no bits are given, and there are no float kernels to run it with")
    chains = _chains(graph)
    stored = _stored(graph, chains, act, residual)
    reads = _reads(graph, act, stored)
    return Storage(chains, stored, reads, _points(graph, chains, stored, reads))


def _chains(graph: Graph) -> tuple[Chain, ...]:
    consumers = graph.consumers()
    open_: dict[str, Chain] = {}  # value inside a chain -> chain so far

    def extends(name: str) -> Node | None:
        """The only consumer of `name`, if a chain could go on with it."""
        users = consumers[name]
        ends = name in graph.outputs or graph.value(name).attrs.get(STORED)
        return users[0] if len(users) == 1 and not ends else None

    out: list[Chain] = []
    for node in graph.nodes:
        if node.op in LAYERS | POOLS | {"mul", *CURVES}:
            chain = Chain(node.name, node.inputs[0], (), "", "", (), node.name)
        elif node.op == "add":
            first, second = node.inputs
            if first not in open_ and second in open_:
                first, second = second, first
            chain = open_.pop(first) if first in open_ else Chain("", first, (), "", "", (), first)
            chain = Chain(chain.start, chain.source, chain.norms, node.name, second, (), node.name)
        elif node.op in ACTS | {"batch_norm"}:
            source = node.inputs[0]
            chain = open_.pop(source) if source in open_ else Chain("", source, (), "", "", (), source)
            norms = (*chain.norms, node.name) if node.op == "batch_norm" else chain.norms
            acts = (*chain.acts, node.name) if node.op in ACTS else chain.acts
            chain = Chain(chain.start, chain.source, norms, chain.add, chain.residual, acts, node.name)
        else:
            continue
        user = None if node.op in CURVES else extends(node.name)
        if user is not None and _takes(graph, user, chain, open_):
            open_[node.name] = chain
        else:
            out.append(chain)
    return tuple(out)


def _takes(graph: Graph, user: Node, chain: Chain, open_: Mapping[str, Chain]) -> bool:
    """Whether `user` can go on with `chain`; only one operand of a sum can be an unrounded accumulator.

    A product has two operands already and takes no residual.
    """
    if user.op in ACTS:
        return True
    plain = not chain.add and not chain.acts
    if user.op == "batch_norm":
        return plain
    others = [i for i in user.inputs if i != chain.end]
    product = chain.start and graph.value(chain.start).op == "mul"
    return user.op == "add" and plain and not product and len(others) == 1 and others[0] not in open_


def _uses(graph: Graph, consumers: Mapping[str, tuple[Node, ...]], value: str) -> Iterator[Node]:
    """Nodes that really read `value`, looking through what keeps codes as they are."""
    for node in consumers[value]:
        if node.op in PASS:
            yield from _uses(graph, consumers, node.name)
        else:
            yield node


def _behind(consumers: Mapping[str, tuple[Node, ...]], value: str) -> Iterator[str]:
    yield value
    for node in consumers[value]:
        if node.op in PASS:
            yield from _behind(consumers, node.name)


def _stored(graph: Graph, chains: tuple[Chain, ...], act: Mapping[str, Encoding], residual: str) -> dict[str, Stored]:
    consumers, positive = graph.consumers(), non_negative(graph)
    sums = {c.end for c in chains if c.add}
    ends = {n.name for n in graph.inputs} | {c.end for c in chains}

    def eight(name: str, clip: str) -> Stored:
        return Stored(unsigned(STREAM_BITS) if positive[name] else twos(STREAM_BITS), clip)

    def choose(name: str) -> Stored:
        uses = tuple(_uses(graph, consumers, name))
        joins = tuple({u.name: u for u in uses if u.op == "concat"}.values())
        if any(v in graph.outputs for first in (name, *(j.name for j in joins)) for v in _behind(consumers, first)):
            return Stored(None, "")
        if len(joins) > 1:
            raise UnsupportedError(f"{name}: feeds {len(joins)} concatenations; one storage cannot serve them all")
        if joins:
            return eight(joins[0].name, f"{joins[0].name}.clip")
        if len(uses) == 1 and uses[0].op in LAYERS:
            layer = uses[0].name
            return Stored(act[layer], f"{layer}.act_clip")
        stream = name in sums or any(u.op == "add" for u in uses)
        return Stored(None, "") if stream and residual == "float32" else eight(name, f"{name}.clip")

    out: dict[str, Stored] = {}
    for node in (*graph.inputs, *graph.nodes):
        if node.op in PASS:
            out[node.name] = out[node.inputs[0]]
        elif node.op == "concat":
            kinds = {out[i] for i in node.inputs}
            if len(kinds) != 1:
                raise UnsupportedError(f"{node.name}: its inputs are stored differently ({len(kinds)} ways)")
            out[node.name] = kinds.pop()
        elif node.name in ends:
            out[node.name] = choose(node.name)
    return out


def _reads(graph: Graph, act: Mapping[str, Encoding], stored: Mapping[str, Stored]) -> dict[str, Stored]:
    positive = non_negative(graph)
    out = {}
    for node in graph.nodes:
        if node.op in LAYERS:
            out[node.name] = Stored(act[node.name], f"{node.name}.act_clip")
        elif node.op in POOLS or node.op in CURVES:
            held = stored[node.inputs[0]]
            own = unsigned(STREAM_BITS) if positive[node.inputs[0]] else twos(STREAM_BITS)
            out[node.name] = held if held.encoding is not None else Stored(own, f"{node.name}.act_clip")
    return out


def _points(
    graph: Graph, chains: tuple[Chain, ...], stored: Mapping[str, Stored], reads: Mapping[str, Stored]
) -> tuple[Point, ...]:
    """Every (value, clip) once, in the order of the graph: first where values are stored, then where they are read."""
    found: dict[tuple[str, str], Point] = {}
    ends = {n.name for n in graph.inputs} | {c.end for c in chains}
    for node in (*graph.inputs, *graph.nodes):
        held = stored.get(node.name)
        if node.name in ends and held is not None and held.encoding is not None:
            found[node.name, held.clip] = Point(node.name, held.encoding, held.clip)
        want = reads.get(node.name)
        if want is not None and want != stored[node.inputs[0]] and want.encoding is not None:
            found[node.inputs[0], want.clip] = Point(node.inputs[0], want.encoding, want.clip)
    return tuple(found.values())
