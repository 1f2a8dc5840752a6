"""Ranges: what they minimise, what the plan says, what is refused, and accuracy on a real network."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from bitpress.core.calibrate import POWERS, calibrate, uniform_plan, weight_clips
from bitpress.core.encoding import twos
from bitpress.core.errors import CorruptError, UnsupportedError, UsageError
from bitpress.core.graph import run
from bitpress.core.integer import integer
from bitpress.core.quant import quantize_weight
from bitpress.core.ranges import Ranges
from bitpress.core.storage import analyse
from tests.compiler.nets import NETS, assert_stages_agree, chain, flat, images, layers, preact, residual
from tests.core.test_cost import depthwise


@pytest.mark.parametrize("net", NETS)
def test_all_tensors_are_there_and_all_stages_agree(net):
    graph = NETS[net]()
    x = images(graph, 8)
    for kind in ("int8", "float32"):
        plan, tensors = calibrate(graph, x, weight_bits=4, act_bits=4, residual=kind)
        assert all(t.dtype == np.float32 and np.isfinite(t).all() for t in tensors.values())
        assert_stages_agree(graph, plan, tensors, x[:2])
        assert np.array_equal(tensors["golden_input"], x[:1])


def test_both_ends_hold_8_bits():
    graph = residual()
    plan = uniform_plan(graph, 2, 3)
    assert {n: (b.weight[0].encoding.name, b.act.name) for n, b in plan.bits.items()} == {
        "stem": ("i8", "i8"), "a": ("i2", "u3"), "b": ("i2", "u3"), "fc": ("i8", "u8"),
    }  # fmt: skip
    assert {b.weight[0].encoding.name for b in uniform_plan(graph, 2, 3, ends8=False).bits.values()} == {"i2"}


def test_eight_bits_are_close_to_floats():
    graph = preact()
    x = images(graph, 32)
    want = run(graph, {"image": x})["fc"]
    error = []
    for w, a in ((8, 8), (4, 4), (2, 2)):
        plan, tensors = calibrate(graph, x, weight_bits=w, act_bits=a)
        got = run(integer(graph, plan, tensors), {"image": x})["fc"]
        error.append(float(np.square(got - want).mean() / np.square(want - want.mean()).mean()))
    assert error[0] < 0.01
    assert error == sorted(error)


def test_eight_bit_streams_are_not_requantised_at_eight_bits():
    graph = residual()
    plan, tensors = calibrate(graph, images(graph, 8), weight_bits=8, act_bits=8)
    assert not [n.name for n in integer(graph, plan, tensors).nodes if n.name.endswith(".input")]


@pytest.mark.parametrize("by", POWERS)
def test_weight_clips_by_bits(by):
    graph = chain()
    weight = graph.consts["b.weight"]
    clips = weight_clips(graph.value("b"), weight, by)
    assert np.array_equal(clips["b.weight_clip"], np.abs(weight).max(axis=(1, 2, 3)))

    def error(clip, bits):
        s = (clip.astype(np.float64) / twos(bits).hi).reshape(-1, 1, 1, 1)
        return ((quantize_weight(weight, s, twos(bits)) * s - weight) ** POWERS[by]).sum(axis=(1, 2, 3))

    for bits in (2, 4):
        best = error(clips[f"b.weight_clip.{bits}"], bits)
        for fraction in (0.5, 0.7, 0.9, 1.0):
            assert (best <= error(clips["b.weight_clip"] * fraction, bits) * (1 + 1e-3)).all()


def test_filters_of_any_size_get_the_same_share_of_their_range():
    """Of weights that small no sixth power is left in float32."""
    graph = chain()
    weight = graph.consts["b.weight"]
    clips, small = (weight_clips(graph.value("b"), w)["b.weight_clip.4"] for w in (weight, weight * np.float32(2**-60)))
    assert np.array_equal(clips, small * np.float32(2**60))


def test_weight_clips_by_the_largest_magnitude_serve_all_widths():
    graph = chain()
    clips = weight_clips(graph.value("b"), graph.consts["b.weight"], "max")
    assert list(clips) == ["b.weight_clip"]
    by_error = weight_clips(graph.value("b"), graph.consts["b.weight"])
    assert (by_error["b.weight_clip.4"] != clips["b.weight_clip"]).any()
    x = images(graph, 4)
    plan, tensors = calibrate(graph, x, weight_bits=4, act_bits=4, ranges=Ranges(weight="max"))
    assert not [name for name in tensors if name.endswith("weight_clip.4")]
    assert_stages_agree(graph, plan, tensors, x)


def test_reduced_weights_stay_within_seven_bits():
    graph = residual()
    x = images(graph, 4)
    plan, tensors = calibrate(graph, x, weight_bits=8, act_bits=8, ranges=Ranges(reduce=True))
    lowered = integer(graph, plan, tensors)
    tops = [int(np.abs(lowered.consts[n.consts["weight"]]).max()) for n in lowered.nodes if "weight" in n.consts]
    assert len(tops) == 4 and set(tops) == {63}
    assert_stages_agree(graph, plan, tensors, x)


def test_depthwise_weights_keep_eight_bits():
    graph = depthwise()
    _, tensors = calibrate(graph, images(graph, 4), weight_bits=8, act_bits=8, ranges=Ranges(reduce=True))
    assert {name for name in layers(graph) if f"{name}.weight_clip.8" not in tensors} == {"dw"}


def test_without_correction_nothing_joins_the_biases():
    graph = flat()
    _, tensors = calibrate(graph, images(graph, 8), weight_bits=4, act_bits=4, ranges=Ranges(correct=False))
    assert not [name for name in tensors if ".shift." in name]


def test_means_are_set_right_layer_by_layer():
    graph = flat()
    x = images(graph, 64)
    plan, tensors = calibrate(graph, x, weight_bits=2, act_bits=4)
    want = run(graph, {"image": x})["fc"].mean(axis=0)
    off = {k: v for k, v in tensors.items() if ".shift." not in k}
    with_shift, without = (run(integer(graph, plan, t), {"image": x})["fc"].mean(axis=0) for t in (tensors, off))
    assert np.abs(with_shift - want).max() < 0.02 * np.abs(want).max()
    assert np.abs(with_shift - want).max() < np.abs(without - want).max() / 3


def test_silent_values_get_a_clip_too():
    graph = chain()
    consts = {**graph.consts, "a.bn.bias": np.full(12, -100, np.float32)}
    graph = graph.with_nodes(graph.nodes, consts)
    x = images(graph, 4)
    plan, tensors = calibrate(graph, x, weight_bits=4, act_bits=4)
    assert tensors["b.act_clip"] == 1.0
    assert_stages_agree(graph, plan, tensors, x)


def test_every_point_of_the_analysis_has_a_range():
    graph = preact()
    plan, tensors = calibrate(graph, images(graph, 4), weight_bits=4, act_bits=4, residual="float32")
    points = analyse(graph, {n: b.act for n, b in plan.bits.items()}, "float32").points
    names = {f"{n}.weight_clip{b}" for n in layers(graph) for b in ("", ".2", ".4")}
    names |= {f"{n}.shift.{b.weight[0].encoding.bits}" for n, b in plan.bits.items()}
    assert {p.clip for p in points} | names | set(graph.consts) | {"golden_input"} == set(tensors)


def test_refusals():
    graph = chain()
    x = images(graph, 2)
    for w, a in ((3, 8), (16, 8), (8, 9), (8, 0)):
        with pytest.raises(UnsupportedError, match="bits: kernels have"):
            calibrate(graph, x, weight_bits=w, act_bits=a)
    with pytest.raises(UsageError, match=r"\[2, 3, 9, 8\]"):
        calibrate(graph, np.zeros((2, 3, 9, 8), np.float32), weight_bits=8, act_bits=8)
    with pytest.raises(UsageError, match="n > 0"):
        calibrate(graph, x[:0], weight_bits=8, act_bits=8)
    with pytest.raises(UsageError, match="NaN"):
        calibrate(graph, x * np.float32(np.nan), weight_bits=8, act_bits=8)
    values = graph.consts["a.weight"].copy()
    values[0, 0, 0, 0] = np.inf
    with pytest.raises(CorruptError, match=r"a\.weight: 1 values"):
        calibrate(graph.with_nodes(graph.nodes, {**graph.consts, "a.weight": values}), x, weight_bits=8, act_bits=8)


@pytest.mark.slow
def test_resnet20_loses_little(real_data: Path):
    """Whole test set: float 91.73, at 8 bits within half a point, at 4 bits within two and a half."""
    from bitpress.core.capture import capture
    from bitpress.core.evaluate import evaluate
    from bitpress.core.models import load
    from bitpress.core.quant import normalize_u8
    from bitpress.core.semantics import Semantics

    read = runpy.run_path(str(real_data / "unpack"))["read"]
    loaded = load("resnet20", weights=real_data / "weights" / "cifar10_resnet20.safetensors")
    graph = capture(loaded.module, loaded.in_shape)
    mean, std = np.float32(loaded.mean), np.float32(loaded.std)
    train = normalize_u8(read(real_data / "cifar10" / "cifar10_train_1.npz")[0][:512], mean, std)
    pixels, facts = read(real_data / "cifar10" / "cifar10_test.npz")
    for w, a, least in ((8, 8, 91.23), (4, 8, 90.2), (4, 4, 89.2)):
        plan, tensors = calibrate(graph, train, weight_bits=w, act_bits=a)
        exact = Semantics(integer(graph, plan, tensors), 2)
        found = evaluate(exact.run, pixels, facts["y"], prepare=lambda x: normalize_u8(x, mean, std))
        assert found.top1 >= least, f"w{w}a{a}: {found.top1}"
