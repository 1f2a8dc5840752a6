"""Geometry of a convolution. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Window:
    """(height, width) of each; padding is top, left, bottom, right, as in a Program."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def out(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result; UsageError where the window is larger than the padded image."""
        top, left, bottom, right = self.padding
        tall = height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1
        wide = width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1
        if tall < 0 or wide < 0:
            raise UsageError(f"images of {height} x {width} with padding {self.padding} are smaller than {self.kernel}")
        return tall // self.stride[0] + 1, wide // self.stride[1] + 1

    @property
    def taps(self) -> int:
        """Positions."""
        return self.kernel[0] * self.kernel[1]

    def constants(self) -> dict[str, int]:
        """Compile-time arguments of every kernel that walks over windows (kernels/gpu/taps.py)."""
        return {
            "KW": self.kernel[1], "SH": self.stride[0], "SW": self.stride[1],
            "TOP": self.padding[0], "LEFT": self.padding[1], "DH": self.dilation[0], "DW": self.dilation[1],
        }  # fmt: skip
