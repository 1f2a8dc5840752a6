"""Heads decoded, boxes compared, and the scenes that detectors are trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitpress.core import data, scenes
from bitpress.core.detection import ANCHORS, HEAD, VALUES, decode, grid_of, iou
from bitpress.core.errors import UsageError
from bitpress.core.evaluate import evaluate

SIZE = (3, 32, 64)


def head(grid: tuple[int, int], place: tuple[int, int, int], values: tuple[float, ...], sure: float = 5) -> np.ndarray:
    """Outputs float32 [1, all] of a head that is sure of one anchor, row and column."""
    maps = np.zeros((1, len(ANCHORS), VALUES, *grid), np.float32)
    anchor, row, column = place
    maps[0, anchor, :4, row, column], maps[0, anchor, 4, row, column] = values, sure
    return maps.reshape(1, -1)


def test_a_box_is_decoded_from_the_surest_place() -> None:
    (box,) = decode(head((4, 8), (1, 2, 5), (0, 0, 0, np.log(0.5))), (4, 8))
    assert box == pytest.approx([5.5 / 8, 2.5 / 4, ANCHORS[1][0] / 8, ANCHORS[1][1] / 8])
    (box,) = decode(head((4, 8), (0, 3, 0), (np.log(3), 0, 0, 0)), (4, 8))  # sigmoid(ln 3) = 3/4
    assert box[:2] == pytest.approx([0.75 / 8, 3.5 / 4])


def test_the_first_place_wins_ties_and_no_size_overflows() -> None:
    (box,) = decode(np.zeros((1, HEAD * 32), np.float32), (4, 8))
    assert box[:2] == pytest.approx([0.5 / 8, 0.5 / 4])
    assert np.isfinite(decode(np.full((1, HEAD * 32), 3e38, np.float32), (4, 8))).all()
    assert np.isfinite(decode(np.full((1, HEAD * 32), -3e38, np.float32), (4, 8))).all()


def test_overlap_of_boxes() -> None:
    box = [0.5, 0.5, 0.4, 0.2]
    others = [box, [0.5, 0.5, 0.2, 0.2], [0.9, 0.5, 0.4, 0.2], [0.2, 0.9, 0.1, 0.1], [0.7, 0.6, 0.4, 0.2]]
    assert iou(np.array([box] * 5), np.array(others)) == pytest.approx([1, 1 / 2, 0, 0, 0.02 / 0.14])


@pytest.mark.parametrize(
    ("shape", "outputs", "grid"),
    [((3, 160, 320), 8000, (20, 40)), ((3, 32, 64), 320, (4, 8)), ((3, 32, 64), 10, None), ((3, 32, 32), 1000, None),
     ((3, 32, 64), 325, None), ((3, 30, 60), 320, None)],
)  # fmt: skip
def test_outputs_are_a_grid_of_square_cells_or_none(
    shape: tuple[int, int, int], outputs: int, grid: tuple[int, int] | None
) -> None:
    assert grid_of(shape, outputs) == grid


def test_detectors_are_evaluated_by_their_boxes_and_all_their_outputs() -> None:
    outputs = np.concatenate([head((4, 8), (1, 2, 5), (0, 0, 0, 0)), head((4, 8), (0, 1, 1), (0, 0, 0, 0))])
    labels = decode(outputs, (4, 8)).astype(np.float32)
    images = np.zeros((2, *SIZE), np.float32)
    at = iter(range(2))
    found = evaluate(lambda _x: outputs[[next(at)]], images, labels, batch=1, task=data.DETECTION)
    assert (found.top1, found.top5, found.n) == (None, None, 2)
    assert found.iou == pytest.approx(1, abs=1e-6)
    other = outputs.copy()
    other[0, 0] += 1  # of a place that is not the answer
    again = evaluate(lambda _x: other, images, labels, task=data.DETECTION)
    assert again.iou == found.iou
    assert again.sha256 != found.sha256
    other = np.where(outputs == 0, np.float32(-0.0), outputs)
    assert evaluate(lambda _x: other, images, labels, task=data.DETECTION).sha256 == found.sha256
    with pytest.raises(UsageError, match="7 outputs are no grid of boxes"):
        evaluate(lambda _x: np.zeros((2, 7), np.float32), images, labels, task=data.DETECTION)


def test_a_scene_differs_from_its_photograph_within_its_box_and_fills_it() -> None:
    black = scenes.Scenes(tuple(range(10)), SIZE, lambda _n, size: np.zeros(size, np.uint8))
    pixels, boxes = black[:], black.boxes()
    assert pixels.shape == black.shape == (40, *SIZE)
    for image, (x, y, w, h) in zip(pixels, boxes, strict=True):
        rows, columns = np.nonzero(image.any(axis=0))
        box = [(columns.min() + columns.max() + 1) / 128, (rows.min() + rows.max() + 1) / 64]
        box += [(np.ptp(columns) + 1) / 64, (np.ptp(rows) + 1) / 32]
        assert box == pytest.approx([x, y, w, h], abs=1e-6)
    assert boxes[:, 2:].max() <= 0.5
    assert boxes[:, 3].min() * 32 >= scenes.LEAST * scenes.CELL - 2


def test_scenes_are_the_same_for_everybody_and_each_is_another() -> None:
    first, again = (data.load("detection", in_shape=SIZE) for _ in range(2))
    assert first.files == again.files
    assert np.array_equal(first.train.images[[3, 9]], again.train.images[[3, 9]])
    assert np.array_equal(first.train.images[3], first.train.images[[3]][0])
    assert len({image.tobytes() for image in first.train.images[:40]}) == 40
    assert data.load("detection", in_shape=SIZE, seed=1).files == first.files  # eval has no seed
    other = data.load("detection", in_shape=(3, 64, 64))
    assert other.files != first.files
    assert first.train.images[5:5].shape == (0, *SIZE)


def photographs(root: Path, count: int) -> Path:
    """One colour each, which says its number."""
    image = pytest.importorskip("PIL.Image", reason="photographs need pillow: extra [search]")
    for i in range(count):
        image.new("RGB", (70, 40), (i, i, i)).save(root / f"{i:03}.png")
    return root


def test_the_parts_share_no_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs(tmp_path, 40)
    seen: list[str] = []
    decode_ = data._decode
    monkeypatch.setattr(data, "_decode", lambda path, size: (seen.append(path.name), decode_(path, size))[1])
    found = data.load(f"detection:{tmp_path}", in_shape=SIZE)
    assert (len(found.train), len(found.validation)) == (4 * 33, 4 * 3)
    assert seen == []
    parts = []
    for split in (found.train, found.validation, found.test()):
        seen.clear()
        _ = split.images[:]
        assert len(seen) == len(split) == scenes.EACH * len(set(seen))
        parts.append(set(seen))
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40


def test_what_is_no_set_of_photographs_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        data.load(f"detection:{tmp_path / 'nowhere'}")
    photographs(tmp_path, 3)
    with pytest.raises(UsageError, match="has 3 images, at least 19 are needed for three parts"):
        data.load(f"detection:{tmp_path}")
    with pytest.raises(UsageError, match="1 or 3 channels, the model takes 4"):
        data.load("detection", in_shape=(4, 32, 64))
    found = data.load("detection", in_shape=SIZE)
    found.require_fit(SIZE, 320)
    found.require_fit(SIZE, (10, 4, 8))
    for outputs, said in ((10, "10"), ((320,), "320"), ((5, 8, 8), "5,8,8")):
        with pytest.raises(UsageError, match=f"outputs {said} are no grid of 10 values a place over 3,32,64: take a"):
            found.require_fit(SIZE, outputs)
