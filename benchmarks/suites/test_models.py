"""Compiled networks from end to end: post-training ResNet-20 and the digits network, batch 1, one thread, every ISA."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from bitpress.compiler import artifact
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
def test_model(bitpress_benchmark: Any, monkeypatch: pytest.MonkeyPatch, model: str, pair: str, isa: str) -> None:
    """One network on one ISA."""
    from bitpress import _native

    if isa not in _native.cpu_isas():
        pytest.skip(f"this host has no {isa}")
    monkeypatch.setenv("BITPRESS_FORCE_ISA", isa)
    bitpress_benchmark(compiled(model, pair))
