"""What one level of each buffer of a Program is worth: for those who write its integers as scaled real numbers.

A program holds products of scales only, so that some of them are free. Here they follow one from another along
residuals, pools and gathers, so that no operation is added which the original network had not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .program import Program, Step

SCALED_ALIKE = 1e-4  # relative: multipliers are float32, so scales that should be one number differ by rounding


def scales(program: Program, known: Mapping[str, float] | None = None) -> list[float]:
    """Real value of one level of every buffer: `known` by name, the others by the links, else 1.

    Floats count as levels worth 1.
    """
    known = known or {}
    found = {i: known.get(b.name, 1.0) for i, b in enumerate(program.buffers) if b.name in known or b.storage == "f32"}
    edges = _links(program)
    for root in (*tuple(found), *range(len(program.buffers))):
        found.setdefault(root, 1.0)
        _spread(root, edges, found)
    return [found[i] for i in range(len(program.buffers))]


def uniform(step: Step) -> float | None:
    """The one multiplier of an epilogue without shift, None where channels differ."""
    e = step.epilogue
    assert e is not None, "only steps that requantise are asked"
    first = float(e.m[0])
    plain = first > 0 and not e.b.any() and np.allclose(e.m, first, rtol=SCALED_ALIKE, atol=0)
    return first if plain else None


def _links(program: Program) -> list[tuple[int, int, float]]:
    """(a, b, f): the scale of buffer a is f times that of buffer b, if no operation shall be added between them."""
    out = []
    for step in program.steps:
        if len(step.inputs) > 1 and step.epilogue is not None and step.epilogue.m_r > 0:
            out.append((step.inputs[1], step.output, step.epilogue.m_r))
        if step.op in ("gather", "max_pool2d"):
            out.append((step.inputs[0], step.output, 1.0))
        elif step.op in ("requantize", "sum_pool2d", "quantize") and (m := uniform(step)) is not None:
            out.append((step.inputs[0], step.output, m * step.kernel[0] * step.kernel[1]))
    return out


def _spread(root: int, edges: list[tuple[int, int, float]], found: dict[int, float]) -> None:
    """Adds what follows from the scale of `root`."""
    open_ = [root]
    while open_:
        at = open_.pop()
        for a, b, factor in edges:
            other, scale = (b, found[at] / factor) if a == at else (a, found[at] * factor)
            if at in (a, b) and other not in found:
                found[other] = scale
                open_.append(other)
