"""What an artifact holds, for people and scripts: the body of the `bitpress.inspect` document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.encoding import parse
from . import artifact
from .model import Model
from .program import Buffer, Program, Step

CONVENTION = "sbs"


def inspect(source: str | Path | bytes, *, device: str = "cpu") -> dict[str, Any]:
    """Layers, parts and totals of a `.bpk`, and what of it is not quantised. Errors as of `Model`.

    The face adds the document's head; `isa` is the instruction set that would run it here, `gpu` the GPU's name.
    """
    data = source if isinstance(source, bytes) else artifact.load_bytes(source)
    model = Model(data, device=device)
    program = model.program
    layers = layer_rows(program, model.inspect_rows())
    parts = [{"name": name, "bytes": size} for name, size in artifact.parts(data)]
    return {
        "isa": model.isa,
        "gpu": model.gpu_name,
        "model": program.meta.get("model"),
        "method": program.meta.get("method"),
        "data": program.meta.get("data"),
        "residual": program.meta.get("residual"),
        "calibration": program.meta.get("calibration"),
        "input": input_row(program),
        "outputs": model.outputs,
        "arena_bytes": program.arena_bytes,
        "floats": [b.name for b in _inner(program) if b.storage == "f32"],
        "layers": layers,
        "parts": parts,
        "totals": _totals(program, layers, len(data)),
    }


def layer_rows(program: Program, bound: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per conv or linear layer, in the original network's order where it is known.

    `bound`: per step, the kernel that runs it here (`Model.inspect_rows`).
    """
    table = program.meta.get("layers")
    rows = table if isinstance(table, list) else []
    known = {str(row["name"]): row for row in rows if isinstance(row, Mapping) and "name" in row}
    steps: dict[str, list[int]] = {}
    for number, step in enumerate(program.steps):
        if step.layer:
            steps.setdefault(step.layer, []).append(number)
    names = [name for name in known if name in steps] + [name for name in steps if name not in known]
    return [_layer(program, name, steps[name], known.get(name, {}), bound) for name in names]


def input_row(program: Program) -> dict[str, Any]:
    """Name, shape and normalisation of the input; scale and zero point of its levels (scale null for floats)."""
    buffer = program.buffers[program.input]
    first = next((s for s in program.steps if s.op == "quantize"), None)
    held = None if first is None else program.buffers[first.output].storage
    levels = first is not None and held != "f32" and first.epilogue is not None
    return {
        "name": buffer.name,
        "shape": list(buffer.shape),
        "mean": program.mean.tolist(),
        "std": program.std.tolist(),
        "encoding": held,
        "scale": 1.0 / float(first.epilogue.m[0]) if levels and first and first.epilogue else None,
        "zero_point": 0,
    }


def _layer(
    program: Program, name: str, numbers: Sequence[int], known: Mapping[str, Any], bound: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    steps = [program.steps[i] for i in numbers]
    source, target = program.buffers[steps[0].inputs[0]], program.buffers[steps[0].output]
    segments = [_segment(program.steps[i], bound[i]) for i in numbers]
    kept = sum(s["filters"] for s in segments)
    linear = known.get("op") == "linear"
    row = {
        "name": name,
        "op": known.get("op", steps[0].op),
        "in_shape": [math.prod(source.shape)] if linear else list(source.shape),
        "out_shape": [target.shape[0]] if linear else list(target.shape),
        "w_bits": segments[0]["w_bits"] if len({s["w_bits"] for s in segments}) == 1 else None,
        "a_bits": 32 if source.storage == "f32" else parse(source.storage).bits,
        "channels_kept": kept,
        "channels_total": known.get("channels_total", kept),
        "macs": sum(_macs(step, target) for step in steps),
        "bops": known.get("bops"),
        "bytes": sum(s["bytes"] for s in segments),
        **{key: _joined(segments, key) for key in ("kernel", "isa", "why")},
    }
    if row["w_bits"] is None:
        bits = [s["w_bits"] for s in segments]
        row["w_bits_hist"] = {
            str(b): sum(s["filters"] for s in segments if s["w_bits"] == b) for b in sorted(set(bits))
        }
        row["segments"] = segments
    return row


def _segment(step: Step, bound: Mapping[str, Any]) -> dict[str, Any]:
    assert step.weight is not None, "steps that belong to a layer have weights"
    return {
        "w_bits": step.weight.encoding.bits,
        "filters": step.weight.shape[0],
        "bytes": int(step.weight.fields.size),
        **{key: bound.get(key) for key in ("kernel", "isa", "why")},
    }


def _joined(segments: Sequence[Mapping[str, Any]], key: str) -> str | None:
    words = dict.fromkeys(str(s[key]) for s in segments if s[key] is not None)
    return " + ".join(words) or None


def _macs(step: Step, target: Buffer) -> int:
    assert step.weight is not None, "steps that belong to a layer have weights"
    return math.prod(step.weight.shape) * target.shape[1] * target.shape[2]


def _inner(program: Program) -> list[Buffer]:
    return [b for i, b in enumerate(program.buffers) if i not in (program.input, program.output)]


def _totals(program: Program, layers: Sequence[Mapping[str, Any]], file_bytes: int) -> dict[str, Any]:
    table = program.meta.get("totals")
    known: Mapping[str, Any] = table if isinstance(table, Mapping) else {}
    macs = sum(row["macs"] for row in layers)
    bops, whole = known.get("bops"), known.get("bops_fp32", macs * 1024)
    return {
        "macs": macs,
        "bops": bops,
        "bops_fp32": whole,
        "bops_ratio": whole / bops if bops else None,
        "bops_convention": known.get("bops_convention", CONVENTION),
        "weight_bytes": sum(row["bytes"] for row in layers),
        "file_bytes": file_bytes,
        "fp32_bytes": known.get("fp32_bytes", 4 * _weights(program)),
    }


def _weights(program: Program) -> int:
    return sum(math.prod(s.weight.shape) for s in program.steps if s.weight is not None)
