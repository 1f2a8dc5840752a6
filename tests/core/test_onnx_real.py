"""Quantised ONNX files of the public ResNet-20 and real images, in and out: the answers are onnxruntime's."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import bitpress
from bitpress.core.models import load
from bitpress.core.quant import normalize_u8

from .onnx_nets import annotate, export, outputs, quantise
from .test_onnx_codes import WAYS, Digits, assert_codes_near

pytestmark = pytest.mark.slow
IMAGES = 1000  # of the test part
CHOSEN: dict[str, dict[str, Any]] = {
    "symmetric, per channel": WAYS["symmetric, per channel"],
    "Brevitas, 4 bits": {"form": "QONNX", "weights": 4, "acts": 8},
    "Brevitas, 2 bits": {"form": "QONNX", "weights": 2, "acts": 8},
}


@pytest.fixture(scope="module")
def real(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """The float file, 256 images to calibrate with, and test images with labels."""
    read = runpy.run_path(str(real_data / "unpack"))["read"]
    made = load("resnet20", weights=real_data / "weights" / "cifar10_resnet20.safetensors")
    mean, std = np.float32(made.mean), np.float32(made.std)
    train = normalize_u8(read(real_data / "cifar10" / "cifar10_train_1.npz")[0][:256], mean, std)
    pixels, facts = read(real_data / "cifar10" / "cifar10_test.npz")
    path = export(made.module, tmp_path_factory.mktemp("real") / "float.onnx", made.in_shape)
    return Digits(path, train, normalize_u8(pixels[:IMAGES], mean, std), facts["y"][:IMAGES])


@pytest.mark.parametrize("way", CHOSEN)
def test_quantised_files_answer_as_they_do_in_onnxruntime(way: str, real: Digits, tmp_path: Path) -> None:
    """Layer by layer codes differ by at most one; end to end top-1 agrees; few bits arrive in the packing."""
    options = CHOSEN[way]
    file = (annotate if "acts" in options else quantise)(real.path, tmp_path / "net.onnx", real.train, **options)
    assert_codes_near(file, real)
    bitpress.compile(str(file), tmp_path / "net.bpk", recipe=bitpress.Recipe())
    ours = bitpress.load(tmp_path / "net.bpk")(real.test).argmax(axis=1)
    theirs = next(iter(outputs(file, real.test).values())).argmax(axis=1)
    assert (ours == theirs).mean() >= 0.99
    if "acts" in options:
        layers = bitpress.inspect(tmp_path / "net.bpk")["layers"]
        assert {row["w_bits"] for row in layers} == {options["weights"]}


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_exported_files_answer_as_we_do(bits: str, real: Digits, real_data: Path, tmp_path: Path) -> None:
    weights = str(real_data / "weights" / "cifar10_resnet20.safetensors")
    recipe = bitpress.Recipe(bits, "random:64", weights=weights)
    bitpress.compile("resnet20", tmp_path / "net.bpk", recipe=recipe)
    bitpress.export(tmp_path / "net.bpk", tmp_path / "net.onnx")
    ours = bitpress.load(tmp_path / "net.bpk")(real.test).argmax(axis=1)
    theirs = next(iter(outputs(tmp_path / "net.onnx", real.test).values())).argmax(axis=1)
    assert (ours == theirs).mean() >= 0.99
