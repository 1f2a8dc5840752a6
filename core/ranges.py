"""The terms of a post-training quantisation: how clips are chosen, and what is done to make them hurt less.

Loads neither numpy nor torch: the command line lists these names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .errors import UsageError

ACT_RANGES = ("mse", "percentile", "max")
WEIGHT_RANGES = ("lp", "mse", "max")
EQUALIZE = ("off", "exact", "seen")
PERCENTILE = 99.99


@dataclass(frozen=True, slots=True)
class Ranges:
    """`act`, `weight`, `equalize`: of `ACT_RANGES`, `WEIGHT_RANGES`, `EQUALIZE` (core/equalize.py).

    `percentile`: of all magnitudes, where `act` asks for it. `correct`: whether biases make up for what rounding does
    to the mean of a channel. `reduce`: dense layers' 8-bit weights within seven bits, whose products CPUs without VNNI
    add in pairs of int16 (`i8dot16`). UsageError for what no value can be.
    """

    act: str = "mse"
    percentile: float = PERCENTILE
    weight: str = "lp"
    correct: bool = True
    equalize: str = "off"
    reduce: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (
            ("ranges of activations", self.act, ACT_RANGES), ("ranges of weights", self.weight, WEIGHT_RANGES),
            ("equalize", self.equalize, EQUALIZE),
        ):  # fmt: skip
            if value not in known:
                raise UsageError(f"{what}: {value!r} is none of {', '.join(known)}")
        if not 50 <= self.percentile <= 100:
            raise UsageError(f"percentile {self.percentile:g}: a number from 50 to 100 is needed")

    def document(self) -> dict[str, Any]:
        """For metadata: the percentile only where it counts."""
        out = asdict(self)
        if self.act != "percentile":
            del out["percentile"]
        return out
