"""One object in a picture: what the head of a detector says, and how much of the box it finds. numpy only.

A head gives, at every place of its grid, `VALUES` numbers an anchor: tx, ty, tw, th, confidence (Redmon and Farhadi:
YOLO9000, section 2; Zhang et al.: SkyNet, section 5). The box is where the confidence is largest. Boxes are centre x,
centre y, width, height in shares of the picture, [n, 4].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

VALUES = 5
ANCHORS = ((1.4940052559648322, 2.3598481287086823), (4.0113013115312155, 5.760873975661669))  # cells; SkyNet's
HEAD = VALUES * len(ANCHORS)  # values a place
LARGEST = 8.0  # of |tw| and |th|: e^8 cells are more than any picture has

Grid = tuple[int, int]


def grid_of(in_shape: Sequence[int], outputs: int) -> Grid | None:
    """Rows and columns of the grid with so many outputs, of square cells that fill a picture; None where none does.

    >>> grid_of((3, 160, 320), 10 * 20 * 40)
    (20, 40)
    """
    _, height, width = in_shape
    places, rest = divmod(outputs, HEAD)
    cell = math.isqrt(height * width // places) if places and not rest else 0
    if not cell or height % cell or width % cell or (height // cell) * (width // cell) != places:
        return None
    return height // cell, width // cell


def decode(outputs: np.ndarray, grid: Grid) -> np.ndarray:
    """Outputs [n, anchors x VALUES x grid], in the order C, H, W -> the box of the surest place, float64 [n, 4].

    The first place wins ties. Computed in float64 from float32 outputs, which are exact.
    """
    rows, columns = grid
    maps = np.asarray(outputs, np.float64).reshape(len(outputs), len(ANCHORS), VALUES, rows * columns)
    best = maps[:, :, 4].reshape(len(maps), -1).argmax(axis=1)
    anchor, place = np.divmod(best, rows * columns)
    row, column = np.divmod(place, columns)
    t = maps[np.arange(len(maps)), anchor, :4, place]
    middle = 1 / (1 + np.exp(-np.clip(t[:, :2], -50, 50)))
    size = np.array(ANCHORS)[anchor] * np.exp(np.clip(t[:, 2:], -LARGEST, LARGEST))
    cells = np.array([columns, rows])
    return np.concatenate([(middle + np.stack([column, row], 1)) / cells, size / cells], 1)


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes one by one, float64 [n].

    >>> iou(np.array([[0.5, 0.5, 0.2, 0.2]]), np.array([[0.6, 0.5, 0.2, 0.2]])).round(6).tolist()
    [0.333333]
    """
    a, b = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    low = np.maximum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = np.minimum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    common = np.clip(high - low, 0, None).prod(axis=1)
    return common / (a[:, 2:].prod(axis=1) + b[:, 2:].prod(axis=1) - common)
