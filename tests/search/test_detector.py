"""Searches of a detector: from boxes to a RUN to an artifact, the same outputs everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bitpress.core.errors import UsageError
from bitpress.core.search import search

from ..cli.tool import good, refused
from ..schema.schemas import check
from .test_methods import _events

DETECTOR = f"{Path(__file__).parent / 'detector.py'}:detector"
QUICK: dict[str, Any] = {
    "data": "detection", "epochs_float": 1, "epochs_search": 1, "epochs_finetune": 1, "batch": 20, "train_images": 80,
    "held_images": 20, "lr_float": 0.01, "lr_search": 0.002, "lr_finetune": 0.002, "threads": 1,
    "mean": (0.5,), "std": (0.25,),
}  # fmt: skip

UNIFORM: dict[str, Any] = {"epochs_search": None, "lr_search": None}  # which does not search


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_ajpq_searches_a_detector_and_every_way_gives_the_same_outputs(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="the extra `rl` is not installed")
    out, packed = tmp_path / "run", tmp_path / "x.bpk"
    budgets = ["size=22%", "bops=4%"]
    result = search(DETECTOR, out=out, budgets=budgets, method="ajpq", precision="fixed:8", episodes=2, **QUICK)
    check(json.loads((out / "result.json").read_text()))
    assert (result["top1"], result["baseline_top1"], result["top5"]) == (None, None, None)
    assert 0 <= result["iou"] <= 1 and 0 <= result["baseline_iou"] <= 1
    assert result["weight_bytes"] <= 0.22 * result["fp32_bytes"] and result["bops"] <= 0.04 * result["bops_fp32"]
    epochs = _events(out, "epoch")
    assert all("val_iou" in e and "val_top1" not in e for e in epochs)
    good("compile", out, "-o", packed)
    assert good("verify", packed, "--against", out, "--json", "-").document()["exact"]
    for source in (out, packed):
        document = good("eval", source, "--json", "-").document()
        assert (document["top1"], document["top5"], document["n"]) == (None, None, result["n"])
        assert document["iou"] == result["iou"]
        assert document["predictions_sha256"] == result["predictions_sha256"]
    assert "mean IoU" in good("eval", packed).out
    said = refused(2, "eval", packed, "--data", "digits")
    assert "images of shape 1,8,8" in said


@pytest.mark.parametrize(
    ("method", "options"),
    [("sbs", {"lr_thresholds": 0.02}), ("djpq", {}), ("uniform", UNIFORM | {"bits": "w4a4", "budgets": []})],
)
def test_other_methods_search_detectors_too(tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    given = {**QUICK, "budgets": ["bops=3%"], **options, "train_images": 40}
    result = search(DETECTOR, out=tmp_path / "run", method=method, **given)
    assert result["bops"] <= 0.033 * result["bops_fp32"] and result["iou"] is not None


def test_training_finds_boxes(tmp_path: Path) -> None:
    """What learns finds more than what does not: the float network is better after its epochs than before them."""
    given = {**QUICK, **UNIFORM, "train_images": 600, "epochs_float": 3, "lr_float": 0.02}
    search(DETECTOR, out=tmp_path / "run", budgets=[], method="uniform", bits="w8a8", **given)
    losses = [e["val_loss"] for e in _events(tmp_path / "run", "epoch") if e["phase"] == "float"]
    assert losses[-1] < losses[0]


def test_what_a_detector_cannot_have_is_refused_before_any_work(tmp_path: Path) -> None:
    given = {**QUICK, "out": tmp_path / "run", "budgets": ["bops=3%"]}
    with pytest.raises(UsageError, match=r"--label-smoothing 0\.1: detection has boxes, which are no classes"):
        search(DETECTOR, **given, label_smoothing=0.1)
    with pytest.raises(UsageError, match="--held-images 1000: detection has 140 to validate with"):
        search(DETECTOR, **given | {"held_images": 1000})
    with pytest.raises(UsageError, match="outputs 10 are no grid of 10 values a place over 3,32,32: take a detector"):
        search("resnet20", **given)
    assert not (tmp_path / "run").exists()
