"""Bitpress: joint pruning and mixed-precision search, compiled to packed low-bit kernels, measured."""

from ._version import __version__

__all__ = ["__version__"]
