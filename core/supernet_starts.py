"""Where a search starts from: clips that round best, running residuals, and how much each choice hurts by itself.

Everything is measured on images of the training part. Knows no objective, no schedule and no budget.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from .cost import Choice
from .plan import LayerId
from .storage import STREAM_BITS
from .supernet import FloatNet, SuperNet, best_clip, sampled
from .supernet_rounding import EVEN, ODD, mean_residuals

IMAGES, PIXELS = 256, 1 << 22  # of a batch, and of all, that are looked at to measure sensitivities, at most
LEAST_SHARE = 0.3  # of its difference from the mean that a figure keeps: where all is noise, layers are told apart
LOOKED_AT = 2048  # images: with 256 the noise of a figure was as large as most figures
START_BITS = 4  # clips of searched tensors start as 4 bits like them: between what 2 and 8 bits want
_Distance = Callable[[Choice], float]


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


def fit_weights(net: SuperNet, choice: Choice | None) -> None:
    """Weight clips to the width of the choice (`START_BITS` before there is one)."""
    with torch.no_grad():
        for layer in net.layers:
            clip = net.tensor(f"{layer}.weight_clip")
            clip.fill_(1.0)
            bits = START_BITS if layer in net.space.searched else net.space.given(layer)[0]
            clip.fill_(best_clip(net.normalised_weight(layer)[0], ODD, choice.weight[layer] if choice else bits))


def fit(net: SuperNet, batches: Sequence[Tensor], choice: Choice | None = None) -> None:
    """All clips and running residuals from the data.

    Before a choice, activations are those of the float network; after, those of the rounded one.
    """
    before = net.training
    net.eval()
    net.last.prune = {g: net.part_gates(g) for g in net.space.gates}
    fit_weights(net, choice)
    with torch.no_grad(), observed(net, rounding=choice is not None) as seen:
        for x in batches:
            net(x)
    with torch.no_grad():
        for clip, parts in seen.items():
            values, domain = torch.cat(parts), net.domains[clip]
            v = best_clip(values, domain, bits_of(net, clip, choice))
            net.tensor(clip).fill_(v)
            layer = net.layer_of(clip)
            if layer in net.space.searched:
                z = torch.clamp(values / v, -1.0 if domain == EVEN else 0.0, 1.0)
                net.tensor(f"{layer}.mean_residual").copy_(mean_residuals(z, domain))
    net.train(before)


NOISE = "noise"  # key of the standard error of a sensitivity


def sensitivities(net: SuperNet, teacher: FloatNet, images: Tensor, base: Choice) -> dict[str, float]:
    """How far the outputs move when one thing alone differs from `base`: mean KL(float || rounded), less that of base.

    `NOISE`: the median of their standard errors, from the differences image by image.

    Batch norms use the statistics of each batch of `IMAGES` at most, as they would after they are estimated anew.
    Keys: "{layer}.w{bits}", "{layer}.a{bits}" for every width, 0 for the base's own, with clips fitted to the other
    widths; "{group}.p" for the weakest part that stays removed. Leaves the net as it was.
    """
    images = images[: max(2, min(LOOKED_AT, PIXELS // math.prod(images.shape[2:])))]
    chunks = [c for c in torch.split(images, IMAGES) if len(c) > 1]
    saved = {k: v.clone() for k, v in net.state_dict().items()}
    before = net.training
    net.eval()
    out: dict[str, float] = {}
    found: list[Tensor] = []  # of the base, image by image
    errors: list[float] = []
    with torch.no_grad():
        targets = [F.softmax(teacher(x), 1) for x in chunks]

        def distance(choice: Choice) -> float:
            net.freeze(choice)
            net.train()
            pairs = zip(chunks, targets, strict=True)
            each = torch.cat([F.kl_div(F.log_softmax(net(x), 1), t, reduction="none").sum(1) for x, t in pairs])
            if not found:
                found.append(each)
            else:
                errors.append(float((each - found[0]).std()) / math.sqrt(len(each)))
            return float(each.mean())

        with observed(net, rounding=False) as seen:
            net(chunks[0])
        least = distance(base)
        for layer in net.space.searched:
            for bits in net.space.widths:
                w, a = base.weight[layer], base.act[layer]
                out[f"{layer}.w{bits}"] = 0.0 if bits == w else _with_weight(net, layer, bits, distance, base) - least
                out[f"{layer}.a{bits}"] = (
                    0.0 if bits == a else _with_act(net, seen, layer, bits, distance, base) - least
                )
        for group, gate in net.space.open.items():
            stay = base.parts.get(group, tuple(range(len(gate.sizes))))
            if len(stay) > 1:
                scores = net.part_scores(group)
                weakest = min(stay, key=lambda p: float(scores[p]))
                parts = tuple(p for p in stay if p != weakest)
                out[f"{group}.p"] = distance(Choice(base.weight, base.act, {**base.parts, group: parts})) - least
            else:
                out[f"{group}.p"] = 0.0
    out[NOISE] = statistics.median(errors) if errors else 0.0
    net.load_state_dict(saved)
    net.train(before)
    return out


def shares(hurts: Mapping[str, float], noise: float) -> dict[str, float]:
    """How much of a sensitivity's difference from the mean of its kind ("w2", ..., "p") is not noise, by kind."""
    return {kind: _share([hurts[key] for key in keys], noise) for kind, keys in _kinds(hurts).items()}


def shrunk(hurts: Mapping[str, float], noise: float) -> dict[str, float]:
    """Sensitivities drawn towards the mean of their kind, by the share of noise in the spread.

    The estimate of least squared error where layers of a kind differ normally. Whoever picks the best of many noisy
    figures picks noise: on ResNet-20, plans from the raw ones lay below uniform w4a4.
    """
    out = dict(hurts)
    for keys in _kinds(hurts).values():
        values = [hurts[key] for key in keys]
        mean, share = statistics.fmean(values), _share(values, noise)
        out |= {key: mean + share * (hurts[key] - mean) for key in keys}
    return out


def _kinds(hurts: Mapping[str, float]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for key in hurts:
        if key != NOISE:
            out.setdefault(key.rpartition(".")[2], []).append(key)
    return out


def _share(values: Sequence[float], noise: float) -> float:
    spread = statistics.pvariance(values)
    return max(LEAST_SHARE, 1 - noise**2 / spread) if spread > 0 else 0.0


def _with_weight(net: SuperNet, layer: LayerId, bits: int, distance: _Distance, base: Choice) -> float:
    clip = net.tensor(f"{layer}.weight_clip")
    old = clip.clone()
    clip.fill_(1.0)
    clip.fill_(best_clip(net.normalised_weight(layer)[0], ODD, bits))
    found = distance(Choice({**base.weight, layer: bits}, base.act, base.parts))
    clip.copy_(old)
    return found


def _with_act(
    net: SuperNet, seen: Mapping[str, list[Tensor]], layer: LayerId, bits: int, distance: _Distance, base: Choice
) -> float:
    name = f"{layer}.act_clip"
    clip = net.tensor(name)
    old = clip.clone()
    clip.fill_(best_clip(torch.cat(seen[name]), net.domains[name], bits))
    found = distance(Choice(base.weight, {**base.act, layer: bits}, base.parts))
    clip.copy_(old)
    return found
