"""`profile`: this machine's kernels, layer by layer, as a table that searches read (core/latency.py). Formats nothing.

A time is that of the kernel that a compiled network gets, by the session's own clock, on a program of one layer whose
output equals the numpy reference. All widths of a shape are timed against one another in one interleaved run. The file
is written after each; the same command goes on where one was killed, or adds what other networks need.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler import artifact
from ..core.cost import WIDTHS, Costs, Space, search_space
from ..core.encoding import Encoding, odd, unsigned
from ..core.errors import CheckFailed, CorruptError, Interrupted, UnsupportedError, UsageError
from ..core.graph import Graph, refuse_unknown
from ..core.host import head, write_text
from ..core.latency import TABLE_SCHEMA, LayerShape, Point, layer_shape, read_document, shape_of, table_of
from ..core.plan import RESIDUALS
from ..kernels.registry import find
from .gemm import WARM_UP_SECONDS, needed, usable_isas
from .harness import pinned
from .latency_networks import SHARE, measured_network
from .pace import Pace
from .shapes import CONV, Shape, case, of_layer

GRID = 4  # channel counts an axis, beside a single one
LEFT_OUT = 2  # points of each shape that only judge the interpolation
SECONDS = 0.03
DEFAULT_MODELS = ("digits_cnn", "resnet20")
SEPARATE = 0.999  # pruning ratio under which every group that may be pruned has a gate
FIXED = (
    "bitpress",
    "seconds",
    "grid",
    "left_out_points",
    "seed",
    "w_bits",
    "a_bits",
)  # what one table is measured with
PAIRS = tuple(itertools.product(WIDTHS, WIDTHS))

Document = dict[str, Any]
Progress = Callable[[str, float], None]
Axes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Net:
    """A network to be profiled, with the space of all that could be pruned in it."""

    model: str
    graph: Graph
    space: Space


@dataclass(frozen=True, slots=True)
class Cell:
    """A shape at some channels: what is timed at once, all widths against one another. `key`: its list in the file."""

    number: int
    shape: LayerShape
    inside: int
    outside: int
    key: str

    def alone(self) -> Shape:
        """The layer with so many channels."""
        c, h, w = self.shape.in_shape
        if self.shape.groups == 1:
            c = self.inside
        elif self.shape.groups == c == self.shape.rows:
            return of_layer(replace(self.shape, in_shape=(self.outside, h, w), rows=self.outside, groups=self.outside))
        return of_layer(replace(self.shape, in_shape=(c, h, w), rows=self.outside))


def profile(
    models: Sequence[str],
    *,
    output: str | Path,
    residual: str = "int8",
    classes: int | None = None,
    in_shape: tuple[int, int, int] | None = None,
    weights: str | None = None,
    seconds: float = SECONDS,
    grid: int = GRID,
    left_out: int = LEFT_OUT,
    threads: int = 1,
    seed: int = 0,
    progress: Progress = lambda _what, _share: None,
) -> Document:
    """The `bitpress.profile` document, also in the file `output`: milliseconds of every layer of `models`.

    `grid`: channel counts an axis; `left_out`: points a shape that judge the interpolation; `seconds`: for each pair of
    widths of a shape. A file of the same machine and settings is continued. UsageError: a file of others, or none of
    ours; UnsupportedError: an op that is not known; CheckFailed: a kernel that computes something else; Interrupted:
    on a signal, with all that was measured in the file.
    """
    module = needed("profile")
    _check(residual, grid, left_out)
    nets = [_net(model, classes, in_shape, weights) for model in models or DEFAULT_MODELS]
    path = Path(output)
    fresh = {
        **head(TABLE_SCHEMA, isa=usable_isas(module)[-1], threads=threads), "complete": False, "seconds": seconds,
        "grid": grid, "left_out_points": left_out, "seed": seed, "w_bits": list(WIDTHS), "a_bits": list(WIDTHS),
        "pace": None, "shapes": [], "points": [], "left_out": [], "interpolation": _errors([], []), "networks": [],
    }  # fmt: skip
    document = _continued(path, fresh) if path.exists() else fresh
    _add_shapes(document, nets, grid)
    try:
        with pinned(threads):
            pace = Pace(module, threads, document["pace"], seconds=seconds)
            document["pace"] = pace.ms
            _fill(document, path, nets, residual, pace, progress)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: {path} holds {len(document['points'])} times so far; the same command goes on"
        ) from None
    return document


def _check(residual: str, grid: int, left_out: int) -> None:
    if residual not in RESIDUALS:
        raise UsageError(f"--residual {residual!r} is none of {', '.join(RESIDUALS)}")
    if grid < 1 or left_out < 0:
        raise UsageError(f"--grid {grid} is at least 1, --left-out {left_out} at least 0")


def _net(model: str, classes: int | None, in_shape: tuple[int, int, int] | None, weights: str | None) -> Net:
    from ..core.network import network, refuse_quantised

    found = network(model, classes=classes, in_shape=in_shape, weights=weights, floats=True)
    refuse_quantised(found, "a table is for the search of a float network")
    refuse_unknown(found.graph, model)
    return Net(model, found.graph, search_space(found.graph, group_size=1, max_pruning_ratio=SEPARATE))


def _continued(path: Path, fresh: Document) -> Document:
    """The document in a file, to go on with; UsageError unless it was measured here, with these settings."""
    found = read_document(path)
    if missing := [key for key in fresh if key not in found]:
        raise CorruptError(f"{path} is damaged: it lacks the key {missing[0]!r}; give another -o")
    there = {**found["host"], **{key: found.get(key) for key in FIXED}}
    here = {**fresh["host"], **{key: fresh[key] for key in FIXED}}
    different = [f"{key} {there.get(key)} there, {here[key]} now" for key in here if there.get(key) != here[key]]
    if different:
        raise UsageError(
            f"{path} was measured otherwise ({'; '.join(different)}); give these values, or another -o for a new table"
        )
    if found["complete"]:
        table_of(found, path, "")
    return {**found, "complete": False}


def _add_shapes(document: Document, nets: Sequence[Net], grid: int) -> None:
    """Entries of `shapes` for all layers; one shape has a grid for each way in which its channels may vary."""
    known = {shape_of(row): row for row in document["shapes"]}
    for net in nets:
        costs = Costs(net.graph, net.space)
        for term in costs.terms:
            shape = layer_shape(net.graph, net.graph.value(term.layer))
            row = known.get(shape)
            if row is None:
                block = block_of(of_layer(shape))
                row = {**asdict(shape), "op": of_layer(shape).op, "block": block, "layers": [], "grids": []}
                known[shape] = row
                document["shapes"].append(row)
            varied = [side in net.space.gates for side in (term.inside, term.outside)]
            inside = [c * term.columns for c in axis(term.c_in, grid, varied=varied[0])]
            axes = [inside, axis(term.c_out, grid, varied=varied[1], block=row["block"])]
            name = f"{net.model}:{term.layer}"
            row["layers"] += [name] if name not in row["layers"] else []
            row["grids"] += [axes] if axes not in row["grids"] else []
    document["shapes"] = json.loads(json.dumps(document["shapes"]))  # lists, as they are read back


def axis(channels: int, grid: int, *, varied: bool, block: int = 1) -> list[int]:
    """The counts at which a side of a layer is measured, whole blocks where its kernels compute them.

    >>> axis(16, 4, varied=True), axis(20, 2, varied=True, block=8), axis(16, 4, varied=False)
    ([1, 4, 8, 12, 16], [8, 16, 20], [16])
    """
    if not varied:
        return [channels]
    wanted = {1, *(max(1, math.ceil(channels * i / grid)) for i in range(1, grid + 1))}
    return sorted({min(channels, block * -(-c // block)) for c in wanted})


def block_of(shape: Shape) -> int:
    """Filters that the kernels of a shape compute at once; the least over all widths."""
    return min(find(shape.problem(*encodings(pair))).lanes for pair in PAIRS)


def cells(document: Mapping[str, Any]) -> Iterator[Cell]:
    """All that a document needs, in order: the points of its grids, then those left out."""
    shapes = [shape_of(row) for row in document["shapes"]]
    found: dict[Cell, None] = {}
    for number, row in enumerate(document["shapes"]):
        for inside, outside in row["grids"]:
            found |= {Cell(number, shapes[number], c, f, "points"): None for c, f in itertools.product(inside, outside)}
    for number, row in enumerate(document["shapes"]):
        rng = np.random.default_rng([document["seed"], number])
        for inside, outside in row["grids"]:
            for _ in range(document["left_out_points"]):
                c, f = (_between(side, rng) for side in (inside, outside))
                if Cell(number, shapes[number], c, f, "points") not in found:
                    found[Cell(number, shapes[number], c, f, "left_out")] = None
    yield from found


def _between(side: Sequence[int], rng: np.random.Generator) -> int:
    """A count from the second of an axis to the last."""
    return int(rng.integers(side[min(1, len(side) - 1)], side[-1] + 1))


def _fill(document: Document, path: Path, nets: Sequence[Net], residual: str, pace: Pace, progress: Progress) -> None:
    """Measures what is missing, and writes the file after each piece."""
    done = {(key, p["shape"], p["in"], p["out"]) for key in ("points", "left_out") for p in document[key]}
    todo = [c for c in cells(document) if (c.key, c.number, c.inside, c.outside) not in done]
    known = {(n["graph"], n["residual"]) for n in document["networks"]}
    new = [net for net in nets if (net.graph.fingerprint(), residual) not in known]
    whole, spent = len(todo) * len(PAIRS) + len(new) * SHARE, 0
    for cell in todo:
        progress(f"profile, {cell.shape}", spent / whole)
        document[cell.key] += timed(cell, pace, document["seconds"], document["seed"])
        spent += len(PAIRS)
        _write(path, document)
    table = table_of({**document, "networks": []}, path, "")
    guesses = [_guess(table.grids, point, document) for point in document["left_out"]]
    document["interpolation"] = _errors(document["left_out"], guesses)
    for net in new:
        progress(f"profile, the whole of {net.model}", spent / whole)
        document["networks"].append(
            measured_network(
                net.model, net.graph, residual, table, pace=pace,
                seconds=document["seconds"], seed=document["seed"],
            )
        )  # fmt: skip
        spent += SHARE
        _write(path, document)
    document["complete"] = True
    _write(path, document)
    progress("profile", 1.0)


def _write(path: Path, document: Document) -> None:
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def timed(cell: Cell, pace: Pace, seconds: float, seed: int) -> list[dict[str, Any]]:
    """Rows of one cell: milliseconds and kernel at every pair of widths, from one interleaved run."""
    shape = cell.alone()
    sessions, runs = {}, {}
    for pair in PAIRS:
        made = case(shape, *encodings(pair), seed=seed)
        session = pace.session(artifact.encode(made.program))
        off = int((session.run(made.x) != made.want).sum())
        if off:
            raise CheckFailed(
                f"{session.steps()[CONV]['kernel']} on {shape} at w{pair[0]}a{pair[1]}: {off} of {made.want.size} "
                "outputs differ from the reference; nothing is timed"
            )
        sessions[_name(pair)], runs[_name(pair)] = session, partial(session.profile, made.x)
    times, _ = pace.measure(runs, alone=True, seconds=seconds * len(PAIRS), warm_up=WARM_UP_SECONDS)
    return [
        {
            "shape": cell.number, "in": cell.inside, "out": cell.outside, "w": w, "a": a,
            "ms": times[_name((w, a))], "kernel": str(sessions[_name((w, a))].steps()[CONV]["kernel"]),
        }
        for w, a in PAIRS
    ]  # fmt: skip


def encodings(pair: tuple[int, int]) -> tuple[Encoding, Encoding]:
    """Odd weights, as most searches leave them: 8-bit ones reach +-255, so that 16-bit sums are widened sooner."""
    return odd(pair[0]), unsigned(pair[1])


def _name(pair: tuple[int, int]) -> str:
    return f"w{pair[0]}a{pair[1]}"


def _guess(grids: Mapping[LayerShape, Any], point: Mapping[str, Any], document: Document) -> float:
    """What the table says of a point that was left out of it."""
    at: Point = (point["in"], point["out"], point["w"], point["a"])
    shape = shape_of(document["shapes"][point["shape"]])
    for grid in grids[shape]:
        if grid.covers(at):
            return float(grid.at(at))
    raise UnsupportedError(f"{shape} at {at} lies outside of its own grid")


def _errors(points: Sequence[Mapping[str, Any]], guesses: Sequence[float]) -> dict[str, Any]:
    """|guess / measured - 1| over the points left out; None where there are none."""
    errors = [abs(guess / p["ms"] - 1) for p, guess in zip(points, guesses, strict=True)]
    if not errors:
        return {"points": 0, "median": None, "p90": None, "largest": None}
    return {
        "points": len(errors), "median": float(np.median(errors)), "p90": float(np.percentile(errors, 90)),
        "largest": max(errors),
    }  # fmt: skip
