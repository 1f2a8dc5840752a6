"""The bench document of real artifacts; what is refused; the demo's promises and the README's tables."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitpress.benchmarks import demo, peers, report
from bitpress.benchmarks.bench import bench
from bitpress.compiler import artifact
from bitpress.core.encoding import parse
from bitpress.core.errors import CheckFailed, EnvironmentMissing, UsageError
from bitpress.kernels.packed import pack

from ..runtime import samples
from ..schema.schemas import check


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "x.bpk"
    artifact.write(samples.everything(), path)
    return path


def test_document(sample: Path) -> None:
    said: list[float] = []
    document = check(
        bench(sample, vs=(), batches=(1, 2), seconds=0.05, progress=lambda _what, share: said.append(share))
    )
    assert [(run["batch"], run["threads"]) for run in document["runs"]] == [(1, 1), (2, 1)]
    assert said == sorted(said) and said[-1] == pytest.approx(1)
    run = document["runs"][0]
    assert run["total"]["min"] <= run["total"]["median"] <= run["total"]["p90"]
    steps = {s.layer or s.name for s in samples.everything().steps}
    assert {row["name"] for row in run["layers"]} == steps
    assert all(row["bops"] >= row["macs"] for row in run["layers"])


@pytest.mark.native
def test_native_layers_have_times_and_bounds(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITPRESS_NATIVE", "BITPRESS_FORCE_ISA", "BITPRESS_FORCE_KERNEL"):
        monkeypatch.delenv(name, raising=False)
    (run,) = bench(sample, vs=(), seconds=0.05)["runs"]
    assert all(row["median"] > 0 and row["bound"] > 0 for row in run["layers"])
    assert all(row["efficiency"] == pytest.approx(row["bound"] / row["median"]) for row in run["layers"])
    assert run["unattributed"] == pytest.approx(run["total"]["median"] - sum(r["median"] for r in run["layers"]))


def test_digits_are_as_few_as_can_be() -> None:
    powers = [sign << i for i in range(5) for sign in (1, -1)]
    fewest = {0: 0}
    for count in (1, 2, 3):
        for v in [v for v, n in fewest.items() if n == count - 1]:
            fewest |= {v + p: count for p in powers if v + p not in fewest}
    for name in ("i4", "u4", "o4", "o2", "t2", "b1"):
        levels = np.unique(parse(name).levels())
        v = levels if 0 in levels else (levels - 1) // 2
        assert pack(levels[None], parse(name)).digits == sum(fewest[int(x)] for x in v)


def test_a_default_peer_that_is_not_installed_is_left_out_by_name(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _module: None)
    document = check(bench(sample, seconds=0.05))
    assert document["runs"][0]["peers"] == [] and "bitpress[onnx]" in document["peers_left_out"]
    with pytest.raises(EnvironmentMissing, match=r"bitpress\[onnx\]"):
        bench(sample, vs=("onnxruntime",), seconds=0.05)


def test_peers_answer_as_we_do(sample: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    document = check(bench(sample, vs=("onnxruntime",), seconds=0.05))
    found = {peer["name"]: peer for peer in document["runs"][0]["peers"]}
    assert set(found) == {"onnxruntime-fp32", "onnxruntime-int8"}
    assert all(peer["ratio"] > 0 and 0 <= peer["output_matches"] <= 1 for peer in found.values())
    assert "rebuilt from the artifact" in document["peer_source"] and "golden input" in document["images"]


def test_another_compiled_network_is_a_peer(sample: Path, tmp_path: Path) -> None:
    document = check(bench(sample, vs=(str(sample),), batches=(1, 3), seconds=0.05))
    for entry in document["runs"]:
        (peer,) = entry["peers"]
        assert peer["name"] == sample.name and peer["output_matches"] == 1.0 and peer["ratio"] > 0
    other = samples.everything()
    assert other.golden_output is not None
    other.golden_output[...] += np.float32(1)
    artifact.write(other, tmp_path / "wrong.bpk")
    with pytest.raises(CheckFailed, match=r"wrong\.bpk: the golden sample"):
        bench(sample, vs=(str(tmp_path / "wrong.bpk"),))
    artifact.write(samples.deep(), tmp_path / "deep.bpk")
    with pytest.raises(UsageError, match=r"deep\.bpk takes .* the network under test"):
        bench(sample, vs=(str(tmp_path / "deep.bpk"),))


def test_nothing_wrong_is_timed(tmp_path: Path) -> None:
    program = samples.everything()
    assert program.golden_output is not None
    program.golden_output[...] += np.float32(1)
    artifact.write(program, tmp_path / "x.bpk")
    with pytest.raises(CheckFailed, match="nothing is timed"):
        bench(tmp_path / "x.bpk", vs=())


def test_what_is_refused(sample: Path) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        bench(sample, vs=(), batches=(0,))
    with pytest.raises(UsageError, match="give one of them"):
        bench(sample, vs=(), against="run", model="resnet20")
    with pytest.raises(UsageError, match="unknown"):
        bench(sample, vs=("tvm",))


def test_report_is_markdown_with_its_command(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(bench(sample, vs=(), seconds=0.05)), encoding="utf-8")
    assert report.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("`bitpress bench x.bpk --vs '' --batch 1 --threads 1`, ")
    assert "| layer | ms | share | BOPs | bytes |" in out and "| total |" in out
    assert report.main(["--summary", str(path), str(path)]) == 0
    assert capsys.readouterr().out.count("\n| x |") == 2
    assert report.main(["--summary"]) == report.main(["--kernels", str(path)]) == 2
    path.write_text("{}", encoding="utf-8")
    assert (report.main([str(path)]), report.main([]), report.main([str(tmp_path / "no")])) == (2, 2, 2)
    path.write_text("{", encoding="utf-8")
    assert report.main([str(path)]) == 4


def test_report_of_kernels_has_a_column_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def case(kernel: str, seconds: float) -> dict[str, Any]:
        info = {"bits": "w2a2", "kernel": kernel, "macs": 2_000_000}
        return {"extra_info": info, "params": {"shape": "r20s1"}, "stats": {"median": seconds}}

    document = {"machine_info": {"bitpress_cpu": "some CPU"}, "benchmarks": [case("a", 1e-3), case("b", 5e-4)]}
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert report.main(["--kernels", str(path)]) == 0
    out = capsys.readouterr().out
    assert "some CPU" in out and "| w2a2 | r20s1 | 2 M | 2 | 4 |" in out


def _gemm_document() -> dict[str, Any]:
    def row(shape: str, kernel: str | None, median: float | None, peers: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "shape": shape, "op": "conv2d", "layers": [], "bits": "w2a2", "threads": 1, "macs": 2_000_000,
            "kernel": kernel, "isa": "avx2", "chosen": False, "median": median, "min": median, "peak": 9.0,
            "gmacs": None if median is None else 2 / median, "bound": 0.5, "limit": "bytes", "efficiency": 0.5,
            "peers": peers, "why": "" if kernel else "none",
        }  # fmt: skip

    peer = {"name": "onnxruntime-int8", "version": "1", "median": 4.0, "ratio": 4.0, "output_matches": 1.0}
    return {
        "schema": "bitpress.gemm", "bitpress": "1.2", "host": {"cpu": "some CPU"}, "shapes": ["8x9x7", "1x2x3"],
        "bits": ["w2a2"], "isas": ["avx2"], "misfits": [], "peers_left_out": "",
        "rows": [
            row("8x9x7", "a_avx2", 1.0, [peer]), row("8x9x7", "b_avx2", 0.5, [peer]), row("1x2x3", None, None, []),
        ],
        "roofs": [{"threads": 1, "operations_per_second": {}, "operations_per_cycle": {}, "levels": []}],
    }  # fmt: skip


def test_report_of_single_layers_says_how_it_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gemm.json"
    path.write_text(json.dumps(_gemm_document()), encoding="utf-8")
    command = "`bitpress bench gemm --shapes 8x9x7,1x2x3 --bits w2a2 --isa avx2 --vs onnxruntime --threads 1`"
    for form in ((), ("--summary",), ("--kernels",)):
        assert report.main([*form, str(path)]) == 0
        out = capsys.readouterr().out
        assert f"{command}, some CPU, bitpress 1.2, " in out
        if form == ("--summary",):
            assert "| 8x9x7 | w2a2 | 4 | 0.5 | b_avx2 | 50 % |" in out and "| 1x2x3 | w2a2 | - | - | - | - |" in out
        elif form:
            assert "| a_avx2 | b_avx2 | onnxruntime-int8 |" in out and "| w2a2 | 8x9x7 | 2 M | 2 | 4 | 0.5 |" in out
        else:
            assert "| 8x9x7 | - | w2a2 | b_avx2 |" in out
    other = tmp_path / "bench.json"
    other.write_text(json.dumps({"schema": "bitpress.bench", "runs": []}), encoding="utf-8")
    assert report.main(["--summary", str(path), str(other)]) == 2 and "give one kind" in capsys.readouterr().err


def test_report_writes_between_the_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = tmp_path / "gemm.json", tmp_path / "page.md"
    path.write_text(json.dumps(_gemm_document()), encoding="utf-8")
    page.write_text(f"head\n{report.MARKS[0]}\nold\n{report.MARKS[1]}\ntail\n", encoding="utf-8")
    for _ in range(2):  # and again in its place
        assert report.main(["--summary", "--into", str(page), str(path)]) == 0
        text = page.read_text(encoding="utf-8")
        assert text.startswith("head\n") and text.endswith("\ntail\n") and "old" not in text
        assert text.count("| 8x9x7 | w2a2 |") == 1
    page.write_text("nothing", encoding="utf-8")
    assert report.main(["--into", str(page), str(path)]) == 2 and "has no place for a table" in capsys.readouterr().err
    assert report.main(["--into", str(tmp_path / "no.md"), str(path)]) == 2
    assert page.read_text(encoding="utf-8") == "nothing"


def _documents() -> dict[str, Any]:
    """What a demo that keeps every promise would have found."""

    def layer(name: str, w: int, kept: int, total: int, depth: int) -> dict[str, Any]:
        return {
            "name": name, "w_bits": w, "channels_kept": kept, "channels_total": total, "in_shape": [depth, 8, 8],
        }  # fmt: skip

    digest = {"predictions_sha256": "a" * 64, "top1": 97.5, "n": 500}
    return {
        "search": {"baseline_top1": 98.5, "top1": 97.5, "bops": 2, "bops_fp32": 100},
        "inspect": {
            "layers": [
                layer("conv1", 8, 8, 16, 1), layer("conv2", 2, 32, 32, 8), layer("conv3", 4, 32, 32, 32),
                layer("linear", 8, 10, 10, 32),
            ],
            "totals": {"bops_ratio": 50.0, "file_bytes": 30_000, "weight_bytes": 25_000, "fp32_bytes": 400_000},
        },
        "verify": {"exact": True, "stages": ["torch", "reference"], "first_difference": None},
        "eval_run": digest, "eval_artifact": dict(digest),
        "bench": {"runs": [{"total": {"median": 0.01}, "peers": [{"name": "p", "median": 0.02, "ratio": 2.0}]}]},
    }  # fmt: skip


def test_the_demo_checks_its_promises() -> None:
    demo.check(_documents())
    said = demo.summary(_documents(), 100.0)
    assert "1/50.0" in said and "conv1 8/16" in said and "p 0.0200 ms (2.00x ours)" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["search"].update(top1=96.0), "2.50 points"),
        (lambda d: d["search"].update(bops=3), "more than 2%"),
        (lambda d: d["inspect"]["layers"][1].update(w_bits=4), "not mixed"),
        (lambda d: d["inspect"]["layers"][1].update(in_shape=[16, 8, 8]), "whose consumer"),
        (lambda d: d["eval_artifact"].update(predictions_sha256="b" * 64), "differ in their predictions"),
        (lambda d: d["verify"].update(exact=False), "not exact"),
    ],
)
def test_the_demo_names_a_broken_promise(change: Callable[[dict[str, Any]], None], says: str) -> None:
    documents = copy.deepcopy(_documents())
    change(documents)
    with pytest.raises(CheckFailed, match=says):
        demo.check(documents)
