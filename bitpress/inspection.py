"""The `bitpress.inspect` and `bitpress.verify` documents: what the compiler finds, under the head. Prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .core.host import head


def inspect(source: str | Path | bytes, *, device: str = "cpu") -> dict[str, Any]:
    """Layers, parts and totals of a `.bpk` (a path or its bytes), and its kernels on `device`. Errors as of `load`."""
    from .compiler.inspect import inspect as body

    found = body(source, device=device)
    return {**head("bitpress.inspect", isa=found.pop("isa"), gpu=found.pop("gpu")), "artifact": _name(source), **found}


def verify(
    source: str | Path | bytes,
    *,
    against: str | Path | None = None,
    batches: Sequence[int] = (1, 3, 16),
    threads: Sequence[int] = (1, 2),
    data: Any = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Whether torch (with the RUN `against`), the numpy reference and native code compute the same, value by value.

    `data`: a DATA spec or normalised images float32 [N, C, H, W]; by default the golden sample and seeded noise.
    `device`: "cuda" insists on the GPU, which computes too where there is one. EnvironmentMissing where fewer than two
    stages can run, or the GPU is missing that was asked for.
    """
    from .compiler.verify import verify as body

    found = body(source, against, batches=batches, threads=threads, data=data, device=device)
    isa, gpu = found.pop("isa"), found.pop("gpu")
    return {
        **head("bitpress.verify", isa=isa or "reference", threads=max(threads), gpu=gpu),
        "artifact": _name(source),
        **found,
    }


def _name(source: str | Path | bytes) -> str | None:
    return None if isinstance(source, bytes) else str(source)
