"""A dense float network rebuilt from a program computes what the program computes, but for rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitpress.benchmarks.rebuild import rebuild
from bitpress.compiler.execute import execute
from bitpress.compiler.program import Program, Step
from bitpress.core.graph import Graph, run, verify

from ..runtime.samples import Maker, everything, straight


def images(program: Program, count: int = 4) -> np.ndarray:
    shape = program.buffers[program.input].shape
    return np.random.default_rng(5).uniform(-2.4, 2.4, (count, *shape)).astype(np.float32)  # within the input's clip


def outputs(graph: Graph, x: np.ndarray) -> np.ndarray:
    return run(graph, {graph.inputs[0].name: x})[graph.outputs[0]]


def assert_alike(program: Program, graph: Graph) -> None:
    """Rounding to 8 bits moves a value by half a level; a deep net of random weights adds that up to a few levels."""
    x = images(program)
    want, got = execute(program, x), outputs(graph, x)
    assert got.shape == want.shape
    error = np.abs(got - want).max()
    assert error <= len(program.steps) * 2 * np.ptp(want) / 255, error / np.ptp(want)


def trained(program: Program) -> Program:
    """The sample as a trained net looks: sums stay below their clamp, pools scale all channels alike."""

    def step(s: Step) -> Step:
        e = s.epilogue
        if e is not None and len(s.inputs) > 1:
            return replace(s, epilogue=replace(e, m=e.m / 4, b=e.b / 4))
        if e is not None and s.op == "sum_pool2d":
            return replace(s, epilogue=replace(e, m=np.full_like(e.m, e.m[0]), b=np.zeros_like(e.b)))
        return s

    return replace(program, steps=tuple(step(s) for s in program.steps))


@pytest.mark.parametrize("weight", ["i8", "o8", "o2"])
def test_straight(weight: str) -> None:
    program = trained(straight(weight))
    graph = rebuild(program, {})
    verify(graph, "float")
    assert [n.op for n in graph] == ["conv2d", "clip", "global_avg_pool", "flatten", "linear"]
    assert_alike(program, graph)


def test_removed_filters_are_there_without_effect() -> None:
    program = trained(straight("i8", channels=7))
    graph = rebuild(program, {"conv": 16})
    shapes = {n.name: graph.consts[n.consts["weight"]].shape for n in graph if "weight" in n.consts}
    assert shapes == {"conv": (16, 3, 3, 3), "fc": (10, 16)}
    x = images(program)
    assert np.array_equal(outputs(graph, x), outputs(rebuild(program, {}), x))


def residual(storage: str = "u8") -> Program:
    """Segments, a residual, a strided gather with zeros as option-A shortcuts have it, pools."""
    m = Maker((3, 8, 8), 1)
    x = m.conv("stem", m.quantize(), (8, storage), "i8")
    wide = m.buffer("mixed", (8, 8, 8), storage)
    m.conv("mixed#0", x, wide, "i8", out_channels=[0, 3, 4, 7], residual=x)
    m.conv("mixed#1", x, wide, "i4", out_channels=[1, 2, 5, 6], residual=x)
    short = m.gather("short", wide, [-1, -1, *range(8), -1, -1], (2, 2))
    y = m.conv("dw", wide, (8, storage), "i8", depthwise=True)
    y = m.conv("down", y, (12, storage), "i8", stride=(2, 2), residual=short)
    y = m.pool("max_pool2d", "max", y, storage, (3, 3), (1, 1), (1, 1, 1, 1))
    y = m.pool("sum_pool2d", "pool", y, storage, (4, 4), (1, 1))
    return m.program(m.conv("fc", y, (10, "f32"), "i8", kernel=(1, 1), padding=(0, 0, 0, 0)))


def test_residual_net() -> None:
    program = trained(residual())
    graph = rebuild(program, {})
    verify(graph, "float")
    assert [n.name for n in graph if n.op == "add"] == ["mixed.sum", "down.out.sum"]
    assert len([n for n in graph if n.op == "conv2d"]) == 4  # two segments are one layer
    assert not [n for n in graph if n.op == "batch_norm"]  # residuals need no scaling
    assert_alike(program, graph)


def test_dense_counts_travel_through_sums_and_gathers() -> None:
    program = trained(residual())
    graph = rebuild(program, {"mixed": 10, "stem": 10, "down": 16})
    shapes = {n.name: n.shape[0] for n in graph}
    assert (shapes["stem"], shapes["mixed"], shapes["dw"], shapes["down"], shapes["max"]) == (10, 10, 10, 16, 16)
    assert_alike(program, graph)


def test_every_op() -> None:
    program = everything()
    graph = rebuild(program, {"stem": 24})
    verify(graph, "float")
    x = images(program)
    assert outputs(graph, x).shape == execute(program, x).shape


def test_scattered_gather() -> None:
    m = Maker((3, 4, 4))
    x = m.quantize("i8")
    wide = m.gather("wide", x, [-1, 2, 0, 1, -1, -1, 1], (2, 1), (1, 0, 1, 2))
    program = m.program(m.conv("fc", wide, (5, "f32"), "i8", kernel=m.shape(wide)[1:], padding=(0, 0, 0, 0)))
    assert_alike(program, rebuild(program, {}))


def test_meta_is_not_read() -> None:
    program = straight()
    plain = rebuild(replace(program, meta={}), {})
    assert plain.text() == rebuild(program, {}).text()
