"""The derivation of codes, multipliers and biases against plain arithmetic, and what it refuses."""

import math

import numpy as np
import pytest

from bitpress.core import quant
from bitpress.core.encoding import odd, parse, twos
from bitpress.core.errors import CorruptError, UnsupportedError
from bitpress.core.graph import run, verify
from bitpress.core.integer import integer, moments, weight_levels
from bitpress.core.plan import BitConfig, CompressionPlan, LayerId, Segment
from tests.benchmarks.graphs import Maker, residual
from tests.compiler.nets import chain, flat, images, inverted, option_a, plan_of, preact, tensors_of


def derive(graph, seed=0, **choice):
    plan = plan_of(graph, **choice)
    tensors = tensors_of(graph, plan, seed)
    return integer(graph, plan, tensors), tensors


def scale(tensors, name, hi):
    return abs(float(tensors[name])) / hi


def test_conv_with_norm_and_relu_by_hand():
    graph = chain()
    whole, t = derive(graph, weight="i4")
    w, consts = graph.consts["b.weight"].astype(np.float64), graph.consts
    s_w = t["b.weight_clip"].astype(np.float64) / 7
    assert np.array_equal(whole.consts["b.levels"], np.clip(np.rint(w / s_w[:, None, None, None]), -8, 7))
    gain = consts["b.bn.weight"].astype(np.float64) / np.sqrt(consts["b.bn.var"].astype(np.float64) + 1e-5)
    s_in, s_out = scale(t, "b.act_clip", 15), scale(t, "b.relu.clip", 255)
    assert np.array_equal(whole.consts["b.relu.m"], (s_w * s_in * gain / s_out).astype(np.float32))
    shift = consts["b.bn.bias"] - consts["b.bn.mean"].astype(np.float64) * gain
    assert np.allclose(whole.consts["b.relu.b"], shift / s_out, rtol=2**-22)
    node = whole.value("b.relu")
    assert (node.op, node.dtype, node.attrs["lo"], node.attrs["hi"]) == ("requantize", "u8", 0, 255)
    assert whole.value("image.q").attrs["m"] == np.float32(1 / scale(t, "a.act_clip", 7))


def test_names_and_segments():
    graph = residual()
    whole, _ = derive(graph, keep={"a": (1, 4, 5)}, segments={"a": {"o8": (4,), "o2": (1, 5)}})
    verify(whole, "integer")
    assert [n.name for n in whole.nodes][:4] == ["image.q", "stem.acc", "stem.relu", "a.input"]
    acc = whole.value("a.acc")
    assert acc.attrs["segments"] == (("o8", (4,)), ("o2", (1, 5)))
    assert acc.attrs["layer"] == "a"
    assert acc.attrs["kept"] == whole.value("a.relu").attrs["kept"] == (1, 4, 5)
    assert "kept" not in whole.value("b.acc").attrs
    assert whole.value("b.acc").shape == graph.value("b").shape


def test_odd_grid_is_standardised_over_what_stays():
    graph, keep = chain(), {"a": (0, 3, 4, 9)}
    whole, t = derive(graph, keep=keep, weight="o4")
    w = graph.consts["b.weight"].astype(np.float64)
    part = w[:, [0, 3, 4, 9]]
    mean, std = part.mean(), part.std()
    z = (w - mean) / std / float(t["b.weight_clip"][0])
    want = quant.quantize_odd(z, 4)
    gone = np.setdiff1d(np.arange(12), keep["a"])
    assert not whole.consts["b.levels"][:, gone].any(), "columns of removed channels"
    assert np.array_equal(whole.consts["b.levels"][:, keep["a"]], want[:, keep["a"]])
    assert not whole.consts["a.levels"][gone].any()
    assert not whole.consts["a.relu.m"][gone].any()
    assert not whole.consts["a.relu.b"][gone].any()


def test_linear_layers_on_the_odd_grid_are_not_standardised():
    graph = chain()
    whole, t = derive(graph, weight="o2")
    w, clip = graph.consts["fc.weight"].astype(np.float64), t["fc.weight_clip"].astype(np.float64)[:, None]
    assert np.array_equal(whole.consts["fc.levels"], quant.quantize_odd(w / clip, 2))
    s = clip[:, 0] / 3 * scale(t, "fc.act_clip", 15)
    assert np.array_equal(whole.consts["fc.m"], s.astype(np.float32))
    assert np.array_equal(whole.consts["fc.b"], graph.consts["fc.bias"])


def test_moments_do_not_depend_on_the_order_of_sums():
    values = np.array([1e8, 1.0, -1e8, 3.0], np.float32)
    mean, std = moments(values)
    assert mean == 1.0
    assert std == math.sqrt(math.fsum((v - 1.0) * (v - 1.0) for v in (1e8, 1.0, -1e8, 3.0)) / 4)
    assert moments(values[::-1].copy()) == (mean, std)


def test_special_clips_by_bits():
    graph = chain()
    plan = plan_of(graph, weight="i8", segments={"b": {"i4": tuple(range(10)), "i2": tuple(range(10, 20))}})
    t = tensors_of(graph, plan)
    t["b.weight_clip.2"] = t["b.weight_clip"] * np.float32(0.5)
    whole = integer(graph, plan, t)
    node, w = graph.value("b"), graph.consts["b.weight"]
    for rows, e, clip in ((slice(0, 10), "i4", "b.weight_clip"), (slice(10, 20), "i2", "b.weight_clip.2")):
        levels, _ = weight_levels(node, w, parse(e), t[clip], w)
        assert np.array_equal(whole.consts["b.levels"][rows], levels[rows])


def test_corrections_by_bits_join_the_bias():
    graph = flat()
    segments = {"hidden": {"i4": tuple(range(10)), "i8": tuple(range(10, 24))}}
    plan = plan_of(graph, weight="i8", segments=segments)
    t = tensors_of(graph, plan)
    plain = integer(graph, plan, t)
    t["hidden.shift.4"] = np.arange(24, dtype=np.float32)
    moved = integer(graph, plan, t)
    gain = graph.consts["hidden.bn.weight"] / np.sqrt(graph.consts["hidden.bn.var"].astype(np.float64) + 1e-5)
    want = np.where(np.arange(24) < 10, np.arange(24) * gain / scale(t, "fc.act_clip", 15), 0)
    assert np.allclose(moved.consts["hidden.relu.b"] - plain.consts["hidden.relu.b"], want, atol=1e-4)
    for bad in (np.zeros(3, np.float32), np.full(24, np.nan, np.float32)):
        with pytest.raises(CorruptError, match=r"hidden\.shift\.4: must be 24 finite numbers"):
            integer(graph, plan, {**t, "hidden.shift.4": bad})


def test_residual_multiplier_and_pool():
    graph = residual()
    whole, t = derive(graph)
    s_out = scale(t, "sum.relu.clip", 255)
    assert whole.value("sum.relu").attrs["m_r"] == np.float32(scale(t, "stem.relu.clip", 255) / s_out)
    assert whole.value("sum.relu").inputs == ("b.acc", "stem.relu")
    m = np.float32(s_out / 64 / scale(t, "fc.act_clip", 15))
    assert (whole.consts["pool.m"] == m).all()
    assert whole.value("pool.acc").attrs["kernel"] == (8, 8)


def test_relu6_is_a_bound_in_codes():
    graph = inverted()
    plan = plan_of(graph, act=4)
    t = tensors_of(graph, plan)
    t["dw.act_clip"] = np.float32(7.5).reshape(())  # one level is half a unit
    assert integer(graph, plan, t).value("a.act").attrs["hi"] == 12
    t["dw.act_clip"] = np.float32(3.0).reshape(())
    assert integer(graph, plan, t).value("a.act").attrs["hi"] == 15
    t["dw.act_clip"] = np.float32(6 * 15 / 2.5).reshape(())  # 6 lies half way between two levels
    assert integer(graph, plan, t).value("a.act").attrs["hi"] == 2, "half to even"


def test_float32_streams():
    graph = preact()
    whole, t = derive(graph, residual="float32")
    stem, a = whole.value("stem"), whole.value("a.relu")
    assert (stem.op, stem.dtype) == ("affine", "f32")
    assert (a.op, a.inputs) == ("requantize", ("stem",))
    assert whole.value("one").attrs["m_r"] == 1.0
    gain = graph.consts["a.bn.weight"] / np.sqrt(graph.consts["a.bn.var"].astype(np.float64) + 1e-5)
    assert np.array_equal(whole.consts["a.relu.m"], (gain / scale(t, "a.act_clip", 15)).astype(np.float32))


def test_equal_ranges_need_no_second_rounding():
    graph = residual()
    plan = plan_of(graph, act=8)
    t = tensors_of(graph, plan)
    assert any(n.name == "a.input" for n in integer(graph, plan, t).nodes)
    t["a.act_clip"] = t["stem.relu.clip"]
    whole = integer(graph, plan, t)
    assert whole.value("a.acc").inputs == ("stem.relu",)


def test_values_are_near_the_float_net():
    graph = option_a()
    plan = plan_of(graph, weight="i8", act=8)
    t = {k: v * np.float32(1.2) for k, v in tensors_of(graph, plan, 3).items()}
    t |= {f"{n}.weight_clip": np.abs(graph.consts[f"{n}.weight"]).max().reshape(1) for n in plan.bits}
    for clip in list(t):
        if "weight" not in clip:
            t[clip] = t[clip] * np.float32(2)
    x = images(graph, 6, 3)
    want = run(graph, {"image": x})["fc"]
    got = run(integer(graph, plan, t), {"image": x})["fc"]
    assert np.corrcoef(want.ravel(), got.ravel())[0, 1] > 0.99


def test_missing_tensors_are_named():
    graph = chain()
    plan = plan_of(graph)
    t = tensors_of(graph, plan)
    for name in ("b.act_clip", "fc.weight_clip"):
        with pytest.raises(CorruptError, match=name):
            integer(graph, plan, {k: v for k, v in t.items() if k != name})


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_bad_clips_are_named(value):
    graph = chain()
    plan = plan_of(graph)
    t = tensors_of(graph, plan)
    with pytest.raises(CorruptError, match=r"b\.act_clip"):
        integer(graph, plan, {**t, "b.act_clip": np.float32(value).reshape(())})
    with pytest.raises(CorruptError, match=r"b(\.weight_clip|: a weight clip)"):
        integer(graph, plan, {**t, "b.weight_clip": np.float32(value).reshape(())})


def test_not_finite_constants_are_named():
    graph = chain()
    plan = plan_of(graph)
    t = tensors_of(graph, plan)
    for name in ("b.weight", "a.bn.var"):
        values = graph.consts[name].copy()
        values.flat[1] = np.nan
        with pytest.raises(CorruptError, match=rf"{name}: 1 of \d+"):
            integer(graph.with_nodes(graph.nodes, {**graph.consts, name: values}), plan, t)


def test_filters_of_zeros_have_clip_zero():
    graph = chain()
    values = graph.consts["b.weight"].copy()
    values[3] = 0
    graph = graph.with_nodes(graph.nodes, {**graph.consts, "b.weight": values})
    plan = plan_of(graph, weight="i4")
    t = tensors_of(graph, plan)
    assert t["b.weight_clip"][3] == 0
    assert not integer(graph, plan, t).consts["b.levels"][3].any()


def test_plans_that_do_not_fit():
    graph = residual()
    t = tensors_of(graph, plan_of(graph))
    with pytest.raises(CorruptError, match="no group 'nobody'"):
        integer(graph, plan_of(graph, keep={"nobody": (0,)}), t)
    with pytest.raises(CorruptError, match="fc cannot be pruned"):
        integer(graph, plan_of(graph, keep={"fc": (0, 1)}), t)
    with pytest.raises(CorruptError, match="keeps 0 of 16"):
        integer(graph, plan_of(graph, keep={"a": ()}), t)
    with pytest.raises(CorruptError, match="segments of a hold 2 filters"):
        integer(graph, plan_of(graph, keep={"a": (0, 1, 2)}, segments={"a": {"o4": (0, 1)}}), t)


def test_activations_without_a_symmetric_zero_are_refused():
    graph = chain()
    plan = plan_of(graph)
    for name in ("o4", "b1", "t2"):
        bits = {**plan.bits, LayerId("b"): BitConfig(plan.bits[LayerId("b")].weight, parse(name))}
        with pytest.raises(UnsupportedError, match=f"b: activations {name} are not supported"):
            integer(graph, CompressionPlan(plan.graph, bits), tensors_of(graph, plan))


def test_sums_beyond_int32_are_refused():
    m = Maker((1, 260, 260))
    graph = m.graph(m.linear("fc", m.add("flatten", "flat", m.add("relu", "r", "image")), 1))
    consts = {**graph.consts, "fc.weight": np.ones_like(graph.consts["fc.weight"])}
    graph = graph.with_nodes(graph.nodes, consts)
    segments = (Segment(odd(8), (0,)),)
    plan = CompressionPlan(graph.fingerprint(), {LayerId("fc"): BitConfig(segments, parse("u8"))})
    t = {name: np.float32(1).reshape(()) for name in ("image.clip", "fc.act_clip", "fc.weight_clip")}
    with pytest.raises(UnsupportedError, match=r"fc: a sum can reach \d+"):
        integer(graph, plan, t)


def test_multipliers_beyond_float32_are_refused():
    graph = chain()
    plan = plan_of(graph)
    t = tensors_of(graph, plan)
    with pytest.raises(CorruptError, match="beyond float32"):
        integer(
            graph, plan, {**t, "b.relu.clip": np.float32(1e-38).reshape(()), "b.act_clip": np.float32(1e9).reshape(())}
        )


def test_flattened_channels_spread_over_columns():
    graph = flat()
    whole, _ = derive(graph, keep={"a": (0, 2, 11)})
    kept = whole.value("flat").attrs["kept"]
    size = 5 * 4
    assert kept == tuple(c * size + i for c in (0, 2, 11) for i in range(size))
    assert not np.delete(whole.consts["hidden.levels"], kept, axis=1).any()
    assert twos(8).hi == 127
