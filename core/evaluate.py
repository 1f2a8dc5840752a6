"""Accuracy of anything that maps images to outputs: one definition for RUN folders and artifacts. numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .data import CLASSIFICATION, DETECTION, Images
from .detection import decode, grid_of, iou
from .errors import UsageError

BATCH = 250


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of `n` images `top1`, `top5` in percent, or `iou`, the mean of [0, 1]; None what the task has not.

    `predictions`: int32 [n] classes, or float32 [n, 4] boxes. `sha256`: of the little-endian bytes of the classes, or
    of all outputs of a detector.
    """

    top1: float | None
    top5: float | None
    n: int
    predictions: np.ndarray
    sha256: str
    iou: float | None = None


class Tally(Protocol):
    """What is counted of a task, batch by batch."""

    def add(self, outputs: np.ndarray, labels: np.ndarray) -> None:
        """Outputs float32 [N, outputs] and what is right; UsageError where they cannot be compared."""

    def result(self) -> Evaluation:
        """Of all that was added."""


class Ranks:
    """Classes by falling output, the lowest number first among ties; labels are integers [N]."""

    def __init__(self, _in_shape: tuple[int, ...]) -> None:
        self.found: list[np.ndarray] = []
        self.right = self.within = 0

    def add(self, outputs: np.ndarray, labels: np.ndarray) -> None:
        """UsageError for a label without an output."""
        if labels.min() < 0 or labels.max() >= outputs.shape[1]:
            raise UsageError(f"labels up to {int(labels.max())}, the network has {outputs.shape[1]} outputs")
        ranks = np.argsort(-outputs, axis=1, kind="stable")[:, :5]
        self.found.append(ranks[:, 0])
        self.right += int((ranks[:, 0] == labels).sum())
        self.within += int((ranks == labels[:, None]).any(axis=1).sum())

    def result(self) -> Evaluation:
        """Top-1 and top-5."""
        predictions = np.concatenate(self.found).astype("<i4")
        n = len(predictions)
        digest = hashlib.sha256(predictions.tobytes()).hexdigest()
        return Evaluation(100 * self.right / n, 100 * self.within / n, n, predictions, digest)


class Boxes:
    """The box where a detector is surest; labels are boxes [N, 4]."""

    def __init__(self, in_shape: tuple[int, ...]) -> None:
        self.in_shape, self.digest = in_shape, hashlib.sha256()
        self.found: list[np.ndarray] = []
        self.overlap: list[np.ndarray] = []

    def add(self, outputs: np.ndarray, labels: np.ndarray) -> None:
        """UsageError for outputs that are no grid."""
        grid = grid_of(self.in_shape, int(np.prod(outputs.shape[1:])))
        if grid is None:
            raise UsageError(f"{outputs.shape[1]} outputs are no grid of boxes over {list(self.in_shape)}")
        self.digest.update((outputs.astype("<f4") + np.float32(0)).tobytes())  # no zero has a sign
        boxes = decode(outputs, grid)
        self.found.append(boxes)
        self.overlap.append(iou(boxes, labels))

    def result(self) -> Evaluation:
        """Mean intersection over union."""
        boxes = np.concatenate(self.found).astype(np.float32)
        mean = float(np.concatenate(self.overlap).mean())
        return Evaluation(None, None, len(boxes), boxes, self.digest.hexdigest(), mean)


TALLIES: Mapping[str, Callable[[tuple[int, ...]], Tally]] = {CLASSIFICATION: Ranks, DETECTION: Boxes}


def evaluate(
    run: Callable[[np.ndarray], np.ndarray],
    images: Images,
    labels: np.ndarray,
    *,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
    task: str = CLASSIFICATION,
) -> Evaluation:
    """Runs all `images` in their order, `batch` at a time.

    `run`: float32 [N, C, H, W] -> float32 [N, outputs]. `prepare` turns a batch of `images` (raw uint8, say) into
    what `run` takes. `labels`: as the task has them. `progress` is told the number of images done. UsageError if images
    and labels differ in number, or there are none, or a label has no output.
    """
    if len(images) != len(labels) or not len(images):
        raise UsageError(f"{len(images)} images and {len(labels)} labels cannot be evaluated")
    tally = TALLIES[task](tuple(images.shape[1:]))
    for start in range(0, len(images), batch):
        x = images[start : start + batch]
        tally.add(np.asarray(run(x if prepare is None else prepare(x))), np.asarray(labels[start : start + batch]))
        if progress is not None:
            progress(start + len(x))
    return tally.result()
