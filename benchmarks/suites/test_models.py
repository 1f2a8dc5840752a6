"""Compiled networks from end to end: post-training ResNet-20 and the digits network, batch 1, one thread, every ISA."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from bitpress.compiler import artifact
from bitpress.compiler.execute import execute
from bitpress.compiler.model import Model
from bitpress.compiler.pipeline import compile_run
from bitpress.delivery import Recipe, quantise
from bitpress.kernels.native import isas

NETWORKS = ("digits_cnn", "resnet20")
PAIRS = ("w2a2", "w4a4", "w8a8", "w2a8")


@cache
def compiled(model: str, pair: str) -> bytes:
    """The artifact of a network with random weights: time does not depend on them."""
    pytest.importorskip("torch", reason="networks are quantised with torch, which is not installed")
    return artifact.encode(compile_run(quantise(model, Recipe(pair, "random:8"))))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.benchmark(group="models")
def test_model(benchmark: Any, monkeypatch: pytest.MonkeyPatch, model: str, pair: str, isa: str) -> None:
    """One network on one ISA."""
    from bitpress import _native

    if isa not in _native.cpu_isas():
        pytest.skip(f"this host has no {isa}")
    monkeypatch.setenv("BITPRESS_FORCE_ISA", isa)
    loaded = Model(compiled(model, pair), threads=1)
    x = np.random.default_rng(0).standard_normal((1, *loaded.shape)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), execute(loaded.program, x))
    benchmark.pedantic(loaded.session.run, args=(x,), rounds=50, iterations=1, warmup_rounds=5)
    totals: Any = loaded.program.meta["totals"]
    benchmark.extra_info |= {
        "isa": isa, "bits": pair, "bops": totals["bops"], "macs": totals["macs"],
        "kernel": sorted({str(row["kernel"]) for row in loaded.inspect_rows()}),
        "bytes": sum(s.weight.fields.nbytes for s in loaded.program.steps if s.weight is not None),
    }  # fmt: skip
