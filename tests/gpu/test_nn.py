"""bitpress.nn: the operator by torch's own rules, and modules against float and integer arithmetic. On the CPU."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'bitpress[search]'")

import torch

import bitpress.nn
from bitpress.core import quant
from bitpress.core.encoding import parse
from bitpress.core.errors import UnsupportedError, UsageError
from bitpress.kernels.gpu import op
from bitpress.kernels.gpu.layout import Storage, packed, parse_storage, restore
from bitpress.kernels.gpu.modules import Conv2d, Layer, Linear
from bitpress.kernels.gpu.window import Window

from .cases import KINDS, PAIRS, Case, assert_same, convolution, name, product

SAME = Window((3, 3), padding=(1, 1, 1, 1))


def arguments(
    case: Case, out: str = "f32", residual: str | None = None, window: Window | None = None
) -> tuple[object, ...]:
    """Those of the operator, with constants that spread sums over a byte."""
    rows = case.weights.form.rows
    m = torch.full((rows,), float(100 / max(1, np.abs(case.sums).max())))
    kept = None if residual is None else torch.ones(case.sums.shape, dtype=torch.int8)
    stored = out if out in ("f32", "i32") else parse_storage(out)
    lo, hi = quant.act_bounds(stored.encoding) if isinstance(stored, Storage) else (-1e9, 1e9)
    spec = op.spell(case.weights.form, stored, None if residual is None else parse_storage(residual))
    return (
        torch.from_numpy(case.act.store(case.x)), kept, torch.from_numpy(case.weights.fields),
        torch.from_numpy(case.weights.correction), m, torch.ones(rows), spec, op.numbers(window or Window()), 0.5,
        float(lo), float(hi),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_the_cpu_side_is_exact(kind: tuple[str, str, bool]) -> None:
    for case, window in ((product(kind, 3, 7, 133), None), (convolution(kind, (2, 4, 5, 40), 7, SAME), SAME)):
        assert_same(case.w, restore(case.weights.form, case.weights.fields))
        assert_same(case.sums, op.layer(*arguments(case, "i32", None, window)).numpy().astype(np.int64))


@pytest.mark.parametrize("out", ["f32", "u8", "u4:32"])
def test_the_operator_keeps_torchs_rules(out: str) -> None:
    """Schema, no hidden mutation or aliasing, fake tensors of the right shape, compilation with dynamic shapes."""
    for kind in PAIRS[1::2]:
        torch.library.opcheck(op.layer, arguments(product(kind, 3, 40, 64), out, "u8"))
    torch.library.opcheck(op.layer, arguments(convolution(PAIRS[0], (1, 4, 4, 8), 40, SAME), out, None, SAME))


def test_a_module_near_its_float_layer() -> None:
    """The error is what rounding weights and input allows: half a step of each, times the magnitude of the other."""
    torch.manual_seed(0)
    float_layer = torch.nn.Linear(96, 33)
    x = torch.rand(5, 96) * 2 - 1
    for w, a, fields in (("i8", "i8", False), ("i4", "i8", False), ("i2", "i8", False), ("i4", "i4", True)):
        layer = Linear.of(float_layer, w=w, a=a, clip=1.0, packed_input=fields)
        got, want = layer(x), float_layer(x)
        weight = float_layer.weight.detach()
        step = weight.abs().amax(1) / parse(w).hi
        grain = 1.0 / parse(a).hi
        bound = step / 2 * x.abs().sum(1, keepdim=True) + grain / 2 * (weight.abs() + step[:, None] / 2).sum(1)
        assert got.dtype == torch.float32 and bool(((got - want).abs() <= bound + 1e-5).all())


@pytest.mark.parametrize("fields", [False, True])
def test_a_convolution_is_the_float_one_on_rounded_numbers(fields: bool) -> None:
    torch.manual_seed(1)
    float_layer = torch.nn.Conv2d(20, 9, 3, stride=2, padding=1, dilation=1)
    layer = Conv2d.of(float_layer, w="i4", a="u4" if fields else "u8", clip=2.0, packed_input=fields)
    x = torch.rand(2, 20, 7, 6) * 2.2
    act = layer.form.act
    levels = act.load(layer.store(x.permute(0, 2, 3, 1).contiguous()).numpy(), 20)
    assert_same(quant.quantize_act(x.permute(0, 2, 3, 1).numpy(), 2.0, act.encoding), levels)
    weight = restore(layer.form, layer.fields.numpy()).reshape(9, 3, 3, 20).transpose(0, 3, 1, 2)
    sums = torch.nn.functional.conv2d(
        torch.from_numpy(levels.transpose(0, 3, 1, 2).astype(np.float64)),
        torch.from_numpy(weight.astype(np.float64)),
        stride=2,
        padding=1,
    )
    want = quant.affine(sums.permute(0, 2, 3, 1).numpy().astype(np.int32), layer.m.numpy(), layer.b.numpy())
    assert_same(want, layer(x).permute(0, 2, 3, 1).numpy())
    assert bool(((layer(x) - float_layer(x.clamp(0, 2))).abs() < 0.5).all())


class Net(torch.nn.Module):
    """A convolution and a linear layer, as somebody's network holds them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv = Conv2d.of(torch.nn.Conv2d(3, 8, 3, padding=1), w="i4", a="i8", clip=1.0)
        self.head = Linear.of(torch.nn.Linear(8, 5), w="i2", a="u8", clip=1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def test_modules_compile_and_export() -> None:
    net, x = Net().eval(), torch.rand(4, 3, 6, 6)
    with torch.no_grad():
        want = net(x)
        assert torch.equal(torch.compile(net, backend="aot_eager", fullgraph=True)(x), want)
        batch = torch.export.Dim("batch")
        program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
        assert torch.equal(program.module()(x[:3]), net(x[:3]))
    assert any("bitpress.layer" in str(node.target) for node in program.graph.nodes)


@pytest.mark.slow
def test_modules_compile_by_inductor() -> None:
    net, x = Net().eval(), torch.rand(4, 3, 6, 6)
    with torch.no_grad():
        assert torch.allclose(torch.compile(net, fullgraph=True)(x), net(x), rtol=0, atol=1e-2)


def test_weights_are_packed_and_saved() -> None:
    layer = Linear.of(torch.nn.Linear(256, 64), w="i2", a="i8", clip=1.0)
    state = layer.state_dict()
    assert state["fields"].numel() == 64 * 256 // 4 and set(state) == {"fields", "correction", "m", "b"}
    other = Linear.of(torch.nn.Linear(256, 64), w="i2", a="i8", clip=1.0)
    other.load_state_dict(state)
    x = torch.rand(2, 256)
    assert torch.equal(other(x), layer(x)) and "i2 i8 64 1 256 f32 none" in repr(layer)


def test_layers_in_a_row_pass_fields_on() -> None:
    first, second = product(("o2", "u8", False), 6, 70, 90), product(("o2", "u2", True), 6, 20, 70)
    between = packed(parse("u2"), 70)
    m, b = np.full(70, 1e-3, np.float32), np.ones(70, np.float32)
    a = Layer(first.weights, out=between, m=m, b=b, lo=0, hi=3)
    z = Layer(second.weights, out="i32", m=np.ones(20, np.float32), b=np.zeros(20, np.float32))
    hidden = quant.requantize(first.sums.astype(np.int32), m, b, lo=0, hi=3)
    got = z(a(torch.from_numpy(first.act.store(first.x))))
    assert_same(hidden @ second.w[:, 0].T, got.numpy().astype(np.int64))


def test_what_does_not_fit_is_one_sentence() -> None:
    linear = torch.nn.Linear(8, 4)
    with pytest.raises(UnsupportedError, match="i2, i4 or i8, not o4"):
        Linear.of(linear, w="o4", clip=1.0)
    with pytest.raises(UsageError, match="clip is 0"):
        Linear.of(linear, clip=0)
    with pytest.raises(UnsupportedError, match="groups 2"):
        Conv2d.of(torch.nn.Conv2d(4, 4, 3, groups=2), clip=1.0)
    with pytest.raises(UnsupportedError, match="of reflect"):
        Conv2d.of(torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), clip=1.0)
    case = product(("i4", "u8", False), 3, 6, 64)
    ones = np.ones(6, np.float32)
    with pytest.raises(UsageError, match="made for stored levels"):
        Layer(case.weights, m=ones, b=ones)(torch.rand(3, 64))
    with pytest.raises(UsageError, match="window has 9 taps, the weights 1"):
        Layer(case.weights, m=ones, b=ones, window=SAME)
    with pytest.raises(UsageError, match=r"x is int8 \[3, 63\], the layer takes int8 \[\.\.\., 64\]"):
        Layer(case.weights, m=ones, b=ones)(torch.zeros(3, 63, dtype=torch.int8))
    with pytest.raises(UsageError, match="made with residual None, and x comes with one"):
        Layer(case.weights, m=ones, b=ones)(torch.zeros(3, 64, dtype=torch.int8), torch.zeros(3, 6))
    with pytest.raises(UsageError, match="'nonsense' is no layer"):
        op.read("nonsense")
    with pytest.raises(AttributeError, match=r"no 'Conv3d'; it has Conv2d, Linear"):
        _ = bitpress.nn.Conv3d


def test_the_face_is_light_and_names_the_modules() -> None:
    assert bitpress.nn.Linear is Linear and bitpress.nn.Conv2d is Conv2d
    code = "import sys, bitpress.nn; print({'torch', 'triton'} & set(sys.modules) or '-')"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "-"
