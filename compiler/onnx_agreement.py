"""Whether onnxruntime computes from an exported model what the program says: layer by layer, and end to end.

Each value is compared with what the program makes of onnxruntime's own values before it, so that a difference is named
where it arises. Knows how a model is run, not how it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import CheckFailed, EnvironmentMissing
from .execute import values
from .onnx_qdq import Qdq
from .program import Program

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

LAYER_IMAGES = 4  # whose every value is compared; numpy computes them
CHUNK = 16  # images that onnxruntime gets at once
LEVELS = 1  # by which a code may differ
TOP1 = 99.0  # percent of images whose class must be the same
FLOATS = 1e-3  # of a value's largest magnitude, by which floats may differ; sums of 8000 float32 terms stay below
TIE = 1e-5  # of the largest output: classes so close are tied, float32 rounding decides between them
EXACT_U8S8 = ("session.x64quantprecision", "1")  # x86 before VNNI: sums of two products saturate in int16 without it


def agreement(
    program: Program, exported: Qdq, x: np.ndarray, run: Callable[[np.ndarray], np.ndarray], *, threads: int = 1
) -> dict[str, Any]:
    """Key `agreement` of the `bitpress.export` document, on normalised images `x` float32 [N, C, H, W].

    `run`: images -> outputs of the program. EnvironmentMissing without onnxruntime, CheckFailed where
    it cannot load the model.
    """
    whole = _session(exported.model, [], threads)
    got = np.concatenate([_outputs(whole, x[i : i + CHUNK])[0] for i in range(0, len(x), CHUNK)])
    want = run(x)
    top1 = 100.0 * float(np.mean(_same_class(want, got)))
    rows = _layers(program, exported, x[:LAYER_IMAGES], threads)
    return {
        "onnxruntime": _version(), "images": len(x), "top1": top1,
        "output_difference": float(np.abs(got - want).max()), "layer_images": len(x[:LAYER_IMAGES]), "layers": rows,
        "agrees": top1 >= TOP1 and all(row["agrees"] for row in rows),
    }  # fmt: skip


def _same_class(want: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Per image, whether the class that `got` names has the highest output in `want`, or ties with it."""
    chosen = np.take_along_axis(want, got.argmax(axis=1)[:, None], axis=1)[:, 0]
    same: np.ndarray = want.max(axis=1) - chosen <= TIE * np.abs(want).max(axis=1)
    return same


def _layers(program: Program, exported: Qdq, x: np.ndarray, threads: int) -> list[dict[str, Any]]:
    """A row for each stored value: how many elements differ, and by how much at most, in levels or in floats."""
    names = list(exported.held)
    session = _session(exported.model, [exported.held[name] for name in names], threads)
    given = dict(zip(names, _outputs(session, x)[1:], strict=True))
    given = {name: array.astype(np.float32 if array.dtype.kind == "f" else np.int32) for name, array in given.items()}
    layer = {program.buffers[step.output].name: step.layer for step in program.steps}
    return [
        {"name": name, "layer": layer[name], **_difference(want, given[name])}
        for name, want in values(program, x, given=given).items()
    ]


def _difference(want: np.ndarray, got: np.ndarray) -> dict[str, Any]:
    apart = np.abs(want.astype(np.float64) - got)
    floats = want.dtype.kind == "f"
    allowed = FLOATS * float(np.abs(want).max()) if floats else LEVELS
    return {
        "held": "float32" if floats else "levels", "elements": int(want.size), "differing": int((apart > 0).sum()),
        "largest": float(apart.max()), "agrees": bool(apart.max() <= allowed),
    }  # fmt: skip


def _outputs(session: InferenceSession, x: np.ndarray) -> Sequence[np.ndarray]:
    found: Sequence[np.ndarray] = session.run(None, {session.get_inputs()[0].name: x})
    return found


def _session(model: Any, more: Sequence[str], threads: int) -> InferenceSession:
    """The model in onnxruntime, with the tensors `more` as outputs too."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise EnvironmentMissing(f"that needs the extra [onnx] ({error}): pip install 'bitpress[onnx]'") from error
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    options.add_session_config_entry(*EXACT_U8S8)
    try:
        return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are those of a binding, without a common base of their own
        raise CheckFailed(f"onnxruntime {_version()} cannot load the exported file: {error}") from error


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def worst(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row of `agreement` that agrees least: outside of its bound, else with the largest difference in levels."""
    rows: Sequence[Mapping[str, Any]] = found["layers"]
    return max(rows, key=lambda row: (not row["agrees"], row["held"] == "levels", row["largest"]))
