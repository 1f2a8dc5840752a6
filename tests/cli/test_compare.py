"""`compare` as it is typed: verdicts, exit codes, documents, on tiny artifacts in real processes."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import junitparser
import numpy as np
import pytest

from bitpress.benchmarks.compare import TRIALS
from bitpress.benchmarks.gate import Rule
from bitpress.cli.compare import command
from bitpress.compiler import artifact
from bitpress.compiler.execute import execute

from ..runtime import samples
from .tool import bitpress, good, refused

QUICK = ("--seconds", "0.01", "--pairs", "8")


def test_the_defaults_are_those_of_the_rule() -> None:
    """The verb spells them out, because its help must not import numpy."""
    given = {option.name: option.default for option in command.params}
    rule = Rule()
    assert (given["tolerance"], given["floor"], given["pairs"]) == (rule.tolerance, rule.floor, rule.most)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base.bpk; output.bpk, whose last layer has another bias; byte.bpk, with one letter more in a label."""
    folder = tmp_path_factory.mktemp("compare")
    program = samples.everything()
    artifact.write(program, folder / "base.bpk")
    artifact.write(replace(program, labels=(*program.labels[:-1], "class 9+")), folder / "byte.bpk")
    last = program.steps[-1]
    assert last.epilogue is not None and program.golden_input is not None
    moved = replace(last, epilogue=replace(last.epilogue, b=last.epilogue.b + np.float32(1)))
    other = replace(program, steps=(*program.steps[:-1], moved))
    artifact.write(replace(other, golden_output=execute(other, program.golden_input)), folder / "output.bpk")
    return folder


def test_the_same_file_passes_and_its_document_is_a_baseline(folder: Path, tmp_path: Path) -> None:
    base = folder / "base.bpk"
    # a tolerance that no host's noise reaches: what is tested is the way, the rule has tests of its own
    outcome = good("compare", base, base, *QUICK, "--tolerance", "9", "--json", "-")
    document = outcome.document()
    assert document["verdict"] == "pass" and document["ratio"] > 0 and document["detectable"] > 1
    assert len(document["paired"]["batches"][0]) == 8
    (tmp_path / "base.json").write_text(outcome.out)
    stored = good("compare", tmp_path / "base.json", base, "--json", "-").document()
    assert stored["verdict"] == "pass" and stored["ratio"] is None
    assert "output" in refused(1, "compare", tmp_path / "base.json", folder / "output.bpk")
    table = good("compare", tmp_path / "base.json", base).out
    assert "content bytes" in table and "pass: " in table and "times were not compared" in table
    assert "| content bytes |" in good("compare", tmp_path / "base.json", base, "-o", "md").out
    document["new"]["host"]["cpu"] = "other CPU"
    (tmp_path / "other.json").write_text(json.dumps(document))
    assert "baseline of another host" in refused(5, "compare", tmp_path / "other.json", base)
    (tmp_path / "empty.json").write_text("")
    assert "is empty" in refused(4, "compare", tmp_path / "empty.json", base)
    (tmp_path / "torn.json").write_text(outcome.out[:-20])
    assert "is no JSON" in refused(4, "compare", tmp_path / "torn.json", base)
    del document["new"]["networks"]
    (tmp_path / "key.json").write_text(json.dumps(document))
    assert "lacks the key new.networks" in refused(4, "compare", tmp_path / "key.json", base)


def test_other_bad_baselines_have_their_exit_codes(folder: Path, tmp_path: Path) -> None:
    base = folder / "base.bpk"
    artifact.write(samples.straight(), tmp_path / "other.bpk")
    outcome = good("compare", tmp_path / "other.bpk", tmp_path / "other.bpk", "--facts", "--json", "-")
    (tmp_path / "model.json").write_text(outcome.out)
    assert "another network" in refused(2, "compare", tmp_path / "model.json", base, "--facts")
    (tmp_path / "tests.json").write_text('{"machine_info": {"cpu": {"brand_raw": "other CPU"}}, "benchmarks": []}')
    assert "holds no benchmarks" in refused(4, "compare", tmp_path / "tests.json", base)
    info = {"bytes": 1, "bops": 1, "kernel": "k", "isa": "avx2"}
    case = {"fullname": "test_it", "extra_info": info, "stats": {"median": 1e-3}}
    tests = {"machine_info": {"cpu": {"brand_raw": "other CPU"}}, "benchmarks": [case]}
    (tmp_path / "tests.json").write_text(json.dumps(tests))
    assert "baseline of another host" in refused(5, "compare", tmp_path / "tests.json", base)
    del info["bytes"]
    (tmp_path / "tests.json").write_text(json.dumps(tests))
    assert "lacks the key benchmarks[0].extra_info.bytes" in refused(4, "compare", tmp_path / "tests.json", base)
    assert "cannot read" in refused(2, "compare", tmp_path / "none.json", base)


def test_a_junit_file_holds_a_case_a_fact(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, path = folder / "base.bpk", tmp_path / "gate.xml"
    refused(1, "compare", base, folder / "output.bpk", "--facts", "--junit", path)
    suite = next(iter(junitparser.JUnitXml.fromfile(str(path))))
    cases = {case.name: case for case in suite}
    assert suite.failures == 1 and suite.skipped == 1 and suite.tests == len(cases) >= 6
    assert cases["output"].is_failure and "instead of" in cases["output"].result[0].message
    assert cases["pairs of processes"].result[0].message == "the facts have decided"
    assert cases["content bytes"].is_passed
    assert "no folder" in refused(2, "compare", base, base, "--junit", tmp_path / "none" / "gate.xml")
    monkeypatch.setitem(sys.modules, "junitparser", None)
    assert "pip install 'bitpress[bench]'" in refused(5, "compare", base, base, "--junit", path)


def test_each_fact_fails_by_its_name(folder: Path) -> None:
    base = folder / "base.bpk"
    said = refused(1, "compare", base, folder / "byte.bpk", "--facts")
    assert "content bytes" in said and "(+1)" in said and "--allow bytes" in said
    assert "output differs" in refused(1, "compare", base, folder / "output.bpk", "--facts")
    document = good("compare", base, folder / "output.bpk", "--facts", "--allow", "output", "--json", "-").document()
    assert document["deterministic"]["allowed"] == ["output"] and document["left_out"] == "--facts"


@pytest.mark.native
def test_a_slower_kernel_row_fails_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITPRESS_NATIVE", "BITPRESS_FORCE_ISA", "BITPRESS_FORCE_KERNEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "generic")
    base, slow = folder / "base.bpk", ("--env-new", "BITPRESS_NATIVE=0", "--env-new", "BITPRESS_FORCE_ISA=")
    assert "_reference" in refused(1, "compare", base, *slow, "--facts")
    forced = ("--env-new", "BITPRESS_FORCE_KERNEL=bitserial_generic")
    said = refused(1, "compare", base, *forced, "--facts")
    assert "is bitserial_generic (about" in said and "instead of i8dot_generic (about" in said
    good("compare", base, *forced, "--facts", "--allow", "kernel")


def test_a_regression_in_time_fails_and_strict_takes_no_maybe(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitpress.benchmarks import process

    times = {"NEW": 1.5, "MAYBE": 1.05}
    state: dict[str, Any] = {"kind": "NEW", "count": 0}
    facts = process.child(
        {"artifact": str(folder / "base.bpk"), "threads": 1, "batch": 1, "seconds": 0.01, "output": ""}
    )

    def child(self: process.Python, output: str) -> Any:
        if not output:
            return json.loads(json.dumps(facts))
        state["count"] += 1
        slow = "BITPRESS_NUM_THREADS" in self._job.environment
        return {"median": (times[state["kind"]] if slow else 1.0) * (1 + state["count"] % 5 / 100)}

    monkeypatch.setattr(process.Python, "_child", child)
    args = ("compare", folder / "base.bpk", "--env-new", "BITPRESS_NUM_THREADS=1", "--pairs", "8")
    assert "NEW is slower than BASE" in refused(1, *args)
    state["kind"] = "MAYBE"
    assert "inconclusive: " in good(*args).out
    path = tmp_path / "gate.xml"
    for options, skipped in ((["--strict"], 0), ([], 1)):
        assert bitpress(*args, *options, "--junit", path).code == 1 - skipped
        suite = next(iter(junitparser.JUnitXml.fromfile(str(path))))
        found = next(case for case in suite if case.name == "pairs of processes")
        assert (suite.skipped, suite.failures) == (skipped, 1 - skipped)
        assert "lies inside the interval" in found.result[0].message
    document = bitpress("compare", folder / "base.bpk", "--self-check", "--pairs", "8", "--json", "-").document()
    assert document["self_check"]["pairs"] == 16 and document["self_check"]["trials"] == TRIALS
    assert "resampled decisions" in good("compare", folder / "base.bpk", "--self-check", "--pairs", "8").out


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    base = folder / "base.bpk"
    assert "NEW is missing" in refused(2, "compare", base)
    assert "NAME=VALUE" in refused(2, "compare", base, "--env-new", "BITPRESS_FORCE_ISA")
    assert "is unknown" in refused(2, "compare", base, "--env-new", "BITPRESS_FORCE_ISA=mmx")
    assert "cannot read" in refused(2, "compare", base, tmp_path / "none.bpk", "--facts")
    assert "Truncated" in refused(4, "compare", base, _empty(tmp_path), "--facts")
    assert "declared for 'my CPU'" in refused(5, "compare", base, base, "--max-ms", "1", "--host", "my CPU")
    artifact.write(samples.straight(), tmp_path / "other.bpk")
    assert "another network" in refused(2, "compare", base, tmp_path / "other.bpk", "--facts")


def _empty(folder: Path) -> Path:
    (folder / "empty.bpk").write_bytes(b"")
    return folder / "empty.bpk"


def test_calls_in_the_document_are_understood() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "gate.md").read_text()
    calls = [line.strip() for line in text.splitlines() if line.strip().startswith("bitpress compare ")]
    assert len(calls) >= 3
    for call in calls:
        words = shlex.split(call.partition(" > ")[0])[2:]
        assert command.make_context("compare", words).params["base"]
