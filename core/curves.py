"""Activations that no clamp bounds spell: over levels of at most 8 bits they are tables. One row each.

Each is one formula, given the exponential that it shall use: numpy's for floats, and for tables, which must be the same
on every host, one that is rounded correctly. Knows nothing of graphs, scales or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np

Exp = Callable[[np.ndarray], np.ndarray]
DIGITS = 40  # of the exact exponential: float64 has 16
FAR = 800.0  # beyond it float64 holds no exponential that a sum with 1 would notice


@dataclass(frozen=True, slots=True)
class Curve:
    """An activation: its formula on float64, the exponential being given; whether it can be below zero."""

    formula: Callable[[np.ndarray, Exp], np.ndarray]
    signed: bool

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Values of floats, float64."""
        with np.errstate(over="ignore"):  # of exp: 1 / (1 + inf) is 0, as it should be
            return self.formula(x.astype(np.float64), np.exp)

    def exact(self, x: np.ndarray) -> np.ndarray:
        """Values float64 of a few numbers, the same on every host.

        >>> CURVES["sigmoid"].exact(np.array([0.0])).tolist()
        [0.5]
        """
        return self.formula(x.astype(np.float64), _exact_exp)


def _exact_exp(x: np.ndarray) -> np.ndarray:
    """The exponential, rounded from `DIGITS` decimal ones: what a library makes of it depends on the processor."""
    with localcontext(prec=DIGITS):
        return np.array([float(Decimal(v).exp()) for v in np.clip(x, -FAR, FAR).ravel().tolist()]).reshape(x.shape)


def _hard_sigmoid(x: np.ndarray, _exp: Exp) -> np.ndarray:
    return np.clip(x + 3.0, 0.0, 6.0) / 6.0


def _sigmoid(x: np.ndarray, exp: Exp) -> np.ndarray:
    return 1.0 / (1.0 + exp(-x))


CURVES: Mapping[str, Curve] = {
    "hard_sigmoid": Curve(_hard_sigmoid, signed=False),
    "hard_swish": Curve(lambda x, exp: x * _hard_sigmoid(x, exp), signed=True),
    "sigmoid": Curve(_sigmoid, signed=False),
    "silu": Curve(lambda x, exp: x * _sigmoid(x, exp), signed=True),
}
