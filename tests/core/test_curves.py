"""Activations that are tables: their formulas against torch, their exact values against more digits."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from bitpress.core.curves import CURVES
from bitpress.core.encoding import twos, unsigned
from bitpress.core.graph import Graph, Node, run
from bitpress.core.integer import integer
from bitpress.core.plan import BitConfig, CompressionPlan, LayerId, Segment
from bitpress.core.quant import act_bounds

torch = pytest.importorskip("torch", reason="compares with torch: extra [search]")

X = np.concatenate([np.linspace(-9, 9, 181), [-750.0, -40.0, 40.0, 750.0]])


def digits(name: str, x: float) -> Fraction:
    """The activation with 60 digits."""
    with localcontext(prec=60):
        wide = Decimal(x)
        hard = min(max(wide + 3, Decimal(0)), Decimal(6)) / 6
        soft = 1 / (1 + (-wide).exp())
        return Fraction({"hard_sigmoid": hard, "hard_swish": wide * hard, "sigmoid": soft, "silu": wide * soft}[name])


@pytest.mark.parametrize("name", CURVES)
def test_exact_values_have_the_digits_of_float64(name: str) -> None:
    for x, got in zip(X.tolist(), CURVES[name].exact(X).tolist(), strict=True):
        want = digits(name, x)
        # the exponential is rounded, then at most three operations are
        assert abs(Fraction(got) - want) <= 4 * Fraction(float(np.spacing(abs(float(want))))), x


@pytest.mark.parametrize("name", CURVES)
def test_floats_are_those_of_torch(name: str) -> None:
    op = {"hard_sigmoid": "hardsigmoid", "hard_swish": "hardswish", "sigmoid": "sigmoid", "silu": "silu"}[name]
    want = getattr(torch.nn.functional, op)(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(CURVES[name](X), want, rtol=0, atol=8 * np.finfo(np.float64).eps * 9)
    assert CURVES[name].signed == bool((want < 0).any())


def one(op: str) -> Graph:
    """A convolution of one weight, the activation, a convolution that reads it."""
    attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    one = np.ones((1, 1, 1, 1), np.float32)
    return Graph(
        (Node("input", "x", (), (1, 1, 4)),),
        (
            Node("conv2d", "a", ("x",), (1, 1, 4), attrs=attrs, consts={"weight": "a.weight"}),
            Node(op, "act", ("a",), (1, 1, 4)),
            Node("conv2d", "b", ("act",), (1, 1, 4), attrs=attrs, consts={"weight": "b.weight"}),
        ),
        ("b",),
        {"a.weight": one, "b.weight": one},
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("op", CURVES)
def test_a_table_is_the_activation_of_each_code(op: str, bits: int) -> None:
    """Entry by entry, ties and all (half of 85 levels is one), from codes of 8 bits to codes of `bits`."""
    graph = one(op)
    out = twos(bits) if CURVES[op].signed else unsigned(bits)
    weight = (Segment(twos(8), (0,)),)
    plan = CompressionPlan(
        graph.fingerprint(), {LayerId("a"): BitConfig(weight, twos(8)), LayerId("b"): BitConfig(weight, out)}
    )
    clips = {"a.act_clip": 2.0, "a.weight_clip": 1.0, "b.weight_clip": 1.0, "a.clip": 6.35, "b.act_clip": 3.0}
    whole = integer(graph, plan, {name: np.array(value, np.float32) for name, value in clips.items()})
    table = whole.consts["act.table"]
    low, high = act_bounds(out)
    into, step = float(np.float32(6.35)) / 127, 3.0 / out.hi
    for code, entry in enumerate(table.tolist()):
        level = code - 256 if code > 127 else code
        want = round(float(digits(op, level * into)) / step)  # in float64, half to even
        assert entry == min(max(want, low), high), level
    assert whole.value("act").dtype == out.name and len(table) == 256
    levels = run(whole, {"x": np.float32([[[[-2, -0.4, 0.4, 2]]]])}, keep=True)
    assert np.array_equal(levels["act"], table[levels["a"] % 256])
