"""Model: a compiled network that can be called. Native where it can be, numpy where it must be, the same numbers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import quant
from ..core.errors import EnvironmentMissing, UsageError
from ..kernels import gpu
from . import artifact
from .execute import execute
from .program import Program

if TYPE_CHECKING:
    from .gpu_model import GpuProgram

REFERENCE = "reference"
DEVICES = ("cpu", "cuda")


def native_module() -> ModuleType | None:
    """`bitpress._native`, or None where numpy must do, as BITPRESS_NATIVE and BITPRESS_FORCE_ISA ask.

    BITPRESS_NATIVE unset: where present; 0: never; 1: EnvironmentMissing without it. Other values: UsageError.
    """
    wish, isa = os.environ.get("BITPRESS_NATIVE", ""), os.environ.get("BITPRESS_FORCE_ISA", "")
    if wish not in ("", "0", "1"):
        raise UsageError(f"BITPRESS_NATIVE={wish!r}: valid values are 0 and 1")
    if isa == REFERENCE:
        return None
    if wish == "0":
        if isa:
            raise EnvironmentMissing(
                f"BITPRESS_FORCE_ISA={isa} needs the native module, which BITPRESS_NATIVE=0 forbids"
            )
        return None
    try:
        from .. import _native
    except ImportError as error:
        if wish == "1" or isa:
            raise EnvironmentMissing(
                f"the native module cannot be loaded ({error}), which BITPRESS_NATIVE=1 or BITPRESS_FORCE_ISA "
                "asks for: install again without BITPRESS_NATIVE=0, or unset them"
            ) from error
        print("bitpress: the native module is not installed; running numpy reference kernels, slowly", file=sys.stderr)
        return None
    return _native


def thread_count(threads: int | None = None) -> int:
    """`threads`, else BITPRESS_NUM_THREADS, else 1; UsageError unless it is a number from 1 to 256."""
    text = os.environ.get("BITPRESS_NUM_THREADS", "1") if threads is None else str(threads)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 256:
        source = "BITPRESS_NUM_THREADS" if threads is None else "threads"
        raise UsageError(f"{source}={text!r}: valid values are whole numbers from 1 to 256")
    return int(text)


def gpu_program(program: Program) -> GpuProgram:
    """`program` on this host's GPU; EnvironmentMissing, one sentence, without triton, torch or a GPU."""
    device = gpu.device()
    from .gpu_model import GpuProgram

    return GpuProgram(program, device)


class Model:
    """A loaded `.bpk`.

    `program`: what it holds; `shape`: [C, H, W] of one input; `outputs`: values per image; `session`: the native
    session, or None where numpy or a GPU runs; `gpu`: the program on a GPU, or None.
    """

    def __init__(self, source: str | Path | bytes, *, threads: int | None = None, device: str = "cpu") -> None:
        """`source`: path or the file's bytes. CorruptError if it is damaged, UsageError if it cannot be read.

        `device`: "cpu" or "cuda"; EnvironmentMissing without a GPU, UnsupportedError for a step that it cannot run.
        """
        if device not in DEVICES:
            raise UsageError(f"device {device!r} is unknown; valid: {', '.join(DEVICES)}")
        count = thread_count(threads)
        data = source if isinstance(source, bytes) else artifact.load_bytes(source)
        self.program = artifact.decode(data)
        self.shape = self.program.buffers[self.program.input].shape
        self.outputs = int(np.prod(self.program.buffers[self.program.output].shape))
        self.gpu = gpu_program(self.program) if device == "cuda" else None
        native = native_module() if self.gpu is None else None
        self.session: Any = None if native is None else native.Session(data, threads=count)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, empty where unknown."""
        return self.program.labels

    @property
    def isa(self) -> str:
        """Instruction set in use, "reference" where numpy runs; of a GPU its chip, such as "sm90"."""
        if self.gpu is not None:
            return self.gpu.target
        return REFERENCE if self.session is None else str(self.session.isa)

    @property
    def gpu_name(self) -> str | None:
        """What the GPU in use calls itself, None on a CPU."""
        return None if self.gpu is None else self.gpu.name

    def __call__(self, x: Any) -> Any:
        """float32 [N, C, H, W], normalised, or uint8 [N, H, W, C] as a file holds it -> float32 [N, outputs].

        A torch tensor gives a torch tensor. UsageError, with the numbers, for other shapes, dtypes, NaN or infinity.
        """
        if hasattr(x, "detach"):
            return x.new_tensor(self(x.detach().cpu().numpy()), dtype=x.new_empty(0).float().dtype)
        return self.run(self.prepare(x))

    def run(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, outputs] of images that `prepare` gave, which are not looked at again."""
        if self.gpu is not None:
            return self.gpu(images)
        if self.session is None:
            return execute(self.program, images)
        out: np.ndarray = self.session.run(images)
        return out

    def check(self, x: np.ndarray) -> None:
        """UsageError, with the numbers, unless shape and dtype of `x` are those of images for this network."""
        c, h, w = self.shape
        if (str(x.dtype), x.shape[1:]) not in (("uint8", (h, w, c)), ("float32", (c, h, w))):
            wanted = f"float32 [N, {c}, {h}, {w}] (normalised) or uint8 [N, {h}, {w}, {c}]"
            raise UsageError(f"input is {x.dtype} {list(x.shape)}, the network takes {wanted}")

    def prepare(self, x: Any) -> np.ndarray:
        """The float32 [N, C, H, W] images, C-contiguous, that the network works on; UsageError if `x` does not fit."""
        x = np.asarray(x)
        self.check(x)
        if x.dtype == np.uint8:
            x = quant.normalize_u8(x.transpose(0, 3, 1, 2), self.program.mean, self.program.std)
        if not np.isfinite(x).all():
            raise UsageError(f"input holds {int((~np.isfinite(x)).sum())} NaN or infinite values of {x.size}")
        return np.ascontiguousarray(x)

    def inspect_rows(self) -> list[dict[str, object]]:
        """Per step: name, layer, op, kernel, isa, why (why that kernel and no other)."""
        if self.session is not None:
            return [dict(row) for row in self.session.steps()]
        if self.gpu is not None:
            return self.gpu.rows()
        why = "the native module is not in use"
        return [
            {"name": s.name, "layer": s.layer, "op": s.op, "kernel": f"{s.op}_reference", "isa": REFERENCE, "why": why}
            for s in self.program.steps
        ]

    def golden_check(self) -> bool | None:
        """Whether the golden sample comes out bit by bit; None where the file holds none."""
        if self.program.golden_input is None or self.program.golden_output is None:
            return None
        return bool(np.array_equal(self(self.program.golden_input), self.program.golden_output))


def load(path: str | Path, *, threads: int | None = None, device: str = "cpu") -> Model:
    """The compiled network in the file `path`; call it on images. Errors as of `Model`."""
    return Model(path, threads=threads, device=device)
