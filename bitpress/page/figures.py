"""Plots of a `bitpress.report` document as inline SVG, by matplotlib. Colours are variables of the page's style sheet.

Text stays text. A plot that has nothing to show is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from ..cli.tables import si

WIDTH = 4.6  # inches of 96 CSS pixels at most: a phone shows it at four fifths, with letters of 10 pixels
ROW = 0.23  # inches of a layer
SMALL = 9  # points
NAME = 0.5, 0.07  # what a layer's name takes of a plot, at most
SVG = "{http://www.w3.org/2000/svg}"
# What matplotlib draws in -> what the page puts there; no other use of these colours.
INK, MUTED, GRID, PAPER, GONE = "#010201", "#010202", "#010203", "#010204", "#010205"
SERIES = ("#020101", "#020102", "#020103", "#020104", "#020105", "#020106")
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", GONE: "gone",
    **{colour: f"series-{i + 1}" for i, colour in enumerate(SERIES)},
}  # fmt: skip
STYLE: Any = {  # its library lists every key as a type
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 10, "axes.labelsize": 10, "legend.fontsize": SMALL,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": MUTED,
    "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none", "grid.color": GRID,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "lines.linewidth": 1.6, "hatch.color": MUTED, "hatch.linewidth": 0.7,
}  # fmt: skip
MARKS = {"this": "*", "fp32": "s", "int8": "D", "other": "o"}
ROLES = {"this": "this network", "fp32": "float", "int8": "w8a8 without training", "other": "other RUNs"}
SERIES_NAMES = {
    "val_top1": "top-1 %, held-out images", "val_iou": "IoU %, held-out images",
    "loss": "loss, training", "val_loss": "loss, held-out images",
    "bops_of_budget": "BOPs, 1 = budget", "bytes_of_budget": "bytes, 1 = budget",
}  # fmt: skip
# Figures of a training; what else a search tells has a panel of its own.
PANELS = (("val_top1",), ("val_iou",), ("loss", "val_loss"))

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing and the sentence that stands for it where it cannot be seen."""

    svg: str
    says: str


def plots(document: Row) -> dict[str, Plot | None]:
    """Every plot by name: front, layers, time, roofline, curves."""
    with rc_context(STYLE):
        return {name: draw(document) for name, draw in DRAWINGS.items()}


def front(document: Row) -> Plot | None:
    """Top-1 against BOPs, the points that nothing beats joined."""
    points = document["front"]
    if not points:
        return None
    figure, axes = _figure(3.5)
    best = sorted((p["bops"], p["top1"]) for p in points if p["best"])
    axes.step(*zip(*best, strict=True), where="post", color=MUTED, linewidth=1, linestyle="--")
    for i, role in enumerate(MARKS):
        own = [(n, p) for n, p in enumerate(points, 1) if p["role"] == role]
        if own:
            x, y = [p["bops"] for _, p in own], [p["top1"] for _, p in own]
            size = 110 if role == "this" else 40
            axes.scatter(x, y, s=size, marker=MARKS[role], color=SERIES[i], label=ROLES[role], zorder=3)
        for n, p in own:
            axes.annotate(str(n), (p["bops"], p["top1"]), (5, 5), textcoords="offset points", fontsize=SMALL)
    axes.set_xscale("log")
    axes.margins(0.12, 0.15)
    axes.set_xlabel("BOPs (log)")
    axes.set_ylabel("top-1, % of the test images")
    _counts(axes)
    axes.legend(loc="lower right")
    says = "; ".join(f"{p['name']} {p['top1']:.2f} % at {si(p['bops'])} BOPs" for p in points)
    return _plot(figure, "front", f"Accuracy against BOPs: {says}.")


def layers(document: Row) -> Plot | None:
    """Share of each layer's filters at each width, and of those that are gone."""
    rows = document["layers"]
    if not rows:
        return None
    widths = sorted({int(bits) for row in rows for bits in histogram(row)})
    figure, axes = _figure(1.0 + ROW * len(rows))
    at, left = range(len(rows)), [0.0] * len(rows)
    for i, bits in enumerate(widths):
        share = [100 * histogram(row).get(bits, 0) / row["channels_total"] for row in rows]
        axes.barh(at, share, 0.74, left=left, color=SERIES[i % len(SERIES)], label=f"{bits} bits")
        left = [a + b for a, b in zip(left, share, strict=True)]
    gone = [100 - share for share in left]
    if any(share > 1e-9 for share in gone):
        axes.barh(at, gone, 0.74, left=left, color=GONE, hatch="////", label="removed")
    for i, row in enumerate(rows):
        said = f"a{row['a_bits']}  {row['channels_kept']}/{row['channels_total']}"
        axes.text(101.5, i, said, va="center", fontsize=SMALL, color=INK)
    axes.set_yticks(list(at), [row["name"] for row in rows], fontsize=SMALL)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the layer's filters; a: bits of its input; kept/all filters")
    figure.legend(loc="outside upper center", ncols=len(widths) + 1)
    cut = sum(row["channels_kept"] < row["channels_total"] for row in rows)
    listed = ", ".join(map(str, widths))
    return _plot(figure, "layers", f"Weight bits of {len(rows)} layers: {listed}; {cut} of them lost filters.")


def time(document: Row) -> Plot | None:
    """Measured milliseconds against BOPs, the layers that stand out named."""
    rows = [row for row in document["layers"] if row["relative"] is not None]
    found = document["correlation"]
    if found is None or not rows:
        return None
    figure, axes = _figure(3.5)
    names, by_name = [one["name"] for one in found["outliers"]], {row["name"]: row for row in rows}
    for far, marker, label in ((False, "o", "layers"), (True, "X", f"{found['factor']:g} times off or more")):
        own = [row for row in rows if (row["name"] in names) == far]
        if own:
            axes.scatter([r["bops"] for r in own], [r["median"] for r in own], s=38, marker=marker,
                         color=SERIES[1 if far else 0], label=label, zorder=3)  # fmt: skip
    _log(axes)
    bops = [min(row["bops"] for row in rows), max(row["bops"] for row in rows)]
    middle = rows[0]["median"] / rows[0]["bops"] / rows[0]["relative"]
    axes.plot(bops, [middle * b for b in bops], color=MUTED, linestyle="--", linewidth=1, label="median time per BOP")
    _named(axes, [by_name[name] for name in names if name in by_name], "bops", "median")
    axes.set_xlabel("BOPs (log)")
    axes.set_ylabel("milliseconds (log)")
    figure.legend(loc="outside upper center", ncols=3)
    outliers = f"; furthest off: {', '.join(names[:6])}" if names else ""
    says = f"Milliseconds against BOPs of {found['layers']} layers: rank correlation {found['rank']:.2f}{outliers}."
    return _plot(figure, "time", says)


def roofline(document: Row) -> Plot | None:
    """MACs a second against MACs a byte, below the roofs of this machine."""
    rows = [row for row in document["layers"] if row["rate"] is not None and row["intensity"]]
    roofs = document["roofs"]
    if not rows or roofs["bytes_per_second"] is None:
        return None
    figure, axes = _figure(3.7)
    x = [min(row["intensity"] for row in rows) / 2, max(row["intensity"] for row in rows) * 4]
    top = max((roof["macs_per_second"] for roof in roofs["macs"]), default=x[1] * roofs["bytes_per_second"])
    ridge = min(x[1], top / roofs["bytes_per_second"])
    slope = [x[0], max(ridge, x[0])]
    axes.plot(slope, [v * roofs["bytes_per_second"] for v in slope], color=INK, linewidth=1.2, label="reading memory")
    for i, roof in enumerate(roofs["macs"]):
        y = roof["macs_per_second"]
        axes.plot([max(x[0], y / roofs["bytes_per_second"]), x[1]], [y, y], color=SERIES[2 + i % 4],
                  linewidth=1.4, linestyle=("-", "--", "-.", ":")[i // 4 % 4], label=roof["name"])  # fmt: skip
    axes.scatter([r["intensity"] for r in rows], [r["rate"] for r in rows], s=30, color=SERIES[0], zorder=3,
                 label="layers, measured")  # fmt: skip
    _log(axes)
    slow = sorted((row for row in rows if row["efficiency"]), key=lambda row: row["efficiency"])[:3]
    _named(axes, slow, "intensity", "rate")
    axes.set_xlabel("MACs a byte touched (log)")
    axes.set_ylabel("MACs a second (log)")
    figure.legend(loc="outside upper center", ncols=2)
    said = ", ".join(f"{row['name']} {row['efficiency']:.0%}" for row in slow)
    return _plot(figure, "roofline", f"Roofline of {len(rows)} layers; furthest below their bound: {said or 'none'}.")


def curves(document: Row) -> Plot | None:
    """What every epoch told, phase after phase; one panel a quantity."""
    phases = document["curves"]
    if not phases:
        return None
    told = dict.fromkeys(key for phase in phases for key in phase["series"])
    known = {key for panel in PANELS for key in panel}
    rest = [(key,) for key in told if key.endswith("_of_budget") and key not in known]
    panels = [keys for panel in PANELS if (keys := tuple(key for key in panel if key in told))] + rest
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, 0.5 + 1.6 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axes, keys in zip(grid[:, 0], panels, strict=True):
        _panel(axes, phases, keys)
    start = 0
    for phase in phases:
        grid[0, 0].text(start + 0.6, 1.03, phase["phase"], transform=grid[0, 0].get_xaxis_transform(), fontsize=SMALL)
        start += len(phase["epochs"])
    grid[-1, 0].set_xlabel("epoch, all phases")
    said = ", ".join(f"{phase['phase']} {len(phase['epochs'])}" for phase in phases)
    return _plot(figure, "curves", f"Curves over the epochs of {said}.")


DRAWINGS: Mapping[str, Callable[[Row], Plot | None]] = {
    "front": front, "layers": layers, "time": time, "roofline": roofline, "curves": curves,
}  # fmt: skip


def histogram(row: Row) -> dict[int, int]:
    """Bits -> kept filters of a layer."""
    if row["w_bits"] is not None:
        return {row["w_bits"]: row["channels_kept"]}
    return {int(bits): count for bits, count in row["w_bits_hist"].items()}


def _panel(axes: Axes, phases: Sequence[Row], keys: Iterable[str]) -> None:
    for i, key in enumerate(keys):
        start, said = 0, SERIES_NAMES.get(key, key)
        for phase in phases:
            points = [(start + n, v) for n, v in enumerate(phase["series"].get(key, ()), 1) if v is not None]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=SERIES[i], linestyle=("-", "--")[i % 2], marker="o", markersize=3, label=said)
                said = "_"  # one entry in the legend for all phases
            start += len(phase["epochs"])
            if phase is not phases[-1]:
                axes.axvline(start + 0.5, color=MUTED, linewidth=0.8, linestyle=":")
    axes.legend(loc="best")
    axes.set_xlim(0.5, sum(len(phase["epochs"]) for phase in phases) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _log(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.12)
    _counts(axes, "x")
    _counts(axes, "y")


def _counts(axes: Axes, which: str = "x") -> None:
    """Numbers of an axis with a decimal prefix, no others between them."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _position: si(value))
    axis.set_minor_formatter(NullFormatter())


def _named(axes: Axes, rows: Iterable[Row], x: str, y: str) -> None:
    """The rows' names beside their points, those in the right half on the left; without those that would overlap."""
    placed: list[tuple[float, float]] = []
    for row in rows:
        across, up = axes.transAxes.inverted().transform(axes.transData.transform((row[x], row[y])))
        if any(abs(across - a) < NAME[0] and abs(up - b) < NAME[1] for a, b in placed):
            continue
        placed.append((across, up))
        right = across < 0.5
        axes.annotate(row["name"], (row[x], row[y]), (6 if right else -6, 4), textcoords="offset points",
                      ha="left" if right else "right", fontsize=SMALL)  # fmt: skip


def _plot(figure: Figure, name: str, says: str) -> Plot:
    """The drawing for a page: no header, no size, no metadata, colours as variables."""
    out = StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    ElementTree.register_namespace("", SVG[1:-1])
    root = ElementTree.fromstring(out.getvalue())
    for parent in root.iter():
        for child in [c for c in parent if c.tag in (f"{SVG}metadata", f"{SVG}style") or "metadata" in c.tag]:
            parent.remove(child)
        for key in [k for k in parent.attrib if k.endswith("}href")]:
            parent.set("href", parent.attrib.pop(key))
    _drop_ids(root)
    _, _, wide, _ = root.get("viewBox", "0 0 360 360").split()
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": says, "style": f"max-width: {4 / 3 * float(wide):.0f}px"}
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Plot(text, says)


def _drop_ids(root: ElementTree.Element) -> None:
    """Ids stay only where something refers to them: those are salted with the plot's name, the others repeat."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {found for value in values for found in re.findall(r"#([\w-]+)", value)}
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
