"""The study of the gate on pairs that were made up: a kill loses one block, drift stays in what is resampled, the page
says what failed. No process is timed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitpress.benchmarks import gate_judge, gate_study
from bitpress.benchmarks.gate import FAIL, INCONCLUSIVE, Pair, Rule
from bitpress.benchmarks.gate_judge import ARMS, SAME
from bitpress.core.errors import UsageError
from bitpress.core.rundir import read_json

RULE = Rule(most=24, resamples=200)
Draw = Callable[[], Pair]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Draw]:
    """A host that scatters by 2 %, and whose builds are as slow as planted; the draws can be replaced."""
    network = tmp_path / "net.bpk"
    network.write_bytes(b"network")
    made = gate_study.Rig(
        network, {arm: tmp_path / arm for arm in ARMS}, {arm: 100 * r for arm, r in ARMS.items()}, "avx2"
    )
    rng = np.random.default_rng(0)

    def source(ratio: float) -> Draw:
        return lambda: (float(np.exp(rng.normal(0, 0.01))), ratio * float(np.exp(rng.normal(0, 0.01))))

    draws = {arm: source(ratio) for arm, ratio in ARMS.items()}
    monkeypatch.setattr(gate_study, "_rig", lambda _delays: made)
    monkeypatch.setattr(gate_study, "_draw", lambda _rig, arm: draws[arm])
    return draws


def lengths(store: Path) -> dict[str, list[int]]:
    return {arm: [len(b["pairs"]) for b in d["blocks"]] for arm, d in gate_judge.recorded(store).items()}


def test_a_kill_loses_one_block_and_the_same_command_goes_on(rig: dict[str, Draw], tmp_path: Path) -> None:
    store, last = tmp_path / "store", list(ARMS)[-1]
    store.mkdir()
    good, left = rig[last], iter(range(13))

    def killed() -> Pair:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return good()

    rig[last] = killed
    with pytest.raises(KeyboardInterrupt):
        gate_study.record(store, 20, block=8)
    assert lengths(store) == {**{arm: [8, 8] for arm in ARMS}, last: [8]}
    before = (store / f"{SAME}.json").read_text()
    rig[last] = good
    gate_study.record(store, 20, block=8)
    assert lengths(store) == {arm: [8, 8, 4] for arm in ARMS}
    first = json.loads(before)["blocks"]
    assert gate_judge.recorded(store)[SAME]["blocks"][:2] == first
    whole = {arm: (store / f"{arm}.json").read_bytes() for arm in ARMS}
    gate_study.record(store, 20, block=8)  # nothing is missing: nothing is drawn
    assert {arm: (store / f"{arm}.json").read_bytes() for arm in ARMS} == whole


def test_records_of_another_network_are_not_mixed(rig: dict[str, Draw], tmp_path: Path) -> None:
    assert rig
    store = tmp_path / "store"
    store.mkdir()
    gate_study.record(store, 8)
    (tmp_path / "net.bpk").write_bytes(b"other")
    with pytest.raises(UsageError, match=r"recorded with sha256 .* give another --store"):
        gate_study.record(store, 16)


def test_drift_stays_in_what_is_resampled() -> None:
    pairs = [(float(i), float(i)) for i in range(100)]
    drawn = [
        int(base) for base, _ in islice(gate_judge.resampled(pairs, np.random.default_rng(1), stretch=24), 24 * 50)
    ]
    stretches = [drawn[i : i + 24] for i in range(0, len(drawn), 24)]
    assert all(b == (a + 1) % 100 for stretch in stretches for a, b in pairwise(stretch))
    assert {stretch[0] % 2 for stretch in stretches} == {0}  # BASE first, as in a batch
    assert len({stretch[0] for stretch in stretches}) > 20


def live(arm: str, number: int) -> dict[str, Any]:
    return {
        "at": "2026-11-27T12:00:00+00:00", "verdict": "pass" if arm == SAME else FAIL, "ratio": ARMS[arm],
        "ci": [1.0, 1.3], "detectable": 1.09, "pairs": 8, "seconds": 7.0 + number,
    }  # fmt: skip


def test_the_page_says_what_was_found(rig: dict[str, Draw], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rig
    store, numbers = tmp_path / "store", count()
    store.mkdir()
    gate_study.record(store, 48, block=24)
    gate_judge.judge(store, trials=20, visible=3, rule=RULE)
    monkeypatch.setattr(gate_study, "_compare", lambda _rig, arm: live(arm, next(numbers)))
    gate_study.live(store, 1)
    gate_study.live(store, 2)
    runs = read_json(store / "live.json")["runs"]
    assert [run["arm"] for run in runs] == [*ARMS, *ARMS]
    judged = read_json(store / "judged.json")
    assert judged["arms"][SAME][FAIL] == 0 and judged["arms"]["slow25"][FAIL] == 1
    assert judged["arms"]["slow25"]["ratio"] == pytest.approx(1.25, rel=0.01)
    assert judged["detectable"]["caught"] == 1 and judged["detectable"]["median"] > 1.05
    assert gate_study.main(["table", "--store", str(store), "--table", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert page.count("| holds |") == 4 and "FAILS" not in page and "| 2 of 2 | holds |" in page
    assert max(map(len, page.splitlines())) <= 130
    for change in (
        lambda d: d["arms"][SAME].update({FAIL: 0.02}), lambda d: d["detectable"].update(caught=0.79),
        lambda d: d["arms"]["slow25"].update({FAIL: 0.9, INCONCLUSIVE: 0.1}),
    ):  # fmt: skip
        broken = json.loads(json.dumps(judged))
        change(broken)
        (store / "judged.json").write_text(json.dumps(broken))
        assert gate_judge.page(store).count("| FAILS |") == 1


def test_a_missing_arm_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate_study.main(["judge", "--store", str(tmp_path)]) == 2
    assert "same.json" in capsys.readouterr().err
