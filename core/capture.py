"""An nn.Module's evaluation forward as a float Graph, by torch.export: the one place that knows ATen.

Layers bear their module path, constants their state-dict key. An op that has no row here becomes `unknown` with the
ATen name, so that `plan` can list it; nothing is guessed. Knows nothing of plans.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from .errors import UnsupportedError, UsageError
from .graph import Graph
from .ops import can_scale
from .tracing import Drawing, Pads, Shape

INPUT = "input"
BATCH = 2  # of the example: the smallest that export does not take for a constant of the network
_END = 2**62  # slices "to the end" carry 2**63 - 1
_Part = tuple[int | None, int | None, int | None]
_WHOLE: _Part = (None, None, None)


@dataclass(frozen=True, slots=True)
class _Const:
    """A parameter or buffer under its state-dict key; `transposed` where the trace has turned a matrix."""

    name: str
    transposed: bool = False


_Value = str | _Const | tuple["_Value | None", ...]


class _NoRow(Exception):
    """This call has no meaning among our ops."""


@dataclass
class _Tracer(Drawing):
    """What has been translated so far: graph nodes, and what each fx node stands for."""

    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    made: dict[str, _Value] = field(default_factory=dict)  # fx name -> value
    module: str = ""  # path of the innermost module that the current call belongs to
    leaf: bool = False  # whether that module has no parts of its own

    def label(self, op: str) -> str:
        """Readable name of a node that is no layer: the module's where it has no parts, else module.op."""
        if self.leaf:
            return self.module
        return f"{self.module}.{op}" if self.module else op

    def const(self, value: _Value | None, *, transposed: bool = False) -> str:
        """State-dict key of a constant argument, its array kept; _NoRow if it is computed or turned the wrong way."""
        if not isinstance(value, _Const) or value.transposed != transposed:
            raise _NoRow
        if value.name not in self.consts:
            tensor = self.state[value.name].detach().cpu()
            self.consts[value.name] = np.array(tensor.float().numpy(), np.float32, order="C")
        return value.name


def capture(module: nn.Module, in_shape: tuple[int, int, int]) -> Graph:
    """The float graph of `module` in evaluation mode on images [C, H, W]; constants are copies, float32.

    The module's training flags are as before afterwards. UsageError where it does not take that shape,
    UnsupportedError where it cannot be traced (control flow on data).
    """
    flags = {name: part.training for name, part in module.named_modules()}
    module.eval()
    try:
        program = _export(module, in_shape)
    finally:
        for name, part in module.named_modules():
            part.training = flags[name]
    signature = program.graph_signature
    named = {
        **signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants,
    }  # fmt: skip
    tracer = _Tracer(state={**program.state_dict, **program.constants})
    leaves = {name for name, part in module.named_modules() if not any(part.children())}
    outputs: tuple[str, ...] = ()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = named.get(node.name)
            tracer.made[node.name] = _Const(name) if name else _input(tracer, node, in_shape)
        elif node.op == "call_function":
            tracer.module = _path(node)
            tracer.leaf = bool(tracer.module) and tracer.module in leaves
            _call(tracer, node)
        elif node.op == "output":
            outputs = _outputs(tracer, node)
    return tracer.finish(outputs)[0]


def _export(module: nn.Module, in_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    example = torch.zeros(BATCH, *in_shape, device=device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own tree classes
        try:
            module(example)
        except Exception as error:  # of whatever layer does not fit
            raise UsageError(f"the network does not take inputs of shape {list(in_shape)}: {_first(error)}") from error
        try:
            # an empty table of decompositions makes in-place ops functional and leaves the rest
            with _silent_torch():
                return torch.export.export(module, (example,), strict=False).run_decompositions({})
        except Exception as error:  # torch raises classes of its own without a common base
            raise UnsupportedError(f"the network cannot be traced by torch.export: {_first(error)}") from error


@contextlib.contextmanager
def _silent_torch() -> Iterator[None]:
    """Mutes the listings of code that torch logs and prints beside its errors."""
    found = [v for k, v in logging.root.manager.loggerDict.items() if k.split(".")[0] == "torch"]
    loud = [v for v in found if isinstance(v, logging.Logger) and not v.disabled]
    for logger in loud:
        logger.disabled = True
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger in loud:
            logger.disabled = False


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _input(tracer: _Tracer, node: fx.Node, in_shape: Shape) -> str:
    if tracer.nodes:
        raise UnsupportedError(f"the network takes more than one input ({node.name})")
    return tracer.append("input", (), tuple(in_shape), label=INPUT, attrs={}, consts={})


def _outputs(tracer: _Tracer, node: fx.Node) -> tuple[str, ...]:
    names = [_value(tracer, arg) for arg in _flat(node.args[0])]
    if not names or not all(isinstance(name, str) for name in names):
        raise UnsupportedError("the network returns something that is not computed from its input")
    return tuple(str(name) for name in names)


def _flat(arg: Any) -> list[Any]:
    return [x for a in arg for x in _flat(a)] if isinstance(arg, tuple | list) else [arg]


def _value(tracer: _Tracer, arg: Any) -> Any:
    """fx argument -> value name, constant, plain number, or a tuple of those."""
    if isinstance(arg, fx.Node):
        return tracer.made.get(arg.name)
    if isinstance(arg, tuple | list):
        return tuple(_value(tracer, a) for a in arg)
    return arg


def _target(node: fx.Node) -> str:
    """ "aten.add.Tensor", "aten.relu": a default overload is not spelled out."""
    name = str(node.target)
    return name.removesuffix(".default") if name.startswith("aten.") else str(getattr(node.target, "__name__", name))


def _call(tracer: _Tracer, node: fx.Node) -> None:
    target = _target(node)
    args = _Args(tracer, node)
    if target in _SILENT:
        return
    if target == "getitem":
        source, index = _value(tracer, node.args[0]), node.args[1]
        if isinstance(source, tuple) and isinstance(index, int) and index < len(source):
            tracer.made[node.name] = source[index]
        return
    rule = _RULES.get(target)
    try:
        if rule is None:
            raise _NoRow
        tracer.made[node.name] = rule(tracer, args)
    except _NoRow:
        tracer.made[node.name] = _unknown(tracer, node, target)


def _unknown(tracer: _Tracer, node: fx.Node, target: str) -> _Value:
    """A node (or one for each tensor) that says what was called; a constant stays one where nothing else enters."""
    inputs = tuple(
        dict.fromkeys(
            v
            for v in _flat([_value(tracer, a) for a in (*node.args, *node.kwargs.values())])
            if isinstance(v, str) and v in tracer.nodes
        )
    )
    fake = node.meta.get("val")
    outs = fake if isinstance(fake, tuple | list) else (fake,)
    made = []
    for out in outs:
        shape = tuple(int(d) for d in out.shape[1:]) if isinstance(out, torch.Tensor) else ()
        label = tracer.label(target.removeprefix("aten.").partition(".")[0])
        made.append(tracer.append("unknown", inputs, shape, label=label, attrs={"target": target}, consts={}))
    return tuple(made) if isinstance(fake, tuple | list) else made[0]


class _Args:
    """Arguments of one call by the names of the ATen schema, defaults filled in."""

    def __init__(self, tracer: _Tracer, node: fx.Node) -> None:
        self.node = node
        schema = getattr(node.target, "_schema", None)
        self._values: dict[str, Any] = {}
        if schema is None:
            return
        for i, arg in enumerate(schema.arguments):
            given = node.args[i] if i < len(node.args) else node.kwargs.get(arg.name, arg.default_value)
            self._values[arg.name] = _value(tracer, given)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def get(self, name: str) -> Any:
        """The argument, None where this overload has none of that name."""
        return self._values.get(name)

    def value(self, name: str) -> str:
        """An argument that must be a computed value."""
        value = self._values[name]
        if not isinstance(value, str):
            raise _NoRow
        return value

    def pair(self, name: str, default: tuple[int, int] | None = None) -> tuple[int, int]:
        """One or two integers as two; an empty list is the default."""
        value = self._values[name]
        if value is None or value == ():
            if default is None:
                raise _NoRow
            return default
        values = value if isinstance(value, tuple) else (value,)
        return int(values[0]), int(values[-1])

    def fake_shape(self) -> Shape:
        """Shape of the result without batch."""
        fake = self.node.meta["val"]
        return tuple(int(d) for d in fake.shape[1:])


_Rule = Callable[[_Tracer, _Args], _Value]


def _conv(tracer: _Tracer, args: _Args) -> str:
    x = args.value("input")
    if len(tracer.shape(x)) != 3 or args.get("transposed"):
        raise _NoRow
    weight = tracer.const(args["weight"])
    consts = {"weight": weight}
    if args["bias"] is not None:
        consts["bias"] = tracer.const(args["bias"])
    if tracer.consts[weight].ndim != 4:
        raise _NoRow
    dilation = args.pair("dilation")
    if args["padding"] == "same":
        pads = _same(tracer.consts[weight].shape[2:], dilation)
    elif args["padding"] == "valid":
        pads = (0, 0, 0, 0)
    else:
        ph, pw = args.pair("padding")
        pads = (ph, pw, ph, pw)
    x, pads = tracer.take_pad(x, pads, 0.0)
    return tracer.emit(
        "conv2d", (x,), label=weight.removesuffix(".weight"), consts=consts,
        stride=args.pair("stride"), padding=pads, dilation=dilation, groups=int(args["groups"]),
    )  # fmt: skip


def _same(kernel: Shape, dilation: tuple[int, int]) -> Pads:
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    (top, left), (bottom, right) = ([t // 2 for t in totals], [t - t // 2 for t in totals])
    return top, left, bottom, right


def _linear(tracer: _Tracer, args: _Args) -> str:
    return _dense(tracer, args.value("input"), tracer.const(args["weight"]), args["bias"])


def _addmm(tracer: _Tracer, args: _Args) -> str:
    if args["alpha"] != 1 or args["beta"] != 1:
        raise _NoRow
    return _dense(tracer, args.value("mat1"), tracer.const(args["mat2"], transposed=True), args["self"])


def _mm(tracer: _Tracer, args: _Args) -> str:
    other = args.get("mat2") if args.get("mat2") is not None else args.get("other")
    return _dense(tracer, args.value("self"), tracer.const(other, transposed=True), None)


def _dense(tracer: _Tracer, x: str, weight: str, bias: _Value | None) -> str:
    if len(tracer.shape(x)) != 1:
        raise _NoRow
    consts = {"weight": weight}
    if bias is not None:
        consts["bias"] = tracer.const(bias)
    return tracer.emit("linear", (x,), label=weight.removesuffix(".weight"), consts=consts)


def _turn(_tracer: _Tracer, args: _Args) -> _Value:
    value = args.get("input") if args.get("input") is not None else args["self"]
    dims = args.get("dims")
    if not isinstance(value, _Const) or (dims is not None and tuple(dims) not in ((1, 0), (-1, -2), (-1, 0))):
        raise _NoRow
    return replace(value, transposed=not value.transposed)


def _batch_norm(tracer: _Tracer, args: _Args) -> tuple[str, ...]:
    """Every ATen form returns its result first; those with one result are read through `_first_only`."""
    if args.get("training") or len(tracer.shape(args.value("input"))) not in (1, 3):
        raise _NoRow
    mean, var = tracer.const(args["running_mean"]), tracer.const(args["running_var"])
    path = mean.removesuffix(".running_mean")
    consts = {"mean": mean, "var": var}
    for role, fill in (("weight", 1.0), ("bias", 0.0)):
        if args[role] is not None:
            consts[role] = tracer.const(args[role])
        else:  # affine=False: the two constants that the op's meaning needs
            consts[role] = f"{path}.{role}"
            tracer.consts[consts[role]] = np.full_like(tracer.consts[mean], fill)
    return (tracer.emit("batch_norm", (args.value("input"),), label=path, consts=consts, eps=float(args["eps"])),)


def _first_only(rule: Callable[[_Tracer, _Args], tuple[str, ...]]) -> _Rule:
    return lambda tracer, args: rule(tracer, args)[0]


def _relu(tracer: _Tracer, args: _Args) -> str:
    return tracer.emit("relu", (args.value("self"),))


def _clip(low: str, high: str) -> _Rule:
    def rule(tracer: _Tracer, args: _Args) -> str:
        lo = args.get(low) if low else None
        hi = args.get(high) if high else None
        if lo == 0 and hi is None:
            return _relu(tracer, args)
        if lo is None or hi is None or isinstance(lo, str | _Const) or isinstance(hi, str | _Const):
            raise _NoRow
        return tracer.emit("clip", (args.value("self"),), lo=float(lo), hi=float(hi))

    return rule


def _relu6(tracer: _Tracer, args: _Args) -> str:
    return tracer.emit("clip", (args.value("self"),), lo=0.0, hi=6.0)


def _add(tracer: _Tracer, args: _Args) -> str:
    x, y = args.value("self"), args.value("other")
    if args["alpha"] != 1 or tracer.shape(x) != tracer.shape(y):
        raise _NoRow
    return tracer.emit("add", (x, y))


def _mul(tracer: _Tracer, args: _Args) -> str:
    """Of two values of one shape, or of an image and a gate a channel; the gate comes second."""
    x, y = sorted((args.value("self"), args.value("other")), key=lambda v: -int(np.prod(tracer.shape(v))))
    if not can_scale(tracer.shape(y), tracer.shape(x)):
        raise _NoRow
    return tracer.emit("mul", (x, y))


def _curve(op: str) -> _Rule:
    return lambda tracer, args: tracer.emit(op, (args.value("self"),))


def _max_pool(tracer: _Tracer, args: _Args) -> tuple[str, ...]:
    if args.pair("dilation") != (1, 1):
        raise _NoRow
    return (_pool(tracer, args, "max_pool2d", ceil=bool(args["ceil_mode"])),)


def _avg_pool(tracer: _Tracer, args: _Args) -> str:
    padded = args.pair("padding") != (0, 0)
    if args["divisor_override"] is not None or (padded and not args["count_include_pad"]):
        raise _NoRow
    name = _pool(tracer, args, "avg_pool2d", ceil=False)
    if tracer.shape(name) != args.fake_shape():  # a ceiling that adds a window divides by a count of its own
        del tracer.nodes[name]
        raise _NoRow
    return name


def _pool(tracer: _Tracer, args: _Args, op: str, *, ceil: bool) -> str:
    x = args.value("self")
    kernel = args.pair("kernel_size")
    stride, (ph, pw) = args.pair("stride", kernel), args.pair("padding")
    if len(tracer.shape(x)) != 3:
        raise _NoRow
    extra = [0, 0]
    if ceil:  # more padding at the end, until the last window fits
        sizes = zip(tracer.shape(x)[1:], args.fake_shape()[1:], kernel, stride, (ph, pw), strict=True)
        extra = [max(0, (out - 1) * s + k - size - 2 * p) for size, out, k, s, p in sizes]
    pads = (ph, pw, ph + extra[0], pw + extra[1])
    x, pads = tracer.take_pad(x, pads, 0.0 if op == "avg_pool2d" else float("-inf"))
    return tracer.emit(op, (x,), kernel=kernel, stride=stride, padding=pads)


def _adaptive(op: str) -> _Rule:
    def rule(tracer: _Tracer, args: _Args) -> str:
        x = args.value("self")
        shape, out = tracer.shape(x), tuple(int(d) for d in args["output_size"])
        if len(shape) != 3:
            raise _NoRow
        if out == shape[1:]:
            return x
        if out == (1, 1) and op == "avg_pool2d":
            return tracer.emit("global_avg_pool", (x,))
        if any(size % o for size, o in zip(shape[1:], out, strict=True)):
            raise _NoRow
        kernel = (shape[1] // out[0], shape[2] // out[1])
        return tracer.emit(op, (x,), kernel=kernel, stride=kernel, padding=(0, 0, 0, 0))

    return rule


def _mean(tracer: _Tracer, args: _Args) -> str:
    x = args.value("self")
    rank = len(tracer.shape(x)) + 1
    if rank != 4 or sorted(int(d) % rank for d in args["dim"] or ()) != [2, 3] or args.get("dtype") is not None:
        raise _NoRow
    pooled = tracer.emit("global_avg_pool", (x,))
    return pooled if args["keepdim"] else tracer.emit("flatten", (pooled,))


def _view(tracer: _Tracer, args: _Args) -> str:
    """flatten, view, reshape, squeeze: nothing, or everything behind the batch in one axis.

    A view that only views read is passed over: the last of them says what it comes to.
    """
    x, out = args.value("self"), args.fake_shape()
    if int(args.node.meta["val"].shape[0]) != BATCH:
        raise _NoRow
    if out == tracer.shape(x) or all(_target(user) in _VIEWS for user in args.node.users):
        return x
    if out != (int(np.prod(tracer.shape(x))),):
        raise _NoRow
    return tracer.emit("flatten", (x,))


def _slice(tracer: _Tracer, args: _Args) -> str:
    x = args.value("self")
    shape = tracer.shape(x)
    dim = int(args["dim"]) % (len(shape) + 1)
    start, end, step = args["start"] or 0, args["end"], int(args["step"])
    size = BATCH if dim == 0 else shape[dim - 1]
    start, end, _ = slice(start, None if end is None or end > _END else end).indices(size)
    if (start, end, step) == (0, size, 1):
        return x
    if dim == 0:
        raise _NoRow
    part = (start or None, None if end == size else end, None if step == 1 else step)
    slices: list[_Part] = [_WHOLE] * len(shape)
    before = tracer.nodes[x]
    if before.op == "slice" and before.attrs["slices"][dim - 1] == _WHOLE:  # x[:, :, ::2, ::2] arrives as two
        x, slices = before.inputs[0], list(before.attrs["slices"])
    slices[dim - 1] = part
    return tracer.emit("slice", (x,), slices=tuple(slices))


def _split(tracer: _Tracer, args: _Args) -> tuple[str, ...]:
    """split, chunk: a slice for each part."""
    x = args.value("self")
    shape = tracer.shape(x)
    dim = int(args["dim"]) % (len(shape) + 1)
    if dim == 0:
        raise _NoRow
    sizes = [int(part.shape[dim]) for part in args.node.meta["val"]]
    made = []
    for start, size in zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True):
        slices: list[_Part] = [_WHOLE] * len(shape)
        end = start + size
        slices[dim - 1] = (start or None, None if end == shape[dim - 1] else end, None)
        made.append(tracer.emit("slice", (x,), slices=tuple(slices)))
    return tuple(made)


def _pad(tracer: _Tracer, args: _Args) -> str:
    x = args.value("self")
    shape, flat = tracer.shape(x), tuple(int(p) for p in args["pad"])
    value = args["value"] or 0
    pads = tuple((flat[2 * i], flat[2 * i + 1]) if 2 * i < len(flat) else (0, 0) for i in range(len(shape)))[::-1]
    if args.get("mode") not in (None, "constant") or len(flat) > 2 * len(shape) or min(flat, default=0) < 0:
        raise _NoRow
    if not any(flat):
        return x
    if value != 0:  # minus infinity in front of a max-pool is that pool's own padding (`Drawing.take_pad`)
        if value != float("-inf") or pads[0] != (0, 0):
            raise _NoRow
        return tracer.emit("pad", (x,), pads=pads, value=value, target="aten.constant_pad_nd")
    return tracer.emit("pad", (x,), pads=pads)


def _cat(tracer: _Tracer, args: _Args) -> str:
    tensors = args["tensors"]
    if not all(isinstance(t, str) for t in tensors) or int(args["dim"]) % (len(tracer.shape(tensors[0])) + 1) != 1:
        raise _NoRow
    return tensors[0] if len(tensors) == 1 else tracer.emit("concat", tensors)


def _same_value(_tracer: _Tracer, args: _Args) -> _Value:
    value = args.get("self") if args.get("self") is not None else args.get("input")
    fake = args.node.meta.get("val")
    if args.get("train") or not isinstance(value, str | _Const) or getattr(fake, "dtype", None) != torch.float32:
        raise _NoRow
    return value


_SILENT = frozenset({
    "aten._assert_tensor_metadata", "aten._assert_scalar", "aten.sym_constrain_range_for_size",
})  # fmt: skip
_VIEWS = (
    "aten.flatten.using_ints", "aten.view", "aten._unsafe_view", "aten.reshape", "aten.squeeze", "aten.squeeze.dim",
    "aten.squeeze.dims",
)  # fmt: skip
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("aten.conv2d", "aten.conv2d.padding", "aten.convolution"), _conv),
    "aten.linear": _linear, "aten.addmm": _addmm, "aten.mm": _mm, "aten.matmul": _mm,
    **dict.fromkeys(("aten.t", "aten.permute", "aten.numpy_T"), _turn),
    **dict.fromkeys(("aten._native_batch_norm_legit_no_training", "aten._native_batch_norm_legit",
                     "aten.native_batch_norm"), _batch_norm),
    "aten.batch_norm": _first_only(_batch_norm),
    **dict.fromkeys(("aten.relu", "aten.relu_"), _relu), "aten.relu6": _relu6,
    **dict.fromkeys(("aten.hardtanh", "aten.hardtanh_"), _clip("min_val", "max_val")),
    **dict.fromkeys(("aten.clamp", "aten.clamp_"), _clip("min", "max")),
    **dict.fromkeys(("aten.clamp_min", "aten.clamp_min_"), _clip("min", "")),
    **dict.fromkeys(("aten.add.Tensor", "aten.add_.Tensor"), _add),
    **dict.fromkeys(("aten.mul.Tensor", "aten.mul_.Tensor"), _mul),
    **dict.fromkeys(("aten.hardsigmoid", "aten.hardsigmoid_"), _curve("hard_sigmoid")),
    **dict.fromkeys(("aten.hardswish", "aten.hardswish_"), _curve("hard_swish")),
    **dict.fromkeys(("aten.sigmoid", "aten.sigmoid_"), _curve("sigmoid")),
    **dict.fromkeys(("aten.silu", "aten.silu_"), _curve("silu")),
    "aten.max_pool2d": _first_only(_max_pool), "aten.max_pool2d_with_indices": _max_pool,
    "aten.avg_pool2d": _avg_pool,
    "aten.adaptive_avg_pool2d": _adaptive("avg_pool2d"), "aten._adaptive_avg_pool2d": _adaptive("avg_pool2d"),
    "aten.mean.dim": _mean,
    **dict.fromkeys(_VIEWS, _view),
    "aten.slice.Tensor": _slice,
    **dict.fromkeys(("aten.split.Tensor", "aten.split_with_sizes", "aten.chunk"), _split),
    **dict.fromkeys(("aten.constant_pad_nd", "aten.pad"), _pad),
    "aten.cat": _cat,
    **dict.fromkeys(("aten.dropout", "aten.feature_dropout", "aten.contiguous", "aten.detach", "aten.clone",
                     "aten.alias", "aten.to.dtype", "aten._to_copy", "aten.lift_fresh_copy"),
                    _same_value),
}  # fmt: skip
