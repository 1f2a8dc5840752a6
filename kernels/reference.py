"""The rows that numpy runs: everything that the format can say. Their meaning is `compiler.execute`, step by step.

They are listed here so that the choice of a kernel, `doctor` and the tests see them; a second implementation of the
same loops would only be a second thing to keep right.
"""

from __future__ import annotations

from .kernel import Kernel

REFERENCE = "reference"
_NO_BITS, _LEVELS, _ANY = range(1), range(1, 9), range(1, 33)

_OPS = {
    "quantize": (_NO_BITS, range(32, 33)),
    "conv2d": (_LEVELS, _LEVELS),
    "depthwise_conv2d": (_LEVELS, _LEVELS),
    "requantize": (_NO_BITS, _ANY),
    "max_pool2d": (_NO_BITS, _ANY),
    "sum_pool2d": (_NO_BITS, _LEVELS),
    "gather": (_NO_BITS, _ANY),
    "lookup": (_NO_BITS, _LEVELS),
    "product": (_NO_BITS, _LEVELS),
}
ROWS: tuple[Kernel, ...] = tuple(Kernel(f"{op}_{REFERENCE}", op, op, REFERENCE, w, a) for op, (w, a) in _OPS.items())
