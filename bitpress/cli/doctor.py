"""`bitpress doctor`: what this host has, which kernels it can use, and why not the others."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from ..core.errors import BitpressError
from ..core.host import head
from . import environment
from .command import Common, Result, verb
from .tables import Column, Table

LIBRARIES = {
    "numpy": "", "torch": "search", "safetensors": "search", "scikit-learn": "search", "onnx": "onnx",
    "onnxruntime": "onnx", "openvino": "", "triton": "gpu", "torchvision": "vision", "timm": "vision",
    "pytest-benchmark": "bench", "gymnasium": "rl", "stable-baselines3": "rl",
}  # fmt: skip
VARIABLES = (
    "BITPRESS_FORCE_ISA", "BITPRESS_FORCE_KERNEL", "BITPRESS_NATIVE", "BITPRESS_NUM_THREADS", "BITPRESS_CACHE_DIR",
)  # fmt: skip


@verb("doctor")
def command(common: Common) -> Result:
    """Shows the host, the instruction sets, the libraries and the kernels, usable ones and why others are not."""
    from ..kernels.gpu.rows import ROWS as GPU_ROWS
    from ..kernels.registry import ROWS

    native, said = _native()
    isas = [_isa(row, native) for row in environment.isas()]
    verdicts = {} if native is None else {str(row["name"]): row for row in native.kernels()}
    kernels = [_kernel(row, verdicts) for row in ROWS]
    libraries = [{"name": name, "version": _version(name), "extra": extra or None} for name, extra in LIBRARIES.items()]
    gpu = _gpu_kernels()
    kernels += [_kernel_on_gpu(row, gpu["why"]) for row in GPU_ROWS]
    document = {
        **head("bitpress.doctor", isa=_isa_in_use(isas), threads=common.thread, gpu=_gpu()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "native": {"loaded": native is not None, "why": said},
        "environment": {name: os.environ.get(name) for name in VARIABLES},
        "isas": isas,
        "libraries": libraries,
        "kernels": kernels,
        "gpu": gpu,
    }
    host = document["host"]
    notes = [
        f"{host['cpu']}, {document['cores']} cores; {document['system']}; Python {document['python']}",
        f"native module: {said}; instruction set in use: {host['isa']}; GPU: {host['gpu'] or 'none'}",
        "; ".join(
            filter(None, (f"GPU kernels: triton {gpu['triton'] or 'none'}", gpu["why"] or "usable", gpu["tiles"]))
        ),
    ]
    return Result(document, (_kernel_table(kernels), _isa_table(isas), _library_table(libraries)), notes)


def _native() -> tuple[ModuleType | None, str]:
    """The native module as verbs would load it, else None, and the reason in words."""
    from ..compiler.model import native_module

    if os.environ.get("BITPRESS_NATIVE") == "0":
        return None, "not loaded, BITPRESS_NATIVE=0 forbids it"
    try:
        module = native_module()
    except BitpressError as error:
        return None, str(error)
    if module is None and os.environ.get("BITPRESS_FORCE_ISA"):
        return None, f"not loaded, BITPRESS_FORCE_ISA={os.environ['BITPRESS_FORCE_ISA']}"
    return module, "not installed" if module is None else "loaded"


def _isa(row: environment.Isa, native: ModuleType | None) -> dict[str, Any]:
    missing, forced = environment.lacks(row.name), os.environ.get("BITPRESS_FORCE_ISA", "")
    cap = next((one for one in environment.isas() if one.name == forced), None)
    why = ""
    if missing:
        why = f"the CPU lacks {', '.join(missing)}"
    elif native is None:
        why = "the native module is not in use"
    elif cap is not None and row.name not in (cap.name, *cap.contains):
        why = f"BITPRESS_FORCE_ISA={forced}"
    return {"name": row.name, "usable": not why, "needs": list(row.features), "why": why}


def _isa_in_use(isas: list[dict[str, Any]]) -> str:
    """The best usable set: isa.def lists them in order of preference."""
    return next((str(isa["name"]) for isa in reversed(isas) if isa["usable"]), environment.REFERENCE)


def _kernel(row: Any, verdicts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`verdicts`: what the native module says of its rows, by name; empty where it is not in use."""
    if row.isa == environment.REFERENCE:
        why = "native rows are in use" if verdicts else ""
    elif row.name in verdicts:
        why = "" if verdicts[row.name]["usable"] else str(verdicts[row.name]["why"])
    else:
        why = "the native module is not in use"
    return {
        "name": row.name, "op": row.op, "isa": row.isa, "w_bits": _bits(row.w_bits), "a_bits": _bits(row.a_bits),
        "usable": not why, "why": why,
    }  # fmt: skip


def _kernel_on_gpu(row: Any, why: str) -> dict[str, Any]:
    return {**_kernel(row, {}), "usable": not why, "why": why}


def _bits(bits: range) -> list[int]:
    """First and last width; none without weights."""
    return [] if bits == range(1) else [bits.start, bits.stop - 1]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> str | None:
    """Name of the first NVIDIA GPU as its driver tells it, None without one."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return None


def _gpu_kernels() -> dict[str, Any]:
    """Whether Triton kernels can run here, and what is missing."""
    from ..kernels import gpu

    why, name = gpu.missing(), _gpu()
    return {
        "usable": not why,
        "triton": _version("triton"),
        "why": why,
        "tiles": None if name is None else _tiles(name),
    }


def _tiles(name: str) -> str:
    """Which table of tiles launches on that GPU read."""
    from ..kernels.gpu import tuned

    path = tuned.found(name)
    if path is None:
        return f"no table of timed tiles for {name}: `bitpress profile --device cuda` makes one"
    try:
        return f"{len(tuned.table(name))} timed tiles: {path}"
    except BitpressError as error:
        return str(error)


def _kernel_table(rows: list[dict[str, Any]]) -> Table:
    columns = (Column("name", "kernel"), Column("op", "op"), Column("isa", "ISA"), Column("w_bits", "weights"),
               Column("a_bits", "activations"), Column("usable", "usable"), Column("why", "why not"))  # fmt: skip

    shown = [{**row, "w_bits": _span(row["w_bits"]), "a_bits": _span(row["a_bits"])} for row in rows]
    return Table("Kernels", columns, shown)


def _span(bits: list[int]) -> str:
    return "-".join(map(str, dict.fromkeys(bits)))


def _isa_table(rows: list[dict[str, Any]]) -> Table:
    columns = (Column("name", "ISA"), Column("usable", "usable"), Column("needs", "needs"), Column("why", "why not"))
    return Table("Instruction sets", columns, [{**row, "needs": " ".join(row["needs"])} for row in rows])


def _library_table(rows: list[dict[str, Any]]) -> Table:
    return Table("Libraries", (Column("name", "library"), Column("version", "version"), Column("extra", "extra")), rows)
