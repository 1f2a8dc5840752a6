"""Makes the table of tiles of a GPU: for every problem the fastest tile, found by changing one number at a time.

A full search would compile hundreds of kernels a problem; one pass from the pure choice of kernels/gpu/tiles.py needs a
dozen. Every tile that wins gives the exact sums first. Rows are written one by one, and a table is gone on with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..core.errors import CheckFailed, UsageError
from ..core.host import head, write_text
from ..kernels import gpu
from ..kernels.gpu import call, conv, gemm, gemv, tuned
from ..kernels.gpu.tiles import VECTOR, Tile, choose
from .gpu_clock import as_graph, compare, copies
from .gpu_layers import GOALS, IMAGES, PAIRS, SIDES, U8, Made, Problem
from .harness import ratio

Progress = Callable[[str, float], None]
GAIN = 0.98  # of the time before: what a change must reach, so that noise chooses no tile
STEPS = {
    "pixels": (16, 32, 64, 128, 256), "rows": (8, 16, 32, 64, 128, 256), "blocks": (1, 2, 4, 8, 16),
    "warps": (4, 8), "stages": (2, 3, 4, 5), "splits": (1, 2, 4, 8, 16),
}  # fmt: skip
OF_VECTORS = ("rows", "blocks", "warps")
OF_WINDOWS = ("pixels", "rows", "warps", "stages")


def profile(
    *, output: str | Path | None = None, seconds: float = 0.05, seed: int = 0, dry: bool = False,
    progress: Progress = lambda _what, _share: None,
) -> dict[str, Any]:  # fmt: skip
    """The `bitpress.tiles` document, written to `output` row by row; by default to where launches on this host look.

    EnvironmentMissing without a GPU; UsageError where `output` is another device's table. `dry`: two tiny problems.
    """
    device = gpu.device()
    name = gpu.name(device)
    path = tuned.own(name) if output is None else Path(output)
    if output is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    document = _document(path, name, gpu.target(device))
    done = {_key(row) for row in document["rows"]}
    left = [(family, problem) for family, problem in problems(dry=dry) if _wanted(family, problem) not in done]
    for i, (family, problem) in enumerate(left):
        progress(f"{_word(family)}, {problem.name}", i / len(left))
        document["rows"].append(tune(family, problem, device, seconds, seed))
        write_text(path, json.dumps(document, indent=1) + "\n")
    tuned.table.cache_clear()
    progress("tiles", 1.0)
    return {**document, "table": str(path)}


def problems(*, dry: bool = False) -> Iterator[tuple[ModuleType, Problem]]:
    """What is tuned: the shapes of the goal table, convolutions of one and of many images, at every pair of widths."""
    for kind in list(PAIRS.values())[: 1 if dry else None]:
        for m, n in ((2, 128),) if dry else GOALS:
            if m <= gemv.MAX_PIXELS:
                yield gemv, Problem(kind, m, n, n)
            yield gemm, Problem(kind, m, n, n)
        for side, channels in () if dry else ((56, 64), *SIDES):
            for images in (1, IMAGES):
                yield conv, Problem(kind, images, channels, channels, side)


def tune(family: ModuleType, problem: Problem, device: str, seconds: float, seed: int = 0) -> dict[str, Any]:
    """A row: the fastest tile, its milliseconds, and those of the pure choice. CheckFailed where sums are wrong."""
    made = Made(problem, device, seed)
    pixels = problem.m * max(1, problem.side) ** 2
    usual = _usual(family, made, pixels, device)
    calls = _calls(family, made, device)
    tile, first = usual, as_graph(calls(usual), device)
    fastest = first
    for what in OF_VECTORS if family is gemv else OF_WINDOWS if family is conv else STEPS:
        for changed in _changed(tile, what, pixels):
            try:
                run = as_graph(calls(changed), device)
            except Exception:  # too much shared memory, too many registers: no tile of this chip
                continue
            found = compare({"new": run, "old": fastest}, seconds)
            if ratio(found["new"], found["old"]) < GAIN:
                tile, fastest = changed, run
    _exact(family, made, device, tile)
    found = compare({"usual": first, "best": fastest}, seconds)
    form = made.form
    return {
        "family": _word(family), "w_bits": form.encoding.bits, "a_bits": form.act.bits, "taps": form.taps,
        "pixels": pixels, "rows": form.rows, "depth": form.depth, "tile": asdict(tile),
        "ms": found["best"].median, "usual_ms": found["usual"].median,
    }  # fmt: skip


def _usual(family: ModuleType, made: Made, pixels: int, device: str) -> Tile:
    """What launches take without a table."""
    if family is gemv:
        return VECTOR
    target = gpu.target(device)
    return gemm.usual(made.form, pixels, target, torch.device(device)) if family is gemm else choose(target, pixels)


def _changed(tile: Tile, what: str, pixels: int) -> Iterator[Tile]:
    """The tile with another number for `what`: the neighbours of the one it has."""
    steps = [step for step in STEPS[what] if what != "pixels" or step <= max(16, 2 * pixels)]
    at = min(range(len(steps)), key=lambda i: abs(steps[i] - getattr(tile, what)))
    for i in (at - 1, at + 1):
        if 0 <= i < len(steps):
            yield replace(tile, **{what: steps[i]})


def _calls(family: ModuleType, made: Made, device: str) -> Callable[[Tile], list[Callable[[], object]]]:
    """Launches with a tile, on buffers that rotate."""
    scale = np.full(made.problem.n, 1e-4, np.float32)
    layer = gpu.load(made.weights, device=device, out=U8, m=scale, b=np.zeros_like(scale), lo=0, hi=255)
    number = copies(made.weights.fields.nbytes + made.stored.nbytes, device)
    sets = [(made.stored.clone(), replace(layer, fields=layer.fields.clone())) for _ in range(number)]
    return lambda tile: [lambda x=x, own=own: _launch(family, made, x, own, tile) for x, own in sets]  # type: ignore[misc]


def _launch(family: ModuleType, made: Made, x: torch.Tensor, layer: call.Layer, tile: Tile | None) -> torch.Tensor:
    window = (made.window,) if family is conv else ()
    out: torch.Tensor = family.launch(x, layer, *window, tile=tile)
    return out


def _exact(family: ModuleType, made: Made, device: str, tile: Tile) -> None:
    if made.wrong():
        raise CheckFailed(f"{made.problem.name}: sums are not exact; nothing is tuned")
    layer = gpu.load(made.weights, device=device)
    want, got = made.run(made.stored, layer), _launch(family, made, made.stored, layer, tile)
    if wrong := int((want != got).sum()):
        raise CheckFailed(f"{made.problem.name}: {wrong} sums are not exact with {tile}")


def _document(path: Path, name: str, target: str) -> dict[str, Any]:
    new = {**head(tuned.SCHEMA, isa=target, gpu=name), "device": name, "rows": []}
    if not path.exists():
        return new
    try:
        old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tuned.parse(old)
        device = old["device"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no table of tiles ({error}): remove it, or name another file") from error
    if device != name:
        raise UsageError(f"{path} is the table of {device}, this is {name}: name another file")
    return {**new, "rows": old["rows"]}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("family", "w_bits", "a_bits", "pixels", "rows", "depth", "taps"))


def _wanted(family: ModuleType, problem: Problem) -> tuple[Any, ...]:
    weight, act, packed = problem.kind
    taps = 9 if problem.side else 1
    pixels = problem.m * max(1, problem.side) ** 2
    return _word(family), int(weight[1:]), int(act[1:]) if packed else 8, pixels, problem.n, taps * problem.k, taps


def _word(family: ModuleType) -> str:
    return family.__name__.rpartition(".")[2]
