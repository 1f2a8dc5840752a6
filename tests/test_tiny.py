"""End to end in seconds, without a compiler or a GPU: a three-layer network becomes a file that computes the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bitpress.compiler import artifact
from bitpress.compiler.model import load
from bitpress.compiler.pipeline import compile_run
from bitpress.core import rundir
from bitpress.core.calibrate import calibrate
from bitpress.core.capture import capture
from bitpress.core.integer import integer
from bitpress.core.plan import GroupId, LayerId, from_json, to_json
from bitpress.core.semantics import Semantics


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


def test_network_to_plan_to_file_to_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_NATIVE", "0")
    module = network()
    graph = capture(module, (1, 8, 8))
    x = np.random.default_rng(0).normal(size=(16, 1, 8, 8)).astype(np.float32)
    plan, tensors = calibrate(graph, x, weight_bits=4, act_bits=8)

    doc = to_json(plan)  # by hand: the first convolution loses two filters, the second holds three widths
    first, second = (n.name for n in graph.nodes if n.op == "conv2d")
    doc["keep"][first] = [0, 1, 3, 4, 6, 7]
    doc["bits"][first]["weight"] = [{"encoding": "i8", "filters": doc["keep"][first]}]
    widths = {"i2": [0, 5, 9], "i8": [1, 2, 3], "i4": [4, 6, 7, 8, 10, 11, 12, 13, 14, 15]}
    doc["bits"][second]["weight"] = [{"encoding": e, "filters": f} for e, f in widths.items()]
    plan = from_json(doc)
    assert plan.keep[GroupId(first)] == (0, 1, 3, 4, 6, 7)
    assert len(plan.bits[LayerId(second)].weight) == 3

    meta = {"model": "tiny", "in_shape": (1, 8, 8), "classes": 4, "mean": [0.0], "std": [1.0], "labels": list("abcd")}
    rundir.write_run(tmp_path / "run", graph, plan, tensors, meta)
    run = rundir.load_run(tmp_path / "run")
    want = Semantics(integer(run.graph, run.plan, run.tensors)).run(x)
    size = artifact.write(compile_run(run), tmp_path / "tiny.bpk")
    assert size == (tmp_path / "tiny.bpk").stat().st_size

    model = load(tmp_path / "tiny.bpk")
    assert model.golden_check()
    assert model.labels == tuple("abcd")
    assert np.array_equal(model(x), want)
    with torch.no_grad():
        floats = module(torch.from_numpy(x)).numpy()
    assert np.corrcoef(floats.ravel(), want.ravel())[0, 1] > 0.5, "two filters are gone, the rest is near"
