"""`compile`, `eval` and what they refuse: one sentence, the right exit code, earlier files whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bitpress
from bitpress.compiler.pipeline import STAGES

from ..schema.schemas import check
from .tool import good, refused

NETS = Path(__file__).with_name("nets.py")
CHAIN, STRANGE, BLOBS = f"{NETS}:chain", f"{NETS}:strange", f"{NETS}:blobs"
PTQ = ("--quantize", "w4a4", "--calibrate", BLOBS)
MIXED = ("--quantize", "mixed", "--calibrate", BLOBS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the post-training RUN `run` and its artifact `x.bpk`."""
    folder = tmp_path_factory.mktemp("made")
    document = good("compile", CHAIN, *PTQ, "--run", folder / "run", "-o", folder / "x.bpk", "--json", "-").document()
    assert document["file_bytes"] == (folder / "x.bpk").stat().st_size
    assert document["method"] == "ptq" and document["stages"] == list(STAGES)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the RUN, to be damaged."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def test_a_run_holds_what_made_it(made: Path) -> None:
    settings = json.loads((made / "run" / "run.json").read_text())
    assert settings["method"] == "ptq" and settings["quantize"] == "w4a4" and settings["data"] == BLOBS
    result = check(json.loads((made / "run" / "result.json").read_text()))
    assert result["bops_ratio"] == pytest.approx(result["bops_fp32"] / result["bops"])


def test_run_and_artifact_agree_on_every_image(made: Path) -> None:
    args = ("--data", BLOBS, "--json", "-")
    compiled, integer = (good("eval", made / name, *args).document() for name in ("x.bpk", "run"))
    assert compiled["predictions_sha256"] == integer["predictions_sha256"] and compiled["n"] == integer["n"] == 60
    assert compiled["top1"] == integer["top1"] and compiled["top5"] == 100
    # the data set is recorded
    assert good("eval", made / "run", "--json", "-").document()["predictions_sha256"] == integer["predictions_sha256"]


def test_eval_of_a_run_loads_neither_compiler_nor_native_code(made: Path) -> None:
    code = (
        "import sys; from bitpress.evaluation import evaluate; document = evaluate(sys.argv[1]); "
        "mine = ('bitpress._native', 'bitpress.compiler', 'bitpress.kernels'); "
        "loaded = [m for m in sys.modules if m.startswith(mine)]; "
        "print(document['n'], loaded)"
    )
    out = subprocess.check_output([sys.executable, "-c", code, made / "run"], text=True)
    assert out == "60 []\n"


def test_a_run_compiles_to_the_same_bytes(made: Path, tmp_path: Path) -> None:
    good("compile", made / "run", "-o", tmp_path / "again.bpk")
    assert (tmp_path / "again.bpk").read_bytes() == (made / "x.bpk").read_bytes()


def test_random_weights_come_from_the_seed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    made = [bitpress.Recipe("w8a8", "random:4", seed=seed) for seed in (1, 1, 2)]
    for i, recipe in enumerate(made):
        torch.rand(i)  # what was drawn before does not count
        bitpress.compile("digits_cnn", tmp_path / f"{i}.bpk", recipe=recipe)
    first, again, other = ((tmp_path / f"{i}.bpk").read_bytes() for i in range(3))
    assert first == again != other


def test_a_plan_may_be_edited_by_hand(made: Path, run: Path, tmp_path: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    layer = next(name for name in plan["bits"] if name not in ("0", "8"))
    plan["bits"][layer]["weight"] = [
        {"encoding": "i2", "filters": [1, 4]}, {"encoding": "i4", "filters": [0, 2]},
        {"encoding": "i8", "filters": [3, 5, 6, 7]},
    ]  # fmt: skip
    (run / "plan.json").write_text(json.dumps(plan))
    good("compile", run, "-o", tmp_path / "mixed.bpk")
    digests = {
        good("eval", path, "--json", "-").document()["predictions_sha256"] for path in (run, tmp_path / "mixed.bpk")
    }
    assert len(digests) == 1
    assert (tmp_path / "mixed.bpk").read_bytes() != (made / "x.bpk").read_bytes()


def test_what_was_asked_for_is_in_the_document_the_run_and_the_file(tmp_path: Path) -> None:
    terms = ("--act-range", "percentile", "--percentile", "99.9", "--weight-range", "max", "--no-bias-correction",
             "--equalize", "exact", "--reduce-range", "--calibration-images", "40")  # fmt: skip
    run, file = tmp_path / "run", tmp_path / "x.bpk"
    outcome = good("compile", CHAIN, *MIXED, "--budget", "size=20%", *terms, "--run", run, "-o", file, "--json", "-")
    known = outcome.document()["calibration"]
    wanted = {
        "quantize": "mixed", "images": 40, "act": "percentile", "percentile": 99.9, "weight": "max", "correct": False,
        "equalize": "exact", "reduce": True,
    }  # fmt: skip
    assert {key: known[key] for key in wanted} == wanted
    assert 0.5 < known["used"]["size=20%"] <= 1 and known["budget"] == ["size=20%"] and known["equalized"]["channels"]
    assert json.loads((run / "run.json").read_text())["calibration"] == known
    assert good("inspect", file, "--json", "-").document()["calibration"] == known
    good("compile", run, "-o", tmp_path / "again.bpk")
    assert (tmp_path / "again.bpk").read_bytes() == file.read_bytes()
    assert "measure harms, 40 images" in outcome.err and "equalize, 40 images" in outcome.err
    assert (
        "20 % used" in good("compile", run, "-o", file).err or "budget size=20%" in good("compile", run, "-o", file).out
    )


def test_the_float_network_of_an_equalized_run_is_the_first(tmp_path: Path) -> None:
    from bitpress.core.rundir import FLOAT, float_graph, load_run

    run, out = tmp_path / "run", ("-o", tmp_path / "x.bpk")
    good("compile", CHAIN, *PTQ, "--equalize", "seen", "--run", run, *out)
    loaded = load_run(run)
    first = float_graph(loaded)
    assert any((first.consts[name] != loaded.graph.consts[name]).any() for name in first.consts)
    good("compile", CHAIN, *PTQ, "--run", run, *out)
    assert not (run / FLOAT).exists()
    assert all(np.array_equal(load_run(run).graph.consts[name], first.consts[name]) for name in first.consts)


def test_stages_can_be_stopped_after_and_dumped(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    args = ("compile", CHAIN, "--quantize", "w8a8", "--calibrate", "random:4", "--stop-after", "prune", "--dump", dump)
    document = good(*args, "--json", "-").document()
    assert document["artifact"] is None and document["file_bytes"] is None
    assert sorted(p.name for p in dump.iterdir()) == ["01_integer.txt", "02_prune.txt"]
    assert "stages are" in refused(2, "compile", CHAIN, *PTQ, "--stop-after", "prunes")


def _nan_weights(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    from .nets import chain

    state = chain().state_dict()
    state["0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, folder / "nan.pt")
    return folder / "nan.pt"


@pytest.mark.parametrize(
    ("code", "args", "says"),
    [
        (2, ["resnet2", *PTQ], "resnet20"),
        (2, ["digits_cnn", "--quantize", "w4a4", "--calibrate", "digit"], "digits"),
        (2, [CHAIN, *PTQ, "--weights", "nowhere.pt"], "no weights file nowhere.pt"),
        (2, [CHAIN, *PTQ, "--classes", "4"], "3 classes"),
        (2, [CHAIN, *PTQ, "--classes", "1"], "at least 2"),
        (2, [CHAIN, *PTQ, "--in-shape", "2,6"], "C,H,W"),
        (2, [CHAIN, *PTQ, "--in-shape", "3,6,6"], "3,6,6"),
        (2, [CHAIN, *PTQ, "--mean", "0,0,0"], "2 channels"),
        (2, [CHAIN, *PTQ, "--std", "0,1"], "above 0"),
        (2, [CHAIN, "--quantize", "w4a4"], "--calibrate"),
        (2, [CHAIN, "--quantize", "w4", "--calibrate", BLOBS], "w2a8"),
        (2, [CHAIN, "--quantize", "w4a4", "--calibrate", "random:none"], "random:N"),
        (2, ["digits_cnn", *PTQ], "C,H,W"),
        (2, [CHAIN], "no RUN folder"),
        (2, [f"{NETS}:nothing", *PTQ], "no function 'nothing'"),
        (3, [STRANGE, *PTQ], "tanh"),
        (3, [CHAIN, "--quantize", "w3a4", "--calibrate", BLOBS], "3 bits"),
        (3, [CHAIN, "--quantize", "w8a9", "--calibrate", BLOBS], "9 bits"),
        (2, ["net.onnx", *PTQ], "no file net.onnx"),
        (2, [CHAIN, *MIXED], "needs --budget"),
        (1, [CHAIN, *MIXED, "--budget", "size=1%"], "the least is"),
        (2, [CHAIN, *MIXED, "--budget", "macs=9%"], "bops, size"),
        (2, [CHAIN, *MIXED, "--budget", "latency=1ms"], "--latency-table"),
        (2, [CHAIN, *PTQ, "--budget", "size=20%"], "go with --quantize mixed"),
        (2, [CHAIN, *PTQ, "--act-range", "mean"], "mse, percentile, max"),
        (2, [CHAIN, *PTQ, "--percentile", "99"], "--act-range percentile"),
        (2, [CHAIN, *PTQ, "--act-range", "percentile", "--percentile", "12"], "from 50 to 100"),
        (2, [CHAIN, *PTQ, "--equalize", "all"], "off, exact, seen"),
    ],
)  # fmt: skip
def test_what_compile_refuses(code: int, args: list[str], says: str, tmp_path: Path) -> None:
    target = tmp_path / "x.bpk"
    target.write_bytes(b"earlier")
    assert says in refused(code, "compile", *args, "--run" if "--quantize" in args else "--dump", tmp_path / "run",
                           "-o", target)  # fmt: skip
    assert target.read_bytes() == b"earlier" and sorted(p.name for p in tmp_path.iterdir()) == ["x.bpk"]


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    weights = _nan_weights(tmp_path)
    said = refused(4, "compile", CHAIN, *PTQ, "--weights", weights, "-o", tmp_path / "x.bpk")
    assert "0.weight" in said and "1 of 144" in said and not (tmp_path / "x.bpk").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"0.weight": torch.zeros(8, 2, 3, 3)}, tmp_path / "w.pt")
    said = refused(2, "compile", CHAIN, *PTQ, "--weights", tmp_path / "w.pt", "-o", tmp_path / "x.bpk")
    assert "missing" in said
    (tmp_path / "w.pt").write_bytes(b"no weights")
    refused(4, "compile", CHAIN, *PTQ, "--weights", tmp_path / "w.pt", "-o", tmp_path / "x.bpk")


def test_flags_that_contradict_a_run(made: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "x.bpk")
    assert "its plan says the bits" in refused(2, "compile", made / "run", *PTQ, *out)
    assert "--weights" in refused(2, "compile", made / "run", "--weights", "w.pt", *out)
    assert "--equalize" in refused(2, "compile", made / "run", "--equalize", "exact", *out)
    assert "--bias-correction" in refused(2, "compile", made / "run", "--no-bias-correction", *out)
    assert "--run keeps" in refused(2, "compile", made / "run", "--run", tmp_path / "r", *out)
    assert "-o X.bpk is missing" in refused(2, "compile", made / "run")
    assert "no folder" in refused(2, "compile", made / "run", "-o", tmp_path / "none" / "x.bpk")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert "no RUN" in refused(2, "compile", CHAIN, *PTQ, "--run", tmp_path / "other", *out)
    assert not (tmp_path / "x.bpk").exists()


def _edit(run: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    plan = json.loads((run / "plan.json").read_text())
    change(plan)
    (run / "plan.json").write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("code", "change", "says"),
    [
        (4, lambda p: p.update(graph="0" * 16), "this graph is"),
        (4, lambda p: p["bits"].update(nothing=p["bits"]["0"]), "nothing"),
        (4, lambda p: p["bits"]["0"]["weight"][0]["filters"].append(99), "99"),
        (4, lambda p: p["bits"]["0"]["weight"][0]["filters"].pop(), "no segment"),
        (4, lambda p: p["bits"]["0"].update(act="u99"), "u99"),
        (4, lambda p: p.update(schema="other"), "other"),
        (3, lambda p: p["bits"]["0"]["weight"][0].update(encoding="i3"), "i3"),
        (4, lambda p: p["keep"].update({"0": []}), "no channel"),
    ],
)
def test_a_plan_that_does_not_fit(code: int, change: Callable[[dict], None], says: str, run: Path) -> None:  # type: ignore[type-arg]
    _edit(run, change)
    for verb in (("compile", run, "-o", run / "x.bpk"), ("eval", run, "--data", BLOBS)):
        assert says in refused(code, *verb)
    assert not (run / "x.bpk").exists()


def test_a_damaged_run(run: Path) -> None:
    tensors = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(tensors[:-9])
    assert "damaged" in refused(4, "eval", run)
    from safetensors.numpy import load, save

    arrays = load(tensors)
    arrays["8.weight"] = np.full_like(arrays["8.weight"], np.nan)
    (run / "model.safetensors").write_bytes(save(arrays))
    assert "NaN" in refused(4, "compile", run, "-o", run / "x.bpk")
    (run / "model.safetensors").unlink()
    assert "model.safetensors" in refused(2, "eval", run)


def test_eval_refuses(made: Path, tmp_path: Path) -> None:
    (tmp_path / "short.bpk").write_bytes((made / "x.bpk").read_bytes()[:-7])
    assert "Truncated" in refused(4, "eval", tmp_path / "short.bpk")
    assert "none.bpk" in refused(2, "eval", tmp_path / "none.bpk")
    assert "C,H,W" in refused(2, "eval", made / "x.bpk", "--data", "digits")
    assert "known are" in refused(2, "eval", made / "x.bpk", "--data", "cifar11:x")
    assert "lacks" in refused(2, "eval", made / "x.bpk", "--data", f"cifar10:{tmp_path}")


def test_an_extra_that_is_missing(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        "from bitpress.cli.command import cli; cli(sys.argv[1:])"
    )
    for args in (["plan", "resnet20"], ["compile", CHAIN, *PTQ, "-o", tmp_path / "x.bpk"], ["eval", made / "run"]):
        command = [sys.executable, "-c", code, *map(str, args)]
        out = subprocess.run(command, capture_output=True, text=True, check=False)
        assert out.returncode == 5 and "pip install 'bitpress[search]'" in out.stderr and "Traceback" not in out.stderr


def test_plan_lists_what_it_does_not_know() -> None:
    document = good("plan", STRANGE, "--json", "-").document()
    assert [row["op"] for row in document["unsupported"]] == ["aten.tanh"] and document["space"] is None
    assert "tanh" in refused(3, "plan", STRANGE, "--budget", "bops=50%")


def test_plan_counts_and_judges_budgets() -> None:
    document = good("plan", CHAIN, "--bits", "w4a4,w32a32", "--budget", "bops=10%", "--json", "-").document()
    assert document["budgets"][0]["reachable"] and document["layers"][1]["w_bits"] == 4
    assert [row["bits"] for row in document["uniform"]] == ["w4a4", "w32a32"]
    assert document["totals"]["bops"] == sum(row["bops"] for row in document["layers"])
    assert good("plan", CHAIN, "--json", "-").document()["totals"]["bops"] is None
    said = refused(1, "plan", CHAIN, "--budget", "bops=0.01%")
    assert "cannot be reached" in said and "the least is" in said
    assert "of the form w2a8" in refused(2, "plan", CHAIN, "--bits", "w33a2")
    assert "bops, size" in refused(2, "plan", CHAIN, "--budget", "macs=2%")
    assert "| conv" in good("plan", CHAIN, "-o", "md").out or "conv2d" in good("plan", CHAIN, "-o", "md").out


def test_a_search_run_is_not_overwritten(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    settings = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**settings, "method": "sbs"}))
    before = (run / "plan.json").read_bytes()
    assert "method sbs" in refused(2, "compile", CHAIN, *PTQ, "--run", run, "-o", tmp_path / "x.bpk")
    assert (run / "plan.json").read_bytes() == before and not (tmp_path / "x.bpk").exists()
