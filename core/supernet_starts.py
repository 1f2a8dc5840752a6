"""Where a search starts from: clips that round best and running residuals, from images of the training part.

Knows no objective, no schedule and no budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .cost import Choice
from .storage import STREAM_BITS
from .supernet import SuperNet, best_clip, sampled
from .supernet_rounding import EVEN, mean_residuals

START_BITS = 4  # clips of searched tensors start as 4 bits like them: between what 2 and 8 bits want


@contextmanager
def observed(net: SuperNet, *, rounding: bool) -> Iterator[dict[str, list[Tensor]]]:
    """Clip -> the values that came to be rounded by it, a sample of each forward; floats pass where not `rounding`."""
    seen: dict[str, list[Tensor]] = {}

    def watch(clip: str, x: Tensor) -> bool:
        seen.setdefault(clip, []).append(sampled(x).clone())
        return rounding

    net.watch = watch
    try:
        yield seen
    finally:
        net.watch = None


def bits_of(net: SuperNet, clip: str, choice: Choice | None) -> int:
    """Width that a clip of an activation is fitted to: the choice's, or `START_BITS` where it is yet to be chosen."""
    layer = net.layer_of(clip)
    if layer is None:
        return STREAM_BITS
    if choice is not None:
        return choice.act[layer]
    return START_BITS if layer in net.space.searched else net.space.given(layer)[1]


def fit_weights(net: SuperNet, choice: Choice | None, trained: Choice | None = None) -> None:
    """Weight clips to the width of the choice (`START_BITS` before there is one), but where `trained` has it too."""
    with torch.no_grad():
        for layer in net.layers:
            if choice and trained and choice.weight[layer] == trained.weight[layer]:
                continue
            bits = START_BITS if layer in net.space.searched else net.space.given(layer)[0]
            net.fit_clip(layer, choice.weight[layer] if choice else bits)


def fit(net: SuperNet, batches: Sequence[Tensor], choice: Choice | None = None, trained: Choice | None = None) -> None:
    """All clips and running residuals from the data.

    Before a choice, activations are those of the float network; after, those of the rounded one, whose clips have to be
    near already: what the first cuts off, the next never sees. `trained`: widths at which the clips have learned; where
    the choice has the same, what was learned stays.
    """
    before = net.training
    net.eval()
    net.last.prune = {g: net.part_gates(g) for g in net.space.gates}
    fit_weights(net, choice, trained)
    with torch.no_grad(), observed(net, rounding=choice is not None) as seen:
        for x in batches:
            net(x)
    with torch.no_grad():
        for clip, parts in seen.items():
            if choice and trained and bits_of(net, clip, choice) == bits_of(net, clip, trained):
                continue
            values, domain = torch.cat(parts), net.domains[clip]
            v = best_clip(values, domain, bits_of(net, clip, choice))
            net.tensor(clip).fill_(v)
            layer = net.layer_of(clip)
            if layer in net.space.searched and not net.frozen:
                z = torch.clamp(values / v, -1.0 if domain == EVEN else 0.0, 1.0)
                net.tensor(f"{layer}.mean_residual").copy_(mean_residuals(z, domain))
    net.train(before)
