"""MACs, BOPs and weight bytes of a float graph, whole or under a plan, in the published conventions.

BOPs are MACs x weight bits x activation bits over conv and linear layers; the float net counts MACs x 1024. Batch
norms, activations, sums and pools count nothing. Knows nothing of kernels: what they pad is not counted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import UsageError
from .graph import Graph, Node
from .groups import groups, is_depthwise
from .plan import CompressionPlan, LayerId

CONVENTIONS = ("sbs", "djpq", "weights-only")
FLOAT_BITS = 32
END_BITS = 8  # of the first and the last layer: in the convention sbs, and in uniform plans

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerCount:
    """One conv or linear layer after pruning. Shapes [C, H, W] or [F].

    `w_bits` None: no bits are chosen, or filters differ (then `bits_hist`: bits -> filters says how). `a_bits`: of the
    layer's input. `bops` None: no bits are chosen.
    """

    name: str
    op: str
    in_shape: Shape
    out_shape: Shape
    w_bits: int | None
    a_bits: int | None
    channels_kept: int
    channels_total: int
    macs: int
    bops: int | None
    bits_hist: Mapping[int, int]
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the layers; `bops_fp32` and `fp32_bytes` are those of the whole float net."""

    macs: int
    bops: int | None
    bops_fp32: int
    bops_ratio: float | None  # bops_fp32 / bops
    bops_convention: str
    weight_bytes: int
    fp32_bytes: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What `count` finds."""

    layers: tuple[LayerCount, ...]
    totals: Totals


def count(
    graph: Graph,
    plan: CompressionPlan | None = None,
    *,
    uniform: tuple[int, int] | None = None,
    convention: str = "sbs",
) -> Counts:
    """MACs, BOPs and bytes under `plan`, or at `uniform` (w, a) bits with both ends at 8, or of the float net.

    `uniform` bits are 1 .. 32. A layer without bits in `plan` stays float: 32 x 32. Conventions: `sbs` counts the
    first and the last layer 8x8 whatever they hold; `djpq` counts every layer at its own bits and the network's input
    at 8; `weights-only` counts activations at 32. UsageError: unknown convention, bits out of range.
    """
    if convention not in CONVENTIONS:
        raise UsageError(f"unknown BOP convention {convention!r}: known are {', '.join(CONVENTIONS)}")
    if plan is not None and uniform is not None:
        raise UsageError("bits come from a plan or are uniform, not both")
    if uniform is not None and not all(1 <= b <= FLOAT_BITS for b in uniform):
        raise UsageError(f"w{uniform[0]}a{uniform[1]}: bits are 1 .. {FLOAT_BITS}")
    nodes = layer_nodes(graph)
    ends = {nodes[0].name, nodes[-1].name} if nodes else set()
    kept = _kept(graph, plan)
    rows = []
    for node in nodes:
        bits = _bits(node, plan, uniform, ends, kept[node.name])
        rows.append(_row(graph, node, kept, bits, _counted(graph, node, bits, convention, ends)))
    return Counts(tuple(rows), _totals(graph, nodes, tuple(rows), convention))


def layer_nodes(graph: Graph) -> tuple[Node, ...]:
    """Conv and linear nodes, in order."""
    return tuple(node for node in graph.nodes if node.op in ("conv2d", "linear"))


@dataclass(frozen=True, slots=True)
class _Bits:
    """Filters by width of their weights, and the width of the input; no widths where none are chosen."""

    weight: Mapping[int, int]
    act: int | None


def _kept(graph: Graph, plan: CompressionPlan | None) -> dict[str, int]:
    """Value -> channels (behind a flatten: features) that survive."""
    keep = plan.keep if plan is not None else {}
    out = {}
    for group in groups(graph):
        left = len(keep[group.id]) if group.id in keep else group.channels
        for value in group.values:
            out[value] = graph.value(value).shape[0] // group.channels * left if graph.value(value).shape else 1
    return out


def _bits(
    node: Node, plan: CompressionPlan | None, uniform: tuple[int, int] | None, ends: set[str], filters: int
) -> _Bits:
    if uniform is not None:
        w, a = (END_BITS, END_BITS) if node.name in ends else uniform
        return _Bits({w: filters}, a)
    if plan is None:
        return _Bits({}, None)
    config = plan.bits.get(LayerId(node.name))
    if config is None:
        return _Bits({FLOAT_BITS: filters}, FLOAT_BITS)
    hist: dict[int, int] = {}
    for segment in config.weight:
        hist[segment.encoding.bits] = hist.get(segment.encoding.bits, 0) + len(segment.filters)
    return _Bits(dict(sorted(hist.items())), config.act.bits)


def _counted(graph: Graph, node: Node, bits: _Bits, convention: str, ends: set[str]) -> _Bits:
    """The bits that a convention counts where the layer holds `bits`."""
    if bits.act is None:
        return bits
    if convention == "sbs":
        return _Bits({END_BITS: sum(bits.weight.values())}, END_BITS) if node.name in ends else bits
    if convention == "weights-only":
        return _Bits(bits.weight, FLOAT_BITS)
    return _Bits(bits.weight, END_BITS if node.inputs[0] in {i.name for i in graph.inputs} else bits.act)


def _row(graph: Graph, node: Node, kept: Mapping[str, int], bits: _Bits, counted: _Bits) -> LayerCount:
    source = graph.value(node.inputs[0]).shape
    inputs, filters = kept[node.inputs[0]], kept[node.name]
    shape = graph.consts[node.consts["weight"]].shape
    if node.op == "linear":
        depth = inputs
    elif is_depthwise(node, source[0]):
        depth = shape[2] * shape[3]
    else:
        depth = inputs // node.attrs["groups"] * shape[2] * shape[3]
    per_filter = depth
    for size in node.shape[1:]:
        per_filter *= size
    held = bits.weight or {FLOAT_BITS: filters}
    return LayerCount(
        name=node.name, op=node.op, in_shape=(inputs, *source[1:]), out_shape=(filters, *node.shape[1:]),
        w_bits=next(iter(bits.weight)) if len(bits.weight) == 1 else None, a_bits=bits.act,
        channels_kept=filters, channels_total=node.shape[0], macs=filters * per_filter,
        bops=None if counted.act is None else sum(n * per_filter * w * counted.act for w, n in counted.weight.items()),
        bits_hist=dict(bits.weight), weight_bytes=sum(n * -(-depth * w // 8) for w, n in held.items()),
    )  # fmt: skip


def _totals(graph: Graph, nodes: tuple[Node, ...], rows: tuple[LayerCount, ...], convention: str) -> Totals:
    weights = [graph.consts[node.consts["weight"]] for node in nodes]
    whole = 0
    for node, weight in zip(nodes, weights, strict=True):
        positions = node.shape[1] * node.shape[2] if node.op == "conv2d" else 1
        whole += int(weight.size) * positions
    fp32 = whole * FLOAT_BITS**2
    known = [row.bops for row in rows if row.bops is not None]
    bops = sum(known) if rows and len(known) == len(rows) else None
    return Totals(
        macs=sum(row.macs for row in rows), bops=bops, bops_fp32=fp32, bops_ratio=fp32 / bops if bops else None,
        bops_convention=convention, weight_bytes=sum(row.weight_bytes for row in rows),
        fp32_bytes=4 * sum(int(w.size) for w in weights),
    )  # fmt: skip
