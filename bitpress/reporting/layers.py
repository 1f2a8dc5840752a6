"""Layers with their times: how milliseconds follow BOPs, and how far they are from what this machine could do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from scipy.stats import spearmanr

from .subject import Row, Subject

OUTLIER = 2.0  # a layer is named whose time per BOP is that many times the median layer's, or that part of it
LEAST_LAYERS = 3  # for a rank correlation


def layer_rows(rows: Sequence[Mapping[str, Any]], timed: Row | None) -> list[Row]:
    """Rows of `inspect` with time, share, bound, MACs a byte and a second, and `slow`: why it takes longer than that.

    `relative`: time per BOP to that of the median layer.
    """
    run: Row = {"layers": [], "batch": 1, "total": {"median": None}} if timed is None else timed["runs"][0]
    times = {row["name"]: row for row in run["layers"]}
    out = []
    for row in rows:
        found = times.get(row["name"], {})
        ms, macs = found.get("median"), run["batch"] * row["macs"]
        touched = found["bytes"] + run["batch"] * found["value_bytes"] if found else 0
        out.append(
            {
                **row, "median": ms, "share": ms / run["total"]["median"] if ms else None,
                "bound": found.get("bound"), "efficiency": found.get("efficiency"),
                "intensity": macs / touched if touched else None, "rate": 1e3 * macs / ms if ms else None,
                "slow": found.get("why") or None,
            }
        )  # fmt: skip
    costs = {row["name"]: row["median"] / row["bops"] for row in out if row["median"] and row["bops"]}
    middle = median(costs.values()) if costs else None
    return [{**row, "relative": costs[row["name"]] / middle if row["name"] in costs else None} for row in out]


def correlation(subject: Subject, layers: Sequence[Row]) -> Row | None:
    """Spearman's rank correlation of BOPs with milliseconds over the layers, and the layers that stand out."""
    known = [row for row in layers if row["relative"] is not None]
    if len(known) < LEAST_LAYERS or len({row["bops"] for row in known}) < 2 or len({r["median"] for r in known}) < 2:
        subject.lacks(
            "rank correlation", f"{len(known)} layers have BOPs and a time, {LEAST_LAYERS} that differ are needed",
            "a larger network, the native module",
        )  # fmt: skip
        return None
    far = [row for row in known if not 1 / OUTLIER < row["relative"] < OUTLIER]
    return {
        "rank": rank(known), "layers": len(known), "factor": OUTLIER,
        "outliers": [
            {"name": row["name"], "relative": row["relative"]}
            for row in sorted(far, key=lambda row: -max(row["relative"], 1 / row["relative"]))
        ],
    }  # fmt: skip


def rank(layers: Sequence[Mapping[str, Any]]) -> float:
    """Spearman's rank correlation of BOPs with milliseconds."""
    return float(spearmanr([row["bops"] for row in layers], [row["median"] for row in layers]).statistic)


def roofs(layers: Sequence[Row], timed: Row | None) -> Row:
    """MACs a second at most, per kernel family and (bit-serial) pair of widths in use; bytes a second."""
    from ..benchmarks.roofline import family

    if timed is None:
        return {"bytes_per_second": None, "macs": []}
    (run,) = timed["runs"]
    found: dict[str, float] = {}
    for row in layers:
        kind = family(row["kernel"] or "")
        rate = run["roofs"].get(f"{kind}_{row['isa']}")
        if rate is None or kind == "bitsliced":  # what a MAC costs there depends on the layer's weights: no common roof
            continue
        if kind != "bitserial":
            found[f"{kind} {row['isa']}"] = rate
        elif row["w_bits"] is not None:
            pair = f"w{row['w_bits']}a{row['a_bits']}"
            found[f"{kind} {row['isa']} {pair}"] = rate / (row["w_bits"] * row["a_bits"])
    return {
        "bytes_per_second": run["roofs"]["bytes_per_second"],
        "macs": [{"name": name, "macs_per_second": rate} for name, rate in found.items()],
    }
