"""The examples in docstrings, module by module, imported by their real names."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"core": "bitpress.core", "kernels": "bitpress.kernels", "compiler": "bitpress.compiler"}


def modules() -> list[str]:
    """Dotted names of the modules whose source holds an example."""
    return [
        ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts))
        for folder, package in FOLDERS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        if ">>> " in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("bitpress"):
            raise
        pytest.skip(f"{name} needs {error.name}")
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
