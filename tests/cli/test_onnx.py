"""ONNX files where a MODEL is taken: float or quantised, and what is refused before anything is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
torch = pytest.importorskip("torch", reason="models are exported by torch: extra [search]")

from onnx.helper import make_node as op  # noqa: E402
from onnxruntime.quantization import QuantType  # noqa: E402

from ..core.onnx_nets import QONNX, Residual, annotate, export, quantise, write  # noqa: E402
from .tool import good, refused  # noqa: E402

ONE = np.float32(1)
PTQ = ("--quantize", "w8a8", "--calibrate", "random:8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float.onnx, and coded.onnx as onnxruntime quantises it by default."""
    made = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    export(Residual(), made / "float.onnx", (1, 8, 8))
    images = np.random.default_rng(0).random((32, 1, 8, 8)).astype(np.float32)
    quantise(
        made / "float.onnx", made / "coded.onnx", images, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8
    )
    write(made / "strange.onnx", [op("Conv", ["x", "w"], ["c"]), op("Tanh", ["c"], ["y"], name="act")],
          {"w": np.ones((2, 3, 1, 1), np.float32)})  # fmt: skip
    for bits in (2, 4):
        annotate(made / "float.onnx", made / f"quant{bits}.onnx", images, form="QONNX", weights=bits, acts=4)
    quantise(
        made / "float.onnx", made / "operators.onnx", images, form="QOperator", activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    write(
        made / "trunc.onnx", [op("Trunc", ["x", *"szbo"], ["y"], domain=QONNX, name="cut")], dict.fromkeys("szbo", ONE)
    )
    write(made / "dynamic.onnx", [op("DynamicQuantizeLinear", ["x"], [*"qsz"], name="scale"),
                                  op("DequantizeLinear", [*"qsz"], ["y"])])  # fmt: skip
    rounded = [
        op("QuantizeLinear", ["x", "s", "u"], ["q"], name="twice"),
        op("DequantizeLinear", ["q", "s", "u"], ["d"]),
    ]
    write(made / "ambiguous.onnx", [*rounded, op("Relu", ["x"], ["r"], name="raw"), op("Add", ["d", "r"], ["y"])],
          {"s": ONE, "u": np.uint8(0)})  # fmt: skip
    write(made / "open.onnx", [op("Relu", ["x"], ["y"])], shape=("n", 3, "h", "w"))
    (made / "damaged.onnx").write_bytes(b"\x08\x0a\x12")
    return made


def test_a_quantised_file_needs_no_bits_and_no_images(folder: Path, tmp_path: Path) -> None:
    """Its RUN and its artifact compute the same, in every stage and on every image."""
    artifact, run = tmp_path / "x.bpk", tmp_path / "run"
    document = good("compile", folder / "coded.onnx", "-o", artifact, "--run", run, "--json", "-").document()
    assert document["method"] == "ptq" and document["quantize"] is None
    assert document["file_bytes"] == artifact.stat().st_size
    layers = good("inspect", artifact, "--json", "-").document()["layers"]
    assert [row["name"] for row in layers] == ["stem", "body", "down", "fc"]
    assert {(row["w_bits"], row["a_bits"]) for row in layers} == {(8, 8)}
    assert good("verify", artifact, "--against", run, "--json", "-").document()["exact"]
    answers = [good("eval", what, "--data", "digits", "--json", "-").document() for what in (artifact, run)]
    assert answers[0]["predictions_sha256"] == answers[1]["predictions_sha256"]
    again = tmp_path / "again.bpk"
    good("compile", run, "-o", again)
    assert again.read_bytes() == artifact.read_bytes()


@pytest.mark.parametrize(("name", "bits"), [("quant2", 2), ("quant4", 4), ("operators", 8)])
def test_other_forms_keep_their_bits_into_the_packing(name: str, bits: int, folder: Path, tmp_path: Path) -> None:
    artifact, run = tmp_path / "x.bpk", tmp_path / "run"
    good("compile", folder / f"{name}.onnx", "-o", artifact, "--run", run)
    layers = good("inspect", artifact, "--json", "-").document()["layers"]
    assert {(row["name"], row["w_bits"]) for row in layers} == {(n, bits) for n in ("stem", "body", "down", "fc")}
    assert good("verify", artifact, "--against", run, "--json", "-").document()["exact"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("trunc", "cut (Trunc: cuts the lowest bits"),
        ("dynamic", "scale (DynamicQuantizeLinear: its scale depends on the image"),
        ("ambiguous", "twice (QuantizeLinear: x is read rounded here and unrounded by Relu raw"),
    ],
)
def test_what_no_form_can_hold_is_refused_by_its_node(name: str, why: str, folder: Path, tmp_path: Path) -> None:
    said = refused(3, "compile", folder / f"{name}.onnx", "-o", tmp_path / "x.bpk", "--run", tmp_path / "run")
    assert why in said
    assert not list(tmp_path.iterdir())


def test_mean_and_std_are_recorded(folder: Path, tmp_path: Path) -> None:
    plain, moved = tmp_path / "plain.bpk", tmp_path / "moved.bpk"
    good("compile", folder / "coded.onnx", "-o", plain)
    good("compile", folder / "coded.onnx", "-o", moved, "--mean", "0.5", "--std", "0.25")
    sums = [
        good("eval", what, "--data", "digits", "--json", "-").document()["predictions_sha256"]
        for what in (plain, moved)
    ]
    assert sums[0] != sums[1]


def test_a_float_file_is_quantised_like_any_model(folder: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "x.bpk"
    document = good("compile", folder / "float.onnx", *PTQ, "-o", artifact, "--json", "-").document()
    assert document["quantize"] == "w8a8"
    assert good("verify", artifact, "--json", "-").document()["exact"]


@pytest.mark.parametrize("name", ["float.onnx", "coded.onnx"])
def test_plan_counts(name: str, folder: Path) -> None:
    document = good("plan", folder / name, "--bits", "w4a4", "--json", "-").document()
    assert [row["macs"] for row in document["layers"]] == [4608, 36864, 4608, 160]
    assert document["unsupported"] == [] and document["classes"] == 10


def test_plan_lists_what_compile_refuses(folder: Path, tmp_path: Path) -> None:
    document = good("plan", folder / "strange.onnx", "--json", "-").document()
    assert document["unsupported"] == [{"name": "act", "op": "Tanh: has no counterpart", "shape": [2, 6, 7]}]
    artifact = tmp_path / "x.bpk"
    assert "act (Tanh: has no counterpart)" in refused(3, "compile", folder / "strange.onnx", *PTQ, "-o", artifact)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "name", "options", "why"),
    [
        (2, "float.onnx", (), "holds floats: give --quantize and --calibrate"),
        (2, "coded.onnx", PTQ, "is quantised already"),
        (2, "coded.onnx", ("--residual", "float32"), "--residual: "),
        (2, "coded.onnx", ("--weights", "w.safetensors"), "--weights: "),
        (2, "float.onnx", (*PTQ, "--weights", "w.safetensors"), "holds its weights itself"),
        (2, "coded.onnx", ("--classes", "9"), "gives 10 values"),
        (2, "coded.onnx", ("--mean", "1,2"), "mean has 2 values"),
        (2, "none.onnx", PTQ, "there is no file"),
        (3, "open.onnx", PTQ, "give --in-shape"),
        (4, "damaged.onnx", PTQ, "no valid ONNX"),
    ],
)
def test_refusals_write_nothing(
    code: int, name: str, options: tuple[str, ...], why: str, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.bpk"
    assert why in refused(code, "compile", folder / name, *options, "-o", output, "--run", tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_search_takes_floats(folder: Path, tmp_path: Path) -> None:
    command = ("search", folder / "coded.onnx", "--data", "digits", "--method", "uniform", "--bits", "w4a4")
    assert "a search takes floats" in refused(2, *command, "--out", tmp_path / "run")


def without(library: str, folder: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Compiles the quantised file where `library` cannot be imported."""
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"sys.argv = ['bitpress', 'compile', {str(folder / 'coded.onnx')!r}, '-o', {str(output)!r}]\n"
        "from bitpress.__main__ import main; main()"
    )
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)


def test_without_onnx_the_extra_is_named(folder: Path, tmp_path: Path) -> None:
    done = without("onnx", folder, tmp_path / "x.bpk")
    assert done.returncode == 5 and "[onnx]" in done.stderr and "Traceback" not in done.stderr


def test_a_quantised_file_compiles_without_torch(folder: Path, tmp_path: Path) -> None:
    done = without("torch", folder, tmp_path / "x.bpk")
    assert done.returncode == 0, done.stderr
