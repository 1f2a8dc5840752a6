"""pytest plugin: `bitpress_benchmark` times a compiled network by pytest-benchmark and stores what `bitpress compare`
reads; `--require-isa` fails a session whose host would leave kernels out.

Every pytest loads it where Bitpress is installed: it imports nothing of ours, and not pytest-benchmark, until asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import pytest

OPTION = "--require-isa"


class Recorder(Protocol):
    """What `bitpress_benchmark` gives."""

    def __call__(self, source: str | Path | bytes, *, threads: int = 1, batch: int = 1) -> dict[str, Any]:
        """Verifies the artifact (path or bytes), times calls of `batch` images, and gives host and network.

        extra_info gets `bops`, `bytes` (of weights), `kernel` (all names), `isa`, `threads`, and all facts.
        """


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one option."""
    group = parser.getgroup("bitpress")
    group.addoption(
        OPTION, metavar="ISA,ISA", default="", help="fail where kernels of these instruction sets cannot run"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Ends the session, before any test, where an instruction set is missing: a skip would not be seen."""
    names = config.getoption(OPTION)
    if not names:
        return
    from .cli.environment import require_all
    from .core.errors import BitpressError

    try:
        require_all(names, OPTION)
    except BitpressError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture
def bitpress_benchmark(request: pytest.FixtureRequest) -> Recorder:
    """Times a compiled network and records its facts: `bitpress_benchmark("net.bpk", threads=1, batch=1)`."""
    if not request.config.pluginmanager.hasplugin("benchmark"):
        pytest.fail("bitpress_benchmark needs pytest-benchmark: pip install 'bitpress[bench]'", pytrace=False)
    benchmark = request.getfixturevalue("benchmark")

    def record(source: str | Path | bytes, *, threads: int = 1, batch: int = 1) -> dict[str, Any]:
        from .benchmarks.process import call_of, facts_of
        from .benchmarks.stored import PLUGIN
        from .compiler import artifact
        from .compiler.model import Model

        data = source if isinstance(source, bytes) else artifact.load_bytes(source)
        model = Model(data, threads=threads)
        found = facts_of("the artifact" if isinstance(source, bytes) else str(source), data, model, threads)
        benchmark(call_of(model, batch))
        network = found["network"]
        benchmark.extra_info |= {
            "bops": network["counts"]["bops"], "bytes": network["counts"]["weight_bytes"],
            "kernel": sorted({row["kernel"] for row in network["kernels"].values()}), "isa": found["host"]["isa"],
            "threads": threads, "batch": batch, PLUGIN: found,
        }  # fmt: skip
        return found

    return record
