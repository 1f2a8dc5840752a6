"""The `bitpress.plan` document: what could be done with a network, said before any time is spent. Prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import CheckFailed, UsageError
from .core.host import head

if TYPE_CHECKING:
    from .core.graph import Graph

NOTICEABLE = 0.05  # of a layer's time: what fewer bits must save to be called faster
CONVENTIONS = ("sbs", "djpq", "weights-only")


def plan(
    model: str,
    *,
    bits: Sequence[str] = (),
    budgets: Sequence[str] = (),
    convention: str = "sbs",
    classes: int | None = None,
    in_shape: tuple[int, int, int] | None = None,
    weights: str | None = None,
    group_size: int | None = None,
    max_pruning_ratio: float | None = None,
    latency_table: str | Path | None = None,
    residual: str = "int8",
) -> dict[str, Any]:
    """Traces `model` and counts: layers, channel groups, unsupported ops, search space, MACs and BOPs.

    `bits`: uniform widths ("w4a4"), the layers show the first. `budgets`: "bops=2%"; each row of `budgets` says whether
    it is reachable. `latency_table`: file of `bitpress profile`, with which time counts too, `residual`: how streams
    are held there. An unknown op is listed; UnsupportedError only where a budget is asked for beside it.
    """
    from .core import cost
    from .core.bops import count
    from .core.graph import refuse_unknown, unknown_ops
    from .core.groups import groups
    from .core.network import network

    pairs = [_pair(text) for text in bits]
    wanted = [cost.parse_budget(text) for text in budgets]
    options = {"group_size": group_size, "max_pruning_ratio": max_pruning_ratio}
    loaded = network(model, classes=classes, in_shape=in_shape, weights=weights, floats=True)
    graph = loaded.graph
    unsupported = [{"name": name, "op": op, "shape": list(graph.value(name).shape)} for name, op in unknown_ops(graph)]
    if wanted:
        refuse_unknown(graph, model)
    counts = count(graph, uniform=pairs[0] if pairs else None, convention=convention)
    totals = counts.totals
    document: dict[str, Any] = {
        **head("bitpress.plan"),
        "model": model,
        "in_shape": list(loaded.in_shape),
        "classes": loaded.classes,
        "bits": bits[0] if bits else None,
        "layers": [_layer(row, known=bool(pairs)) for row in counts.layers],
        "groups": [
            {"id": g.id, "channels": g.channels, "prunable": g.prunable, "why": g.why, "producers": list(g.producers),
             "consumers": list(g.consumers)}
            for g in groups(graph)
        ],
        "unsupported": unsupported,
        "totals": {
            "macs": totals.macs, "bops": totals.bops if pairs else None, "bops_fp32": totals.bops_fp32,
            "bops_ratio": totals.bops_fp32 / totals.bops if pairs and totals.bops else None,
            "bops_convention": totals.bops_convention,
            "weight_bytes": totals.weight_bytes if pairs else None, "file_bytes": None, "fp32_bytes": totals.fp32_bytes,
        },
        "uniform": [_uniform(graph, text, pair, convention) for text, pair in zip(bits, pairs, strict=True)],
        "space": None,
        "budgets": [],
        "latency": None,
    }  # fmt: skip
    if not unsupported and counts.layers:
        space = cost.search_space(graph, **{k: v for k, v in options.items() if v is not None})  # type: ignore[arg-type]
        if latency_table is not None:
            from .core.search import on_target

            space = replace(space, target=on_target(latency_table, graph, model, residual))
        costs = cost.Costs(graph, space)
        document["space"] = _space(space, costs)
        document["budgets"] = [_judged(graph, one, wanted, space, costs) for one in wanted]
        document["latency"] = None if space.target is None else _latency(costs)
    return document


def _pair(text: str) -> tuple[int, int]:
    from .core.encoding import parse_bits

    try:
        return parse_bits(text)
    except ValueError as error:
        raise UsageError(f"--bits: {error}") from error


def _layer(row: Any, *, known: bool) -> dict[str, Any]:
    """The keys of `inspect`; what compilation decides is null."""
    return {
        "name": row.name, "op": row.op, "in_shape": list(row.in_shape), "out_shape": list(row.out_shape),
        "w_bits": row.w_bits if known else None, "a_bits": row.a_bits if known else None,
        "channels_kept": row.channels_kept, "channels_total": row.channels_total, "macs": row.macs,
        "bops": row.bops if known else None, "bytes": row.weight_bytes if known else None,
        "kernel": None, "isa": None, "why": None,
    }  # fmt: skip


def _uniform(graph: Graph, text: str, pair: tuple[int, int], convention: str) -> dict[str, Any]:
    from .core.bops import count

    totals = count(graph, uniform=pair, convention=convention).totals
    return {
        "bits": text, "bops": totals.bops, "bops_ratio": totals.bops_fp32 / totals.bops if totals.bops else None,
        "weight_bytes": totals.weight_bytes,
    }  # fmt: skip


def _space(space: Any, costs: Any) -> dict[str, Any]:
    """Size of the search space and the figures at its two ends."""
    from math import log10

    from .core.cost import cheapest, largest

    points = 2 * len(space.searched) * log10(len(space.widths))
    points += sum(log10(gate.removable + 1) for gate in space.gates.values())
    return {
        "searched": list(space.searched), "ends": list(space.ends), "widths": list(space.widths),
        "gates": [
            {"group": g.group, "channels": g.channels, "size": g.size, "removable": g.removable}
            for g in space.gates.values()
        ],
        "log10_points": points,
        "least": {kind: costs.figure(kind, cheapest(costs, kind)) for kind in costs.kinds},
        "most": {kind: costs.figure(kind, largest(space)) for kind in costs.kinds},
    }  # fmt: skip


def _latency(costs: Any) -> dict[str, Any]:
    """Time of the whole network at 8 bits, and of each searched layer there and at its fastest other widths."""
    from .core.cost import largest

    whole, target = largest(costs.space), costs.space.target
    layers = []
    for term in (term for term in costs.terms if term.layer in costs.space.searched):
        now = costs.time_of(whole, term)
        times = {
            f"w{w}a{a}": costs.time_of(replace(whole, weight={term.layer: w}, act={term.layer: a}), term)
            for w, a in costs.space.pairs(term.layer) if (w, a) != (whole.weight[term.layer], whole.act[term.layer])
        }  # fmt: skip
        bits = min(times, key=lambda text: times[text], default=None)
        least = None if bits is None else times[bits]
        layers.append(
            {"name": term.layer, "w8a8": now, "bits": bits, "least": least,
             "faster": least is not None and least < (1 - NOTICEABLE) * now}
        )  # fmt: skip
    return {
        "table": target.table.document(), "w8a8": costs.whole["latency"], "beside": costs.beside(whole),
        "layers": layers,
    }  # fmt: skip


def _judged(graph: Graph, budget: Any, wanted: Sequence[Any], space: Any, costs: Any) -> dict[str, Any]:
    """Whether a budget can be reached; one of latency, whether it can beside the others."""
    from .core.cost import cheapest
    from .core.projection import check_reachable

    why = ""
    try:
        check_reachable(graph, wanted if budget.kind == "latency" else (budget,), space)
    except CheckFailed as error:
        why = str(error)
    return {
        "budget": budget.text, "kind": budget.kind, "bound": budget.bound(costs.whole[budget.kind]),
        "least": costs.figure(budget.kind, cheapest(costs, budget.kind)), "reachable": not why, "why": why,
    }  # fmt: skip
