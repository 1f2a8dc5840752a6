"""The head of every document: what made it, on which machine; and how a file is written. Knows no verb."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from .._version import __version__
from .errors import UsageError

SCHEMA_VERSION = 1


def head(schema: str, *, isa: str | None = None, threads: int = 1, gpu: str | None = None) -> dict[str, Any]:
    """First keys of the document `schema` ("bitpress.inspect"): versions and host.

    `isa`: the instruction set in use, "reference" where numpy runs, None where nothing of ours computes.
    """
    return {
        "schema": schema,
        "schema_version": SCHEMA_VERSION,
        "bitpress": __version__,
        "host": {"cpu": cpu_name(), "isa": isa, "threads": threads, "gpu": gpu},
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    names = [value for key, value in _cpuinfo() if key in ("model name", "Hardware")]
    return names[0] if names else os.uname().machine


def cpu_features() -> frozenset[str]:
    """Feature flags as the kernel lists them, without underscores: the spelling of kernels/isa.def."""
    rows = [value for key, value in _cpuinfo() if key in ("flags", "Features")]
    return frozenset(flag.replace("_", "") for flag in rows[0].split()) if rows else frozenset()


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """The whole file or none of it (a device or pipe is written directly); UsageError where it cannot be written."""
    temporary: Path | None = None
    try:
        if path.is_dir():  # "" and "." too, which have no name that a sibling could take
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _cpuinfo() -> list[tuple[str, str]]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    return [(line.partition(":")[0].strip(), line.partition(":")[2].strip()) for line in lines]
