"""An ONNX model as a float Graph, and how its QuantizeLinear nodes round: the one place that knows ONNX op names.

`RULES` has one row an op. What has no row, or an attribute that no op of ours has, becomes `unknown` with the reason,
so that `plan` can list it; nothing is guessed. What the roundings become is `onnx_codes`' business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .graph import Graph
from .onnx_file import DOMAINS, OnnxFile, Shape, attributes
from .ops import can_scale
from .storage import LAYERS, PASS, non_negative
from .tracing import Drawing, Pads

if TYPE_CHECKING:
    from onnx import NodeProto

ENDLESS = 3e38  # a bound that float32 can hardly exceed, as exporters write "none"
HARD_SIGMOID = {"alpha": 0.2, "beta": 0.5}  # what ONNX takes where a file says nothing
WIDEST = 255  # levels above the lowest that a stored value can have
_END = 2**31 - 1  # slices "to the end" carry this or more


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a QuantizeLinear does to a value: level = clamp(round(value / scale), lo, hi), the zero point taken off."""

    scale: float
    lo: int
    hi: int

    def __str__(self) -> str:
        return f"scale {self.scale:g}, levels {self.lo} .. {self.hi}"


@dataclass(frozen=True, slots=True)
class Codes:
    """A constant behind DequantizeLinear: levels int32 and the scale float64 of one, [] or along `axis`.

    `bits` of the file's type; None for int32, which biases have.
    """

    levels: np.ndarray
    scale: np.ndarray
    axis: int
    bits: int | None

    def per_row(self) -> np.ndarray:
        """Scale of each slice along the first axis; _Refused where scales run along another."""
        if self.scale.ndim and self.axis != 0:
            raise _Refused(f"has scales along axis {self.axis}, one an output channel is supported")
        return np.broadcast_to(self.scale, (len(self.levels),))

    def values(self) -> np.ndarray:
        """The real numbers, float32."""
        scale = self.scale
        if scale.ndim:
            scale = scale.reshape([-1 if i == self.axis else 1 for i in range(self.levels.ndim)])
        return (self.levels * scale).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Rounded:
    """What QuantizeLinear makes of a computed value: levels plus `zero`; only Clip and DequantizeLinear can read it."""

    value: str
    rounding: Rounding
    zero: int


_Value = str | np.ndarray | Codes | _Rounded
_Rule = Callable[["_Importer", "_Call"], "_Value | tuple[_Value, ...]"]


class _Refused(Exception):
    """This call has no meaning among our ops; says why."""


@dataclass(frozen=True)
class Imported:
    """A float graph, where the file rounds its values, and the codes of its layers' weights; both empty for floats."""

    graph: Graph
    roundings: Mapping[str, Rounding]
    weights: Mapping[str, Codes]  # by layer
    quantised: bool  # whether the file has a node that makes or reads codes at all


@dataclass
class _Importer(Drawing):
    """What has been translated so far."""

    made: dict[str, _Value] = field(default_factory=dict)  # ONNX name -> value
    roundings: dict[str, Rounding] = field(default_factory=dict)  # by provisional name
    weights: dict[str, Codes] = field(default_factory=dict)  # by name of the constant
    settled: dict[_Rounded, str] = field(default_factory=dict)  # what equal DequantizeLinear come to

    def positive(self, name: str) -> bool:
        """Whether a value cannot be below zero, by structure."""
        nodes = tuple(self.nodes.values())
        inputs = tuple(n for n in nodes if n.op == "input")
        return non_negative(Graph(inputs, tuple(n for n in nodes if n.op != "input"), ()))[name]


class _Call:
    """One node of the file: its inputs as values, its attributes with defaults."""

    def __init__(self, importer: _Importer, file: OnnxFile, node: NodeProto) -> None:
        self.node, self.file = node, file
        self.inputs = [importer.made.get(name) if name else None for name in node.input]
        self.attrs = attributes(node)

    @property
    def name(self) -> str:
        """The node's name as we spell names: /layer1/conv1/Conv is layer1.conv1."""
        text = self.node.name or self.node.output[0]
        return text.strip("/").replace("/", ".").removesuffix(f".{self.node.op_type}") or self.node.op_type

    def get(self, index: int) -> _Value | None:
        """An input, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def value(self, index: int = 0) -> str:
        """An input that must be computed from the image."""
        found = self.get(index)
        if not isinstance(found, str):
            what = "is not dequantised first" if isinstance(found, _Rounded) else "does not come from the image"
            raise _Refused(f"input {self.node.input[index]} {what}")
        return found

    def const(self, index: int, default: Any = None) -> Any:
        """An input that must be a plain constant; `default` where it is left out."""
        if index >= len(self.node.input) or not self.node.input[index]:
            return default
        found = self.get(index)
        if not isinstance(found, np.ndarray):
            raise _Refused(f"input {self.node.input[index]} is computed, a constant is supported")
        return found

    def only(self, **supported: Any) -> None:
        """_Refused where an attribute is there with another value than the one that we support."""
        for key, value in supported.items():
            found = self.attrs.get(key, value)
            if found != value:
                shown = found.decode() if isinstance(found, bytes) else found
                raise _Refused(f"{key} {shown}: {value.decode() if isinstance(value, bytes) else value} is supported")

    def shape(self, name: str = "") -> Shape:
        """Shape of the result (or of value `name`) with batch; _Refused where it depends on data."""
        name = name or self.node.output[0]
        if name not in self.file.shapes:
            raise _Refused(f"the shape of {name} depends on data")
        return self.file.shapes[name]


def import_graph(file: OnnxFile) -> Imported:
    """The float graph of a file, dequantised, with relus and clips where its roundings saturate."""
    importer = _Importer()
    importer.made.update(file.consts)
    importer.made[file.input] = importer.append("input", (), file.in_shape, label=file.input, attrs={}, consts={})
    for node in file.nodes:
        _call(importer, file, node)
    outputs = tuple(importer.made[name] for name in file.outputs)
    if not all(isinstance(name, str) for name in outputs):
        outputs = tuple(_constant_output(importer, name) for name in file.outputs)
    graph, names = importer.finish(tuple(str(name) for name in outputs))
    roundings = {names[k]: v for k, v in importer.roundings.items() if k in names}
    weights = {
        n.name: importer.weights[n.consts["weight"]]
        for n in graph.nodes
        if n.op in LAYERS and n.consts["weight"] in importer.weights
    }
    coded = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in file.nodes)
    return Imported(graph, roundings, weights, coded or bool(file.refused))


def _constant_output(importer: _Importer, name: str) -> str:
    value = importer.made[name]
    if isinstance(value, str):
        return value
    reason = "an output that is no float computed from the image"
    return importer.append("unknown", (), (), label=name, attrs={"target": reason}, consts={})


def _call(importer: _Importer, file: OnnxFile, node: NodeProto) -> None:
    call = _Call(importer, file, node)
    try:
        if why := file.refused.get(node.output[0]):
            raise _Refused(why)
        if node.domain not in DOMAINS:
            raise _Refused(f"is of domain {node.domain}, standard ops are supported")
        if (folded := _folded(call)) is not None:
            importer.made[node.output[0]] = folded
            return
        rule = RULES.get(node.op_type)
        if rule is None:
            raise _Refused("has no counterpart")
        found = rule(importer, call)
        made = found if isinstance(found, tuple) else (found,)
        importer.made.update(zip(node.output, made, strict=False))
        if any(file.readers.get(name) for name in node.output[len(made) :]):
            raise _Refused(f"output {node.output[len(made)]} is read, only the first is supported")
    except _Refused as why:
        _unknown(importer, call, str(why))


def _folded(call: _Call) -> np.ndarray | None:
    """What a node computes of constant shapes and indices, int64 or int32; None for any other."""
    from onnx.reference import ReferenceEvaluator

    inputs, node = call.inputs, call.node
    if not inputs or len(node.output) > 1 or not all(_counts(value) for value in inputs):
        return None
    values = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
    (found,) = ReferenceEvaluator(node).run(None, values)
    return np.asarray(found)


def _counts(value: _Value | None) -> bool:
    return value is None or (isinstance(value, np.ndarray) and value.dtype in (np.int64, np.int32))


def _unknown(importer: _Importer, call: _Call, why: str) -> None:
    """A node that says what was called and why it cannot be read."""
    inputs = []
    for value in call.inputs:
        name = value.value if isinstance(value, _Rounded) else value
        if isinstance(name, str) and name not in inputs:
            inputs.append(name)
    attrs = {"target": f"{call.node.op_type}: {why}"}
    for output in call.node.output:
        shape = call.file.shapes.get(output, ())[1:]
        label = call.name
        importer.made[output] = importer.append("unknown", tuple(inputs), shape, label=label, attrs=attrs, consts={})


def _weight(importer: _Importer, call: _Call, index: int, *, turned: bool = False) -> tuple[str, str]:
    """(name of the layer, name of its weight among the constants); `turned`: rows and columns change places."""
    found = call.get(index)
    if isinstance(found, Codes):
        codes = Codes(found.levels.T, found.scale, 1 - found.axis, found.bits) if turned else found
        codes.per_row()
        array = codes.values()
    elif isinstance(found, np.ndarray) and found.dtype.kind == "f":
        codes, array = None, np.asarray(found.T if turned else found, np.float32)
    else:
        raise _Refused(f"input {call.node.input[index]} is computed, constant weights are supported")
    source = call.node.input[index].removesuffix("_DequantizeLinear_Output")
    own = source.endswith(".weight") and not source.startswith("onnx::")
    layer = source.removesuffix(".weight") if own else call.name
    name, number = f"{layer}.weight", 2
    while name in importer.consts:  # weights that two layers share
        name, number = f"{layer}_{number}.weight", number + 1
    importer.consts[name] = np.array(array, np.float32, order="C")
    if codes is not None:
        importer.weights[name] = codes
    return name.removesuffix(".weight"), name


def _bias(importer: _Importer, layer: str, value: _Value | None, scale: float = 1.0) -> dict[str, str]:
    """{"bias": its name} of a constant per output channel, {} where there is none."""
    if value is None:
        return {}
    if isinstance(value, Codes):
        array = value.values()
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
        array = value
    else:
        raise _Refused("its bias is computed, constants are supported")
    rows = len(importer.consts[f"{layer}.weight"])
    if array.size not in (1, rows):
        raise _Refused(f"its bias has {array.size} values for {rows} channels")
    importer.consts[f"{layer}.bias"] = np.array(np.broadcast_to(array.reshape(-1) * scale, (rows,)), np.float32)
    return {"bias": f"{layer}.bias"}


def _window(call: _Call, kernel: Shape, size: Shape) -> tuple[tuple[int, int], Pads, tuple[int, int]]:
    """Stride, padding (top, left, bottom, right) and dilation of a sliding window over `size`."""
    stride = tuple(call.attrs.get("strides", (1, 1)))
    dilation = tuple(call.attrs.get("dilations", (1, 1)))
    pads = tuple(call.attrs.get("pads", (0, 0, 0, 0)))
    auto = call.attrs.get("auto_pad", b"NOTSET").decode()
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        more = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(size, stride, reach, strict=True)]
        small, large = [m // 2 for m in more], [m - m // 2 for m in more]
        pads = (*small, *large) if auto == "SAME_UPPER" else (*large, *small)
    elif auto not in ("NOTSET", "VALID"):
        raise _Refused(f"auto_pad {auto} is not supported")
    if min(pads) < 0:
        raise _Refused(f"pads {list(pads)}: negative ones are not supported")
    return (stride[0], stride[1]), (pads[0], pads[1], pads[2], pads[3]), (dilation[0], dilation[1])


def _image(importer: _Importer, call: _Call) -> str:
    x = call.value()
    if len(importer.shape(x)) != 3:
        raise _Refused(f"reads a value of shape {list(importer.shape(x))}, images [C, H, W] are supported")
    return x


def _conv(importer: _Importer, call: _Call) -> str:
    x = _image(importer, call)
    layer, weight = _weight(importer, call, 1)
    kernel = importer.consts[weight].shape[2:]
    if len(kernel) != 2:
        raise _Refused(f"has a kernel of rank {len(kernel)}, 2 is supported")
    stride, pads, dilation = _window(call, kernel, importer.shape(x)[1:])
    x, pads = importer.take_pad(x, pads, 0.0)
    consts = {"weight": weight, **_bias(importer, layer, call.get(2))}
    return importer.emit(
        "conv2d", (x,), label=layer, consts=consts, stride=stride, padding=pads, dilation=dilation,
        groups=int(call.attrs.get("group", 1)),
    )  # fmt: skip


def _gemm(importer: _Importer, call: _Call) -> str:
    call.only(alpha=1.0, transA=0)
    return _dense(importer, call, turned=not call.attrs.get("transB", 0), bias=call.get(2))


def _matmul(importer: _Importer, call: _Call) -> str:
    return _dense(importer, call, turned=True, bias=None)


def _dense(importer: _Importer, call: _Call, *, turned: bool, bias: _Value | None) -> str:
    x = call.value()
    if len(importer.shape(x)) != 1:
        raise _Refused(f"reads a value of shape {list(importer.shape(x))}, flat ones [F] are supported")
    layer, weight = _weight(importer, call, 1, turned=turned)
    if importer.consts[weight].ndim != 2:
        raise _Refused(f"has weights of rank {importer.consts[weight].ndim}, a matrix is supported")
    scale = float(call.attrs.get("beta", 1.0))
    consts = {"weight": weight, **_bias(importer, layer, bias, scale)}
    return importer.emit("linear", (x,), label=layer, consts=consts)


def _batch_norm(importer: _Importer, call: _Call) -> str:
    call.only(training_mode=0)
    x = call.value()
    consts = {}
    for index, role in enumerate(("weight", "bias", "mean", "var"), 1):
        name = f"{call.name}.{role}"
        importer.consts[name] = np.array(call.const(index), np.float32)
        consts[role] = name
    return importer.emit("batch_norm", (x,), label=call.name, consts=consts, eps=float(call.attrs.get("epsilon", 1e-5)))


def _relu(importer: _Importer, call: _Call) -> str:
    return importer.emit("relu", (call.value(),), label=call.name)


def _clip(importer: _Importer, call: _Call) -> _Value:
    lo, hi = call.const(1), call.const(2)
    if isinstance(rounded := call.get(0), _Rounded):
        return _clipped_codes(rounded, lo, hi)
    if isinstance(codes := call.get(0), np.ndarray):
        return np.clip(codes, lo, hi)
    if hi is not None and float(hi) >= ENDLESS:
        hi = None
    if lo is not None and float(lo) == 0 and hi is None:
        return _relu(importer, call)
    if lo is None or hi is None:
        raise _Refused("has one bound; two, or 0 as the lower one, are supported")
    return importer.emit("clip", (call.value(),), label=call.name, lo=float(lo), hi=float(hi))


def _clipped_codes(rounded: _Rounded, lo: np.ndarray | None, hi: np.ndarray | None) -> _Rounded:
    """Codes that end earlier than their type: so files hold widths that have no type of their own."""
    was = rounded.rounding
    first = was.lo if lo is None else max(was.lo, int(lo) - rounded.zero)
    last = was.hi if hi is None else min(was.hi, int(hi) - rounded.zero)
    if first >= last:
        raise _Refused(f"leaves the codes {first + rounded.zero} .. {last + rounded.zero}: two at least are supported")
    return replace(rounded, rounding=replace(was, lo=first, hi=last))


def _add(importer: _Importer, call: _Call) -> str:
    constant = next((i for i in (0, 1) if not isinstance(call.get(i), str)), None)
    if constant is not None:
        return _added_bias(importer, call, call.value(1 - constant), constant)
    x, y = call.value(0), call.value(1)
    if importer.shape(x) != importer.shape(y):
        raise _Refused(f"adds {list(importer.shape(x))} and {list(importer.shape(y))}; equal shapes are supported")
    return importer.emit("add", (x, y), label=call.name)


def _mul(importer: _Importer, call: _Call) -> str:
    """The gate, which may be a pixel for all, comes second."""
    x, y = sorted((call.value(0), call.value(1)), key=lambda v: -int(np.prod(importer.shape(v))))
    whole, gate = importer.shape(x), importer.shape(y)
    if not can_scale(gate, whole):
        raise _Refused(f"multiplies {list(whole)} by {list(gate)}; equal shapes, or one pixel a channel, are supported")
    return importer.emit("mul", (x, y), label=call.name)


def _curve(op: str, **supported: float) -> _Rule:
    def rule(importer: _Importer, call: _Call) -> str:
        for key, value in supported.items():
            if abs(float(call.attrs.get(key, HARD_SIGMOID[key])) - value) > 1e-6:
                raise _Refused(f"{key} {call.attrs.get(key, HARD_SIGMOID[key]):g}: {value:g} is supported")
        return importer.emit(op, (call.value(),), label=call.name)

    return rule


def _added_bias(importer: _Importer, call: _Call, x: str, constant: int) -> str:
    """A constant per channel behind a layer that has no bias and no other reader is that layer's bias."""
    node = importer.nodes[x]
    alone = len(call.file.readers[call.node.input[1 - constant]]) == 1
    if node.op not in LAYERS or "bias" in node.consts or not alone or x in importer.roundings:
        raise _Refused("adds a constant to something else than a layer without bias; write it as that layer's bias")
    value = call.get(constant)
    array = value.values() if isinstance(value, Codes) else value
    rank = 1 + (len(node.shape) - 1)
    if not isinstance(array, np.ndarray) or [d for d in array.shape[-rank:] if d > 1] != [node.shape[0]]:
        raise _Refused("adds a constant that is not one number a channel")
    if array.size != node.shape[0] or array.reshape(-1, *(1,) * (rank - 1)).shape[0] != array.shape[-rank]:
        raise _Refused("adds a constant that does not run along the channels")
    layer = node.consts["weight"].removesuffix(".weight")
    importer.nodes[x] = replace(node, consts={**node.consts, **_bias(importer, layer, value)})
    return x


def _max_pool(importer: _Importer, call: _Call) -> str:
    call.only(dilations=[1, 1], storage_order=0)
    return _pool(importer, call, "max_pool2d", float("-inf"))


def _avg_pool(importer: _Importer, call: _Call) -> str:
    call.only(dilations=[1, 1], ceil_mode=0)
    name = _pool(importer, call, "avg_pool2d", 0.0)
    if any(importer.nodes[name].attrs["padding"]) and not call.attrs.get("count_include_pad", 0):
        raise _Refused("count_include_pad 0: with padding, 1 is supported")
    return name


def _pool(importer: _Importer, call: _Call, op: str, fill: float) -> str:
    x = _image(importer, call)
    kernel = tuple(call.attrs["kernel_shape"])
    if len(kernel) != 2:
        raise _Refused(f"has a kernel of rank {len(kernel)}, 2 is supported")
    stride, pads, _ = _window(call, kernel, importer.shape(x)[1:])
    if call.attrs.get("ceil_mode", 0):  # more padding at the end, until the last window fits
        sizes = zip(importer.shape(x)[1:], call.shape()[2:], kernel, stride, pads[:2], pads[2:], strict=True)
        end = [max(after, (out - 1) * s + k - n - before) for n, out, k, s, before, after in sizes]
        pads = (pads[0], pads[1], end[0], end[1])
    x, pads = importer.take_pad(x, pads, fill)
    return importer.emit(op, (x,), label=call.name, kernel=(kernel[0], kernel[1]), stride=stride, padding=pads)


def _global_pool(importer: _Importer, call: _Call) -> str:
    return importer.emit("global_avg_pool", (_image(importer, call),), label=call.name)


def _mean(importer: _Importer, call: _Call) -> str:
    x = _image(importer, call)
    axes = call.attrs.get("axes", call.const(1))
    if axes is None or sorted(int(a) % 4 for a in np.asarray(axes).reshape(-1)) != [2, 3]:
        raise _Refused("averages other axes than height and width")
    pooled = importer.emit("global_avg_pool", (x,), label=call.name)
    keep = call.attrs.get("keepdims", 1)
    return pooled if keep else importer.emit("flatten", (pooled,), label=f"{call.name}.flatten")


def _view(importer: _Importer, call: _Call) -> _Value:
    """Flatten, Reshape, Squeeze: nothing, or everything behind the batch in one axis; a constant is turned."""
    if isinstance(call.get(0), np.ndarray):
        return call.const(0).reshape(call.shape())
    x, (batch, *out) = call.value(), call.shape()
    if batch != call.file.batch:
        raise _Refused(f"makes [{batch}, ...] of a batch of {call.file.batch}: the batch must stay an axis of its own")
    if tuple(out) == importer.shape(x):
        return x
    if tuple(out) != (int(np.prod(importer.shape(x))),):
        raise _Refused(f"makes {out} of {list(importer.shape(x))}; one flat axis is supported")
    return importer.emit("flatten", (x,), label=call.name)


def _transpose(_importer: _Importer, call: _Call) -> _Value:
    value = call.get(0)
    array = value.levels if isinstance(value, Codes) else value
    if not isinstance(array, np.ndarray):
        raise _Refused("turns a computed value; of constants it is supported")
    perm = tuple(call.attrs.get("perm", range(array.ndim)[::-1]))
    if isinstance(value, Codes):
        return replace(value, levels=array.transpose(perm), axis=perm.index(value.axis))
    return array.transpose(perm)


def _concat(importer: _Importer, call: _Call) -> str:
    names = tuple(call.value(i) for i in range(len(call.inputs)))
    if int(call.attrs["axis"]) % (len(importer.shape(names[0])) + 1) != 1:
        raise _Refused(f"axis {call.attrs['axis']}: the channels' axis 1 is supported")
    return names[0] if len(names) == 1 else importer.emit("concat", names, label=call.name)


def _pad(importer: _Importer, call: _Call) -> str:
    x = call.value()
    call.only(mode=b"constant")
    shape, value = importer.shape(x), float(call.const(2, 0.0))
    rank = len(shape) + 1
    flat = [int(p) for p in call.const(1)]
    if call.const(3) is not None or len(flat) != 2 * rank:
        raise _Refused("pads some axes by number; amounts for all axes are supported")
    pads = tuple((flat[i], flat[i + rank]) for i in range(rank))
    infinite = value == float("-inf") and pads[1] == (0, 0)  # in front of a max-pool: that pool's own padding
    if min(flat) < 0 or pads[0] != (0, 0) or (value != 0 and not infinite):
        raise _Refused(f"pads {flat} with {value:g}; zeros around one image are supported")
    if not any(flat):
        return x
    extra: dict[str, Any] = {"value": value, "target": f"Pad: pads with {value:g}"} if value else {}
    return importer.emit("pad", (x,), label=call.name, pads=pads[1:], **extra)


def _slice(importer: _Importer, call: _Call) -> str:
    x = call.value()
    shape = importer.shape(x)
    starts, ends = call.const(1), call.const(2)
    axes, steps = call.const(3, range(len(starts))), call.const(4, [1] * len(starts))
    slices: list[tuple[int | None, int | None, int | None]] = [(None, None, None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = int(axis) % (len(shape) + 1) - 1
        if place < 0 or step < 1:
            raise _Refused("cuts the batch or goes backwards")
        first, last, _ = slice(int(start), int(end) if end < _END else None).indices(shape[place])
        slices[place] = (first or None, None if last == shape[place] else last, None if step == 1 else int(step))
    if all(s == (None, None, None) for s in slices):
        return x
    return importer.emit("slice", (x,), label=call.name, slices=tuple(slices))


def _split(importer: _Importer, call: _Call) -> tuple[str, ...]:
    x, axis = call.value(), int(call.attrs.get("axis", 0))
    shape = importer.shape(x)
    place = axis % (len(shape) + 1) - 1
    if place < 0:
        raise _Refused("cuts the batch")
    if len(call.node.output) == 1:
        return (x,)
    pieces: list[str] = []
    first = 0
    for name in call.node.output:
        last = first + call.shape(name)[place + 1]
        cut = (first or None, None if last == shape[place] else last, None)
        slices = tuple(cut if i == place else (None, None, None) for i in range(len(shape)))
        pieces.append(importer.emit("slice", (x,), label=f"{call.name}.{len(pieces)}", slices=slices))
        first = last
    return tuple(pieces)


def _identity(_importer: _Importer, call: _Call) -> _Value:
    value = call.get(0)
    if value is None:
        raise _Refused("has no input")
    if call.node.op_type == "Dropout" and (mode := call.const(2)) is not None and bool(mode):
        raise _Refused("training_mode true: inference is supported")
    return value


def _constant(_importer: _Importer, call: _Call) -> np.ndarray:
    (found,) = call.attrs.values()
    array = np.asarray(found)
    return array.astype(np.float32) if array.dtype == np.float64 else array  # of value_float


def _integer_bits(dtype: np.dtype[Any]) -> tuple[int, int, int] | None:
    """(bits, lowest, highest) of int8, uint4 and so on, by the type's name; None for others.

    >>> _integer_bits(np.dtype(np.uint8))
    (8, 0, 255)
    """
    signed, _, bits = dtype.name.partition("int")
    if signed not in ("", "u") or bits not in ("2", "4", "8"):
        return None
    count = int(bits)
    return (count, 0, 2**count - 1) if signed else (count, -(2 ** (count - 1)), 2 ** (count - 1) - 1)


def _scale(call: _Call) -> tuple[np.ndarray, np.ndarray]:
    """Scale float64 and zero point int64 of a QuantizeLinear or DequantizeLinear; of one number each, [] both."""
    call.only(block_size=0)
    scale = np.asarray(call.const(1), np.float64)
    zero = np.asarray(call.const(2, np.zeros(scale.shape))).astype(np.int64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise _Refused(f"scale {call.node.input[1]} is not above 0 and finite everywhere")
    if scale.size > 1:
        return scale, zero
    return scale.reshape(()), zero.reshape(()) if zero.size == 1 else zero


def _check_slices(value: np.ndarray, axis: int, scale: np.ndarray, zero: np.ndarray) -> None:
    """_Refused where a constant has other scales or zero points than one, or one a slice along `axis`."""
    count = value.shape[axis] if value.ndim else 1
    for what, held in (("scales", scale), ("zero points", zero)):
        if held.ndim and held.shape != (count,):
            raise _Refused(f"has {what} of shape {list(held.shape)} for {count} slices along axis {axis}")


def _quantize(importer: _Importer, call: _Call) -> _Value:
    scale, zero = _scale(call)
    call.only(**{} if len(call.inputs) > 2 else {"output_dtype": 0})
    kind = _integer_bits(call.const(2, np.zeros((), np.uint8)).dtype)
    if kind is None:
        raise _Refused(f"makes {call.const(2).dtype}; integers of 2, 4 and 8 bits are supported")
    _, lo, hi = kind
    value = call.get(0)
    if isinstance(value, np.ndarray):  # weights that the file keeps as floats
        axis = int(call.attrs.get("axis", 1)) % max(1, value.ndim)
        _check_slices(value, axis, scale, zero)
        where = [-1 if i == axis else 1 for i in range(value.ndim)]
        size, shift = (scale.reshape(where), zero.reshape(where)) if scale.ndim else (scale, zero)
        codes = np.clip(np.rint(value.astype(np.float32) / size.astype(np.float32)) + shift, lo, hi)
        return codes.astype(call.const(2, np.zeros((), np.uint8)).dtype)
    x = call.value()
    if scale.ndim or zero.ndim:
        raise _Refused("has a scale per channel on a computed value; one scale is supported")
    if _known(importer, x) is None:
        _require_only_rounded(call)
    return _Rounded(x, Rounding(float(scale), lo - int(zero), hi - int(zero)), int(zero))


def _require_only_rounded(call: _Call) -> None:
    """_Refused where a node reads the value before it is first rounded: a stored code is the value, for all."""
    name = call.node.input[0]
    raw = [n for n in call.file.readers[name] if n.op_type != "QuantizeLinear"]
    if raw:
        raise _Refused(
            f"{name} is read rounded here and unrounded by {raw[0].op_type} {raw[0].name or raw[0].output[0]}; "
            "one of the two for all readers is supported"
        )


def _dequantize(importer: _Importer, call: _Call) -> _Value:
    value = call.get(0)
    scale, zero = _scale(call)
    if isinstance(value, np.ndarray):
        kind = _integer_bits(value.dtype)
        if kind is None and value.dtype != np.int32:
            raise _Refused(f"reads {value.dtype}; integers of 2, 4, 8 and (biases) 32 bits are supported")
        axis = int(call.attrs.get("axis", 1)) % max(1, value.ndim)
        _check_slices(value, axis, scale, zero)
        shift = zero.reshape([-1 if i == axis else 1 for i in range(value.ndim)]) if zero.ndim else zero
        levels = value.astype(np.int64) - shift
        return Codes(levels.astype(np.int32), scale, axis, kind[0] if kind else None)
    if not isinstance(value, _Rounded):
        raise _Refused(f"input {call.node.input[0]} is no code of QuantizeLinear and no constant")
    if scale.ndim or zero.ndim or float(scale) != value.rounding.scale or int(zero) != value.zero:
        raise _Refused("has another scale or zero point than the QuantizeLinear before it")
    if value not in importer.settled:
        importer.settled[value] = _rounded(importer, value.value, value.rounding)
    return importer.settled[value]


def _rounded(importer: _Importer, x: str, rounding: Rounding) -> str:
    """The value with its rounding noted.

    A relu or clip goes before it where the levels end earlier than ours, or where the value is rounded otherwise
    already: from there on it is another one.
    """
    known = _known(importer, x)
    if known is None:
        x = _saturated(importer, x, rounding)
    elif known != rounding:
        x = _clipped(importer, x, rounding)
    importer.roundings[x] = rounding
    return x


def _known(importer: _Importer, x: str) -> Rounding | None:
    """How a value is rounded, maybe before it was pooled, flattened or cut."""
    if x in importer.roundings or importer.nodes[x].op not in PASS:
        return importer.roundings.get(x)
    return _known(importer, importer.nodes[x].inputs[0])


def _clipped(importer: _Importer, x: str, rounding: Rounding) -> str:
    lo, hi = (float(np.float32(level * rounding.scale)) for level in (rounding.lo, rounding.hi))
    lo = max(lo, 0.0) if importer.positive(x) else lo
    return importer.emit("clip", (x,), label=f"{importer.labels[x]}.clip", lo=lo, hi=hi)


def _saturated(importer: _Importer, x: str, rounding: Rounding) -> str:
    """A value that ends where the levels end, if an encoding of ours would not end it there.

    In front of what passes codes on: there the value is stored. What is concatenated is rounded alike first.
    """
    node = importer.nodes[x]
    if node.op in ("input", "unknown"):
        return x
    if node.op in PASS:
        return _again(importer, x, (_saturated(importer, node.inputs[0], rounding),))
    if node.op == "concat":
        return _again(importer, x, tuple(_rounded(importer, source, rounding) for source in node.inputs))
    positive = importer.positive(x)
    if rounding.lo == 0 and rounding.hi == WIDEST:
        return x if positive else importer.emit("relu", (x,), label=f"{importer.labels[x]}.relu")
    if rounding.hi - rounding.lo == WIDEST and not positive:
        return x
    return _clipped(importer, x, rounding)


def _again(importer: _Importer, x: str, inputs: tuple[str, ...]) -> str:
    """The node of value `x` on other inputs; `x` itself where they are the same."""
    node = importer.nodes[x]
    if inputs == node.inputs:
        return x
    return importer.append(node.op, inputs, node.shape, label=importer.labels[x], attrs=node.attrs, consts={})


RULES: Mapping[str, _Rule] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul, "BatchNormalization": _batch_norm,
    "Mul": _mul, "HardSwish": _curve("hard_swish"), "HardSigmoid": _curve("hard_sigmoid", alpha=1 / 6, beta=0.5),
    "Sigmoid": _curve("sigmoid"),
    "Relu": _relu, "Clip": _clip, "Add": _add, "Concat": _concat, "Pad": _pad, "Slice": _slice, "Split": _split,
    "MaxPool": _max_pool, "AveragePool": _avg_pool, "GlobalAveragePool": _global_pool, "ReduceMean": _mean,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _view), "Transpose": _transpose,
    **dict.fromkeys(("Identity", "Dropout"), _identity), "Constant": _constant,
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize,
}  # fmt: skip
