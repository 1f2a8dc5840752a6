"""Fixtures of the suites that run kernels in triton's interpreter."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results start as values that none has, so that one never written is seen."""
    import torch

    from bitpress.kernels.gpu import call

    made = call.output

    def output(*arguments: object) -> torch.Tensor:
        out = made(*arguments)
        return out.fill_(float("nan") if out.dtype == torch.float32 else -77)

    monkeypatch.setattr(call, "output", output)


@pytest.fixture(params=["sm90", "gfx942"])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Operands swapped, as for NVIDIA, and in plain order, as for AMD."""
    from bitpress.kernels.gpu import call

    monkeypatch.setattr(call, "target_of", lambda _device: request.param)
    return request.param


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Callable[[str, str, str], ModuleType]]:
    """A family as a module of its own, one piece of its source exchanged."""
    made: list[str] = []

    def plant(family: str, old: str, new: str) -> ModuleType:
        source = Path(importlib.util.find_spec(f"bitpress.kernels.gpu.{family}").origin).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{family}.py holds {old!r} {source.count(old)} times"
        path = tmp_path / f"{family}.py"
        path.write_text(source.replace(old, new), encoding="utf-8")
        label = f"bitpress.kernels.gpu.planted_{family}"
        spec = importlib.util.spec_from_file_location(label, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[label] = module
        made.append(label)
        spec.loader.exec_module(module)
        return module

    yield plant
    for label in made:
        del sys.modules[label]
