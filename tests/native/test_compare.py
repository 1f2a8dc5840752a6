"""`compare` between builds of bitpress-run: the tool's own word on kernels and outputs, its own clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitpress.benchmarks import process
from bitpress.benchmarks.compare import Request, Setting, compare
from bitpress.benchmarks.gate import Rule
from bitpress.core.errors import CheckFailed

from ..schema.schemas import check
from .conftest import Sample, Tree


@pytest.mark.native
def test_a_build_of_the_tool_is_a_runtime(
    tree: Tree, programs: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BITPRESS_NATIVE", "BITPRESS_FORCE_ISA", "BITPRESS_FORCE_KERNEL"):
        monkeypatch.delenv(name, raising=False)
    file, tool = str(programs["everything"].file), Setting(str(tree.tool))
    document = check(compare(Request(file, new_setting=tool, timed=False)))  # Python against the tool: the same facts
    assert document["verdict"] == "pass" and document["new"]["runtime"] == str(Path(tree.tool).resolve())
    forced = Setting(str(tree.tool), {"BITPRESS_FORCE_KERNEL": "bitserial_generic"})
    document = check(compare(Request(file, base_setting=tool, new_setting=forced, timed=False)))
    assert document["deterministic"]["failed"] == ["kernel"]
    rule = Rule(tolerance=9, most=8, resamples=200)
    found = check(compare(Request(file, file, base_setting=tool, new_setting=tool, rule=rule, seconds=0.01)))
    assert found["ratio"] > 0 and len(found["base"]["networks"][0]["times"]) == 8
    with pytest.raises(CheckFailed, match="nothing is timed"):
        process.Tool(str(tree.tool), process.Job(file, seconds=0.01)).time("0" * 64)
