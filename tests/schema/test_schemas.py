"""The schemas themselves: valid, one a document, with the promised head. Documents are checked by the verbs' tests."""

from __future__ import annotations

import copy

import pytest

from bitpress.cli.command import FORMS, VERBS
from bitpress.core.host import head

from .schemas import FOLDER, schema

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")


# documents of programs that are no verb (bitpress-run), of sweeps, of tables, and of forms of verbs (bench gemm)
TOOLS = ("native", "pareto", "tiles", *(form for forms in FORMS.values() for form in forms))


@pytest.mark.parametrize("verb", (*VERBS, *TOOLS))
def test_every_verb_has_a_schema_with_the_head(verb: str) -> None:
    found = schema(verb)
    jsonschema.Draft202012Validator.check_schema(found)
    assert {"schema", "schema_version", "bitpress", "host"} <= set(found["required"])
    assert found["properties"]["schema"] == {"const": f"bitpress.{verb}"}
    host = {"properties": {"host": found["properties"]["host"]}}
    made = head(f"bitpress.{verb}", isa="avx2", threads=2)
    jsonschema.validate(made, host)
    broken = copy.deepcopy(made)
    broken["host"]["threads"] = "two"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, host)


def test_there_is_no_schema_without_a_verb() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*VERBS, *TOOLS}
