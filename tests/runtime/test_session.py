"""The native session against the numpy executor, bit by bit: every ISA of this host, threads, batches, errors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from bitpress.compiler import artifact
from bitpress.compiler.execute import execute, values
from bitpress.compiler.lower import problem_of
from bitpress.compiler.program import Epilogue, Program
from bitpress.core.encoding import parse
from bitpress.core.errors import CorruptError, EnvironmentMissing, UnsupportedError, UsageError
from bitpress.core.quant import act_bounds
from bitpress.kernels.registry import explain

from . import samples

_native = pytest.importorskip("bitpress._native", reason="the native module is not built")
pytestmark = pytest.mark.native

ISAS = _native.cpu_isas()
PROGRAMS: dict[str, Program] = {
    "straight": samples.straight(),
    "odd": samples.straight("o2", "u2", channels=33),
    "odd 8 bit": samples.straight("o8", "u8"),
    "bipolar": samples.straight("b1", "i2", channels=65),
    **{f"everything {seed}": samples.everything(seed) for seed in range(3)},
    **{f"gates {seed}": samples.gates(seed) for seed in range(2)},
    "deep": samples.deep(),
}


def images(program: Program, n: int, seed: int = 5) -> np.ndarray:
    """float32 [n, C, H, W] about the size that the samples expect."""
    return np.random.default_rng(seed).normal(size=(n, *program.buffers[0].shape)).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_value_on_every_isa(isa: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_FORCE_ISA", isa)
    program = PROGRAMS[name]
    session = _native.Session(artifact.encode(program))
    assert session.isa == isa
    x = images(program, 2)
    want, got = values(program, x), session.values(x)
    assert [key for key, _ in got] == list(want)
    for key, value in got:
        assert value.dtype == want[key].dtype
        np.testing.assert_array_equal(value, want[key], f"{isa}: {key}")


SLICED = [str(row["name"]) for row in _native.kernels() if row["usable"] and row["name"].startswith("bitsliced_")]
# Height, width, kernel, padding of the layer that reads planes, whose output is as large as its input.
LINKED = [
    (16, 16, (3, 3), (1, 1, 1, 1)), (32, 32, (3, 3), (1, 1, 1, 1)), (14, 14, (3, 3), (1, 1, 1, 1)),
    (9, 11, (3, 3), (1, 1, 1, 1)), (56, 56, (3, 3), (1, 1, 1, 1)), (21, 30, (5, 3), (0, 2, 4, 0)),
    (13, 40, (3, 5), (2, 2, 0, 2)), (5, 64, (3, 3), (1, 1, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize("kernel", SLICED)
@pytest.mark.parametrize("geometry", LINKED, ids=lambda g: f"{g[0]}x{g[1]}")
@pytest.mark.parametrize(("weight", "act"), [("o2", "u2"), ("i2", "u2"), ("t2", "u4"), ("b1", "u1")])
def test_planes_are_handed_over(
    kernel: str, geometry: tuple, weight: str, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three layers of bit slices, of which only the last writes levels, for one thread; the same where all do."""
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", kernel)
    h, w, window, padding = geometry
    m = samples.Maker((3, 2 * h, w), seed=h)
    x = m.conv("first", m.quantize("u4"), (35, act), weight, stride=(2, 1))
    x = m.conv("second", x, (20, act), weight, kernel=window, padding=padding)
    x = m.conv("third", x, (16, "i8"), weight, kernel=window, padding=padding)
    program = m.program(m.requantize("out", x, "f32"))
    session = _native.Session(artifact.encode(program))
    whys = [step["why"] for step in session.steps() if step["op"] == "conv2d"]
    linked = [("leaves" in why, "reads bit planes" in why) for why in whys]
    if act != "u4" and (h, w) not in ((9, 11), (13, 40)):  # whose planes take more memory than their levels
        assert linked == [(True, False), (True, True), (False, True)]
    some = images(program, 3)
    want = values(program, some)
    out = want["out"].reshape(3, -1)
    np.testing.assert_array_equal(session.run(some), out)
    for key, value in session.values(some):
        np.testing.assert_array_equal(value, want[key], key)
    np.testing.assert_array_equal(session.run(some), out)
    np.testing.assert_array_equal(_native.Session(artifact.encode(program), threads=2).run(some), out)


def test_bit_slices_cost_more_where_sums_come_out_in_both_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's view of its steps and the compiler's give the same costs: levels, few and many, a residual."""
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "generic")
    m = samples.Maker((16, 12, 12), seed=1)
    one = {"kernel": (1, 1), "padding": (0, 0, 0, 0)}
    few = m.conv("few", m.quantize("u2"), (16, "u2"), "i2", **one)
    m.conv("many", few, (16, "u8"), "i2", **one)
    x = m.conv("added", few, (16, "u2"), "i2", residual=few, **one)
    program = m.program(m.requantize("out", x, "f32"))
    costs = {}
    for step, row in zip(program.steps, _native.Session(artifact.encode(program)).steps(), strict=True):
        if step.op == "conv2d":
            found = {verdict.kernel.name: verdict.cost for verdict in explain(problem_of(step, program.buffers))}
            costs[step.name] = found[row["kernel"]]
            assert row["kernel"] == "bitsliced_generic" and row["why"].startswith(f"about {costs[step.name]:.2g} us")
    assert costs["few"] < 0.95 * min(costs["many"], costs["added"])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("act", ["u8", "i8", "u4", "i2"])
@pytest.mark.parametrize("far", [1.0, 1e2, 3e5, 1e12, 1e30])
def test_values_far_beyond_their_bounds_are_bounded(
    isa: str, act: str, far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond int16 and int32, too, where packing and conversion end; with a residual, which pulls some back."""
    monkeypatch.setenv("BITPRESS_FORCE_ISA", isa)
    m = samples.Maker()
    x = m.conv("first", m.quantize("i8"), (32, act), "i8")
    x = m.conv("second", x, (32, act), "i4", residual=x)
    program = m.program(m.conv("fc", x, (10, "f32"), "i8", kernel=(8, 8), padding=(0, 0, 0, 0)))
    steps = list(program.steps)
    for i, step in enumerate(steps[:-1]):
        if step.op == "conv2d" and step.epilogue is not None:
            epilogue = replace(step.epilogue, m=step.epilogue.m * np.float32(far), b=step.epilogue.b * np.float32(-far))
            steps[i] = replace(step, epilogue=epilogue)
    program = replace(program, steps=tuple(steps))
    x_in = images(program, 1)
    want, got = values(program, x_in), dict(_native.Session(artifact.encode(program)).values(x_in))
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value, f"{isa}: {key}")
    levels = values(program, x_in)[next(key for key in want if "first" in key)]
    assert len(np.unique(levels)) > 1  # both bounds are met


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("source", ["u8", "i8"])
@pytest.mark.parametrize("target", ["u4", "i4", "u3", "u2"])
def test_every_byte_becomes_its_level_at_any_scale(
    isa: str, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of one scale for all channels, which kernels count or multiply: from flat to steep, with any offset."""
    monkeypatch.setenv("BITPRESS_FORCE_ISA", isa)
    rng = np.random.default_rng(7)
    scales = [*np.exp(rng.uniform(np.log(0.002), np.log(1.5), 24)), 1 / 17, 1 / 16, 0.5, 0.999, 15 / 255]
    bytes_ = np.resize(np.arange(256), (1, 3, 16, 19)).astype(np.float32)
    x = bytes_ - (128 if source == "i8" else 0)
    for number, scale in enumerate(scales):
        m = samples.Maker((3, 16, 19))
        levels = m.requantize("few", m.quantize(source), target)
        program = m.program(m.conv("fc", levels, (10, "f32"), "i8", kernel=(16, 19), padding=(0, 0, 0, 0)))
        steps = list(program.steps)
        lo, hi = act_bounds(parse(source))
        steps[0] = replace(steps[0], epilogue=Epilogue(np.ones(3, np.float32), np.zeros(3, np.float32), lo, hi))
        few = steps[1].epilogue
        assert few is not None
        offset = (0.0, 0.5, -3.25, 7.1)[number % 4]
        steps[1] = replace(steps[1], epilogue=replace(
            few, m=np.full(3, scale, np.float32), b=np.full(3, offset, np.float32), m_r=0.0
        ))  # fmt: skip
        program = replace(program, steps=tuple(steps))
        want, got = values(program, x), dict(_native.Session(artifact.encode(program)).values(x))
        for key, value in want.items():
            np.testing.assert_array_equal(got[key], value, f"{isa}: {key} at {scale} and {offset}")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["straight", "everything 0", "gates 0", "deep"])
def test_threads_and_batches_change_nothing(name: str, threads: int) -> None:
    program = PROGRAMS[name]
    session = _native.Session(artifact.encode(program), threads=threads)
    x = images(program, 16)
    want = execute(program, x)
    for batch in (0, 1, 3, 16):
        got = session.run(x[:batch])
        assert got.shape == (batch, want.shape[1]) and got.dtype == np.float32
        np.testing.assert_array_equal(got, want[:batch])


def wide(threads: int) -> tuple[np.ndarray, np.ndarray]:
    """A net with enough work a step that threads really wake, rows and (in the linear layer) blocks shared out."""
    m = samples.Maker((3, 24, 24))
    x = m.conv("conv", m.quantize("i8"), (48, "u8"), "i8")
    x = m.conv("grouped", x, (48, "u8"), "i4", groups=3)
    x = m.conv("dw", x, (48, "u8"), "i8", stride=(2, 2), depthwise=True)
    program = m.program(m.conv("fc", x, (256, "f32"), "i8", kernel=(12, 12), padding=(0, 0, 0, 0)), labels=())
    x = images(program, 3)
    return _native.Session(artifact.encode(program), threads=threads).run(x), execute(program, x)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_share_out_rows_and_blocks(threads: int) -> None:
    got, want = wide(threads)
    np.testing.assert_array_equal(got, want)


def test_calls_from_many_threads_wait_for_each_other() -> None:
    program = PROGRAMS["everything 0"]
    session = _native.Session(artifact.encode(program), threads=2)
    x = images(program, 8)
    want = execute(program, x)
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not np.array_equal(session.run(x[i : i + 1]), want[i : i + 1]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_profile_and_steps_speak_of_the_same_steps() -> None:
    program = PROGRAMS["everything 0"]
    session = _native.Session(artifact.encode(program))
    times = session.profile(images(program, 2))
    assert times.shape == (len(program.steps),) and (times >= 0).all() and times.sum() > 0
    for step, row in zip(program.steps, session.steps(), strict=True):
        assert (row["name"], row["layer"], row["op"]) == (step.name, step.layer, step.op)
        assert row["kernel"].endswith("_" + row["isa"]) and row["why"]


def test_errors_are_the_package_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    data = artifact.encode(PROGRAMS["straight"])
    with pytest.raises(CorruptError, match=r"^BadMagic"):
        _native.Session(b"nothing of ours, and of some length")
    session = _native.Session(data)
    with pytest.raises(UsageError, match=r"\[1, 3, 8, 9\]"):
        session.run(np.zeros((1, 3, 8, 9), np.float32))
    with pytest.raises(TypeError):
        session.run(np.zeros((1, 3, 8, 8), np.float64))
    with pytest.raises(UsageError, match="threads=0"):
        _native.Session(data, threads=0)
    for value, error, says in (
        ("avx3", UsageError, "generic, avx2"),
        ("neon", EnvironmentMissing, "neon"),
    ):
        monkeypatch.setenv("BITPRESS_FORCE_ISA", value)
        with pytest.raises(error, match=says):
            _native.Session(data)
    monkeypatch.delenv("BITPRESS_FORCE_ISA")
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", "i8dot_z80")
    with pytest.raises(UsageError, match="i8dot_generic"):
        _native.Session(data)
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", "bitserial_generic")
    kernels = [row["kernel"] for row in _native.Session(data).steps()]
    assert kernels.count("bitserial_generic") == 2 and kernels[0].startswith("quantize")


def test_huge_borders_are_refused_before_memory_is_taken() -> None:
    """A legal file of 100 kB whose one bordered row would take 2 GiB."""
    m = samples.Maker((32768, 1, 1))
    wide = m.conv(
        "wide", m.quantize("u8"), (1, "f32"), "b1", kernel=(1, 1), stride=(1, 65535), padding=(0, 65535, 0, 0)
    )
    with pytest.raises(UnsupportedError, match=r"step wide needs \d+ bytes of working memory"):
        _native.Session(artifact.encode(m.program(wide)))


@pytest.mark.skipif("avx2" not in ISAS, reason="this host has generic rows only")
def test_a_forced_isa_is_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "avx2")
    rows = {row["name"]: row for row in _native.kernels()}
    assert rows["i8dot_generic"]["usable"] and rows["i8dot_avx2"]["usable"] and not rows["i8dot_avx512"]["usable"]
    used = {row["isa"] for row in _native.Session(artifact.encode(PROGRAMS["everything 0"])).steps()}
    assert "avx2" in used and used <= {"generic", "avx2"}
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", "i8dot_avx512vnni")
    with pytest.raises(EnvironmentMissing):
        _native.Session(artifact.encode(PROGRAMS["straight"]))


def test_an_unknown_isa_ends_a_process_with_a_usage_error() -> None:
    code = "from bitpress import _native; _native.kernels()"
    env = os.environ | {"BITPRESS_FORCE_ISA": "sse9"}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "UsageError" in done.stderr and "avx512vnni" in done.stderr
