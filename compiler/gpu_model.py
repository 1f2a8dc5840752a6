"""A Program on a GPU: weights arranged and loaded once, activations on the device, one CUDA graph for all steps.

Loaded only where `--device cuda` asks for it. In triton's interpreter (TRITON_INTERPRET=1) the same steps run on CPU
tensors, one by one, which is how tests compare them with compiler/execute.py where there is no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..kernels import gpu
from ..kernels.gpu.rows import ISA
from .gpu_steps import Place, Ready, empty, levels, prepare
from .program import Program

CHUNK = 256  # images at a time, where int32 indices reach
MAX_GRAPHS = 8  # batch sizes that stay captured
HEAD_START = 100_000_000  # clocks that the device waits before steps are timed, so that launches are not what is timed

Forward = Callable[[torch.Tensor], torch.Tensor]


class GpuProgram:
    """Runs a Program on `device`. `steps`: what computes each; `target`: the chip, "sm90"; `name`: of the GPU."""

    def __init__(self, program: Program, device: str | None = None) -> None:
        """`device`: by default the GPU. EnvironmentMissing without one; UnsupportedError names a step it cannot run."""
        self.device = gpu.device() if device is None else device
        self.target, self.name = gpu.target(self.device), gpu.name(self.device)
        self.program, self.place = program, Place(program.buffers, self.device)
        self.steps = tuple(prepare(step, self.place) for step in program.steps)
        self.chunk = _chunk(program)
        self._last = _last_reads(program)
        self._graphs: dict[int, _Captured] = {}

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 normalised images [N, C, H, W] -> float32 [N, outputs]."""
        outputs = int(np.prod(self.program.buffers[self.program.output].shape))
        parts = [self.run(_tensor(x[i : i + self.chunk])).cpu() for i in range(0, len(x), self.chunk)]
        return torch.cat(parts).numpy() if parts else np.empty((0, outputs), np.float32)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """At most `chunk` images, on any device -> float32 [N, outputs] on this one, overwritten by the next call."""
        if self.device == "cpu":
            return self.forward(x)
        if len(x) not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[len(x)] = _Captured(self.forward, x.to(self.device))
        return self._graphs[len(x)](x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, H, W] on the device -> float32 [N, outputs], step by step; nothing waits for the device."""
        out = x
        for ready, value in self._walk(x, dict(self._last)):
            if ready.step.output == self.program.output:
                out = value
        return out.permute(0, 3, 1, 2).reshape(len(x), -1)

    def values(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Every buffer's contents by name, as compiler/execute.py gives them: levels int32 or float32, [N, C, H, W]."""
        held: dict[int, torch.Tensor] = {}
        for ready, value in self._walk(self.put(x), {}):
            held[ready.step.output] = value
        out = {}
        for number, value in held.items():
            plain = levels(value, self.place.stored(number))
            out[self.program.buffers[number].name] = plain.permute(0, 3, 1, 2).contiguous().cpu().numpy()
        return out

    def profile(self, x: torch.Tensor) -> np.ndarray:
        """Milliseconds of each step on the device, float64 [steps], one after the other and not as a graph."""
        if self.device != "cpu":
            torch.cuda._sleep(HEAD_START)  # type: ignore[no-untyped-call]
        marks = [self._mark(), *(self._mark() for _ in self._walk(x, dict(self._last)))]
        self.wait()
        return np.array([_between(a, b) for a, b in pairwise(marks)])

    def put(self, x: np.ndarray) -> torch.Tensor:
        """Images on the device."""
        return _tensor(x).to(self.device)

    def wait(self) -> None:
        """Returns when the device has done all it was given."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def rows(self) -> list[dict[str, object]]:
        """Per step: name, layer, op, kernel, isa, why."""
        return [
            {
                "name": r.step.name, "layer": r.step.layer, "op": r.step.op, "kernel": f"{r.kernel}_{ISA}",
                "isa": self.target, "why": r.why,
            }
            for r in self.steps
        ]  # fmt: skip

    def _mark(self) -> Any:
        """Now, on the device's clock."""
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _walk(self, x: torch.Tensor, last: dict[int, int]) -> Iterator[tuple[Ready, torch.Tensor]]:
        """Step by step, with its output as far as it is written. `last`: when buffers may go."""
        held = {self.program.input: x.permute(0, 2, 3, 1).contiguous()}
        for at, ready in enumerate(self.steps):
            step = ready.step
            into = held.get(step.output)
            if into is None and step.out_channels is not None:
                into = empty(len(x), step.output, self.place)
            value = held[step.output] = ready.run([held[number] for number in step.inputs], into)
            yield ready, value
            for number in {*step.inputs, step.output}:
                if last.get(number) == at:
                    del held[number]


class _Captured:
    """One batch size as one CUDA graph: a launch for the whole network."""

    def __init__(self, forward: Forward, x: torch.Tensor) -> None:
        """Runs `forward` once on a stream of its own, where kernels are compiled, then records it."""
        self.x = x.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            forward(self.x)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = forward(self.x)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` of the captured shape."""
        self.x.copy_(x)
        self.graph.replay()
        return self.out


def _tensor(x: np.ndarray) -> torch.Tensor:
    """`x` itself where it may be written, as torch wants it, else a copy."""
    return torch.from_numpy(np.require(x, requirements="W"))


def _between(first: Any, second: Any) -> float:
    """Milliseconds from one mark to the next."""
    return 1e3 * (second - first) if isinstance(first, float) else float(first.elapsed_time(second))


def _chunk(program: Program) -> int:
    """Images whose largest value int32 can index."""
    most = max(int(np.prod(buffer.shape)) for buffer in program.buffers)
    return max(1, min(CHUNK, gpu.MAX_INDEX // most))


def _last_reads(program: Program) -> dict[int, int]:
    """Buffer -> the step behind which nothing reads it; the output stays."""
    last = {number: at for at, step in enumerate(program.steps) for number in (*step.inputs, step.output)}
    last.pop(program.output, None)
    return last
