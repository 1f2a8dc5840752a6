"""An ONNX file opened, checked and made plain: nodes, constants, shapes. What ops mean is `onnx_graph`'s business.

Knows nothing of our ops. onnx is imported inside: it comes with the extra `onnx`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CorruptError, UnsupportedError, UsageError
from .onnx_forms import as_qdq

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

OLDEST = 13  # the opset in which QuantizeLinear got an axis
BATCH = 2  # for shapes where the file leaves the batch open: the smallest that is not taken for a constant
DOMAINS = ("", "ai.onnx")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class OnnxFile:
    """A model of one image input [batch, C, H, W].

    `shapes`: value -> shape with batch, where it is known without running the network. `batch`: the file's own, or
    `BATCH`. `readers`: value -> the nodes that read it. `facts`: metadata of a file that
    `bitpress export` wrote, empty of any other. `refused`: first output of a node of another quantised form -> why it
    could not be written in the QDQ form.
    """

    path: str
    nodes: tuple[NodeProto, ...]
    consts: Mapping[str, np.ndarray]
    input: str
    in_shape: tuple[int, int, int]
    outputs: tuple[str, ...]
    shapes: Mapping[str, Shape]
    batch: int
    readers: Mapping[str, tuple[NodeProto, ...]]
    facts: Mapping[str, str]
    refused: Mapping[str, str]


def open_onnx(path: str, in_shape: tuple[int, int, int] | None = None) -> OnnxFile:
    """The model in `path`; `in_shape` [C, H, W] fills sizes that the file leaves open.

    UsageError: no such file, or another shape than the file's. CorruptError: no valid ONNX. UnsupportedError: an opset
    before 13 or newer than the onnx package, several inputs, an input that is no image, an open size.
    """
    from onnx.inliner import inline_local_functions

    model = _load(path)
    _check_opset(path, model)
    if model.functions:
        model = inline_local_functions(model)
    model, refused = as_qdq(model)
    constant = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constant]
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs) or "none"
        raise UnsupportedError(f"{path}: {len(inputs)} inputs ({names}): networks of one image input are supported")
    batch, shape = _input_shape(path, inputs[0], in_shape)
    return OnnxFile(
        path, tuple(model.graph.node), _constants(path, model.graph), inputs[0].name, shape,
        tuple(one.name for one in model.graph.output), _shapes(path, model, inputs[0], (batch, *shape)), batch,
        _readers(model.graph), _facts(model), refused,
    )  # fmt: skip


def _facts(model: ModelProto) -> dict[str, str]:
    found = {one.key: one.value for one in model.metadata_props}
    return found if "bitpress" in found else {}


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attributes of a node as Python values; tensors as arrays."""
    import onnx

    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: onnx.numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for k, v in found.items()}


def _load(path: str) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorruptError(f"{path} is no valid ONNX file: {first}") from error
    return model


def _check_opset(path: str, model: ModelProto) -> None:
    import onnx

    version = next((one.version for one in model.opset_import if one.domain in DOMAINS), OLDEST)
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= version <= newest:
        raise UnsupportedError(
            f"{path} is of opset {version}, {OLDEST} to {newest} are read: export it anew, or convert it with "
            "onnx.version_converter"
        )


def _input_shape(
    path: str, value: ValueInfoProto, wanted: tuple[int, int, int] | None
) -> tuple[int, tuple[int, int, int]]:
    """Batch, and [C, H, W] with open sizes filled from `wanted`."""
    import onnx

    kind = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
    if kind.elem_type != onnx.TensorProto.FLOAT or len(dims) != 4:
        name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
        raise UnsupportedError(
            f"{path}: input {value.name} is {name} of rank {len(dims)}: images float32 [N, C, H, W] are supported"
        )
    shape = tuple(dims[1:])
    if wanted is not None:
        if any(own and own != size for own, size in zip(shape, wanted, strict=True)):
            raise UsageError(f"--in-shape {list(wanted)}: {path} takes {list(shape)} (0: left open)")
        shape = wanted
    if 0 in shape:
        raise UnsupportedError(
            f"{path}: input {value.name} leaves sizes open besides the batch ({list(shape)}, 0 is open): "
            "give --in-shape C,H,W"
        )
    return dims[0] or BATCH, (shape[0], shape[1], shape[2])


def _constants(path: str, graph: GraphProto) -> dict[str, np.ndarray]:
    import onnx

    try:
        return {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    except (ValueError, TypeError) as error:
        raise CorruptError(f"{path}: an initializer is damaged: {error}") from error


def _shapes(path: str, model: ModelProto, value: ValueInfoProto, shape: Shape) -> dict[str, Shape]:
    """What onnx infers once the input's shape is fixed."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # of another batch, maybe
    for one in copy.graph.input:
        if one.name == value.name:
            one.CopyFrom(onnx.helper.make_tensor_value_info(one.name, onnx.TensorProto.FLOAT, shape))
    for one in copy.graph.output:
        one.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        first = next(iter(str(error).strip().splitlines()[::-1]), "")
        raise UsageError(f"{path} does not fit together for inputs of shape {list(shape[1:])}: {first}") from error
    out = {}
    for one in (*inferred.graph.value_info, *inferred.graph.output):
        dims = one.type.tensor_type.shape.dim
        if one.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            out[one.name] = tuple(int(d.dim_value) for d in dims)
    return out


def _readers(graph: GraphProto) -> dict[str, tuple[NodeProto, ...]]:
    out: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            out.setdefault(name, []).append(node)
    return {name: tuple(nodes) for name, nodes in out.items()}
