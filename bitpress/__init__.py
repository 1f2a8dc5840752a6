"""Bitpress: joint pruning and mixed-precision search, compiled to packed low-bit kernels, measured.

Eleven names; each is imported when it is first used, so that `import bitpress` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .benchmarks.bench import bench as bench
    from .compiler.model import load as load
    from .core.search import search as search
    from .delivery import Recipe as Recipe
    from .delivery import compile as compile
    from .evaluation import evaluate as evaluate
    from .exporting import export as export
    from .inspection import inspect as inspect
    from .inspection import verify as verify
    from .planning import plan as plan

# name -> module that defines it
_HOMES = {
    "Recipe": ".delivery",
    "bench": ".benchmarks.bench",
    "compile": ".delivery",
    "evaluate": ".evaluation",
    "export": ".exporting",
    "inspect": ".inspection",
    "load": ".compiler.model",
    "plan": ".planning",
    "search": ".core.search",
    "verify": ".inspection",
}

__all__ = [
    "Recipe", "__version__", "bench", "compile", "evaluate", "export", "inspect", "load", "plan", "search", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
