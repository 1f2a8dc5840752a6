"""Latency tables that nobody measured: every time follows from a formula, so that what is read back can be checked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitpress.core.bops import layer_nodes
from bitpress.core.graph import Graph
from bitpress.core.host import head
from bitpress.core.latency import LayerShape, Target, layer_shape, load_table, target

Formula = Callable[[float, float, int, int], float]
BITS = (2, 4, 8)
OVERHEAD = 0.05


def smooth(c_in: float, c_out: float, w: int, a: int) -> float:
    """Linear in each of its arguments: interpolation changes nothing."""
    return 0.001 * (1 + c_in) * (2 + c_out) * (1 + w * a / 16)


def flat(c_in: float, c_out: float, w: int, a: int) -> float:
    """Bits do not matter until both sides have two, as on a machine whose 8-bit products are fast."""
    return 0.01 * c_in * c_out * (0.5 if w == a == 2 else 1.0)


def narrow_is_slow(c_in: float, c_out: float, w: int, a: int) -> float:
    """Fewer bits take longer."""
    return 0.01 * c_in * c_out * (3 - (w + a) / 16)


def document(
    graph: Graph, formula: Formula, *, steps: Sequence[Mapping[str, Any]] = (), residual: str = "int8",
    cpu: str | None = None, block: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """A whole table for one graph."""
    shapes = list(dict.fromkeys(layer_shape(graph, node) for node in layer_nodes(graph)))
    rows, points = [], []
    for number, shape in enumerate(shapes):
        axes = _axis(1 if shape.groups > 1 else shape.in_shape[0]), _axis(shape.rows)
        rows.append({**asdict(shape), "grids": [axes], "layers": [], "op": "conv2d", "block": block})
        points += [
            {"shape": number, "in": c, "out": f, "w": w, "a": a, "ms": formula(c, f, w, a), "kernel": "made_up"}
            for c, f, w, a in itertools.product(*axes, BITS, BITS)
        ]
    made = {
        **head("bitpress.profile", isa="avx2"), "complete": True, "seconds": 0.01, "grid": 2, "seed": 0,
        "w_bits": BITS, "a_bits": BITS, "shapes": rows, "points": points, "left_out": [],
        "left_out_points": 0, "pace": 0.01,
        "interpolation": {"points": 0, "median": None, "p90": None, "largest": None},
        "networks": [{
            "model": "made_up", "graph": graph.fingerprint(), "residual": residual, "steps": list(steps),
            "extra": {node.name: 0.0 for node in layer_nodes(graph)}, "overhead": OVERHEAD, "checks": [],
        }],
    }  # fmt: skip
    if cpu is not None:
        made["host"]["cpu"] = cpu
    return made


def _axis(channels: int) -> list[int]:
    return sorted({1, max(1, channels // 2), channels})


def write(folder: Path, graph: Graph, formula: Formula = smooth, **more: Any) -> Path:
    """The table in a file."""
    path = folder / "table.json"
    path.write_text(json.dumps(document(graph, formula, **more)), encoding="utf-8")
    return path


def made(folder: Path, graph: Graph, formula: Formula = smooth, **more: Any) -> Target:
    """What a made-up table says of `graph`."""
    return target(load_table(write(folder, graph, formula, **more)), graph, "made_up", "int8")


__all__ = ["BITS", "OVERHEAD", "LayerShape", "document", "flat", "made", "narrow_is_slow", "smooth", "write"]
