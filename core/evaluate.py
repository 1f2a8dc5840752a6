"""Accuracy of anything that maps images to outputs: one definition for RUN folders and artifacts. numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import UsageError

BATCH = 250


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`top1`, `top5` in percent of `n` images; `predictions` int32 [n]; `sha256` of their little-endian bytes."""

    top1: float
    top5: float
    n: int
    predictions: np.ndarray
    sha256: str


def evaluate(
    run: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Runs all `images` in their order, `batch` at a time; the lowest class number wins ties.

    `run`: float32 [N, C, H, W] -> float32 [N, outputs]. `prepare` turns a batch of `images` (raw uint8, say) into
    what `run` takes. `labels`: integers [n]. `progress` is told the number of images done. UsageError if images and
    labels differ in number, or there are none, or a label has no output.
    """
    if len(images) != len(labels) or not len(images):
        raise UsageError(f"{len(images)} images and {len(labels)} labels cannot be evaluated")
    found, within = [], 0
    for start in range(0, len(images), batch):
        x = images[start : start + batch]
        outputs = np.asarray(run(x if prepare is None else prepare(x)))
        ranks = np.argsort(-outputs, axis=1, kind="stable")[:, :5]
        want = np.asarray(labels[start : start + batch])
        if want.min() < 0 or want.max() >= outputs.shape[1]:
            raise UsageError(f"labels up to {int(want.max())}, the network has {outputs.shape[1]} outputs")
        found.append(ranks[:, 0])
        within += int((ranks == want[:, None]).any(axis=1).sum())
        if progress is not None:
            progress(start + len(x))
    predictions = np.concatenate(found).astype("<i4")
    right = int((predictions == np.asarray(labels)).sum())
    n = len(images)
    return Evaluation(
        100 * right / n, 100 * within / n, n, predictions, hashlib.sha256(predictions.tobytes()).hexdigest()
    )
