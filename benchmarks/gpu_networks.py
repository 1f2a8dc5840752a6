"""Whole networks on a GPU: a compiled file beside the float network under torch.compile, both as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ..compiler.execute import execute
from ..compiler.model import Model
from ..core.models import load
from ..delivery import Recipe
from ..delivery import compile as compile_network
from .gpu_clock import as_calls, compare
from .gpu_layers import OURS, figures

CALIBRATION = "random:4"  # ranges of noise: time does not depend on what weights show
PEER = "torch.compile fp16"


def timed(
    model: str, bits: str, batch: int, device: str, seconds: float, *, goal: float | None, dry: bool = False
) -> dict[str, Any]:
    """Outputs equal to the CPU's on the first image, then milliseconds of ours and of the peer on `batch` images."""
    with TemporaryDirectory(prefix="bitpress-gpu-") as folder:
        path = Path(folder) / "network.bpk"
        compile_network(model, path, recipe=Recipe(quantize=bits, calibrate=CALIBRATION))
        made, cpu = Model(path, device="cuda"), Model(path)
    x = np.random.default_rng(0).standard_normal((batch, *made.shape)).astype(np.float32)
    want = cpu(x[:1]) if cpu.session is not None else execute(cpu.program, x[:1])
    for got in (made(x[:1]), made(x)[:1]):
        if wrong := int((got != want).sum()):
            return {"exact": False, "mismatches": wrong}
    assert made.gpu is not None, "device cuda has one"
    ours, placed = made.gpu, made.gpu.put(x)
    candidates, left_out = {OURS: as_calls(lambda: ours.run(placed), device)}, {}
    try:
        candidates[PEER] = as_calls(_peer(model, x, device, dry=dry), device)
    except Exception as error:  # a peer that fails costs its own column only
        left_out[PEER] = (str(error) or type(error).__name__).splitlines()[0]
    torch_steps = [str(row["name"]) for row in ours.rows() if row["kernel"] == "torch_gpu"]
    return {
        "exact": True, "goal": goal, "left_out": left_out, "steps": len(ours.steps), "torch_steps": len(torch_steps),
        **figures(compare(candidates, 0.0 if dry else seconds)),
    }  # fmt: skip


def _peer(model: str, x: np.ndarray, device: str, *, dry: bool) -> Callable[[], object]:
    """The float network in fp16, channels last, compiled with its own CUDA graphs; plain and in float32 where `dry`."""
    module = load(model).module.eval()
    if dry:
        given = torch.from_numpy(x)
        return lambda: _quiet(module, given)
    module = module.to(device, torch.float16)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(module, mode="max-autotune")
    given = torch.from_numpy(x).to(device, torch.float16).contiguous(memory_format=torch.channels_last)
    for _ in range(3):  # compiles, tunes and records
        _quiet(compiled, given)
    return lambda: _quiet(compiled, given)


def _quiet(module: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return module(x)
