"""What training minimises and validation counts, of each task (`core.data`): one row of `GOALS` a task.

A goal is told outputs and labels as the data set has them; phases know neither. Losses are means over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .data import CLASSIFICATION, DETECTION
from .detection import ANCHORS, LARGEST, VALUES, decode, iou

TEMPERATURE = 3.0  # of distillation (methods F)
BOX = 5.0  # of squared errors of a box beside the cross-entropy of its place (YOLO's lambda of coordinates)


@dataclass(frozen=True, slots=True)
class Goal:
    """A task as training sees it.

    `metric`: what `points` counts, percent of each image [N], as logs and documents call it. `loss`: outputs, labels ->
    mean loss; `taught`: outputs, the teacher's -> mean loss; `drawn`: outputs, share of the loss that is taught,
    generator -> sum over the batch whose gradient is that of labels drawn from the outputs themselves.
    """

    metric: str
    loss: Callable[[Tensor, Tensor], Tensor]
    taught: Callable[[Tensor, Tensor], Tensor]
    points: Callable[[Tensor, Tensor], Tensor]
    drawn: Callable[[Tensor, float, torch.Generator], Tensor]

    def objective(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None, distill: float) -> Tensor:
        """The loss, of which the share `distill` comes from the teacher's outputs."""
        loss = self.loss(outputs, labels)
        if teacher is None or distill == 0:
            return loss
        return (1 - distill) * loss + distill * self.taught(outputs, teacher)


# classification: outputs [N, classes]; labels int64 [N], or probabilities [N, classes]


def softened(outputs: Tensor, teacher: Tensor) -> Tensor:
    """Divergence from the teacher's outputs, both softened by `TEMPERATURE`."""
    t = TEMPERATURE
    return F.kl_div(F.log_softmax(outputs / t, 1), F.softmax(teacher / t, 1), reduction="batchmean") * t * t


def right(outputs: Tensor, labels: Tensor) -> Tensor:
    """100 where the largest output is the label's."""
    return 100.0 * (outputs.argmax(1) == labels)


def drawn_class(outputs: Tensor, distill: float, drawn: torch.Generator) -> Tensor:
    """Sum whose gradient is p - e_y for each image, y drawn from p; p softened for the share `distill` of them."""
    each, _ = _drawn(outputs, distill, drawn)
    return each.sum()


def _drawn(outputs: Tensor, distill: float, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    """The loss of each image at a class drawn for it, and the classes."""
    soft = torch.rand(len(outputs), 1, generator=drawn) < distill
    t = torch.where(soft, TEMPERATURE, 1.0).to(outputs.device)
    labels = torch.multinomial(F.softmax(outputs.detach() / t, 1).cpu(), 1, generator=drawn)[:, 0]
    each = F.cross_entropy(outputs / t, labels.to(outputs.device), reduction="none")
    return each * t[:, 0], labels.to(outputs.device)


# detection: outputs [N, anchors x VALUES, rows, columns]; labels are boxes [N, 4]
#
# One object is in each picture, and the answer is where confidence is largest. So places compete for it: confidences
# are the logits of one choice among all places and anchors. YOLO and SkyNet judge each place by itself, which wants
# weights against the many that are empty.


def split(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Confidences [N, anchors x places] and the four values of a box [N, anchors x places, 4]."""
    n, _, rows, columns = outputs.shape
    maps = outputs.view(n, len(ANCHORS), VALUES, rows * columns)
    return maps[:, :, 4].reshape(n, -1), maps[:, :, :4].transpose(2, 3).reshape(n, -1, 4)


def target(boxes: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Which place and anchor answer for a box, int64 [N], and x, y within the cell and tw, th of that, [N, 4].

    The cell is that of the centre, the anchor the one whose shape overlaps most.
    """
    anchors = torch.tensor(ANCHORS, device=boxes.device)
    cells = torch.tensor([columns, rows], device=boxes.device)
    middle, size = boxes[:, :2] * cells, boxes[:, 2:] * cells
    place = torch.minimum(middle.long(), cells - 1)
    common = torch.minimum(size[:, None], anchors).prod(2)
    anchor = (common / (size.prod(1)[:, None] + anchors.prod(1) - common)).argmax(1)
    index = (anchor * rows + place[:, 1]) * columns + place[:, 0]
    return index, torch.cat([middle - place, torch.log(size / anchors[anchor])], 1)


def boxes_of(values: Tensor, index: Tensor) -> Tensor:
    """x, y within the cell and tw, th at one place of each image, [N, 4]."""
    t = values[torch.arange(len(values), device=values.device), index]
    return torch.cat([torch.sigmoid(t[:, :2]), t[:, 2:].clamp(-LARGEST, LARGEST)], 1)


def found(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the place, and squared errors of the box there."""
    confidence, values = split(outputs)
    index, wanted = target(labels, *outputs.shape[2:])
    errors = (boxes_of(values, index) - wanted).square().sum(1)
    return F.cross_entropy(confidence, index) + BOX * errors.mean()


def shown(outputs: Tensor, teacher: Tensor) -> Tensor:
    """As `softened`, of the places, and the box at the teacher's best one."""
    confidence, values = split(outputs)
    theirs, taught = split(teacher)
    index = theirs.argmax(1)
    errors = (boxes_of(values, index) - boxes_of(taught, index)).square().sum(1)
    return softened(confidence, theirs) + BOX * errors.mean()


def overlap(outputs: Tensor, labels: Tensor) -> Tensor:
    """Percent of intersection over union of the box that `core.detection` decodes."""
    grid = (int(outputs.shape[2]), int(outputs.shape[3]))
    boxes = decode(outputs.detach().cpu().numpy(), grid)
    return torch.from_numpy(100.0 * iou(boxes, labels.cpu().numpy()))


def drawn_box(outputs: Tensor, distill: float, drawn: torch.Generator) -> Tensor:
    """As `drawn_class`, of the places, and of the box there, that squared errors take for normally distributed."""
    confidence, values = split(outputs)
    each, index = _drawn(confidence, distill, drawn)
    said = boxes_of(values, index)
    noise = torch.randn(said.shape, generator=drawn).to(said.device) / (2 * BOX) ** 0.5
    return (each + BOX * (said - said.detach() - noise).square().sum(1)).sum()


GOALS: Mapping[str, Goal] = {
    CLASSIFICATION: Goal("top1", F.cross_entropy, softened, right, drawn_class),
    DETECTION: Goal("iou", found, shown, overlap, drawn_box),
}
