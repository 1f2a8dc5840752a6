"""CompressionPlan: all that a search says, all that the compiler hears.

Bits are chosen per layer (with segments where filters differ), channels per group. No sentinels: a layer absent
from `bits` stays float, a group absent from `keep` is whole; a filter with 0 bits is a channel missing from `keep`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NewType

from .encoding import Encoding, parse
from .errors import CorruptError

LayerId = NewType("LayerId", str)  # name of a conv2d or linear node
GroupId = NewType("GroupId", str)  # name of the group's first producer (core.groups)

PLAN_SCHEMA = "bitpress.plan"
PLAN_VERSION = 1
RESIDUALS = ("int8", "float32")


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
            bits={
                LayerId(layer): BitConfig(
                    weight=tuple(
                        Segment(parse(s["encoding"]), tuple(int(f) for f in s["filters"])) for s in row["weight"]
                    ),
                    act=parse(row["act"]),
                )
                for layer, row in doc["bits"].items()
            },
            keep={GroupId(g): tuple(int(c) for c in k) for g, k in doc["keep"].items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptError(f"plan document is damaged: {error}") from error
