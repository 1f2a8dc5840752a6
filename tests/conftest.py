"""What every test gets: a header that says what runs, one thread, skips that say why, golden files, real data."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"

# Before torch is imported anywhere: float sums depend on the number of threads, and tests may run beside each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    from hypothesis import settings
except ImportError:  # only tests of properties need it; they say so themselves
    pass
else:
    # Time says nothing about these properties, and a failing example is printed so that it can be run again.
    settings.register_profile("bitpress", deadline=None, max_examples=50, print_blob=True)
    settings.register_profile("ci", settings.get_profile("bitpress"), derandomize=True)
    settings.load_profile("ci" if os.environ.get("CI") else "bitpress")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden instead of comparing with it")


def _native_missing() -> str:
    """Why tests of the native module cannot run, "" if they can."""
    if os.environ.get("BITPRESS_NATIVE") == "0":
        return "BITPRESS_NATIVE=0 forbids the native module"
    return "" if find_spec("bitpress._native") else "the native module is not installed: make native"


def _gpu_missing() -> str:
    return "" if Path("/dev/nvidia0").exists() and find_spec("triton") else "no GPU, or triton is not installed"


def pytest_report_header() -> str:
    forced = {name: value for name, value in sorted(os.environ.items()) if name.startswith("BITPRESS_")}
    said = ", ".join(f"{name}={value}" for name, value in forced.items()) or "nothing forced"
    return f"bitpress: {_native_missing() or 'native module present'}; {said}; numpy {np.__version__}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, why in (("native", _native_missing()), ("gpu", _gpu_missing())):
        if why:
            for item in items:
                if item.get_closest_marker(marker):  # its keywords hold the names of folders too
                    item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("float/resnet20.txt", text)` fails with a diff unless tests/golden holds that text."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"there is no golden file {name}: make golden writes it")
        want = path.read_text(encoding="utf-8")
        if text != want:
            lines = difflib.unified_diff(want.splitlines(), text.splitlines(), "golden", "now", lineterm="")
            pytest.fail(f"{name} differs (make golden accepts it):\n" + "\n".join(lines))

    return compare


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real networks and images (weights/, cifar10/, ...); skips where there is none."""
    folder = os.environ.get("BITPRESS_DATA", "")
    if not folder:
        pytest.skip("BITPRESS_DATA is not set: real weights and images are not here")
    return Path(folder)
