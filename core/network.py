"""A network by its spec, whatever that names: an ONNX file, or what `core.models` loads, as a float graph.

The one door for verbs that take a MODEL. Without torch where the spec is an ONNX file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import CorruptError, UsageError
from .factory import is_onnx
from .graph import Graph
from .plan import CompressionPlan

Shape = tuple[int, int, int]
Triple = tuple[float, ...]


@dataclass(frozen=True)
class Codes:
    """What a quantised file says beside its graph: bits, and tensors with the ranges of all codes."""

    plan: CompressionPlan
    tensors: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A float graph, constants filled, with all that is known of its input and its answers.

    `mean`, `std`: a value per input channel. `labels`: class names, empty where unknown. `quantised`: whether a file
    says how values are rounded; `codes`: what it says, where that was asked for.
    """

    graph: Graph
    spec: str
    in_shape: Shape
    classes: int
    mean: Triple
    std: Triple
    labels: tuple[str, ...]
    quantised: bool = False
    codes: Codes | None = None


def network(
    spec: str,
    *,
    classes: int | None = None,
    in_shape: Shape | None = None,
    weights: str | Path | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    floats: bool = False,
    seed: int | None = None,
) -> Network:
    """The network that `spec` names; of a quantised file with `floats` only the dequantised graph, unknown ops and all.

    Errors: as `core.models.load`, `core.capture.capture` and `open_onnx`; UnsupportedError for codes that cannot be
    held.
    """
    if is_onnx(spec):
        if weights is not None:
            raise UsageError(f"--weights {weights}: {spec} holds its weights itself")
        return _of_onnx(spec, classes, in_shape, mean, std, floats=floats)
    from .capture import capture
    from .models import load

    loaded = load(spec, classes=classes, in_shape=in_shape, weights=weights, mean=mean, std=std, seed=seed)
    graph = capture(loaded.module, loaded.in_shape)
    return Network(graph, spec, loaded.in_shape, loaded.classes, loaded.mean, loaded.std, loaded.labels)


def refuse_quantised(found: Network, why: str) -> None:
    """UsageError where the network is a file that is quantised already."""
    if found.quantised:
        raise UsageError(
            f"{found.spec} is quantised already, and {why}: compile it as it is, without --quantize and "
            "--calibrate, or take the float model that it was made from"
        )


def _of_onnx(
    spec: str, classes: int | None, in_shape: Shape | None, mean: Triple | None, std: Triple | None, *, floats: bool
) -> Network:
    """`mean`, `std` and labels of the file's metadata where nobody says others; else 0 and 1."""
    from .onnx_codes import quantised
    from .onnx_file import open_onnx
    from .onnx_graph import import_graph

    file = open_onnx(spec, in_shape)
    imported = import_graph(file)
    graph, codes = imported.graph, None
    if imported.quantised and not floats:
        graph, plan, tensors = quantised(spec, imported)
        codes = Codes(plan, tensors)
    shape = graph.inputs[0].shape
    outputs = graph.value(graph.outputs[0]).shape
    made = outputs[0] if outputs else 0
    if classes is not None and made != classes:
        raise UsageError(f"{spec} gives {made} values, --classes says {classes}")
    return Network(
        graph, spec, (shape[0], shape[1], shape[2]), made,
        per_channel(mean or numbers(file.facts, "mean", spec) or (0.0,), shape[0], "mean"),
        per_channel(std or numbers(file.facts, "std", spec) or (1.0,), shape[0], "std"),
        labels(file.facts, spec), imported.quantised, codes,
    )  # fmt: skip


def per_channel(values: Triple, channels: int, what: str) -> Triple:
    """`values`, one for each of an input's channels; UsageError where they cannot be its `what` (mean or std)."""
    out = tuple(float(v) for v in values)
    if len(out) == 1:
        out *= channels
    if len(out) != channels:
        raise UsageError(f"{what} has {len(out)} values, the input has {channels} channels")
    if not all(abs(v) < float("inf") for v in out) or (what == "std" and min(out) <= 0):
        raise UsageError(f"{what} {out}: expected finite numbers{', above 0' if what == 'std' else ''}")
    return out


def numbers(facts: Mapping[str, str], key: str, source: str) -> Triple | None:
    """Numbers of a file's metadata, a JSON list or separated by blanks or commas; None where there are none."""
    if key not in facts:
        return None
    try:
        return tuple(float(part) for part in facts[key].strip("[]() ").replace(",", " ").split())
    except ValueError as error:
        raise CorruptError(f"{source}: metadata {key} {facts[key]!r} is no list of numbers") from error


def labels(facts: Mapping[str, str], source: str) -> tuple[str, ...]:
    """Class names of a file's metadata, a JSON list; empty where there are none."""
    try:
        return tuple(str(label) for label in json.loads(facts.get("labels", "[]")))
    except (ValueError, TypeError) as error:
        raise CorruptError(f"{source}: metadata labels is no JSON list") from error
