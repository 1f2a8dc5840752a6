"""Flat programs: segments in place, memory, hints, and what has no flat form."""

from dataclasses import replace

import numpy as np
import pytest

from bitpress.compiler.check import check
from bitpress.compiler.fuse import fuse
from bitpress.compiler.lower import lower, plan_memory, problem_of
from bitpress.compiler.pack import pack, unflattened
from bitpress.compiler.program import Buffer, Step
from bitpress.compiler.prune import prune
from bitpress.core.encoding import parse
from bitpress.core.errors import UnsupportedError
from bitpress.core.integer import integer
from bitpress.kernels.packed import unpack
from bitpress.kernels.registry import baseline
from tests.benchmarks.graphs import Maker, everything, residual
from tests.compiler.nets import NETS, assert_stages_agree, chain, flat, images, inverted, plan_of, tensors_of

ZERO_TO_EIGHT = {"o2": (0, 9), "o8": (3, 4, 11), "o4": (1, 2)}  # of 12 filters; the others hold 0 bits
KEPT = (0, 1, 2, 3, 4, 9, 11)


def fused_of(graph, **choice):
    plan = plan_of(graph, **choice)
    return fuse(prune(integer(graph, plan, tensors_of(graph, plan))))


def lowered(graph, **choice):
    fused, c = fused_of(graph, **choice), graph.inputs[0].shape[0]
    program = lower(fused, pack(fused), mean=np.zeros(c), std=np.ones(c))
    check(program)
    return program


def test_zero_two_four_and_eight_bits_in_one_layer_of_a_chain():
    graph = chain()
    plan = plan_of(graph, keep={"a": KEPT}, segments={"a": ZERO_TO_EIGHT})
    program = assert_stages_agree(graph, plan, tensors_of(graph, plan), images(graph, 4))
    steps = [s for s in program.steps if s.layer == "a"]
    assert [s.name for s in steps] == ["a.relu#0", "a.relu#1", "a.relu#2"]
    assert [s.weight.encoding.name for s in steps] == ["o2", "o8", "o4"]
    assert [s.out_channels.tolist() for s in steps] == [[0, 5], [3, 4, 6], [1, 2]], "places among the kept filters"
    assert len({s.output for s in steps}) == 1
    assert [s.weight.fields.size for s in steps] == [2 * 7, 3 * 27, 2 * 14]


def test_zero_two_four_and_eight_bits_before_a_sum():
    graph = residual()
    segments = {"o2": (0, 9), "o8": (3, 4, 11), "o4": (1, 2)}
    plan = plan_of(graph, keep={"stem": KEPT, "a": (2, 5)}, segments={"b": segments, "stem": segments})
    program = assert_stages_agree(graph, plan, tensors_of(graph, plan), images(graph, 4))
    steps = [s for s in program.steps if s.layer == "b"]
    assert [len(s.inputs) for s in steps] == [2, 2, 2]
    assert sorted(c for s in steps for c in s.out_channels.tolist()) == list(range(7))


def test_depthwise_segments():
    graph = inverted()
    keep = {"a": (0, 3, 4, 9)}
    plan = plan_of(graph, keep=keep, segments={"dw": {"i8": (3, 9), "i2": (0,), "i4": (4,)}})
    program = assert_stages_agree(graph, plan, tensors_of(graph, plan), images(graph, 4))
    steps = [s for s in program.steps if s.layer == "dw"]
    assert {s.op for s in steps} == {"depthwise_conv2d"}
    assert [s.out_channels.tolist() for s in steps] == [[1, 3], [0], [2]]
    assert {s.groups for s in steps} == {4}


def test_one_width_twice_is_one_step():
    graph = chain()
    plan = plan_of(graph, weight="i4")
    bits = plan.bits["a"]
    (only,) = bits.weight
    halves = tuple(replace(only, filters=f) for f in (tuple(range(6, 12)), tuple(range(6))))
    plan = replace(plan, bits={**plan.bits, "a": replace(bits, weight=halves)})
    program = assert_stages_agree(graph, plan, tensors_of(graph, plan), images(graph, 2))
    (step,) = (s for s in program.steps if s.layer == "a")
    assert step.out_channels is None


def test_a_linear_layer_is_a_convolution_as_large_as_its_input():
    graph = flat()
    program = lowered(graph)
    step = next(s for s in program.steps if s.layer == "hidden")
    assert (step.op, step.kernel, program.buffers[step.inputs[0]].shape) == ("conv2d", (5, 4), (12, 5, 4))
    levels = unpack(step.weight).reshape(24, 5, 4, 12).transpose(0, 3, 1, 2).reshape(24, -1)
    assert np.array_equal(levels, fused_of(graph).consts["hidden.levels"])
    assert not [s for s in program.steps if "flat" in s.name], "a flatten is no step"


def test_concatenation_writes_in_place():
    graph = everything()
    program = lowered(graph)
    gathers = [s for s in program.steps if s.name.startswith("join")]
    assert [s.out_channels.tolist() for s in gathers] == [list(range(12)), [12, 13, 14, 15]]


def test_hints_are_baseline_rows():
    program = lowered(everything())
    for step in program.steps:
        assert step.hint == baseline(problem_of(step, program.buffers)).name
        assert step.hint.endswith("generic")


@pytest.mark.parametrize("net", NETS)
def test_memory_of_living_values_never_overlaps(net):
    program = lowered(NETS[net]())
    steps = program.steps
    born = {n: min(i for i, s in enumerate(steps) if s.output == n) for n in range(1, len(program.buffers))}
    dies = {n: max(i for i, s in enumerate(steps) if n in (s.output, *s.inputs)) for n in born}
    dies[program.output] = len(steps)
    for a in born:
        one = program.buffers[a]
        assert one.offset % 64 == 0
        assert one.offset + one.bytes <= program.arena_bytes
        for b in born:
            two = program.buffers[b]
            if a < b and born[a] <= dies[b] and born[b] <= dies[a]:
                assert one.offset + one.bytes <= two.offset or two.offset + two.bytes <= one.offset, (one, two)
    total = sum(-(-b.bytes // 64) * 64 for b in program.buffers[1:])
    assert program.arena_bytes < total or len(steps) < 4


def test_memory_takes_the_tightest_gap():
    def buffer(name, size):
        return Buffer(name, (size, 1, 1), "u8", 0, size)

    buffers = [buffer("in", 64), buffer("a", 640), buffer("b", 128), buffer("c", 64), buffer("d", 100)]
    steps = [
        Step("quantize", "a", (0,), 1), Step("requantize", "b", (1,), 2), Step("requantize", "c", (2,), 3),
        Step("requantize", "d", (3,), 4),
    ]  # fmt: skip
    planned, arena = plan_memory(buffers, steps, 4)
    assert arena == 640 + 128
    assert [b.offset for b in planned] == [0, 0, 640, 128, 0]
    assert plan_memory(buffers, steps, 4) == (planned, arena)


def test_widths_without_a_field_are_refused():
    graph = chain()
    for weight in ("o3", "i5"):
        with pytest.raises(UnsupportedError, match=f"a: weights {weight} do not pack"):
            lowered(graph, weight=weight)


def test_problems_without_a_kernel_name_the_layer():
    fused = fused_of(chain())

    def choose(problem):
        if problem.op == "conv2d" and problem.w == parse("o4") and problem.rows == 20:
            raise UnsupportedError("no kernel for conv2d at w4a4")
        return baseline(problem)

    with pytest.raises(UnsupportedError, match=r"^b: no kernel for conv2d at w4a4"):
        lower(fused, pack(fused), mean=np.zeros(3), std=np.ones(3), choose=choose)


def test_several_widths_in_a_grouped_convolution_are_refused():
    segments = {"c": {"i4": tuple(range(6)), "i8": tuple(range(6, 12))}}
    with pytest.raises(UnsupportedError, match="c: a convolution in 2 groups cannot hold 2 widths"):
        lowered(everything(), weight="i4", segments=segments)


def test_batch_norm_of_flattened_pixels_is_refused():
    m = Maker((2, 5, 5))
    x = m.norm("bn", m.add("flatten", "flat", m.add("relu", "r", m.conv("a", "image", 4))))
    graph = m.graph(m.linear("fc", m.add("relu", "r2", x), 3))
    with pytest.raises(UnsupportedError, match="r2: m differs between the pixels of a channel"):
        lowered(graph)


def test_concatenation_of_flattened_pixels_is_refused():
    m = Maker((2, 5, 5))
    x = m.add("flatten", "flat", m.add("relu", "r", m.conv("a", "image", 4)))
    y = m.add("flatten", "flat2", m.add("relu", "r2", m.conv("b", "image", 4)))
    graph = m.graph(m.linear("fc", m.add("concat", "join", x, y), 3))
    with pytest.raises(UnsupportedError, match="join: concat of a flattened value"):
        lowered(graph)


def test_what_lies_behind_a_flatten():
    fused = fused_of(flat())
    assert unflattened(fused, "flat") == (12, 5, 4)
    assert unflattened(fused, "hidden.relu") == (24, 1, 1)
