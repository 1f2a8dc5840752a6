"""Environment values are judged before anything else happens."""

from __future__ import annotations

import pytest

from bitpress.cli import environment
from bitpress.core.errors import EnvironmentMissing, UsageError
from bitpress.kernels import native

from .tool import bitpress, good, refused


def test_isa_rows_are_those_of_the_one_list() -> None:
    rows = environment.isas()
    assert tuple(row.name for row in rows) == native.isas()
    assert all(set(row.contains) < {r.name for r in rows} for row in rows)
    assert environment.lacks("generic") == ()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BITPRESS_FORCE_ISA", "avx9", "avx512vbmi, amx, neon"),
        ("BITPRESS_FORCE_KERNEL", "fastest", "bitserial_generic"),
        ("BITPRESS_NATIVE", "yes", "0, 1"),
        ("BITPRESS_NUM_THREADS", "many", "1 to 256"),
        ("BITPRESS_NUM_THREADS", "0", "1 to 256"),
    ],
)
def test_unknown_values_list_the_valid_ones(name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    said = refused(2, "doctor")
    assert name in said and value in said and says in said


def test_an_isa_that_the_host_lacks_is_exit_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpu_features", lambda: frozenset({"avx2", "fma"}))
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "avx512vnni")
    said = refused(5, "doctor")
    assert "avx512vnni" in said and "usable here: reference, generic, avx2" in said
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "neon")
    refused(5, "doctor")


def test_native_isa_without_native_code_is_exit_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "generic")
    monkeypatch.setenv("BITPRESS_NATIVE", "0")
    assert "BITPRESS_NATIVE=0 forbids" in refused(5, "doctor")


def test_check_takes_what_is_valid() -> None:
    environment.check({})
    environment.check({"BITPRESS_FORCE_ISA": "reference", "BITPRESS_NATIVE": "0", "BITPRESS_NUM_THREADS": "2"})
    environment.check({"BITPRESS_FORCE_ISA": "generic", "BITPRESS_FORCE_KERNEL": "i8dot_generic"})
    with pytest.raises(UsageError):
        environment.check({"BITPRESS_NATIVE": "2"})
    with pytest.raises(EnvironmentMissing):
        environment.check({"BITPRESS_FORCE_ISA": "neon" if environment.lacks("neon") else "avx2"})


def test_doctor_says_what_is_usable_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_NATIVE", "0")
    document = good("doctor", "--json", "-").document()
    assert document["host"]["isa"] == "reference" and not document["native"]["loaded"]
    native_rows = [row for row in document["kernels"] if row["isa"] != "reference"]
    assert native_rows and not any(row["usable"] for row in native_rows) and all(row["why"] for row in native_rows)
    assert {row["name"] for row in document["libraries"]} >= {"numpy", "torch", "onnxruntime"}
    gpu = document["gpu"]
    assert gpu["usable"] == (not gpu["why"]) and (gpu["triton"] or "triton is not installed" in gpu["why"])
    table = bitpress("doctor")
    assert table.code == 0 and "bitserial_avx2" in table.out and "GPU kernels: triton" in table.out


@pytest.mark.native
def test_doctor_with_native_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITPRESS_NATIVE", raising=False)
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "generic")
    document = good("doctor", "--json", "-").document()
    usable = {row["isa"] for row in document["kernels"] if row["usable"]}
    assert usable == {"generic"} and document["host"]["isa"] == "generic"
    assert any("BITPRESS_FORCE_ISA=generic" in row["why"] for row in document["kernels"] if row["isa"] == "avx2")
