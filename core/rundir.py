"""RUN: the folder of one search. Graph, plan and tensors are enough to evaluate and compile it.

Files are written beside themselves and renamed, so that an interrupted write leaves the old file. Knows nothing of
torch: evaluation and compilation read a RUN without the library that made it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import graph as graphs
from . import plan as plans
from .errors import CorruptError, EnvironmentMissing, UsageError
from .graph import Graph
from .ops import OPS, can_scale
from .plan import CompressionPlan

GRAPH, PLAN, TENSORS = "graph.json", "plan.json", "model.safetensors"
RESULT, SETTINGS = "result.json", "run.json"
EVENTS = "events.jsonl"  # of a search: one JSON document a line
SEARCHED = "searched.safetensors"  # the net as the search left it, gates and all: where a sweep's next point begins
FLOAT = "float.safetensors"  # the float network that a search began with; TENSORS holds its later constants
NETWORK_KEYS = ("model", "in_shape", "classes", "mean", "std", "labels")  # of graph.json, beside the structure


@dataclass(frozen=True)
class Run:
    """A RUN as read and checked: the plan fits the graph, every tensor is finite.

    `graph`: float, its constants filled. `tensors`: all of model.safetensors. `meta`: NETWORK_KEYS, and `data`,
    `method` and `calibration` where result.json or run.json name them.
    """

    path: Path
    graph: Graph
    plan: CompressionPlan
    tensors: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]


def is_run(path: str | Path) -> bool:
    """Whether `path` is a folder with the three files that make a RUN."""
    return all((Path(path) / name).is_file() for name in (GRAPH, PLAN, TENSORS))


def load_run(path: str | Path) -> Run:
    """The RUN at `path`, checked.

    UsageError if it is no RUN; CorruptError for damage, NaN or infinity, constants or a plan that do not fit the graph;
    UnsupportedError for widths without kernels.
    """
    folder = Path(path)
    missing = [name for name in (GRAPH, PLAN, TENSORS) if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{path} is no RUN: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    doc = read_json(folder / GRAPH)
    tensors = read_tensors(folder / TENSORS)
    graph = _graph(folder / GRAPH, doc, tensors)
    plan = plans.from_json(read_json(folder / PLAN))
    plans.validate(plan, graph)
    meta = {key: doc[key] for key in NETWORK_KEYS if key in doc}
    _check_meta(folder / GRAPH, meta, graph)
    for name in (SETTINGS, RESULT):
        if (folder / name).is_file():
            found = read_json(folder / name)
            meta |= {key: found[key] for key in ("data", "method", "calibration") if found.get(key) is not None}
    return Run(folder, graph, plan, tensors, meta)


def float_graph(run: Run) -> Graph:
    """The float network that a search began with, where the RUN holds it, else the RUN's graph as it is."""
    path = run.path / FLOAT
    if not path.is_file():
        return run.graph
    found = read_tensors(path)
    consts = {name: found.get(name) for name in run.graph.consts}
    wrong = [name for name, array in consts.items() if array is None or array.shape != run.graph.consts[name].shape]
    if wrong:
        raise CorruptError(f"{path} does not fit the RUN's graph: {wrong[0]} is missing or of another shape")
    return run.graph.with_nodes(run.graph.nodes, {name: found[name] for name in consts})


def write_run(
    path: str | Path, graph: Graph, plan: CompressionPlan, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> None:
    """Writes graph.json, plan.json and model.safetensors into folder `path`, which is made if need be.

    `tensors` with the graph's constants (added where they are missing); of `meta` the NETWORK_KEYS are kept. The
    tensors come first and the plan last: a RUN cut short is no RUN, or the one before.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    everything = {**graph.consts, **tensors}
    require_finite(everything, str(folder / TENSORS))
    write_tensors(folder / TENSORS, everything)
    write_json(folder / GRAPH, {**graphs.to_json(graph), **{k: meta[k] for k in NETWORK_KEYS if k in meta}})
    write_json(folder / PLAN, plans.to_json(plan))


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; UsageError if there is no such file, CorruptError if it holds anything else."""
    try:
        doc = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise CorruptError(f"{path} is no JSON: {error}") from error
    if not isinstance(doc, dict):
        raise CorruptError(f"{path} holds a {type(doc).__name__}, not an object")
    return doc


def write_json(path: str | Path, doc: Mapping[str, Any]) -> None:
    """Writes an object atomically: sorted keys, one key a line, the same bytes for the same object."""
    text = json.dumps(doc, indent=1, sort_keys=True, allow_nan=False, default=_plain) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file atomically: beside itself, flushed to the disk, then renamed."""
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form")


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a .safetensors file; CorruptError names what is damaged, NaN or infinite."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise EnvironmentMissing(_no_safetensors(error)) from error
    try:
        tensors = dict(load_file(str(path)))
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}") from error
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise CorruptError(f"{path} is damaged: {error}") from error
    require_finite(tensors, str(path))
    return tensors


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a .safetensors file atomically, names sorted: the same bytes for the same tensors."""
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise EnvironmentMissing(_no_safetensors(error)) from error
    # asarray(order="C"), for ascontiguousarray would turn a scalar into a vector
    write_bytes(path, save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}))


def _no_safetensors(error: ImportError) -> str:
    return f"a RUN needs safetensors, which cannot be imported ({error}): pip install 'bitpress[search]'"


def require_finite(tensors: Mapping[str, np.ndarray], source: str) -> None:
    """CorruptError names the first tensor with NaN or infinity and how many elements are."""
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise CorruptError(f"{source}: {name} holds NaN or infinity in {bad} of {array.size} elements")


def _graph(path: Path, doc: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Graph:
    """The float graph with its constants, each node's shape recomputed from them."""
    bare = graphs.from_json(doc, tensors)
    used = {const for node in bare.nodes for const in node.consts.values()}
    graph = bare.with_nodes(bare.nodes, {name: tensors[name] for name in sorted(used) if name in tensors})
    graphs.verify(graph, "float")
    if len(graph.inputs) != 1 or not graph.outputs:
        raise CorruptError(f"{path}: {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, expected one input")
    for name, array in graph.consts.items():
        if array.dtype != np.float32:
            raise CorruptError(f"{path}: constant {name} is {array.dtype}, expected float32")
    shapes = {node.name: node.shape for node in graph.inputs}
    for node in graph.nodes:
        consts = {role: graph.consts[name] for role, name in node.consts.items()}
        if node.op != "unknown":
            _check_shape(path, node, consts, [shapes[i] for i in node.inputs])
        shapes[node.name] = node.shape
    return graph


def _whole(low: int, count: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, tuple) and len(v) == count and all(type(n) is int and n >= low for n in v)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and bool(abs(value) < 1e30)


def _is_slices(value: Any) -> bool:
    def part(p: Any) -> bool:
        return isinstance(p, tuple) and len(p) == 3 and all(n is None or type(n) is int for n in p) and p[2] != 0

    return isinstance(value, tuple) and all(map(part, value))


_WINDOW: Mapping[str, Callable[[Any], bool]] = {"stride": _whole(1, 2), "padding": _whole(0, 4)}
# op -> attribute -> whether a value can be one
_ATTRS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "conv2d": {**_WINDOW, "dilation": _whole(1, 2), "groups": lambda v: type(v) is int and v >= 1},
    "max_pool2d": {**_WINDOW, "kernel": _whole(1, 2)},
    "avg_pool2d": {**_WINDOW, "kernel": _whole(1, 2)},
    "batch_norm": {"eps": lambda v: _number(v) and v >= 0},
    "clip": {"lo": _number, "hi": _number},
    "slice": {"slices": _is_slices},
    "pad": {"pads": lambda v: isinstance(v, tuple) and all(map(_whole(0, 2), v))},
}
_CONSTS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {  # op -> roles it needs, roles it may have
    "conv2d": (frozenset({"weight"}), frozenset({"bias"})),
    "linear": (frozenset({"weight"}), frozenset({"bias"})),
    "batch_norm": (frozenset({"weight", "bias", "mean", "var"}), frozenset()),
}
_INPUTS = {"add": 2, "mul": 2, "concat": None}  # others read one value; a concatenation any number


def _check_node(path: Path, node: graphs.Node, inputs: list[tuple[int, ...]]) -> None:
    """Attributes, constants and inputs that the op needs are there and can be what they say."""
    for attr, possible in _ATTRS.get(node.op, {}).items():
        if not possible(node.attrs.get(attr)):
            raise CorruptError(f"{path}: {node.name} ({node.op}) has {attr} {node.attrs.get(attr)!r}")
    if node.dtype != "f32":
        raise CorruptError(f"{path}: {node.name} is {node.dtype}, a float graph holds f32")
    needed, allowed = _CONSTS.get(node.op, (frozenset(), frozenset()))
    roles = frozenset(node.consts)
    if not needed <= roles <= needed | allowed:
        raise CorruptError(f"{path}: {node.name} ({node.op}) has constants {sorted(roles)}, expected {sorted(needed)}")
    wanted = _INPUTS.get(node.op, 1)
    if len(inputs) != wanted and (wanted is not None or not inputs):
        raise CorruptError(f"{path}: {node.name} ({node.op}) reads {len(inputs)} values")
    ranks = {"conv2d": 3, "linear": 1, "max_pool2d": 3, "avg_pool2d": 3, "global_avg_pool": 3}
    if node.op in ranks and len(inputs[0]) != ranks[node.op]:
        raise CorruptError(f"{path}: {node.name} ({node.op}) reads a value of shape {list(inputs[0])}")
    same = {shape[1:] for shape in inputs} if node.op == "concat" else set(inputs) if node.op == "add" else {()}
    if len(same) != 1 or (node.op == "mul" and not can_scale(inputs[1], inputs[0])):
        raise CorruptError(f"{path}: {node.name} joins {' and '.join(map(str, map(list, inputs)))}")


def _check_shape(
    path: Path, node: graphs.Node, consts: Mapping[str, np.ndarray], inputs: list[tuple[int, ...]]
) -> None:
    _check_node(path, node, inputs)
    try:
        shape = tuple(OPS[node.op].shape(node.attrs, consts, inputs))
        depth = _depth(node, consts, inputs)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CorruptError(f"{path}: {node.name} ({node.op}) is damaged: {error!r}") from error
    if shape != node.shape:
        raise CorruptError(f"{path}: {node.name} is {list(node.shape)}, its weights and input make {list(shape)}")
    if depth is not None and depth[0] != depth[1]:
        raise CorruptError(f"{path}: {node.name} has weights for {depth[0]} input channels, its input has {depth[1]}")
    if node.op == "batch_norm" and float(consts["var"].min()) + float(node.attrs["eps"]) <= 0:
        raise CorruptError(f"{path}: {node.name} has a variance of {consts['var'].min()}")
    wrong = [r for r, a in consts.items() if r != "weight" and a.shape != (node.shape[0],)]
    if wrong:
        raise CorruptError(
            f"{path}: {node.name} has {wrong[0]} of shape {list(consts[wrong[0]].shape)}, expected [{node.shape[0]}]"
        )


def _depth(
    node: graphs.Node, consts: Mapping[str, np.ndarray], inputs: list[tuple[int, ...]]
) -> tuple[int, int] | None:
    """Input channels that the weights have and that the input has, for conv and linear."""
    if node.op == "conv2d":
        return consts["weight"].shape[1] * int(node.attrs["groups"]), inputs[0][0]
    return (consts["weight"].shape[1], inputs[0][0]) if node.op == "linear" else None


def _check_meta(path: Path, meta: Mapping[str, Any], graph: Graph) -> None:
    shape = graph.inputs[0].shape
    if "in_shape" in meta and meta["in_shape"] != list(shape):
        raise CorruptError(f"{path}: in_shape is {meta['in_shape']!r}, the graph's input is {list(shape)}")
    for key in ("mean", "std"):
        found = meta.get(key, [1.0] * shape[0])
        if not isinstance(found, list) or len(found) != shape[0] or not all(map(_number, found)):
            raise CorruptError(f"{path}: {key} is {found!r}, expected {shape[0]} finite numbers, one a channel")
    if min(meta.get("std", [1.0])) <= 0:
        raise CorruptError(f"{path}: std is {meta['std']!r}, each above 0 expected")
    labels = meta.get("labels", [])
    fine = {
        "model": isinstance(meta.get("model", ""), str),
        "classes": type(meta.get("classes", 1)) is int and meta.get("classes", 1) >= 1,
        "labels": isinstance(labels, list) and all(isinstance(label, str) for label in labels),
    }
    for key, is_fine in fine.items():
        if not is_fine:
            raise CorruptError(f"{path}: {key} is {meta[key]!r}")
