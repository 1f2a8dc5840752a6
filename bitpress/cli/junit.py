"""What `compare` found as a JUnit file, which CI services show beside tests. Knows the document, measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..benchmarks.gate import FAIL, INCONCLUSIVE, PASS

if TYPE_CHECKING:
    from junitparser import TestCase

SUITE = "bitpress.compare"


def to_junit(document: Mapping[str, Any], *, strict: bool) -> bytes:
    """The file of a `bitpress.compare` document: one case a fact, one for times, one for a budget.

    Inconclusive is skipped, with `strict` a failure.
    """
    from junitparser import JUnitXml, TestSuite

    suite, xml, out = TestSuite(SUITE), JUnitXml(), BytesIO()
    suite.add_testcases(list(_cases(document, strict)))
    xml.add_testsuite(suite)
    xml.write(out)
    return out.getvalue()


def _cases(document: Mapping[str, Any], strict: bool) -> Iterator[TestCase]:
    for row in document["deterministic"]["checks"]:
        said = f"{row['change']}: {_said(row['new'])} instead of {_said(row['base'])}"
        yield _case("facts", row["what"], PASS if row["passed"] else FAIL, said, strict)
    paired, budget = document["paired"], document["budget"]
    if paired:
        yield _case("times", "pairs of processes", paired["verdict"], paired["why"], strict)
    else:
        yield _case("times", "pairs of processes", INCONCLUSIVE, document["left_out"], strict=False)
    if budget:
        yield _case("times", f"budget of {budget['max_ms']:g} ms", budget["verdict"], budget["why"], strict)


def _case(part: str, name: str, verdict: str, why: str, strict: bool) -> TestCase:
    from junitparser import Failure, Skipped, TestCase

    case = TestCase(name, f"{SUITE}.{part}")
    if verdict == FAIL or (verdict == INCONCLUSIVE and strict):
        case.result = Failure(why, verdict)
    elif verdict == INCONCLUSIVE:
        case.result = Skipped(why)
    return case


def _said(value: Any) -> str:
    return str(value["kernel"]) if isinstance(value, Mapping) else str(value)
