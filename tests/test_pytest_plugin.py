"""The pytest plugin in a session of its own: what it stores feeds `compare`, what it requires ends the session."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bitpress.benchmarks import stored
from bitpress.benchmarks.compare import Request, compare
from bitpress.benchmarks.process import facts_of
from bitpress.cli import environment
from bitpress.compiler import artifact
from bitpress.compiler.model import Model
from bitpress.core.errors import UsageError

from .runtime import samples
from .schema.schemas import check

pytest_plugins = ["pytester"]
QUICK = ("--benchmark-max-time=0.01", "--benchmark-min-rounds=2", "--benchmark-warmup=off", "-p", "no:cacheprovider")
TIMED = "def test_net(bitpress_benchmark):\n    bitpress_benchmark({!r})\n"


@pytest.fixture
def record(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`record(name, label)` times a sample whose last label is `label`, and gives the stored file."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # in a worker pytest-benchmark times nothing

    def run(name: str, label: str) -> str:
        program = samples.everything()
        file, out = pytester.path / f"{name}.bpk", pytester.path / f"{name}.json"
        artifact.write(replace(program, labels=(*program.labels[:-1], label)), file)
        pytester.makepyfile(test_it=TIMED.format(str(file)))
        pytester.inline_run(*QUICK, f"--benchmark-json={out}").assertoutcome(passed=1)
        return str(out)

    return run


def test_what_it_stores_has_all_facts_and_feeds_the_gate(record: Callable[..., str]) -> None:
    base, new = record("base", "nine"), record("new", "nine+")
    side, file = stored.read(base), Path(base).with_suffix(".bpk")
    data = file.read_bytes()
    model = Model(data, threads=1)
    found = facts_of(str(file), data, model, 1)
    assert {**side.host} == found["host"]
    assert side.networks[0].name.endswith("::test_net") and side.networks[0].times[0] > 0
    want = {**found["network"], "name": "", "times": []}
    want["counts"] = {**want["counts"], "instructions": side.networks[0].counts["instructions"]}
    assert {**side.networks[0].document(), "name": "", "times": []} == want
    assert check(compare(Request(base, base)))["verdict"] == "pass"
    document = check(compare(Request(base, new)))
    assert document["deterministic"]["failed"] == ["bytes"] and "content bytes" in document["why"]
    for limit, verdict in ((1e-9, "fail"), (1e9, "pass")):
        assert compare(Request(base, base, max_ms=limit))["verdict"] == verdict
    assert check(compare(Request(base, str(file), timed=False)))["verdict"] == "pass"


@pytest.mark.native
def test_a_required_instruction_set_ends_the_session(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(test_it="def test_fine():\n    pass\n")
    monkeypatch.delenv("BITPRESS_NATIVE", raising=False)
    monkeypatch.setattr(environment, "cpu_features", lambda: frozenset({"sse2"}))
    result = pytester.runpytest_inprocess("--require-isa", "avx512vnni", *QUICK)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = [line for line in result.errlines if line]
    assert len(said) == 1 and said[0].startswith("ERROR: --require-isa avx512vnni: this host lacks ")
    result = pytester.runpytest_inprocess("--require-isa", "generic", *QUICK)
    result.assert_outcomes(passed=1)
    result = pytester.runpytest_inprocess("--require-isa", "generic,avx513", *QUICK)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--require-isa='avx513' is unknown (did you mean avx512" in result.stderr.str()
    monkeypatch.setenv("BITPRESS_NATIVE", "0")
    result = pytester.runpytest_inprocess("--require-isa", "generic", *QUICK)
    assert "--require-isa generic needs the native module" in result.stderr.str()


def test_without_pytest_benchmark_other_tests_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="def test_fine():\n    pass\n\n\n" + TIMED.format("net.bpk"))
    result = pytester.runpytest_inprocess("-p", "no:benchmark", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*needs pytest-benchmark: pip install 'bitpress?bench?'*"])


def test_a_file_that_is_not_there_is_one_sentence(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TIMED.format("none.bpk"))
    result = pytester.runpytest_inprocess(*QUICK)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{UsageError.__name__}: cannot read none.bpk: No such file*"])


def test_it_costs_nothing_where_it_is_not_used() -> None:
    heavy = ("numpy", "click", "rich", "torch", "pytest_benchmark", "bitpress.core")
    code = f"import sys, bitpress.pytest_plugin as p; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
