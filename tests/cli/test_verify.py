"""`inspect` and `verify` on artifacts of real networks: sums that hold, differences that are named, damage refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bitpress.core.rundir import TENSORS, read_tensors, write_tensors

from .test_compile import BLOBS, CHAIN, PTQ
from .tool import bitpress, good, refused


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    good("compile", CHAIN, *PTQ, "--run", folder / "run", "-o", folder / "x.bpk")
    return folder


def test_inspect_adds_up(made: Path) -> None:
    document = good("inspect", made / "x.bpk", "--json", "-").document()
    layers, totals = document["layers"], document["totals"]
    assert [row["name"] for row in layers] == ["0", "3", "8"]
    assert [row["w_bits"] for row in layers] == [8, 4, 8]  # the ends hold eight bits
    assert sum(part["bytes"] for part in document["parts"]) == totals["file_bytes"] == (made / "x.bpk").stat().st_size
    assert sum(row["bytes"] for row in layers) == totals["weight_bytes"]
    assert sum(row["bops"] for row in layers) == totals["bops"]
    assert all(row["kernel"] and row["why"] for row in layers)
    assert totals["bops_ratio"] == pytest.approx(totals["bops_fp32"] / totals["bops"])
    out = good("inspect", made / "x.bpk").out
    assert "Parts of the file" in out and "weights:" in out


def test_verify_is_exact_in_every_batch_and_thread_count(made: Path) -> None:
    args = ("verify", made / "x.bpk", "--against", made / "run", "--batch", "1,5", "--threads", "1,2", "--data", BLOBS)
    document = good(*args, "--json", "-").document()
    assert document["exact"] and document["first_difference"] is None and "torch" in document["stages"]
    assert {(run["batch"], run["threads"]) for run in document["runs"]} == {(1, 1), (1, 2), (5, 1), (5, 2)}
    assert "exact: torch = reference" in good(*args).out


def test_the_first_difference_is_named(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    tensors = read_tensors(run / TENSORS)
    tensors["3.weight"] = np.roll(tensors["3.weight"], 1, axis=0)
    write_tensors(run / TENSORS, tensors)
    outcome = bitpress("verify", made / "x.bpk", "--against", run, "--json", "-")
    assert outcome.code == 1
    document = outcome.document()
    first = document["first_difference"]
    assert not document["exact"] and first["stage"] == "torch" and first["mismatches"] > 0
    wrong = next(row["name"] for row in document["layers"] if row["mismatches"])
    assert wrong == first["name"] and wrong in outcome.err and "is not exact" in outcome.err


def test_a_reference_alone_verifies_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITPRESS_FORCE_ISA", raising=False)
    monkeypatch.setenv("BITPRESS_NATIVE", "0")
    assert "cannot verify itself" in refused(5, "verify", made / "x.bpk")
    document = good("verify", made / "x.bpk", "--against", made / "run", "--json", "-").document()
    assert document["stages"] == ["torch", "reference"] and document["left_out"][0]["stage"] == "native"


def test_damage_is_refused_by_every_verb(made: Path, tmp_path: Path) -> None:
    data = bytearray((made / "x.bpk").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.bpk").write_bytes(bytes(data))
    (tmp_path / "short.bpk").write_bytes((made / "x.bpk").read_bytes()[:-1])
    (tmp_path / "text.bpk").write_text("no artifact")
    for name, says in (("flipped.bpk", "BadChecksum"), ("short.bpk", "Truncated"), ("text.bpk", "")):
        for verb in ("inspect", "verify", "bench", "eval"):
            assert says in refused(4, verb, tmp_path / name), (verb, name)
    assert "cannot read" in refused(2, "inspect", tmp_path / "none.bpk")
    assert "no RUN" in refused(2, "verify", made / "x.bpk", "--against", tmp_path)


@pytest.mark.native
def test_every_isa_is_exact_and_files_are_the_same(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitpress import _native

    monkeypatch.delenv("BITPRESS_NATIVE", raising=False)
    for isa in _native.cpu_isas():
        monkeypatch.setenv("BITPRESS_FORCE_ISA", isa)
        document = good("verify", made / "x.bpk", "--against", made / "run", "--json", "-").document()
        assert document["exact"] and document["host"]["isa"] == isa and "native" in document["stages"]
        good("compile", made / "run", "-o", tmp_path / f"{isa}.bpk")
        assert (tmp_path / f"{isa}.bpk").read_bytes() == (made / "x.bpk").read_bytes()
