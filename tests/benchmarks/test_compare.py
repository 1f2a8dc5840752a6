"""Facts that got worse are named; stored baselines are read with suspicion; what is timed was verified before."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitpress.benchmarks import compare as gate_verb
from bitpress.benchmarks import counters, facts, process, stored
from bitpress.benchmarks.compare import Request, Setting, compare
from bitpress.benchmarks.facts import Network, Row, Side
from bitpress.benchmarks.gate import Rule
from bitpress.compiler import artifact
from bitpress.core.errors import CheckFailed, CorruptError, EnvironmentMissing, UsageError

from ..runtime import samples
from ..schema.schemas import check

HOST = {"cpu": "some CPU", "isa": "avx2", "threads": 1, "gpu": None}
RULE = Rule(most=8, resamples=200)
NETWORK = Network(
    name="net", in_shape=(3, 8, 8), outputs=10, layers=("conv", "fc"),
    counts={"file_bytes": 2048, "content_bytes": 2000, "weight_bytes": 900, "bops": 5000, "launches": 4,
            "instructions": 10_000},
    kernels={"q": Row("quantize_avx2", "avx2", 0.1), "conv": Row("i8dot_avx2", "avx2", 9.2),
             "fc": Row("i8dot_avx2", "avx2", 0.2)},
    output="ab" * 32,
)  # fmt: skip


class Fake:
    """A runtime with facts as given, and a time that depends on how often it was asked."""

    def __init__(self, network: Network, times: Callable[[int], float], log: list[str]) -> None:
        self._network, self._times, self._log, self._count = network, times, log, 0

    def side(self) -> Side:
        return Side(f"{self._network.name}.bpk", HOST, (self._network,))

    def time(self, output: str) -> float:
        assert output == self._network.output
        self._log.append(self._network.name)
        self._count += 1
        return self._times(self._count)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`faked(base, new, request, ...)` compares networks that exist on paper only; gives the document and the order."""

    def run(first: Network, second: Network, slowdown: float = 1.0, **request: Any) -> tuple[Any, list[str]]:
        log: list[str] = []
        sides = {
            "base.bpk": Fake(replace(first, name="base"), lambda i: 1 + i % 3 / 1000, log),
            "new.bpk": Fake(replace(second, name="new"), lambda i: slowdown * (1 + i % 4 / 1000), log),
        }
        monkeypatch.setattr(gate_verb, "runtime", lambda _path, job: sides[job.artifact])
        asked = {"base": "base.bpk", "new": "new.bpk", "rule": RULE, **request}
        return check(compare(Request(**asked))), log

    return run


def changed(**counts: int | None) -> Network:
    return replace(NETWORK, counts={**NETWORK.counts, **counts})


def row(kernel: str, isa: str, cost: float | None) -> Network:
    return replace(NETWORK, kernels={**NETWORK.kernels, "conv": Row(kernel, isa, cost)})


@pytest.mark.parametrize(
    ("new", "key", "says"),
    [
        (changed(content_bytes=2001), "bytes", "content bytes 2,001 instead of 2,000 (+1)"),
        (changed(file_bytes=2112), "bytes", "file bytes 2,112 instead of 2,048 (+64)"),
        (changed(weight_bytes=901), "bytes", "weight bytes"),
        (changed(bops=5001), "bops", "bops 5,001"),
        (changed(launches=5), "launches", "launches 5 instead of 4"),
        (changed(instructions=10_200), "instructions", "+200"),
        (row("i8dot_generic", "generic", 45.0), "kernel", "kernel of conv is i8dot_generic (about 45 us) instead of"),
        (row("conv2d_reference", "reference", 0.0), "kernel", "conv2d_reference"),
        (row("i8dot_avx9", "avx9", None), "kernel", "cost unknown"),
        (replace(NETWORK, output="cd" * 32), "output", "output differs: cdcdcdcdcdcd instead of abababababab"),
    ],
)
def test_what_got_worse_fails_with_its_name_unless_allowed(
    faked: Callable[..., Any], new: Network, key: str, says: str
) -> None:
    document, order = faked(NETWORK, new)
    assert document["verdict"] == "fail" and document["deterministic"]["failed"] == [key]
    assert says in document["why"] and f"--allow {key} accepts it" in document["why"]
    assert order == [] and document["ratio"] is None and "decided" in document["left_out"]
    document, order = faked(NETWORK, new, allow=(key,))
    assert document["verdict"] == "pass" and document["deterministic"]["allowed"] == [key] and len(order) == 16


@pytest.mark.parametrize(
    "new",
    [
        NETWORK, changed(content_bytes=1999, file_bytes=1984, weight_bytes=1, bops=1, launches=3),
        changed(instructions=10_099), changed(instructions=None), changed(bops=None), row("lut_vbmi", "vbmi", 3.0),
    ],
)  # fmt: skip
def test_fewer_faster_and_unknown_pass(faked: Callable[..., Any], new: Network) -> None:
    document, _ = faked(NETWORK, new)
    assert document["verdict"] == "pass" and document["deterministic"]["failed"] == []
    assert document["ratio"] == pytest.approx(1, abs=0.01)


def test_pairs_interleave_and_a_slow_network_fails(faked: Callable[..., Any]) -> None:
    document, order = faked(NETWORK, NETWORK, slowdown=1.3)
    assert order[:8] == ["base", "new", "new", "base"] * 2 and len(order) == 32
    assert document["verdict"] == "fail" and document["ratio"] == pytest.approx(1.3, rel=0.01)
    assert document["ci"][0] > 1.05 and len(document["paired"]["batches"]) == 2
    assert len(document["new"]["networks"][0]["times"]) == 16
    assert faked(NETWORK, NETWORK, slowdown=1.3, timed=False)[0]["verdict"] == "pass"


def test_a_self_check_judges_the_host(faked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_verb, "TRIALS", 10)
    document, order = faked(NETWORK, NETWORK, self_check=True, new=None)
    assert set(order) == {"base"} and document["verdict"] == "pass"
    found = document["self_check"]
    assert found["pairs"] == 16 and found["false_alarms"] == 0
    assert {each["ratio"] for each in found["caught"]} >= {1.1, 1.25}
    assert all(each["share"] == 1 for each in found["caught"] if each["ratio"] >= 1.1)


def test_a_budget_holds_on_its_host_only(faked: Callable[..., Any]) -> None:
    for limit, verdict in ((0.9, "fail"), (1.1, "pass")):
        document, _ = faked(NETWORK, NETWORK, max_ms=limit, host="some CPU")
        assert document["verdict"] == document["budget"]["verdict"] == verdict
        assert f"the {limit} ms of some CPU" in document["budget"]["why"]
    with pytest.raises(EnvironmentMissing, match="declared for 'other CPU', NEW runs on 'some CPU'"):
        faked(NETWORK, NETWORK, max_ms=0.9, host="other CPU")


def test_another_network_is_refused() -> None:
    base = Side("a.bpk", HOST, (NETWORK,))
    for other, says in (
        (replace(NETWORK, in_shape=(1, 8, 8)), "its input is 1x8x8, not 3x8x8"),
        (replace(NETWORK, outputs=11), "its number of outputs is 11, not 10"),
        (replace(NETWORK, layers=("conv", "head")), "2 layers are in one of them only, fc in a.bpk"),
    ):
        with pytest.raises(UsageError, match=says):
            facts.checks(base, Side("b.bpk", HOST, (other,)))
    two = Side("b.json", HOST, (NETWORK, replace(NETWORK, name="other")))
    with pytest.raises(UsageError, match=r"a.bpk has no other, one of 2 networks of b.json"):
        facts.checks(two, base)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request("a.bpk"), "NEW is missing"),
        (Request("a.bpk", "b.bpk", self_check=True), "leave NEW out"),
        (Request("a.json", self_check=True), "give the .bpk file"),
        (Request("a.bpk", self_check=True, timed=False), "--facts leaves out"),
        (Request("a.bpk", "b.bpk", allow=("byte",)), "did you mean bytes"),
        (Request("a.bpk", "b.bpk", rule=Rule(most=7)), "at least 8"),
        (Request("a.bpk", "b.bpk", max_ms=1.0), "name its processor"),
        (Request("a.bpk", "b.bpk", max_ms=1.0, host="x", timed=False), "--max-ms needs times"),
        (Request("a.bpk", "b.bpk", host="x"), "give both"),
        (Request("a.bpk", "b.bpk", new_setting=Setting(environment={"PATH": "x"})), "begin with BITPRESS_"),
        (Request("a.bpk", "b.json", new_setting=Setting(runtime="x")), "leave out its runtime"),
        (Request("a.bpk", new_setting=Setting(runtime="/nowhere")), "no program"),
        (Request("a.bpk", new_setting=Setting(runtime=__file__)), "no program"),
        (Request("a.bpk", "b.bpk", batch=2, base_setting=Setting(runtime="/bin/sh")), "times one image"),
    ],
)
def test_contradictions_are_refused_before_any_work(request_: Request, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compare(request_)


@pytest.fixture
def document(faked: Callable[..., Any]) -> Any:
    """A comparison that passed, as --json stores it."""
    return json.loads(json.dumps(faked(NETWORK, NETWORK)[0]))


def write(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_a_stored_comparison_stands_for_its_new_side(document: Any, tmp_path: Path, faked: Callable[..., Any]) -> None:
    base = write(tmp_path, "base.json", document)
    found, order = faked(NETWORK, NETWORK, base=base)
    assert found["verdict"] == "pass" and found["ratio"] is None and order == []
    assert found["base"]["stored"] and "not taken next to" in found["left_out"]
    assert faked(NETWORK, changed(bops=5001), base=base)[0]["deterministic"]["failed"] == ["bops"]
    # both stored; the budget is that of BASE's host
    for limit, verdict in ((0.9, "fail"), (1.1, "pass")):
        assert compare(Request(base, base, max_ms=limit))["verdict"] == verdict
    # NEW is timed for a budget even where BASE is stored
    found, order = faked(NETWORK, NETWORK, slowdown=2.0, base=base, max_ms=1.5)
    assert found["verdict"] == "fail" and order == ["new"] * 8 and found["budget"]["host"] == "some CPU"


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        *holders, last = path.split("/")
        for key in holders:
            document = document[int(key) if key.isdigit() else key]
        document[last] = value

    return change


def _without(path: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        *holders, last = path.split("/")
        for key in holders:
            document = document[int(key) if key.isdigit() else key]
        del document[last]

    return change


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (_set("new/host/cpu", "other CPU"), EnvironmentMissing, "the processor of .* is other CPU, .* some CPU"),
        (_set("new/host/isa", "avx512"), EnvironmentMissing, "another host: the ISA"),
        (_set("new/host/threads", 4), EnvironmentMissing, "another host: the number of threads"),
        (_set("new/networks/0/in_shape", [1, 8, 8]), UsageError, "another network"),
        (_set("verdict", "fail"), UsageError, "no baseline"),
        (_set("schema", "bitpress.bench"), UsageError, "is a document bitpress.bench"),
        (_set("schema_version", 2), CorruptError, "schema_version 2, this Bitpress reads 1"),
        (_without("schema"), CorruptError, "lacks the key schema"),
        (_without("new"), CorruptError, "lacks the key new"),
        (_without("new/host/cpu"), CorruptError, "lacks the key new.host.cpu"),
        (_without("new/networks/0/output"), CorruptError, r"lacks the key new.networks\[0\].output"),
        (_without("new/networks/0/counts/bops"), CorruptError, "lacks the key .*counts.bops"),
        (_without("new/networks/0/kernels/conv/isa"), CorruptError, "lacks the key .*kernels.conv.isa"),
        (_set("new/networks/0/counts/bops", "many"), CorruptError, "bops is \"many\", not a whole number"),
        (_set("new/networks/0/times", [True]), CorruptError, "not a number"),
        (_set("new/networks/0/times", [0.0]), CorruptError, "is 0.0, not a time"),
        (_set("new/networks", []), CorruptError, "networks is empty"),
    ],
)  # fmt: skip
def test_bad_baselines_are_one_sentence(
    document: Any, tmp_path: Path, faked: Callable[..., Any], change: Callable[[Any], None], error: type, says: str
) -> None:
    broken = copy.deepcopy(document)
    change(broken)
    with pytest.raises(error, match=says):
        faked(NETWORK, NETWORK, base=write(tmp_path, "base.json", broken))


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "is empty"), (" \n", "is empty"), ("{", "is no JSON"), ("[1]", "holds list"), ("\0", "is no JSON"),
     ('{"schema": NaN}', "NaN is no number"), ("[" * 100_000, "is no JSON"), ("{}", "lacks the key schema")],
)  # fmt: skip
def test_damaged_files_are_corrupt(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(CorruptError, match=says):
        stored.read(write(tmp_path, "base.json", text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        stored.read(str(tmp_path / "none.json"))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(CorruptError, match="is no JSON"):
        stored.read(str(tmp_path / "binary.json"))


def _recorded(**info: Any) -> dict[str, Any]:
    extra = {"bytes": 900, "bops": 5000, "kernel": "i8dot_avx2", "isa": "avx2", **info}
    case = {"fullname": "test_gemm.py::a", "extra_info": extra, "stats": {"median": 1e-3}}
    other = {"fullname": "test_gemm.py::b", "extra_info": {**extra, "kernel": ["x", "y"]}, "stats": {"median": 2e-3}}
    return {"machine_info": {"bitpress_cpu": "some CPU"}, "benchmarks": [case, other]}


def test_what_pytest_benchmark_wrote(tmp_path: Path) -> None:
    base = write(tmp_path, "base.json", _recorded())
    assert check(compare(Request(base, base)))["verdict"] == "pass"
    for info, key in (({"bytes": 901}, "bytes"), ({"kernel": "i8dot_generic"}, "kernel"), ({"bops": 5001}, "bops")):
        found = check(compare(Request(base, write(tmp_path, "new.json", _recorded(**info)))))
        assert found["deterministic"]["failed"] == [key] and "test_gemm.py::a: " in found["why"]
    with pytest.raises(UsageError, match=r"one network, .* holds 2"):
        compare(Request(base, base, max_ms=1.0))
    fewer = _recorded()
    del fewer["benchmarks"][1]
    with pytest.raises(UsageError, match=r"has no test_gemm.py::b"):
        compare(Request(base, write(tmp_path, "new.json", fewer)))
    elsewhere = {**_recorded(), "machine_info": {"cpu": {"brand_raw": "other CPU"}}}
    with pytest.raises(EnvironmentMissing, match="baseline of another host"):
        compare(Request(write(tmp_path, "old.json", elsewhere), base))
    plain = _recorded()
    del plain["benchmarks"][0]["extra_info"]["bytes"]
    with pytest.raises(CorruptError, match=r"lacks the key benchmarks\[0\].extra_info.bytes"):
        stored.read(write(tmp_path, "plain.json", plain))
    with pytest.raises(CorruptError, match="holds no benchmarks"):
        stored.read(write(tmp_path, "none.json", {**_recorded(), "benchmarks": []}))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "x.bpk"
    artifact.write(samples.everything(), path)
    return path


def ask(path: Path, output: str = "") -> dict[str, Any]:
    return process.child({"artifact": str(path), "threads": 1, "batch": 2, "seconds": 0.01, "output": output})


def test_a_child_finds_facts_and_times_only_what_is_right(sample: Path, tmp_path: Path) -> None:
    network = ask(sample)["network"]
    assert network["counts"]["file_bytes"] == sample.stat().st_size > network["counts"]["content_bytes"]
    assert list(network["kernels"]) == [step.name for step in samples.everything().steps]
    assert all(found["cost"] is not None for found in network["kernels"].values())
    assert network["output"] == ask(sample)["network"]["output"]
    assert ask(sample, network["output"])["median"] > 0
    with pytest.raises(CheckFailed, match="nothing is timed"):
        ask(sample, "0" * 64)
    program = samples.everything()
    assert program.golden_output is not None
    program.golden_output[...] += 1
    artifact.write(program, tmp_path / "wrong.bpk")
    with pytest.raises(CheckFailed, match="golden sample does not come out"):
        ask(tmp_path / "wrong.bpk")


def test_one_more_byte_in_the_file_is_seen_where_padding_hides_it(sample: Path, tmp_path: Path) -> None:
    program = samples.everything()
    artifact.write(replace(program, labels=("Class 0+", *program.labels[1:])), tmp_path / "y.bpk")
    base, new = ask(sample)["network"]["counts"], ask(tmp_path / "y.bpk")["network"]["counts"]
    assert new["content_bytes"] == base["content_bytes"] + 1


def test_errors_of_a_child_are_those_of_the_verb(tmp_path: Path) -> None:
    (tmp_path / "empty.bpk").write_bytes(b"")
    with pytest.raises(CorruptError, match="Truncated"):
        process.Python(process.Job(str(tmp_path / "empty.bpk"))).side()


def script(folder: Path, text: str) -> str:
    path = folder / "tool"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("echo hello", UsageError, "printed no document"),
        ("echo '{}'", UsageError, "does not say what bitpress-run says"),
        ("echo 'bitpress-run: no such ISA' >&2; exit 5", EnvironmentMissing, "no such ISA"),
        ("echo 'Traceback' >&2; exit 1", EnvironmentMissing, "ended with 1"),
        ("kill -9 $$", EnvironmentMissing, "ended with -9"),
    ],
)
def test_a_runtime_that_is_no_build_of_ours(sample: Path, tmp_path: Path, text: str, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        process.Tool(script(tmp_path, text), process.Job(str(sample))).side()


def test_instructions_are_counted_or_unknown() -> None:
    found = counters.instructions(lambda: lambda: sum(range(1000)))
    assert found is None or found > 1000
