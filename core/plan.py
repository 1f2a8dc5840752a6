"""CompressionPlan: all that a search says, all that the compiler hears.

Bits are chosen per layer (with segments where filters differ), channels per group. No sentinels: a layer absent
from `bits` stays float, a group absent from `keep` is whole; a filter with 0 bits is a channel missing from `keep`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NewType

from .encoding import Encoding, parse
from .errors import CorruptError, UnsupportedError
from .graph import Graph

if TYPE_CHECKING:
    from .groups import Group

LayerId = NewType("LayerId", str)  # name of a conv2d or linear node
GroupId = NewType("GroupId", str)  # name of the group's first producer (core.groups)

PLAN_SCHEMA = "bitpress.plan"
PLAN_VERSION = 1
RESIDUALS = ("int8", "float32")
WEIGHT_BITS = (2, 4, 8)  # widths of weights that have kernels, beside the one bit of b1
MAX_ACT_BITS = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """An encoding and the kept filters (original numbers, ascending) that use it."""

    encoding: Encoding
    filters: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BitConfig:
    """Weight segments and the encoding of the layer's input activations."""

    weight: tuple[Segment, ...]
    act: Encoding

    def __str__(self) -> str:
        if len(self.weight) == 1:
            return f"w:{self.weight[0].encoding} a:{self.act}"
        return "w:" + "+".join(f"{s.encoding}x{len(s.filters)}" for s in self.weight) + f" a:{self.act}"


@dataclass(frozen=True, slots=True)
class CompressionPlan:
    """What a search decided for one captured graph.

    `graph`: fingerprint of the float graph. `keep`: surviving channels per group, sorted. `residual`: how residual
    streams are held. `target`: name of the latency table used, "" if analytic.
    """

    graph: str
    bits: Mapping[LayerId, BitConfig]
    keep: Mapping[GroupId, tuple[int, ...]] = field(default_factory=dict)
    residual: str = "int8"
    target: str = ""


def to_json(plan: CompressionPlan) -> dict[str, Any]:
    """Plain document, sorted; `from_json(to_json(p)) == p`."""
    return {
        "schema": PLAN_SCHEMA,
        "schema_version": PLAN_VERSION,
        "graph": plan.graph,
        "residual": plan.residual,
        "target": plan.target,
        "bits": {
            layer: {
                "act": c.act.name,
                "weight": [{"encoding": s.encoding.name, "filters": list(s.filters)} for s in c.weight],
            }
            for layer, c in sorted(plan.bits.items())
        },
        "keep": {group: list(k) for group, k in sorted(plan.keep.items())},
    }


def from_json(doc: Mapping[str, Any]) -> CompressionPlan:
    """Inverse of `to_json`; CorruptError says what is wrong with a document that was edited badly."""
    if doc.get("schema") != PLAN_SCHEMA or doc.get("schema_version") != PLAN_VERSION:
        raise CorruptError(
            f"not a {PLAN_SCHEMA} version {PLAN_VERSION} document "
            f"(schema {doc.get('schema')!r}, version {doc.get('schema_version')!r})"
        )
    try:
        residual = doc.get("residual", "int8")
        if residual not in RESIDUALS:
            raise CorruptError(f"plan: residual {residual!r} is none of {', '.join(RESIDUALS)}")
        return CompressionPlan(
            graph=str(doc["graph"]),
            residual=residual,
            target=str(doc.get("target", "")),
            bits={LayerId(layer): _bits(layer, row) for layer, row in _object(doc["bits"], "bits").items()},
            keep={GroupId(g): _numbers(k) for g, k in _object(doc["keep"], "keep").items()},
        )
    except KeyError as error:
        raise CorruptError(f"plan document lacks the key {error}") from error
    except (TypeError, ValueError) as error:
        raise CorruptError(f"plan document is damaged: {error}") from error


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} is {value!r:.40}, not an object")
    return value


def _bits(layer: str, row: Any) -> BitConfig:
    what = f"layer {layer!r}"
    row = _object(row, what)
    try:
        segments = row["weight"]
        if not isinstance(segments, list):
            raise TypeError(f"weight of {what} is {segments!r:.40}, not a list of segments")
        parts = [_object(s, f"a segment of {what}") for s in segments]
        return BitConfig(
            weight=tuple(Segment(parse(s["encoding"]), _numbers(s["filters"])) for s in parts), act=parse(row["act"])
        )
    except KeyError as error:
        raise CorruptError(f"plan: {what} lacks the key {error}") from error


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(v) is int for v in value):
        raise TypeError(f"{value!r} is no list of whole numbers")
    return tuple(value)


def validate(plan: CompressionPlan, graph: Graph, found: tuple[Group, ...] | None = None) -> None:
    """Check that `plan` fits the float graph; `found`: the graph's groups, where the caller has them already.

    CorruptError names the layer or group and the numbers: another fingerprint, an unknown layer or group, a layer
    without bits, filters that are not those its group keeps, a group cut that must stay whole, an activation encoding
    without a zero. UnsupportedError: a width without kernels.
    """
    from .groups import groups  # which knows this module's GroupId

    if plan.graph != graph.fingerprint():
        raise CorruptError(f"plan was made for graph {plan.graph}, this graph is {graph.fingerprint()}")
    if plan.residual not in RESIDUALS:
        raise CorruptError(f"plan: residual {plan.residual!r} is none of {', '.join(RESIDUALS)}")
    found = groups(graph) if found is None else found
    by_id = {group.id: group for group in found}
    for name, keep in plan.keep.items():
        if name not in by_id:
            raise CorruptError(f"plan keeps channels of group {name!r}, which the graph lacks: {_known(by_id)}")
        _check_keep(by_id[name], keep)
    layers = {node.name: node for node in graph.nodes if node.op in ("conv2d", "linear")}
    strange = [layer for layer in plan.bits if layer not in layers]
    if strange:
        raise CorruptError(f"plan gives bits to layer {strange[0]!r}, which the graph lacks: {_known(layers)}")
    group_of = {value: group for group in found for value in group.values}
    for layer in layers:
        config = plan.bits.get(LayerId(layer))
        if config is None:
            raise CorruptError(f"plan gives no bits to layer {layer!r}")
        group = group_of[layer]
        _check_bits(layer, config)
        _check_filters(layer, config, plan.keep.get(group.id, tuple(range(group.channels))), group.channels)


def _known(names: Iterable[str]) -> str:
    listed = list(names)
    return f"it has {', '.join(listed[:4])}{', ...' if len(listed) > 4 else ''}"


def _check_keep(group: Group, keep: tuple[int, ...]) -> None:
    if not keep:
        raise CorruptError(f"plan keeps no channel of group {group.id!r}: at least one of {group.channels} must stay")
    if list(keep) != sorted(set(keep)):
        raise CorruptError(f"plan: channels kept of group {group.id!r} are not ascending and distinct")
    if keep[0] < 0 or keep[-1] >= group.channels:
        bad = keep[0] if keep[0] < 0 else keep[-1]
        raise CorruptError(f"plan keeps channel {bad} of group {group.id!r}, which has 0 .. {group.channels - 1}")
    if not group.prunable and len(keep) < group.channels:
        raise CorruptError(
            f"plan keeps {len(keep)} of {group.channels} channels of group {group.id!r}, "
            f"which must stay whole: {group.why}"
        )


def _check_bits(layer: str, config: BitConfig) -> None:
    if not config.act.has_zero:
        raise CorruptError(f"plan: input encoding {config.act} of layer {layer!r} has no zero, which padding needs")
    if config.act.bits > MAX_ACT_BITS:
        raise UnsupportedError(
            f"layer {layer!r}: {config.act.bits}-bit activations have no kernel; there are 1 .. {MAX_ACT_BITS}"
        )
    for segment in config.weight:
        if segment.encoding.bits not in WEIGHT_BITS and segment.encoding.name != "b1":
            raise UnsupportedError(
                f"layer {layer!r}: {segment.encoding} weights have no kernel; there are "
                f"{', '.join(map(str, WEIGHT_BITS))} bits and b1"
            )


def _check_filters(layer: str, config: BitConfig, keep: tuple[int, ...], total: int) -> None:
    for segment in config.weight:
        filters = list(segment.filters)
        if not filters:
            raise CorruptError(f"plan: layer {layer!r} has a segment {segment.encoding} without filters")
        if filters != sorted(set(filters)):
            raise CorruptError(
                f"plan: filters of segment {segment.encoding} of {layer!r} are not ascending and distinct"
            )
        if filters[0] < 0 or filters[-1] >= total:
            bad = filters[0] if filters[0] < 0 else filters[-1]
            raise CorruptError(f"plan: layer {layer!r} has filters 0 .. {total - 1}, a segment names {bad}")
    listed = [f for segment in config.weight for f in segment.filters]
    if len(listed) != len(set(listed)):
        twice = next(f for f in sorted(set(listed)) if listed.count(f) > 1)
        raise CorruptError(f"plan: filter {twice} of layer {layer!r} is in more than one segment")
    if set(listed) != set(keep):
        lost, extra = sorted(set(keep) - set(listed)), sorted(set(listed) - set(keep))
        what = f"kept filter {lost[0]} is in no segment" if lost else f"filter {extra[0]} has bits but is pruned"
        raise CorruptError(f"plan: layer {layer!r} keeps {len(keep)} filters, its segments hold {len(listed)}: {what}")
