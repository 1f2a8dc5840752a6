"""The frozen net whose filters differ in width: each rounds to its own grid, with one clip a layer and width.

What a plan with several segments a layer trains as (methods A.3.3). Who chooses the widths is others' business.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cost import WIDTHS, Choice, Space, largest
from .graph import Graph
from .plan import LayerId
from .supernet import SuperNet, best_clip
from .supernet_rounding import ODD, TINY, steps


class FilterNet(SuperNet):
    """A super-net that is frozen from the start, at the most bits, and holds a width for every filter it searches."""

    def __init__(self, graph: Graph, space: Space, *, residual: str = "int8", grid: str = ODD) -> None:
        super().__init__(graph, space, residual=residual, grid=grid)
        self.freeze(largest(space))

    def _clips_of(self, layer: LayerId) -> tuple[int, ...]:
        return (len(WIDTHS),) if layer in self.space.searched else ()

    def _hold_gates(self) -> None:
        for layer in self.space.searched:
            filters = self.graph.value(layer).shape[0]
            self._hold(f"{layer}.widths", torch.full((filters,), max(WIDTHS)), learnt=False)

    def weight_range(self, layer: LayerId) -> Tensor:
        """|v| of each filter's width, a column."""
        if layer not in self.space.searched:
            return super().weight_range(layer)
        clips = self.tensor(f"{layer}.weight_clip").double().abs() + TINY
        widths = self.tensor(f"{layer}.widths")
        return self._column(layer, sum((widths == bits) * clips[i] for i, bits in enumerate(WIDTHS)))

    def weight_steps(self, layer: LayerId) -> int | Tensor:
        """Steps of each filter's grid, a column."""
        if layer not in self.space.searched:
            return super().weight_steps(layer)
        widths = self.tensor(f"{layer}.widths")
        return self._column(layer, sum((widths == bits) * steps(self.grid, bits) for bits in WIDTHS))

    def _column(self, layer: LayerId, each: Tensor | int) -> Tensor:
        """One number a filter, to be spread over its weights."""
        assert isinstance(each, Tensor), "there are widths"
        return each.view(-1, *(1,) * (self.tensor(self.graph.value(layer).consts["weight"]).dim() - 1))

    def set_clip(self, layer: LayerId, bits: int, v: float) -> None:
        """The clip of the layer's filters at `bits`."""
        if layer not in self.space.searched:
            super().set_clip(layer, bits, v)
            return
        with torch.no_grad():
            self.tensor(f"{layer}.weight_clip")[WIDTHS.index(bits)] = v

    def fit_clip(self, layer: LayerId, bits: int) -> None:
        """The clips of all widths that filters of the layer hold, each on those filters; `bits` for the ends alone."""
        if layer not in self.space.searched:
            super().fit_clip(layer, bits)
            return
        weight, widths = self.standardised_weight(layer)[0], self.kept_widths(layer)
        for own in WIDTHS:
            if bool((widths == own).any()):
                self.set_clip(layer, own, best_clip(weight[widths == own], self.grid, own))

    def kept_widths(self, layer: LayerId) -> Tensor:
        """Width of every filter, 0 where it is removed, [O]."""
        widths = self.tensor(f"{layer}.widths")
        if layer not in self._masked:
            return widths
        with torch.no_grad():
            self.last.prune = {g: self.part_gates(g) for g in self.space.gates}
            return torch.where(self.mask(layer) > 0.5, widths, 0)

    def freeze(self, choice: Choice) -> None:
        """Fixes widths and channels; a removed filter's width plays no part."""
        super().freeze(choice)
        with torch.no_grad():
            for layer in self.space.searched:
                widths = self.tensor(f"{layer}.widths")
                widths.fill_(choice.weight[layer])
                if layer in choice.filters:
                    each = torch.tensor(choice.filters[layer], device=widths.device)
                    widths.copy_(torch.where(each > 0, each, widths))
            self.last.prune = {g: self.part_gates(g) for g in self.space.gates}

    def choice(self) -> Choice:
        """What is frozen, with the widths of filters where they differ."""
        found = super().choice()
        each = {layer: tuple(self.kept_widths(layer).tolist()) for layer in self.space.searched}
        filters = {layer: widths for layer, widths in each.items() if len({*widths} - {0}) > 1}
        return Choice(found.weight, found.act, found.parts, filters)

    def weight_clips(self, layer: LayerId, choice: Choice) -> dict[str, float]:
        """One for every width of a searched layer, trained where filters hold it."""
        if layer not in self.space.searched:
            return super().weight_clips(layer, choice)
        weight, used = self.standardised_weight(layer)[0].detach(), set(self.kept_widths(layer).tolist())
        trained = self.tensor(f"{layer}.weight_clip").detach().abs().tolist()
        return {
            f"{layer}.weight_clip.{bits}": clip if bits in used else best_clip(weight, self.grid, bits)
            for bits, clip in zip(WIDTHS, trained, strict=True)
        }
