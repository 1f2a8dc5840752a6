"""Baselines and modes through the command line: options that go together, those that do not, documents that keep to
the schema, and RUNs that evaluate to the same digest as what is compiled from them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..schema.schemas import check
from .test_compile import BLOBS, CHAIN
from .tool import good, refused

QUICK = ("--epochs-float", "2", "--epochs-finetune", "1", "--threads", "1")
SEARCH = ("search", CHAIN, "--data", BLOBS, *QUICK)


@pytest.mark.parametrize(
    ("args", "mode", "bits"),
    [
        (("--method", "uniform", "--bits", "w4a4"), None, "w4a4"),
        (("--search", "bits", "--budget", "bops=10%", "--epochs-search", "1"), "bits", None),
        (("--search", "prune", "--budget", "bops=60%", "--epochs-search", "1"), "prune", "w8a8"),
        (("--method", "two-stage", "--budget", "bops=10%", "--epochs-search", "2"), None, "w8a8"),
        (("--method", "two-stage", "--stages-of", "djpq", "--budget", "bops=9%", "--epochs-search", "2"), None, "w8a8"),
        (("--method", "bayesian-bits", "--budget", "bops=10%", "--epochs-search", "1"), None, None),
    ],
)  # fmt: skip
def test_a_run_is_evaluated_and_compiled_to_the_same_digest(
    args: tuple[str, ...], mode: str | None, bits: str | None, tmp_path: Path
) -> None:
    run, file = tmp_path / "run", tmp_path / "x.bpk"
    outcome = good(*SEARCH, *args, "--out", run, "--json", "-")
    document = check(outcome.document())
    assert (document["mode"], document["bits"]) == (mode, bits)
    lines = [line for line in outcome.err.splitlines() if "epoch" in line]
    assert len(lines) == sum(document["epochs"].values())  # one an epoch of every phase
    assert json.loads((run / "result.json").read_text())["top1"] == document["top1"]
    good("compile", run, "-o", file)
    for source in (run, file):
        found = good("eval", source, "--data", BLOBS, "--json", "-").document()
        assert found["predictions_sha256"] == document["predictions_sha256"]
    assert good("verify", file, "--against", run, "--json", "-").document()["exact"]
    again = good(*SEARCH, *args, "--out", run).out  # finished: its result again
    assert " ".join(filter(None, (document["method"], mode, bits))) in again


def test_options_of_a_method_come_from_a_configuration_file_too(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[search]\nsearch = "prune"\nbits = "w4a4"\nbudget = ["bops=0.1%"]\n')
    out = refused(1, *SEARCH, "--config", tmp_path / "c.toml", "--out", tmp_path / "run")
    assert "w4a4 between 8-bit ends and the largest pruning" in out


@pytest.mark.parametrize(
    ("code", "args", "says"),
    [
        (1, ("--method", "uniform", "--bits", "w8a8", "--budget", "bops=1%"), "raise the budget, or lower --bits"),
        (2, ("--method", "uniform"), "needs --bits"),
        (2, ("--method", "uniform", "--bits", "w4"), "w2a8"),
        (3, ("--method", "uniform", "--bits", "w3a4"), "no kernel"),
        (2, ("--method", "uniform", "--bits", "w4a4", "--search", "bits"), "it goes with --method sbs"),
        (2, ("--bits", "w4a4", "--budget", "bops=10%"), "--bits does nothing with --method sbs --search joint"),
        (2, ("--search", "both", "--budget", "bops=10%"), "valid: joint, bits, prune"),
        (2, ("--search", "prune",), "needs a budget"),
        (2, ("--prune-share", "0.5", "--budget", "bops=10%"), "--prune-share does nothing"),
        (2, ("--stages-of", "djpq", "--budget", "bops=10%"), "it goes with --method two-stage"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(code: int, args: tuple[str, ...], says: str, tmp_path: Path) -> None:
    assert says in refused(code, *SEARCH, *args, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
from click.testing import CliRunner
from bitpress.cli.command import cli
for method in sys.argv[2:]:
    done = CliRunner().invoke(cli, [*json.loads(sys.argv[1]), "--method", method])
    print(json.dumps([done.exit_code, done.stderr]))
"""


def test_without_its_extra_every_method_is_refused_in_one_sentence(tmp_path: Path) -> None:
    from bitpress.core.search import SEARCHES

    words = [*map(str, SEARCH), "--budget", "bops=10%", "--out", str(tmp_path / "run")]
    code = [sys.executable, "-P", "-c", WITHOUT_TORCH, json.dumps(words), *SEARCHES]
    said = subprocess.run(code, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == len(SEARCHES)
    for exit_code, error in map(json.loads, said):
        assert exit_code == 5
        assert "the extra [search]: pip install 'bitpress[search]'" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()
