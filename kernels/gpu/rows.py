"""The rows that a GPU runs, as `Kernel`s: what `doctor` lists and what a step's family is called. Loads no triton.

They stand beside ROWS of kernels/registry.py and not in it: that list is what C++ binds by cost, and a network on a GPU
has one family an op.
"""

from __future__ import annotations

from ..kernel import Kernel
from .layout import PAIRS

ISA = "gpu"
_NONE, _LEVELS = range(1), range(1, 9)
_WEIGHTS = range(1, max(w for w, _ in PAIRS) + 1)  # of a bit as fields of two

# Family -> ops of a Program that it computes, bits of weights, bits of what is read (32: floats too).
FAMILIES: dict[str, tuple[tuple[str, ...], range, range]] = {
    "gemm": (("conv2d",), _WEIGHTS, _LEVELS),
    "conv": (("conv2d",), _WEIGHTS, _LEVELS),
    "depthwise": (("depthwise_conv2d",), _WEIGHTS, _LEVELS),
    "max_pool": (("max_pool2d",), _NONE, range(1, 33)),
    "average_pool": (("sum_pool2d", "quantize", "requantize"), _NONE, range(1, 33)),
    "global_average_pool": (("sum_pool2d",), _NONE, _LEVELS),
    "torch": (("gather", "lookup", "product"), _NONE, range(1, 33)),
}
ROWS: tuple[Kernel, ...] = tuple(
    Kernel(f"{family}_{ISA}", family, op, ISA, w, a) for family, (ops, w, a) in FAMILIES.items() for op in ops
)
