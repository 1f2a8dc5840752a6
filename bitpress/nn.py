"""Modules with packed weights for networks of one's own: `Linear.of(layer, w="i4", a="i8", clip=6.0)`, `Conv2d.of`.

They run on CPU and GPU with the same bits, and under torch.compile and torch.export. torch is loaded when one is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .core.errors import EnvironmentMissing

if TYPE_CHECKING:
    from .kernels.gpu.modules import Conv2d, Linear

__all__ = ["Conv2d", "Linear"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"bitpress.nn has no {name!r}; it has {', '.join(__all__)}")
    try:
        from .kernels.gpu import modules
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise EnvironmentMissing("torch is not installed: pip install 'bitpress[search]'") from error
    return getattr(modules, name)
