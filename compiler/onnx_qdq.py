"""Program -> QDQ ONNX model: the integers of a compiled network in containers that any onnxruntime runs.

A stored value is QuantizeLinear, a Clip of its codes where their range is narrower than the container, and
DequantizeLinear; a layer is one Conv, its segments side by side, batch norm in the scales of its filters.
docs/onnx-export.md says what of the law ONNX cannot say. Knows no plan and no runtime.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..core.encoding import INT32_MAX, parse
from .check import CONVOLUTIONS
from .inspect import layer_rows
from .onnx_weights import CONTAINERS, Filters, filters, places
from .onnx_writer import IR_VERSION, OPSET, Writer
from .program import Program, Step
from .scales import scales

if TYPE_CHECKING:
    from onnx import ModelProto

# bits of the narrowest weights -> opset and IR version that know their type
VERSIONS: Mapping[int, tuple[int, int]] = {8: (OPSET, IR_VERSION), 4: (21, 10), 2: (25, 13)}
ONE_SCALE = 1e-6  # relative: scales that differ by the rounding of float32 multipliers are one
BIAS_ERROR = 1 / 256  # of a stored level: a bias is int32 where its rounding moves no sum by more, else float32
NO_BIAS, INT32, FLOAT32 = "none", "int32", "float32"  # how biases are stored
SAID = ("w_bits", "w_bits_hist", "a_bits", "channels_kept", "channels_total")  # of a layer, on its nodes
PREPROCESSING = "float32 NCHW; of uint8 images (x / 255 - mean) / std per channel, each operation rounded to float32"


@dataclass(frozen=True, slots=True)
class Qdq:
    """An exported network.

    `held`: buffer of the program -> tensor of the model with its levels, or its floats. `layers`: a row a layer, as
    `layer_rows` gives them, and `container` ("int8"), `stored` ("w" levels, "2v+1" halved odd ones), `bias`. `bits`: of
    the narrowest container.
    """

    model: ModelProto
    held: Mapping[str, str]
    layers: Sequence[Mapping[str, Any]]
    bits: int


def to_qdq(
    program: Program, *, native_low_bit: bool = False, exact: bool = False, known: Mapping[str, float] | None = None
) -> Qdq:
    """QDQ model of a program; input float32 [N, C, H, W] by its name, output "output" float32 [N, outputs].

    `native_low_bit`: weights in INT2 or INT4 where they fit. `exact`: scales are 1 and multipliers are nodes of their
    own, so that float32 follows the law operation by operation. `known`: real value of a level by buffer, where a RUN
    tells (a program holds products of them only). EnvironmentMissing without the extra `onnx`; UnsupportedError for
    weights that int8 cannot hold.
    """
    worth = [1.0] * len(program.buffers) if exact else scales(program, known)
    return _Export(program, worth, native_low_bit=native_low_bit, exact=exact).export()


INT32_TYPE = 6  # onnx.TensorProto.INT32


class _Export:
    """The model under construction; `values`: buffer number -> tensor with its real values.

    `read`: buffers that more than tables read; those read codes.
    """

    def __init__(self, program: Program, worth: Sequence[float], *, native_low_bit: bool, exact: bool) -> None:
        self.program, self.scales, self.native, self.exact = program, worth, native_low_bit, exact
        self.out = Writer(b.name for b in program.buffers)
        self.values = {program.input: program.buffers[program.input].name}
        self.held: dict[str, str] = {}
        self.read = {program.output, *(n for step in program.steps if step.op != "lookup" for n in step.inputs)}
        self.rows = {str(row["name"]): row for row in layer_rows(program, [{}] * len(program.steps))}
        self.narrowest = max(CONTAINERS)

    def export(self) -> Qdq:
        """Walks the steps, all writers of a buffer at once."""
        for steps in self.program.groups():
            self.values[steps[0].output] = self.group(steps)
        buffers = self.program.buffers
        source, target = buffers[self.program.input], buffers[self.program.output]
        output = self.out.node("Flatten", self.out.fresh("output"), [self.values[self.program.output]], axis=1)
        opset, ir_version = VERSIONS[self.narrowest]
        model = self.out.model(
            [(source.name, source.shape)], [(output, (int(np.prod(target.shape)),))],
            opset=opset, ir_version=ir_version, facts=self.facts(),
        )  # fmt: skip
        return Qdq(model, self.held, list(self.rows.values()), self.narrowest)

    def facts(self) -> dict[str, str]:
        """Metadata of the model: what must be known to feed it and to read what it says."""
        program = self.program
        named = {key: str(program.meta[key]) for key in ("model", "method") if program.meta.get(key)}
        keys = ("name", "op", *SAID, "container", "stored")
        layers = [{key: row[key] for key in keys if row.get(key)} for row in self.rows.values()]
        return {
            "bitpress": __version__, **named, "preprocessing": PREPROCESSING,
            "mean": json.dumps(program.mean.tolist()), "std": json.dumps(program.std.tolist()),
            "labels": json.dumps(list(program.labels)), "layers": json.dumps(layers),
        }  # fmt: skip

    def group(self, steps: list[Step]) -> str:
        """Tensor of what the steps write together."""
        step = steps[0]
        name = self.program.buffers[step.output].name
        if step.op == "gather":
            return self.store(step, self.gather(name, steps))
        if step.op == "max_pool2d":
            return self.store(step, self.pool("MaxPool", name, step))
        if step.op == "lookup":
            return self.store(step, self.lookup(name, step))
        if step.op == "product":
            return self.store(step, self.product(name, step))
        value = self.layer(steps) if step.op in CONVOLUTIONS else self.scaled(name, step)
        return self.store(step, self.residual(name, step, value))

    def store(self, step: Step, value: str) -> str:
        """Rounds `value` into the codes of the step's output; the tensor of what they stand for."""
        buffer, e, out = self.program.buffers[step.output], step.epilogue, self.out
        if buffer.storage == "f32":
            bounds = (-np.inf, np.inf) if e is None else (e.lo, e.hi)
            self.held[buffer.name] = self.clip(f"{buffer.name}.clip", value, bounds, np.dtype(np.float32))
            return self.held[buffer.name]
        encoding = parse(buffer.storage)
        dtype = np.dtype(np.uint8 if encoding.lo >= 0 else np.int8)
        scale = out.constant(out.fresh(f"{buffer.name}.scale"), np.array(self.scales[step.output], np.float32))
        zero = out.constant(out.fresh(f"{buffer.name}.zero_point"), np.zeros((), dtype))
        facts = {"bits": encoding.bits, "encoding": encoding.name}
        codes = out.node("QuantizeLinear", out.fresh(f"{buffer.name}.codes"), [value, scale, zero], facts=facts)
        if e is not None:
            codes = self.clip(f"{buffer.name}.clamped", codes, (e.lo, e.hi), dtype)
        self.held[buffer.name] = codes
        if step.output not in self.read:
            return codes
        return out.node("DequantizeLinear", buffer.name, [codes, scale, zero], facts=facts)

    def clip(self, name: str, value: str, bounds: tuple[float, float], dtype: np.dtype[Any]) -> str:
        """`value` within bounds; itself where its type has none beyond them."""
        limits = np.iinfo(dtype) if dtype.kind in "iu" else None
        lo, hi = (-np.inf, np.inf) if limits is None else (limits.min, limits.max)
        if bounds[0] <= lo and bounds[1] >= hi:
            return value
        ends = [
            self.out.constant(self.out.fresh(f"{name}.{role}"), np.array(bound, dtype)) if np.isfinite(bound) else ""
            for role, bound in zip(("lo", "hi"), bounds, strict=True)
        ]
        return self.out.node("Clip", self.out.fresh(name), [value, *ends])

    def residual(self, name: str, step: Step, value: str) -> str:
        """Adds the residual of an epilogue, if there is one."""
        if len(step.inputs) == 1:
            return value
        assert step.epilogue is not None, "check() has proved that only epilogues add residuals"
        factor = step.epilogue.m_r * self.scales[step.output] / self.scales[step.inputs[1]]
        other = self.affine(f"{name}.residual", self.values[step.inputs[1]], np.array([factor]), np.zeros(1))
        return self.out.node("Add", self.out.fresh(f"{name}.sum"), [value, other])

    def affine(self, name: str, value: str, factor: np.ndarray, shift: np.ndarray) -> str:
        """value * factor + shift per channel, without what changes nothing."""
        one = np.abs(factor - 1).max() <= (0 if self.exact else ONE_SCALE)
        for kind, role, numbers, nothing in (("Mul", "factor", factor, one), ("Add", "shift", shift, not shift.any())):
            if not nothing:
                column = numbers.astype(np.float32).reshape(1, -1, 1, 1)
                const = self.out.constant(self.out.fresh(f"{name}.{role}"), column)
                value = self.out.node(kind, self.out.fresh(f"{name}.{kind.lower()}"), [value, const])
        return value

    def scaled(self, name: str, step: Step) -> str:
        """Value of quantize, requantize or sum pool before residual and rounding."""
        value, area, e = self.values[step.inputs[0]], step.kernel[0] * step.kernel[1], step.epilogue
        assert e is not None, "check() has proved that what requantises has an epilogue"
        if step.op == "sum_pool2d" and self.exact:
            value, area = self.sum(name, step), 1
        elif step.op == "sum_pool2d":
            value = self.pool("AveragePool", name, step, count_include_pad=1)
        scale = self.scales[step.output]
        factor = e.m.astype(np.float64) * area * scale / self.scales[step.inputs[0]]
        return self.affine(name, value, factor, e.b.astype(np.float64) * scale)

    def lookup(self, name: str, step: Step) -> str:
        """Entries of a table, picked by codes: ONNX counts negative ones from the end, where theirs are."""
        assert step.table is not None, "check() has proved that a lookup has a table"
        codes = self.held[self.program.buffers[step.inputs[0]].name]
        index = self.out.node("Cast", self.out.fresh(f"{name}.index"), [codes], to=INT32_TYPE)
        entries = (step.table.astype(np.float64) * self.scales[step.output]).astype(np.float32)
        table = self.out.constant(self.out.fresh(f"{name}.table"), entries)
        return self.out.node("Gather", self.out.fresh(f"{name}.entry"), [table, index], axis=0)

    def product(self, name: str, step: Step) -> str:
        """Value times value, before rounding."""
        e = step.epilogue
        assert e is not None, "check() has proved that a product has an epilogue"
        value = self.out.node("Mul", self.out.fresh(f"{name}.product"), [self.values[i] for i in step.inputs])
        scale = self.scales[step.output]
        factor = e.m.astype(np.float64) * scale / (self.scales[step.inputs[0]] * self.scales[step.inputs[1]])
        return self.affine(name, value, factor, e.b.astype(np.float64) * scale)

    def pool(self, kind: str, name: str, step: Step, **fixed: Any) -> str:
        """Max or mean over windows."""
        source = self.program.buffers[step.inputs[0]]
        data = [self.values[step.inputs[0]]]
        if kind == "AveragePool" and step.kernel == source.shape[1:] and not any(step.padding):
            return self.out.node("GlobalAveragePool", self.out.fresh(f"{name}.pool"), data)
        return self.out.node(
            kind, self.out.fresh(f"{name}.pool"), data, kernel_shape=list(step.kernel), strides=list(step.stride),
            pads=list(step.padding), **fixed,
        )  # fmt: skip

    def sum(self, name: str, step: Step) -> str:
        """Sums over windows: a depthwise Conv of ones, for a mean would be rounded.

        The ones are integers too: onnxruntime merges a multiplication into a Conv of floats.
        """
        c = self.program.buffers[step.inputs[0]].shape[0]
        ones = self.dequantized(f"{name}.ones", np.ones((c, 1, *step.kernel), np.int8), np.ones(c), {})
        return self.conv(f"{name}.pool", step, [self.values[step.inputs[0]], ones], {}, groups=c)

    def conv(self, name: str, step: Step, inputs: list[str], facts: Mapping[str, object], *, groups: int) -> str:
        """Conv with the window of a step."""
        return self.out.node(
            "Conv", self.out.fresh(name), inputs, facts=facts, kernel_shape=list(step.kernel),
            strides=list(step.stride), pads=list(step.padding), dilations=list(step.dilation), group=groups,
        )  # fmt: skip

    def gather(self, name: str, steps: list[Step]) -> str:
        """Channels picked, padded and strided; several pieces are joined in the order of their channels."""
        pieces = [self.piece(f"{name}.{i}", step) for i, step in enumerate(steps)]
        if len(steps) == 1 and steps[0].out_channels is None:
            return pieces[0]
        joined = self.out.node("Concat", self.out.fresh(f"{name}.join"), pieces, axis=1)
        order = np.concatenate([places(step) for step in steps])
        return self.pick(f"{name}.order", joined, np.argsort(order), len(order))

    def pick(self, name: str, value: str, channels: np.ndarray, count: int) -> str:
        """Channels of `value` by number; itself where that is all of its `count` in order."""
        if np.array_equal(channels, np.arange(count)):
            return value
        numbers = self.out.constant(self.out.fresh(f"{name}.channels"), channels.astype(np.int64))
        return self.out.node("Gather", self.out.fresh(name), [value, numbers], axis=1)

    def piece(self, name: str, step: Step) -> str:
        """One gather: Pad (zeros around, and zero channels), Gather, Slice; each only where it does something."""
        assert step.channels is not None, "check() has proved that a gather has channels"
        value, count = self.values[step.inputs[0]], self.program.buffers[step.inputs[0]].shape[0]
        before, after, channels = _zeros(step.channels, count)
        (top, left, bottom, right), (down, across) = step.padding, step.stride
        pads = np.array([0, before, top, left, 0, after, bottom, right], np.int64)
        if pads.any():
            amounts = self.out.constant(self.out.fresh(f"{name}.pads"), pads)
            value = self.out.node("Pad", self.out.fresh(f"{name}.pad"), [value, amounts])
        value = self.pick(f"{name}.pick", value, channels, before + count + after)
        if (down, across) == (1, 1):
            return value
        rows = (("starts", [0, 0]), ("ends", [INT32_MAX, INT32_MAX]), ("axes", [2, 3]), ("steps", [down, across]))
        cut = [self.out.constant(self.out.fresh(f"{name}.{role}"), np.array(row, np.int64)) for role, row in rows]
        return self.out.node("Slice", self.out.fresh(f"{name}.cut"), [value, *cut])

    def layer(self, steps: list[Step]) -> str:
        """All segments of a layer as one Conv; a linear layer's window is the whole of its input."""
        step, name = steps[0], steps[0].layer or steps[0].name
        found = filters(self.program, steps, narrow=self.native and bool(step.layer))
        row = self.rows.get(step.layer, {})
        facts = {key: row[key] for key in SAID if row.get(key)}
        scale = (1 if self.exact else found.m) * found.factor * self.scales[step.output] / self.scales[step.inputs[0]]
        shift, unit = found.b * self.scales[step.output], scale * self.scales[step.inputs[0]]
        bits, kind = self.kinds(step, found, shift, unit)
        weight = self.weight(name, found, bits, scale, facts)
        bias = []
        if kind == INT32:
            bias = [self.dequantized(f"{name}.bias", np.rint(shift / unit).astype(np.int32), unit, {})]
        if row:
            stored = "2v+1" if found.offset.any() else "w"
            self.rows[step.layer] = {**row, "container": f"int{bits}", "stored": stored, "bias": kind}
        value = self.conv(name, step, [self.values[step.inputs[0]], weight, *bias], facts, groups=step.groups)
        factor = found.m if self.exact else np.ones(1)
        return self.affine(f"{name}.bias", value, factor, shift) if kind != INT32 else value

    def kinds(self, step: Step, found: Filters, shift: np.ndarray, unit: np.ndarray) -> tuple[int, str]:
        """Bits of the weights' container; how the biases `shift` of sums in units `unit` are stored.

        onnxruntime runs a Conv between DequantizeLinear and QuantizeLinear in integers. It rounds a float32 bias to
        int32, so that this one is an Add of its own behind the Conv; and it has no such Conv of INT2.
        """
        straight = self.program.buffers[step.output].storage != "f32" and len(step.inputs) == 1 and not self.exact
        plain = straight and not found.offset.any()
        if not shift.any():
            return max(4, found.bits) if plain else found.bits, NO_BIAS
        moved, largest = np.abs(unit).max() / self.scales[step.output] / 2, np.abs(shift / unit).max()
        exact = plain and found.bits > 2 and moved <= BIAS_ERROR and largest < INT32_MAX
        return found.bits, INT32 if exact else FLOAT32

    def weight(self, name: str, found: Filters, bits: int, scale: np.ndarray, facts: Mapping[str, object]) -> str:
        """Tensor of the real weights, from integers of `bits` bits; `scale` float64 [C]: of one of these."""
        self.narrowest = min(self.narrowest, bits)
        value = self.dequantized(f"{name}.weight", found.stored.astype(_dtype(bits)), scale, facts)
        if not found.offset.any():
            return value
        column = (found.offset * scale / found.factor).astype(np.float32).reshape(-1, 1, 1, 1)
        constant = self.out.constant(self.out.fresh(f"{name}.weight.one"), column)
        return self.out.node("Add", self.out.fresh(f"{name}.weight.odd"), [value, constant])

    def dequantized(self, name: str, integers: np.ndarray, scale: np.ndarray, facts: Mapping[str, object]) -> str:
        """DequantizeLinear of constant integers [C, ...] with a scale a channel, zero point 0."""
        constants = {
            name: integers, f"{name}.scale": scale.astype(np.float32),
            f"{name}.zero_point": np.zeros(len(scale), integers.dtype),
        }  # fmt: skip
        inputs = [self.out.constant(self.out.fresh(key), array) for key, array in constants.items()]
        return self.out.node("DequantizeLinear", self.out.fresh(f"{name}.value"), inputs, facts=facts, axis=0)


def _zeros(channels: np.ndarray, count: int) -> tuple[int, int, np.ndarray]:
    """Zero channels to add before and after `count` ones, and which of all these a gather takes (-1 is a zero)."""
    wanted, gone = channels.astype(np.int64), channels < 0
    before = int(np.argmin(gone))
    if np.array_equal(wanted[~gone], np.arange(count)) and not gone[before : before + count].any():
        return before, len(wanted) - count - before, np.arange(len(wanted))
    return 0, int(gone.any()), np.where(gone, count, wanted)


def _dtype(bits: int) -> Any:
    if bits == 8:
        return np.int8
    import ml_dtypes  # comes with onnx

    return getattr(ml_dtypes, f"int{bits}")
