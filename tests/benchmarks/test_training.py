"""The benchmark of training steps: every way and network takes a step; the table reads the turns' ratios."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bitpress.benchmarks import training as tr
from bitpress.core.cost import search_space

from .graphs import residual


@pytest.mark.parametrize("way", [w for w in tr.WAYS if w != "compile"])
@pytest.mark.parametrize("net", tr.NETS)
def test_every_way_takes_the_same_step(way: str, net: str) -> None:
    torch.set_num_threads(1)
    graph = residual()
    space = search_space(graph, group_size=4)
    step, plain = (tr.step_of(w, net, graph, space, 8) for w in (way, "last"))
    first = step()
    assert first == pytest.approx(plain(), rel=0.05 if way == "bf16" else 1e-4)
    assert math.isfinite(step())


def test_the_table_takes_medians_and_the_ratios_of_turns() -> None:
    times = {("last", net): [1.0, 4.0, 2.0] for net in tr.NETS} | {("bf16", net): [0.5, 2.0, 2.0] for net in tr.NETS}
    rows = tr.table(times).splitlines()
    assert rows[2].startswith("| channels last | 2 | 1.00 |")
    assert rows[3].startswith("| channels last, bf16 | 2 | 2.00 |")


def test_the_document_says_how_it_was_made(tmp_path: Path) -> None:
    out = tmp_path / "t.md"
    assert tr.main(["--model", "digits_cnn", "--batch", "4", "--rounds", "1", "-o", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "python -m bitpress.benchmarks.training --model digits_cnn" in text and "digits_cnn, batch of 4" in text
    assert tr.main(["--rounds", "0"]) == 2
