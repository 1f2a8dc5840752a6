"""The schemas in docs/schema, applied to real documents."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schema"


@cache
def schema(name: str) -> Any:
    """The schema of "bitpress.NAME"."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def check(document: Any) -> Any:
    """`document`, if it keeps to the schema that it names; fails with the path of what does not."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    name = str(document["schema"]).removeprefix("bitpress.")
    errors = list(jsonschema.Draft202012Validator(schema(name)).iter_errors(document))
    assert not errors, [f"{e.json_path}: {e.message}" for e in errors[:5]]
    return document
