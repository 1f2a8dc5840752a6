"""The public ResNet-20 on all 10,000 CIFAR-10 test images, by the verbs: post-training, compiled, evaluated twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .tool import good

pytestmark = pytest.mark.slow
FLOAT_TOP1, POINTS = 91.73, 0.5  # of the public weights; what eight bits may cost


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Weights of the network, and DATA: the official binary layout, unpacked from the shards if need be."""
    folder = os.environ.get("BITPRESS_DATA", "")
    if not folder:
        pytest.skip("BITPRESS_DATA is not set: real weights and images are not here")
    root, weights = Path(folder), Path(folder) / "weights" / "cifar10_resnet20.safetensors"
    if (root / "cifar-10-batches-bin").is_dir():
        return weights, f"cifar10:{root}"
    target = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, str(root / "unpack"), str(target)], check=True, capture_output=True)
    return weights, f"cifar10:{target}"


@pytest.fixture(scope="module")
def made(data: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the RUN `run` and the artifact `x.bpk`, w8a8."""
    folder = tmp_path_factory.mktemp("resnet20")
    weights, spec = data
    ptq = ("--quantize", "w8a8", "--calibrate", spec)
    good("compile", "resnet20", "--weights", weights, *ptq, "--run", folder / "run", "-o", folder / "x.bpk")
    return folder


def test_eight_bits_cost_little_and_both_executions_agree(made: Path, data: tuple[Path, str]) -> None:
    integer = good("eval", made / "run", "--data", data[1], "--json", "-").document()
    compiled = good("eval", made / "x.bpk", "--data", data[1], "--json", "-").document()
    assert integer["n"] == compiled["n"] == 10_000
    assert abs(integer["top1"] - FLOAT_TOP1) <= POINTS
    assert compiled["predictions_sha256"] == integer["predictions_sha256"]
    assert (compiled["top1"], compiled["top5"]) == (integer["top1"], integer["top5"])


def test_real_images_verify_exactly(made: Path, data: tuple[Path, str]) -> None:
    document = good(
        "verify", made / "x.bpk", "--against", made / "run", "--data", data[1], "--batch", "1,3,16", "--json", "-"
    ).document()
    assert document["exact"] and len(document["stages"]) >= 2


@pytest.mark.timed
@pytest.mark.native
def test_faster_than_float_onnxruntime(made: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    document = good("bench", made / "x.bpk", "--against", made / "run", "--json", "-").document()
    peers = {peer["name"]: peer for peer in document["runs"][0]["peers"]}
    assert peers["onnxruntime-fp32"]["ratio"] > 1 and peers["onnxruntime-fp32"]["output_matches"] > 0.9
