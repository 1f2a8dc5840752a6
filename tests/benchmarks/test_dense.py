"""The network and the images that peers are given: from a RUN, a model, the data set, or what the artifact has."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitpress.benchmarks import dense as module
from bitpress.benchmarks.dense import CALIBRATION_IMAGES, CHECK_IMAGES, dense, images
from bitpress.compiler.program import Buffer, Program
from bitpress.core.encoding import parse
from bitpress.core.errors import UsageError
from bitpress.core.plan import BitConfig, CompressionPlan, Segment

from .graphs import residual


def program(shape: tuple[int, int, int] = (1, 8, 8), outputs: int = 10, **facts: object) -> Program:
    """A program of which only the interface matters."""
    buffers = (Buffer("input", shape, "f32", 0, 0), Buffer("out", (outputs, 1, 1), "f32", 0, 4 * outputs))
    norms = {"mean": np.zeros(shape[0], np.float32), "std": np.ones(shape[0], np.float32)}
    return Program((), buffers, 0, 1, 64, **{**norms, **facts})


def test_images_of_the_training_part() -> None:
    pytest.importorskip("sklearn", reason="digits needs scikit-learn: extra [bench]")
    from bitpress.core import data

    before = len(data.test_reads)
    found = images(program(), "digits", np.random.default_rng(0))
    assert found.source == "training images of digits"
    assert found.calibration.shape == (CALIBRATION_IMAGES, 1, 8, 8)
    assert found.check.shape == (CHECK_IMAGES, 1, 8, 8)
    assert found.calibration.dtype == np.float32
    assert (found.calibration.min(), found.calibration.max()) == (0.0, 1.0)
    both = {bytes(x) for x in found.calibration} & {bytes(x) for x in found.check}
    assert not both
    assert len(data.test_reads) == before


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("digits", "its images are [1, 8, 8], the artifact takes [3, 8, 8]"),
        ("cifar10:nowhere", "lacks data_batch_1.bin"),
        ("random:5", "its training part has 5 images, 128 are needed"),
        (None, "no data set is recorded"),
    ],
)
def test_images_without_a_data_set_say_why(spec: str | None, reason: str) -> None:
    pytest.importorskip("sklearn", reason="digits needs scikit-learn: extra [bench]")
    golden = np.full((1, 3, 8, 8), 2.0, np.float32)
    found = images(program((3, 8, 8), golden_input=golden), spec, np.random.default_rng(0))
    assert found.source.startswith("golden input (")
    assert reason in found.source
    np.testing.assert_array_equal(found.calibration, golden)


def test_the_network_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="a RUN needs safetensors: extra [search]")
    from bitpress.core.rundir import write_json, write_run

    graph = residual()
    layers = [n for n in graph if n.op in ("conv2d", "linear")]
    bits = {n.name: BitConfig((Segment(parse("i8"), tuple(range(n.shape[0]))),), parse("u8")) for n in layers}
    write_run(tmp_path, graph, CompressionPlan(graph.fingerprint(), bits), {}, {})
    write_json(tmp_path / "result.json", {"data": "digits", "method": "sbs"})
    found = dense(program((3, 8, 8)), against=tmp_path, model=None, weights=None)
    assert found.graph.fingerprint() == graph.fingerprint()
    assert found.data == "digits"
    with pytest.raises(UsageError, match=r"takes \[3, 8, 8\] and gives 10 values, the artifact takes \[1, 8, 8\]"):
        dense(program(), against=tmp_path, model=None, weights=None)


def test_the_network_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the zoo needs torch: extra [search]")
    found = dense(program(outputs=7), against=None, model="digits_cnn", weights=None)
    assert found.source == "digits_cnn with random weights"
    assert found.graph.value(found.graph.outputs[0]).shape == (7,)
    with pytest.raises(UsageError, match="no weights file nowhere"):
        dense(program(), against=None, model="digits_cnn", weights="nowhere")
    monkeypatch.setattr(module, "_of_model", lambda *_: found)
    with pytest.raises(UsageError, match="not the same network"):
        dense(program(outputs=8), against=None, model="digits_cnn", weights=None)


def test_a_model_without_the_layers_of_the_artifact() -> None:
    pytest.importorskip("torch", reason="the zoo needs torch: extra [search]")
    other = replace(program(outputs=10), meta={"layers": [{"name": "conv1"}, {"name": "stem"}]})
    with pytest.raises(UsageError, match=r"has no layer 'stem', which the artifact has \(1 such layers\)"):
        dense(other, against=None, model="digits_cnn", weights=None)


def test_requests_that_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="give one of them"):
        dense(program(), against="run", model="digits_cnn", weights=None)
    with pytest.raises(UsageError, match="belongs to --model"):
        dense(program(), against=None, model=None, weights="w.safetensors")


def test_images_need_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="digits needs scikit-learn: extra [bench]")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert images(program(), "digits", np.random.default_rng(0)).source == "training images of digits"
