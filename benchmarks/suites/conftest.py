"""What the suites share: a clock that counts one step only, forced rows, and what every result must say."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from bitpress.core.host import cpu_name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing can be timed without native code."""
    if find_spec("bitpress._native") is None:
        skip = pytest.mark.skip(reason="the native module is not installed: make native")
        for item in items:
            item.add_marker(skip)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:  # noqa: ARG001
    """The processor by the name that every document gives it."""
    machine_info["bitpress_cpu"] = cpu_name()


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Suites force rows themselves."""
    for name in ("BITPRESS_FORCE_ISA", "BITPRESS_FORCE_KERNEL", "BITPRESS_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    yield
