"""Losses of detectors: least where the box is right, and gradients that point there; how many images judge."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bitpress.core import train
from bitpress.core.capture import capture
from bitpress.core.data import CLASSIFICATION, DETECTION
from bitpress.core.detection import ANCHORS, HEAD, decode
from bitpress.core.models.digits_cnn import digits_cnn
from bitpress.core.supernet import FloatNet
from bitpress.core.train import Job, Samples
from bitpress.core.train_goals import GOALS, target

GOAL = GOALS[DETECTION]
GRID = (4, 8)
BOXES = torch.tensor([[0.3, 0.6, 0.2, 0.5], [0.99, 0.01, 0.4, 0.9]])


def outputs(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, HEAD, *GRID, generator=torch.Generator().manual_seed(seed))


def test_the_place_of_a_box_is_its_cell_with_the_anchor_most_like_it() -> None:
    index, wanted = target(BOXES, *GRID)
    assert index.tolist() == [2 * 8 + 2, 4 * 8 + 7]  # first anchor, row 2, column 2; second anchor, row 0, column 7
    assert wanted[0] == pytest.approx([0.4, 0.4, np.log(1.6 / ANCHORS[0][0]), np.log(2 / ANCHORS[0][1])], abs=1e-5)


def test_what_is_learned_is_what_is_decoded() -> None:
    """Descent on the loss alone ends at the boxes, as the decoder for integers reads them."""
    x = outputs().requires_grad_()
    optimizer = torch.optim.Adam([x], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        GOAL.loss(x, BOXES).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = decode(x.detach().numpy().reshape(2, -1), GRID)
    assert found == pytest.approx(BOXES.numpy(), abs=0.01)
    assert GOAL.points(x, BOXES).numpy() == pytest.approx([100, 100], abs=3)


def test_the_teacher_is_followed_where_it_is_surest() -> None:
    x, teacher = outputs(1).requires_grad_(), outputs(2)
    assert float(GOAL.taught(teacher, teacher)) == pytest.approx(0, abs=1e-5)
    whole = GOAL.objective(x, BOXES, teacher, 0.25).detach()
    assert whole == pytest.approx(float((0.75 * GOAL.loss(x, BOXES) + 0.25 * GOAL.taught(x, teacher)).detach()))
    optimizer = torch.optim.Adam([x], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        GOAL.taught(x, teacher).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    mine, theirs = (decode(t.detach().numpy().reshape(2, -1), GRID) for t in (x, teacher))
    assert mine == pytest.approx(theirs, abs=0.02)


def test_drawn_answers_are_right_on_average_and_spread_as_the_loss_thinks() -> None:
    """The gradient at outputs that are drawn from has mean nothing, and the second moment of the loss's own labels."""
    one = torch.zeros(1, HEAD, 1, 2)
    one[0, 4], one[0, 1] = 1.0, 0.5
    x = one.expand(4000, -1, -1, -1).clone().requires_grad_()
    GOAL.drawn(x, 0.0, torch.Generator().manual_seed(0)).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    spread = x.grad.flatten(1).std(0) / 4000**0.5
    assert (x.grad.flatten(1).mean(0).abs() <= 5 * spread + 1e-9).all()
    # A size is 5 (said - drawn)^2, drawn with variance 1/10: its gradient has variance 10 where its place is drawn.
    p = torch.softmax(one[0].view(2, 5, 2)[:, 4].flatten(), 0)[0]
    assert float(x.grad[:, 2, 0, 0].var()) == pytest.approx(10 * float(p), rel=0.15)


def test_classes_are_judged_as_ever() -> None:
    goal, x, y = GOALS[CLASSIFICATION], torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])
    assert goal.points(x, y).tolist() == [100, 0]
    assert float(goal.loss(x, y)) == pytest.approx(float(torch.nn.functional.cross_entropy(x, y)))


def _job(shape: tuple[int, int, int], batch: int) -> Job:
    def draw(numbers: np.ndarray, _rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(numbers), *shape), np.float32), np.zeros(len(numbers), np.int64)

    samples = Samples(10 * batch, draw, (np.zeros((0, *shape), np.float32), np.zeros(0, np.int64)))
    settings, loop = SimpleNamespace(seed=0, in_shape=shape), SimpleNamespace(batch=batch, device="cpu")
    return Job(settings, None, None, (), samples, loop, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("side", "batch", "count"), [(8, 32, 8), (224, 8, 5), (224, 32, 1), (512, 16, 1)])
def test_ranges_come_from_fewer_images_where_these_are_large(side: int, batch: int, count: int) -> None:
    found = _job((1, side, side), batch).calibration()
    assert [len(x) for x in found] == [batch] * count


def test_images_are_judged_so_many_at_once_as_memory_has(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(digits_cnn(10, (1, 8, 8)), (1, 8, 8))
    net, rng = FloatNet(graph), np.random.default_rng(0)
    images, labels = rng.normal(size=(60, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 60)
    whole = train.evaluate(net, images, labels)
    assert train.at_once(graph) == train.EVALUATION_BATCH
    monkeypatch.setattr(train, "EVALUATION_VALUES", 7 * max(int(np.prod(node.shape)) for node in graph.nodes))
    assert train.at_once(graph) == 7
    top1, loss = train.evaluate(net, images, labels)
    assert top1 == whole[0]
    assert loss == pytest.approx(whole[1], rel=1e-5)
