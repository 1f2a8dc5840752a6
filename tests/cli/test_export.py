"""`export`: a file that onnxruntime runs, the agreement said at once, one sentence for what cannot be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitpress as face
from bitpress.compiler import onnx_agreement
from bitpress.compiler.onnx_qdq import to_qdq

from .test_compile import BLOBS, CHAIN, PTQ
from .tool import bitpress, good, refused

onnx = pytest.importorskip("onnx", reason="the ONNX writer needs the extra `onnx`")
ort = pytest.importorskip("onnxruntime", reason="the check of ONNX models needs the extra `onnx`")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    good("compile", CHAIN, *PTQ, "--run", folder / "run", "-o", folder / "x.bpk")
    return folder


@pytest.mark.parametrize("source", ["run", "x.bpk"])
def test_onnxruntime_runs_the_file_and_agrees(made: Path, tmp_path: Path, source: str) -> None:
    out = tmp_path / "out.onnx"
    document = good("export", made / source, "--onnx", out, "--data", BLOBS, "--images", "20", "--json", "-").document()
    found = document["agreement"]
    assert found["agrees"] and found["images"] == 20 and found["top1"] == 100 and document["left_out"] is None
    assert document["file_bytes"] == out.stat().st_size and document["weights"] == "int8"
    assert [row["w_bits"] for row in document["layers"]] == [8, 4, 8]
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(out)
    x = np.random.default_rng(0).normal(size=(5, *document["input"]["shape"])).astype(np.float32)
    (y,) = session.run([document["output"]], {document["input"]["name"]: x})
    assert y.shape == (5, document["outputs"])
    assert np.array_equal(y.argmax(axis=1), face.load(made / "x.bpk")(x).argmax(axis=1))


def test_run_and_artifact_hold_the_same_integers(made: Path, tmp_path: Path) -> None:
    """Scales differ: only a RUN knows the real ones."""
    files = []
    for source in ("run", "x.bpk"):
        good("export", made / source, "--onnx", tmp_path / f"{source}.onnx", "--images", "0")
        files.append(onnx.load(tmp_path / f"{source}.onnx"))
    first, second = ({t.name: onnx.numpy_helper.to_array(t) for t in f.graph.initializer} for f in files)
    assert first.keys() == second.keys()
    whole = [name for name, array in first.items() if array.dtype.kind in "iu" and array.ndim == 4]
    assert len(whole) == 3 and all(np.array_equal(first[name], second[name]) for name in whole)


def test_bytes_are_the_same_for_the_same_source(made: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        good("export", made / "run", "--onnx", tmp_path / name, "--images", "0")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_was_left_out_is_said(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.onnx"
    assert "left out: no images were asked for" in good("export", made / "x.bpk", "--onnx", out, "--images", "0").out
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    document = good("export", made / "x.bpk", "--onnx", out, "--json", "-").document()
    assert document["agreement"] is None and "[onnx]" in document["left_out"]
    assert out.stat().st_size == document["file_bytes"]


def test_a_missing_extra_is_one_sentence(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'bitpress[onnx]'" in refused(5, "export", made / "x.bpk", "--onnx", tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_refused_before_anything_is_written(made: Path, tmp_path: Path) -> None:
    out, artifact = tmp_path / "out.onnx", made / "x.bpk"
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.bpk"
    broken.write_bytes(artifact.read_bytes()[:-100])
    before = sorted(tmp_path.iterdir())
    assert "there is no folder" in refused(2, "export", artifact, "--onnx", tmp_path / "no" / "out.onnx")
    assert "is a folder" in refused(2, "export", artifact, "--onnx", tmp_path / "empty")
    assert "cannot read" in refused(2, "export", tmp_path / "none.bpk", "--onnx", out)
    assert "is no RUN" in refused(2, "export", tmp_path / "empty", "--onnx", out)
    assert "name another" in refused(2, "export", artifact, "--onnx", artifact)
    assert "Missing option '--onnx'" in refused(2, "export", artifact)
    refused(4, "export", broken, "--onnx", out)
    refused(2, "export", artifact, "--onnx", out, "--data", "nowhere")
    assert sorted(tmp_path.iterdir()) == before and not list((tmp_path / "empty").iterdir())


def test_a_file_of_another_function_is_a_failed_check(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        exported = to_qdq(*args, **kwargs)
        weight = next(t for t in exported.model.graph.initializer if t.name == "3.weight.scale")
        weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
        return exported

    monkeypatch.setattr("bitpress.compiler.onnx_qdq.to_qdq", wrong)
    outcome = bitpress("export", made / "x.bpk", "--onnx", tmp_path / "out.onnx", "--json", "-")
    assert outcome.code == 1 and "does not compute what the network does" in outcome.err and "(5)" in outcome.err
    rows = outcome.document()["agreement"]["layers"]
    assert [row["layer"] for row in rows if not row["agrees"]] == ["3"]


@pytest.mark.parametrize(("flags", "code"), [((), 1), (("--native-low-bit",), 0)])
def test_onnxruntime_that_cannot_load_the_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], code: int
) -> None:
    """An older one does not know INT4: said, and no failure; but every one must load the plain form."""

    def refuse(*_args: object, **_kwargs: object) -> Any:
        raise ValueError("no such type")

    monkeypatch.setattr(onnx_agreement, "_session", loading(refuse))
    outcome = bitpress("export", made / "x.bpk", "--onnx", tmp_path / "out.onnx", "-v", *flags)
    assert outcome.code == code and "cannot load the exported file: no such type" in outcome.err + outcome.out


def loading(session: Callable[..., Any]) -> Callable[..., Any]:
    """`_session` with another onnxruntime.InferenceSession."""
    original = onnx_agreement._session

    def load(*args: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ort, "InferenceSession", session)
            return original(*args)

    return load


def test_from_python(made: Path, tmp_path: Path) -> None:
    document = face.export(made / "run", tmp_path / "out.onnx", native_low_bit=True, images=3)
    assert document["agreement"]["agrees"] and document["layers"][1]["container"] == "int4"


def test_a_class_that_a_few_codes_decide_is_said_with_its_remedy(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_agreement, "_same_class", lambda want, _got: np.arange(len(want)) >= 3)
    args = ("export", made / "x.bpk", "--onnx", tmp_path / "out.onnx")
    said = refused(1, *args)
    assert "every layer agrees" in said and "the class of 3 % of 100 images" in said and "--exact" in said
    assert "does not compute what the network does" in refused(1, *args, "--exact")


def test_the_exact_form_has_the_same_outputs(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    document = good("export", made / "x.bpk", "--onnx", out, "--exact", "--json", "-").document()
    assert document["exact"] and document["agreement"]["output_difference"] == 0
    x = np.random.default_rng(0).normal(size=(5, *document["input"]["shape"])).astype(np.float32)
    (y,) = ort.InferenceSession(out).run(None, {document["input"]["name"]: x})
    assert np.array_equal(y, face.load(made / "x.bpk")(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "bits", "shape"),
    [("digits_cnn", "w4a4", "1,8,8"), ("resnet20", "w8a8", "3,32,32"), ("resnet20", "w4a4", "3,32,32"),
     ("preresnet20", "w2a4", "3,32,32"), ("mobilenet_v1", "w8a8", "3,64,64"), ("mobilenet_v2", "w4a8", "3,64,64")],
)  # fmt: skip
def test_networks_of_the_zoo_agree(tmp_path: Path, model: str, bits: str, shape: str) -> None:
    """Layer by layer in every form; end to end in the exact one, for random weights leave classes close together."""
    args = ("--quantize", bits, "--calibrate", "random:8", "--in-shape", shape)
    good("compile", model, *args, "-o", tmp_path / "x.bpk")
    for flags in ((), ("--native-low-bit",), ("--exact",)):
        outcome = bitpress("export", tmp_path / "x.bpk", "--onnx", tmp_path / "x.onnx", *flags, "--json", "-")
        found = outcome.document()["agreement"]
        assert all(row["agrees"] for row in found["layers"]) and found["images"] == 100
        assert outcome.code == (0 if found["top1"] >= 99 else 1)
        if (model, bits) == ("resnet20", "w8a8"):
            assert found["agrees"] and found["top1"] >= 99
    assert found["top1"] == 100 and found["output_difference"] == 0
