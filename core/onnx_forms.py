"""Quantised ONNX models of other forms written in the QDQ form, the one that `onnx_graph` reads.

QOperator models (ops that read and make codes), sums of codes (ConvInteger), QONNX (Quant). Each node becomes
DequantizeLinear, the float op and QuantizeLinear of the same constants. Knows the names of those ops and where their
inputs lie; nothing of our ops, and no shapes: they are inferred from the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MICROSOFT = "com.microsoft"
QONNX = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
MAX_BITS = 32  # of constants; computed values have 8 at most
CODE_BITS = 8
ROUNDS = {"ROUND": np.rint, "FLOOR": np.floor, "CEIL": np.ceil, "ROUND_TO_ZERO": np.trunc}  # of QONNX, on constants
QUANT, BIPOLAR = ("Quant", "IntQuant"), "BipolarQuant"

_Rule = Callable[["_Rewriter", "NodeProto"], None]


class _Refused(Exception):
    """This node has no QDQ form; says why."""


@dataclass(frozen=True, slots=True)
class Form:
    """An op on codes: the float op inside, and which of its inputs are what.

    `operands`: places of codes, each followed by scale and zero point; () for all from the third on. `target`: place of
    the result's scale, its zero point follows. `bias`: place of int32 codes, None where the op has none.
    """

    op: str
    operands: tuple[int, ...]
    target: int
    bias: int | None = None


FORMS: Mapping[tuple[str, str], Form] = {
    ("", "QLinearConv"): Form("Conv", (0, 3), 6, bias=8),
    ("", "QLinearMatMul"): Form("MatMul", (0, 3), 6),
    (MICROSOFT, "QGemm"): Form("Gemm", (0, 3), 7, bias=6),
    (MICROSOFT, "QLinearAdd"): Form("Add", (0, 3), 6),
    (MICROSOFT, "QLinearMul"): Form("Mul", (0, 3), 6),
    (MICROSOFT, "QLinearConcat"): Form("Concat", (), 0),
    (MICROSOFT, "QLinearAveragePool"): Form("AveragePool", (0,), 3),
    (MICROSOFT, "QLinearGlobalAveragePool"): Form("GlobalAveragePool", (0,), 3),
    (MICROSOFT, "QLinearSigmoid"): Form("Sigmoid", (0,), 3),
    (MICROSOFT, "QLinearLeakyRelu"): Form("LeakyRelu", (0,), 3),
    (MICROSOFT, "QLinearSoftmax"): Form("Softmax", (0,), 3),
}
SUMS: Mapping[str, str] = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}  # of standard ops: what they sum
# standard ops that some write between codes, as if these were values
ON_CODES = frozenset({"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad", "Split"})
_SAME_CODES = frozenset({"Identity", "Clip"})  # `onnx_graph` reads these of codes
_LEFT_OUT = frozenset({"channels_last", "opset"})  # attributes that float ops do not have


def as_qdq(model: ModelProto) -> tuple[ModelProto, Mapping[str, str]]:
    """The model in the QDQ form, itself where it is; output -> why its node has no such form and was left as it is."""
    import onnx

    if not any(_rule(node) or node.op_type in ON_CODES for node in model.graph.node):
        return model, {}
    rewriter = _Rewriter.of(model)
    refused: dict[str, str] = {}
    for node in model.graph.node:
        if id_of(node) in rewriter.swallowed:
            continue
        try:
            rewriter.add(node)
        except _Refused as why:
            refused |= dict.fromkeys(node.output, str(why))
            rewriter.nodes.append(node)
        except ValueError as why:  # of numpy
            refused |= dict.fromkeys(node.output, f"has constants whose shapes do not fit together ({why})")
            rewriter.nodes.append(node)
    out = onnx.ModelProto()
    out.CopyFrom(model)
    del out.graph.node[:]
    out.graph.node.extend(rewriter.nodes)
    out.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in rewriter.added.items())
    return out, refused


def id_of(node: NodeProto) -> str:
    """What tells a node from others: its first output."""
    return str(node.output[0])


@dataclass
class _Rewriter:
    """The nodes so far. `coded`: codes -> names of their scale and zero point ("" for none)."""

    consts: dict[str, np.ndarray]
    readers: Mapping[str, list[NodeProto]]
    outputs: frozenset[str]
    names: set[str]
    nodes: list[NodeProto] = field(default_factory=list)
    added: dict[str, np.ndarray] = field(default_factory=dict)
    coded: dict[str, tuple[str, str]] = field(default_factory=dict)
    swallowed: set[str] = field(default_factory=set)  # nodes that an earlier one took in

    @classmethod
    def of(cls, model: ModelProto) -> _Rewriter:
        """Nothing rewritten yet."""
        import onnx

        graph = model.graph
        readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        consts = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                consts[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        names = {n for node in graph.node for n in (*node.input, *node.output)} | set(consts)
        return cls(consts, readers, frozenset(one.name for one in graph.output), names)

    def add(self, node: NodeProto) -> None:
        """A node of the model, in the QDQ form; _Refused where it has none, before anything is appended."""
        rule = _rule(node)
        if rule is not None:
            rule(self, node)
        elif node.op_type in ON_CODES and not node.domain and node.input[0] in self.coded:
            _on_codes(self, node)
        else:
            if node.op_type == "QuantizeLinear":
                self.coded[node.output[0]] = (node.input[1], _input(node, 2))
            elif node.op_type in _SAME_CODES and node.input[0] in self.coded:
                self.coded[node.output[0]] = self.coded[node.input[0]]
            self.nodes.append(node)

    def fresh(self, name: str) -> str:
        """A name that nothing bears."""
        number, wanted = 2, name
        while name in self.names:
            name, number = f"{wanted}_{number}", number + 1
        self.names.add(name)
        return name

    def const(self, name: str, values: np.ndarray) -> str:
        """Stores a constant; the name that it gets."""
        name = self.fresh(name)
        self.added[name] = self.consts[name] = values
        return name

    def known(self, name: str, what: str) -> np.ndarray:
        """The constant of that name; _Refused where it is computed or left out."""
        if name not in self.consts:
            said = f"{what} {name} is computed" if name else f"{what} is left out"
            raise _Refused(f"{said}, a constant is supported: quantise the model statically")
        return self.consts[name]

    def append(self, op: str, inputs: tuple[str, ...], output: str, **attrs: Any) -> str:
        """A standard node; its output."""
        from onnx.helper import make_node

        self.nodes.append(make_node(op, list(inputs), [output], name=output, **attrs))
        return output

    def dequantised(self, codes: str, scale: str, zero: str, **attrs: Any) -> str:
        """DequantizeLinear of `codes`; weights keep a name from which `onnx_graph` names their layer."""
        name = self.fresh(f"{codes.removesuffix('_quantized')}_DequantizeLinear_Output")
        return self.append("DequantizeLinear", (codes, scale, zero) if zero else (codes, scale), name, **attrs)

    def quantised(self, value: str, codes: str, scale: str, zero: str) -> None:
        """QuantizeLinear of `value`, whose result is called `codes`."""
        self.append("QuantizeLinear", (value, scale, zero) if zero else (value, scale), codes)
        self.coded[codes] = scale, zero

    def inside(self, node: NodeProto, op: str, inputs: tuple[str, ...], output: str) -> str:
        """`node` on real values: the standard op `op` with its attributes."""
        from onnx.helper import make_node

        made = make_node(op, list(inputs), [output], name=node.name.removesuffix("_quant") or id_of(node))
        made.attribute.extend(a for a in node.attribute if a.name not in _LEFT_OUT)
        self.nodes.append(made)
        return output


def _rule(node: NodeProto) -> _Rule | None:
    if (node.domain, node.op_type) in FORMS:
        return _qoperator
    if not node.domain:
        return _sum if node.op_type in SUMS else _dynamic if node.op_type == "DynamicQuantizeLinear" else None
    if node.domain == MICROSOFT and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _standard
    return _QONNX_RULES.get(node.op_type, _strange) if node.domain in QONNX else None


def _input(node: NodeProto, index: int) -> str:
    """Name of an input, "" where it is left out."""
    return str(node.input[index]) if index < len(node.input) else ""


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    from onnx.helper import get_attribute_value

    return next((get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _standard(rewriter: _Rewriter, node: NodeProto) -> None:
    """onnxruntime's QuantizeLinear and DequantizeLinear mean what the standard ones do."""
    made = type(node)()
    made.CopyFrom(node)
    made.domain = ""
    rewriter.add(made)


def _dynamic(_rewriter: _Rewriter, _node: NodeProto) -> None:
    raise _Refused(
        "its scale depends on the image, while codes have one that is known beforehand: quantise the model statically "
        "(onnxruntime: quantize_static), or compile the float model with --quantize and --calibrate"
    )


def _qoperator(rewriter: _Rewriter, node: NodeProto) -> None:
    form = FORMS[node.domain, node.op_type]
    if _attribute(node, "channels_last", 0):
        raise _Refused("channels_last 1: channels in front of height and width are supported")
    places = form.operands or tuple(range(2, len(node.input), 3))
    bias = _input(node, form.bias) if form.bias is not None else ""
    unit = _bias_scale(rewriter, node) if bias else np.ones(())
    along = {"axis": _weight_axis(form.op, node)}
    inputs = []
    for at in places:
        codes, scale, zero = (_input(node, at + i) for i in range(3))
        rows = codes in rewriter.consts and np.size(rewriter.consts.get(scale, 0.0)) > 1
        inputs.append(rewriter.dequantised(codes, scale, zero, **(along if rows else {})))
    if bias:
        scale = rewriter.const(f"{bias}_scale", unit)
        inputs.append(rewriter.dequantised(bias, scale, "", **({"axis": 0} if unit.ndim else {})))
    output = id_of(node)
    target = _input(node, form.target)
    value = rewriter.inside(node, form.op, tuple(inputs), rewriter.fresh(f"{output}_value") if target else output)
    if target:
        rewriter.quantised(value, output, target, _input(node, form.target + 1))


def _weight_axis(op: str, node: NodeProto) -> int:
    """Axis of a constant operand along which output channels lie."""
    return 0 if op == "Conv" or (op == "Gemm" and _attribute(node, "transB", 0)) else -1


def _bias_scale(rewriter: _Rewriter, node: NodeProto) -> np.ndarray:
    """What one unit of an int32 bias is worth: the scales of both operands, float32 [] or [O]."""
    x, w = (rewriter.known(_input(node, at), "its scale").astype(np.float64) for at in (1, 4))
    scale = (x.reshape(-1) * w.reshape(-1) * _attribute(node, "alpha", 1.0)).astype(np.float32)
    return np.asarray(scale.reshape(()) if scale.size == 1 else scale)


def _on_codes(rewriter: _Rewriter, node: NodeProto) -> None:
    """An op that takes codes for values: of the values it makes the values of the same codes."""
    scale, zero = rewriter.coded[node.input[0]]
    rest = list(node.input[1:])
    if node.op_type == "Pad":
        rest[1:2] = [_padded_value(rewriter, node, scale, zero)]
    made = type(node)()
    made.CopyFrom(node)
    del made.input[:], made.output[:]
    made.input.extend([rewriter.dequantised(node.input[0], scale, zero), *rest])
    made.output.extend(rewriter.fresh(f"{name}_value") for name in node.output)
    rewriter.nodes.append(made)
    for value, codes in zip(made.output, node.output, strict=True):
        rewriter.quantised(value, codes, scale, zero)


def _padded_value(rewriter: _Rewriter, node: NodeProto, scale: str, zero: str) -> str:
    """The number that codes are padded with, code 0 by default, as a real one."""
    code = rewriter.known(node.input[2], "its value") if _input(node, 2) else np.zeros(())
    shift = rewriter.known(zero, "its zero point") if zero else np.zeros(())
    value = (code.astype(np.float64) - shift.astype(np.float64)) * rewriter.known(scale, "its scale")
    return rewriter.const(f"{node.output[0]}_border", value.astype(np.float32).reshape(()))


def _sum(rewriter: _Rewriter, node: NodeProto) -> None:
    """Sums of codes, then Cast, then maybe Mul by constants: a layer whose weights have those as their scale."""
    if node.input[0] not in rewriter.coded:
        raise _Refused(f"input {node.input[0]} is no code of a QuantizeLinear")
    scale, zero = rewriter.coded[node.input[0]]
    unit = rewriter.known(scale, "the scale of its input").astype(np.float64).reshape(())
    rewriter.known(node.input[1], "its weight")
    shift = _input(node, 3)
    count = rewriter.known(shift, "its zero point").size if shift else 1
    origin = _input(node, 2) or (_no_zero(rewriter, node, zero) if zero else "")
    taken, factor = _summed(rewriter, node)
    size = np.broadcast_to(factor, (max(count, factor.size),)) / unit
    held = rewriter.const(f"{node.input[1]}_scale", size.astype(np.float32).reshape((-1,) if size.size > 1 else ()))
    op = SUMS[node.op_type]
    along = {"axis": _weight_axis(op, node)} if size.size > 1 else {}
    inputs = (
        rewriter.dequantised(node.input[0], scale, origin),
        rewriter.dequantised(node.input[1], held, shift, **along),
    )
    rewriter.inside(node, op, inputs, taken[-1])
    rewriter.swallowed.update(taken)


def _no_zero(rewriter: _Rewriter, node: NodeProto, zero: str) -> str:
    """A zero point 0 of the type of `zero`: what a sum takes where it names none."""
    return rewriter.const(f"{node.input[0]}_zero", np.zeros_like(rewriter.known(zero, "its zero point")))


def _summed(rewriter: _Rewriter, node: NodeProto) -> tuple[list[str], np.ndarray]:
    """What the sums become, one after the other, as real numbers; what they are multiplied with, float64 [1] or [O]."""
    from onnx import TensorProto

    cast = _only_reader(rewriter, node)
    if cast is None or cast.op_type != "Cast" or _attribute(cast, "to", 0) != TensorProto.FLOAT:
        raise _Refused("makes sums of codes that something else than one Cast to float32 reads; that one is supported")
    mul = _only_reader(rewriter, cast)
    others = [n for n in mul.input if n in rewriter.consts] if mul is not None and mul.op_type == "Mul" else []
    if mul is None or not others:
        return [id_of(cast)], np.ones(1)
    return [id_of(cast), id_of(mul)], rewriter.consts[others[0]].astype(np.float64).reshape(-1)


def _only_reader(rewriter: _Rewriter, node: NodeProto) -> NodeProto | None:
    found = rewriter.readers.get(id_of(node), [])
    return found[0] if len(found) == 1 and id_of(node) not in rewriter.outputs else None


@dataclass(frozen=True, slots=True)
class _Grid:
    """Codes of a Quant: whole numbers from `lo` to `hi`, of `bits` bits, rounded as `mode` says."""

    bits: int
    lo: int
    hi: int
    mode: str

    def held(self) -> np.dtype[Any]:
        """The narrowest of int8, uint8 and int32 with these codes."""
        if self.bits <= CODE_BITS:
            return np.dtype(np.int8 if self.lo < 0 else np.uint8)
        return np.dtype(np.int32)


def _grid(rewriter: _Rewriter, node: NodeProto) -> _Grid:
    width = float(rewriter.known(_input(node, 3), "its bit width").reshape(()))
    if width != int(width) or not 1 <= width <= MAX_BITS:
        raise _Refused(f"has {width:g} bits; whole numbers of bits from 1 to {MAX_BITS} are supported")
    bits, signed, narrow = int(width), bool(_attribute(node, "signed", 1)), bool(_attribute(node, "narrow", 0))
    lo, hi = (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)
    if lo >= hi or hi > np.iinfo(np.int32).max:
        raise _Refused(f"has codes from {lo} to {hi}; two or more that int32 holds are supported")
    return _Grid(bits, lo, hi, _attribute(node, "rounding_mode", b"ROUND").decode().upper())


def _quant(rewriter: _Rewriter, node: NodeProto) -> None:
    """QONNX's Quant: scale, zero point and bits are inputs; the clamp is part of it."""
    grid = _grid(rewriter, node)
    scale, zero = (rewriter.known(_input(node, at), what) for at, what in ((1, "its scale"), (2, "its zero point")))
    shift = zero.astype(np.int64)
    if not np.array_equal(shift, zero):
        raise _Refused(f"has a zero point {zero.reshape(-1)[0]:g}; whole numbers are supported")
    if grid.mode not in ROUNDS:
        raise _Refused(f"rounding_mode {grid.mode}: {', '.join(ROUNDS)} are supported")
    if node.input[0] in rewriter.consts:
        _quant_constant(rewriter, node, grid, scale, shift)
    else:
        _quant_computed(rewriter, node, grid, scale, shift)


def _quant_constant(rewriter: _Rewriter, node: NodeProto, grid: _Grid, scale: np.ndarray, zero: np.ndarray) -> None:
    if grid.bits > CODE_BITS and zero.any():
        raise _Refused(f"has {grid.bits} bits and a zero point; with more than {CODE_BITS} bits 0 is supported")
    size, shift = scale.astype(np.float32), zero.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of 0 is named by what reads the codes
        codes = ROUNDS[grid.mode](rewriter.consts[node.input[0]].astype(np.float32) / size + shift)
    codes = np.clip(np.nan_to_num(codes.astype(np.float64)), grid.lo, grid.hi)
    _constant_codes(rewriter, node, codes.astype(grid.held()), scale, zero)


def _constant_codes(
    rewriter: _Rewriter, node: NodeProto, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray
) -> None:
    """DequantizeLinear of constants in place of `node`; `scale` and `zero` as they lie against the codes."""
    scale, zero = (np.asarray(a) for a in np.broadcast_arrays(scale, zero))
    axes = [axis for axis, size in enumerate(scale.shape, codes.ndim - scale.ndim) if size > 1]
    if len(axes) > 1:
        raise _Refused(f"has scales of shape {list(scale.shape)}; one, or one an output channel, is supported")
    shape = (-1,) if axes else ()
    name = id_of(node)
    inputs = (
        rewriter.const(f"{name}_codes", codes),
        rewriter.const(f"{name}_scale", scale.astype(np.float32).reshape(shape)),
        rewriter.const(f"{name}_zero_point", zero.astype(codes.dtype).reshape(shape)),
    )
    rewriter.append("DequantizeLinear", inputs, name, **({"axis": axes[0]} if axes else {}))


def _quant_computed(rewriter: _Rewriter, node: NodeProto, grid: _Grid, scale: np.ndarray, zero: np.ndarray) -> None:
    """QuantizeLinear, a Clip of the codes where they are narrower than the type, DequantizeLinear."""
    held = np.iinfo(grid.held())
    if grid.bits > CODE_BITS:
        raise _Refused(f"makes codes of {grid.bits} bits of a computed value; up to {CODE_BITS} are supported")
    if grid.mode != "ROUND":
        raise _Refused(f"rounding_mode {grid.mode} of a computed value; ROUND is supported")
    if scale.size > 1 or zero.size > 1:
        raise _Refused("has a scale or zero point per channel on a computed value; one is supported")
    if not held.min <= int(zero.reshape(())) <= held.max:
        raise _Refused(f"has the zero point {int(zero.reshape(()))}; one from {held.min} to {held.max} is supported")
    name = id_of(node)
    size = rewriter.const(f"{name}_scale", scale.astype(np.float32).reshape(()))
    origin = rewriter.const(f"{name}_zero_point", zero.astype(held.dtype).reshape(()))
    codes = rewriter.append("QuantizeLinear", (node.input[0], size, origin), rewriter.fresh(f"{name}_codes"))
    if (grid.lo, grid.hi) != (held.min, held.max):
        ends = tuple(
            rewriter.const(f"{name}_{end}", held.dtype.type(v)) for end, v in (("lo", grid.lo), ("hi", grid.hi))
        )
        codes = rewriter.append("Clip", (codes, *ends), rewriter.fresh(f"{name}_clipped"))
    rewriter.append("DequantizeLinear", (codes, size, origin), name)


def _bipolar(rewriter: _Rewriter, node: NodeProto) -> None:
    """QONNX's BipolarQuant of constants: levels 1 and -1, the sign."""
    if node.input[0] not in rewriter.consts:
        raise _Refused(
            "makes codes -1 and 1 of a computed value, and stored values have a level 0, which pads and removed "
            "channels need: use Quant of 2 bits there; weights may be bipolar"
        )
    scale = rewriter.known(_input(node, 1), "its scale")
    codes = np.where(rewriter.consts[node.input[0]] >= 0, 1, -1).astype(np.int8)
    _constant_codes(rewriter, node, codes, scale, np.zeros((), np.int64))


def _trunc(_rewriter: _Rewriter, _node: NodeProto) -> None:
    raise _Refused(
        "cuts the lowest bits off codes, while values here are rounded to a scale: use an average pool and a Quant "
        "(Brevitas: a float average pool and QuantIdentity in place of TruncAvgPool2d)"
    )


def _strange(_rewriter: _Rewriter, node: NodeProto) -> None:
    raise _Refused(f"is of domain {node.domain}, of which {', '.join((*QUANT, BIPOLAR))} are supported")


_QONNX_RULES: Mapping[str, _Rule] = {**dict.fromkeys(QUANT, _quant), BIPOLAR: _bipolar, "Trunc": _trunc}
