"""A build that is slowed down on purpose computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .conftest import ROOT, Sample, Tree, build, run


@pytest.mark.native
@pytest.mark.slow
def test_a_planted_delay_changes_no_value(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    slow = Tree(build(ROOT / "build" / "delay", "-DBITPRESS_DELAY=30", targets=["bitpress-run"]))
    sample, found = programs["everything"], []
    np.save(tmp_path / "x.npy", sample.x)
    for number, tool in enumerate((tree.tool, slow.tool)):
        out = tmp_path / f"{number}.npy"
        run([tool, sample.file, "--verify", "--input", tmp_path / "x.npy", "--output", out])
        found.append(out.read_bytes())
    assert found[0] == found[1]
