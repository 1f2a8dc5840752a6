"""The dense float network that peers run, and the images that everybody is given. Knows nothing of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.program import Program
from ..core.errors import BitpressError, UsageError
from ..core.graph import Graph
from .rebuild import rebuild

CALIBRATION_IMAGES = 64
CHECK_IMAGES = 64  # for the share of equal answers; other images than those of the calibration
NOISE = 0.1  # around the golden input, in units of its standard deviation


@dataclass(frozen=True, slots=True)
class Dense:
    """A float graph and where it comes from, in words for the report."""

    graph: Graph
    source: str
    data: str | None = None  # DATA spec that belongs to it, if known


@dataclass(frozen=True, slots=True)
class Images:
    """Normalised float32 images [n, C, H, W], never zeros, and where they come from."""

    calibration: np.ndarray
    check: np.ndarray
    source: str


def dense(program: Program, *, against: str | Path | None, model: str | None, weights: str | Path | None) -> Dense:
    """The network to compare with: of the RUN `against`, else of `model` with `weights`, else rebuilt from `program`.

    UsageError if both are given, or if its input or its number of outputs is not that of `program`.
    """
    if against is not None and model is not None:
        raise UsageError("--against and --model both name the peers' network: give one of them")
    if weights is not None and model is None:
        raise UsageError("--weights belongs to --model, which is missing")
    if against is not None:
        found = _of_run(against)
    elif model is not None:
        found = _of_model(model, weights, program)
    else:
        graph = rebuild(program, original_channels(program))
        found = Dense(graph, "rebuilt from the artifact: kept filters dequantised, removed ones present without effect")
    _fits(found, program)
    return found


def original_channels(program: Program) -> dict[str, int]:
    """Layer -> filters before pruning, from the artifact's layer table; empty where it has none."""
    return {
        str(row["name"]): int(row["channels_total"])
        for row in layer_table(program)
        if isinstance(row.get("channels_total"), int)
    }


def layer_table(program: Program) -> list[Mapping[str, Any]]:
    """Rows of the layer table in the artifact's metadata, empty where it has none."""
    rows = program.meta.get("layers")
    return [row for row in rows if isinstance(row, Mapping) and "name" in row] if isinstance(rows, list) else []


def images(program: Program, data: str | None, rng: np.random.Generator) -> Images:
    """Images of the training part of `data`; where that is unknown or not at hand, the golden input with noise."""
    reason = "no data set is recorded"
    if data:
        try:
            return _of_data(data, program)
        except (BitpressError, OSError) as error:
            reason = f"{data} is not at hand: {error}"
    if program.golden_input is None:
        shape = (CALIBRATION_IMAGES + CHECK_IMAGES, *program.buffers[program.input].shape)
        noise = rng.standard_normal(shape).astype(np.float32)
        return Images(noise[:CALIBRATION_IMAGES], noise[CALIBRATION_IMAGES:], f"random numbers ({reason})")
    golden = program.golden_input
    spread = NOISE * max(float(golden.std()), 1e-3)
    noise = rng.standard_normal((CHECK_IMAGES, *golden.shape[1:])).astype(np.float32)
    return Images(golden, (golden + spread * noise).astype(np.float32), f"golden input ({reason})")


def _of_run(path: str | Path) -> Dense:
    from ..core.rundir import float_graph, load_run

    run = load_run(Path(path))
    data = run.meta.get("data")
    return Dense(float_graph(run), f"float network of {path}", data if isinstance(data, str) else None)


def _of_model(spec: str, weights: str | Path | None, program: Program) -> Dense:
    from ..core.factory import is_onnx
    from ..core.network import network

    outputs = program.buffers[program.output].shape[0]  # of a detector: values per place
    channels, height, width = program.buffers[program.input].shape
    loaded = network(spec, classes=outputs, in_shape=(channels, height, width), weights=weights, floats=True)
    named = f"{spec} with {weights}" if weights is not None else f"{spec} with random weights"
    named = spec if is_onnx(spec) else named
    return Dense(loaded.graph, named)


def _of_data(spec: str, program: Program) -> Images:
    from ..core.data import load

    channels, height, width = program.buffers[program.input].shape
    data = load(spec, in_shape=(channels, height, width))
    if data.shape != (channels, height, width):
        raise UsageError(f"its images are {list(data.shape)}, the artifact takes {[channels, height, width]}")
    wanted = CALIBRATION_IMAGES + CHECK_IMAGES
    if len(data.train) < wanted:
        raise UsageError(f"its training part has {len(data.train)} images, {wanted} are needed")
    # every k-th image: the first ones of class folders are all of one class
    chosen = np.arange(wanted) * len(data.train) // wanted
    found = data.normalise(data.train.images[chosen], program.mean.tolist(), program.std.tolist())
    return Images(found[::2], found[1::2], f"training images of {spec}")


def _fits(found: Dense, program: Program) -> None:
    want = tuple(program.buffers[program.input].shape), int(np.prod(program.buffers[program.output].shape))
    shape = found.graph.inputs[0].shape
    have = tuple(shape), int(np.prod(found.graph.value(found.graph.outputs[0]).shape))
    if have != want:
        raise UsageError(
            f"{found.source}: takes {list(have[0])} and gives {have[1]} values, "
            f"the artifact takes {list(want[0])} and gives {want[1]}: they are not the same network"
        )
    layers = {node.name for node in found.graph.nodes if node.op in ("conv2d", "linear")}
    strange = [str(row["name"]) for row in layer_table(program) if row["name"] not in layers]
    if strange:
        raise UsageError(
            f"{found.source}: has no layer {strange[0]!r}, which the artifact has ({len(strange)} such layers): "
            "they are not the same network"
        )
