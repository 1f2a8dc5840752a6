"""Single layers on a GPU: ours checked against integers, then timed beside cuBLAS, cuDNN, torch._int_mm and gemlite.

Weights are random bytes, which is what fields of any width are; activations are random levels. Sums must equal those of
float64, which holds every integer below 2^53, and a sample of them those of int64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..core.encoding import parse
from ..kernels import gpu
from ..kernels.gpu import call
from ..kernels.gpu.layout import Form, form_of
from .gpu_clock import as_graph, compare, copies
from .harness import Timing, ratio

OURS = "bitpress"
# Of each pair of widths: weights, activations, whether these are packed.
PAIRS: Mapping[str, tuple[str, str, bool]] = {
    "w8a8": ("i8", "u8", False), "w4a8": ("i4", "u8", False), "w2a8": ("i2", "u8", False),
    "w4a4": ("i4", "u4", True), "w2a2": ("i2", "u2", True),
}  # fmt: skip
GRIDS = (
    ("o8", "u8", False), ("o4", "u8", False), ("o2", "u8", False), ("i8", "i8", False), ("o4", "i4", True),
    ("o2", "u2", True), ("i2", "i8", False),
)  # fmt: skip
# Rows of x, and N = K: the columns of the goal table; what is promised of each against bf16, in the order of PAIRS.
GOALS: Mapping[tuple[int, int], tuple[float, ...]] = {
    (1, 8192): (1.7, 2.9, 4.5, 2.9, 4.5), (1, 4096): (1.4, 2.0, 2.6, 2.0, 2.6), (1, 16384): (1.8, 3.4, 6.2, 3.4, 6.2),
    (16, 8192): (1.65, 2.7, 4.0, 2.7, 4.0), (256, 8192): (1.4, 1.4, 1.4, 1.35, 1.35),
    (4096, 8192): (1.5, 1.4, 1.4, 1.4, 1.4),
}  # fmt: skip
IMAGES, SIDES = 32, ((28, 128), (14, 256), (7, 512))  # of convolutions: batch; pixels a side, channels
CONV_GOAL = 1.5
CHECKED = ((1, 96, 512), (2, 200, 1024), (17, 130, 256), (300, 260, 512))  # M, N, K
SAME = gpu.Window((3, 3), padding=(1, 1, 1, 1))
SAMPLE = 32  # rows and pixels whose sums int64 takes too
U8 = gpu.Storage(parse("u8"))


@dataclass(frozen=True, slots=True)
class Problem:
    """One layer: x [M, K] where `side` is 0, else images [M, side, side, K] under a window of 3 x 3."""

    kind: tuple[str, str, bool]
    m: int
    n: int
    k: int
    side: int = 0

    @property
    def name(self) -> str:
        """For people."""
        what = f"{self.m} images of {self.side} x {self.side} x {self.k}" if self.side else f"{self.m} x {self.k}"
        weight, act, packed = self.kind
        return f"{weight} {act}{' packed' if packed else ''}: {what} to {self.n}"

    @property
    def macs(self) -> int:
        """Products."""
        return self.m * self.n * self.k * (9 * self.side**2 if self.side else 1)


class Made:
    """A problem with random weights and activations on the device, and its layer without epilogue."""

    def __init__(self, problem: Problem, device: str, seed: int = 0) -> None:
        weight, act, packed = problem.kind
        self.problem, self.device = problem, device
        self.window = SAME if problem.side else gpu.Window()
        rng = torch.Generator().manual_seed(seed)
        storage = gpu.packed(parse(act), problem.k) if packed else gpu.Storage(parse(act))
        self.form = form_of((problem.n, self.window.taps, problem.k), parse(weight), storage)
        fields = torch.randint(-128, 128, (problem.n, self.form.bytes), dtype=torch.int8, generator=rng)
        self.levels = unfolded(self.form, fields.to(device))
        shape = (problem.m, *([problem.side] * 2 if problem.side else []), problem.k)
        lo, hi = storage.encoding.lo, storage.encoding.hi
        x = torch.randint(lo, hi + 1, shape, dtype=torch.int16, generator=rng)
        self.x, self.stored = x.to(device), torch.from_numpy(storage.store(x.numpy())).to(device)
        whole = self.levels if not self.form.doubled else self.levels - 1
        correction = (storage.zero * whole.sum(1, dtype=torch.int64)).to(torch.int32).cpu().numpy()
        self.weights = gpu.Weights(self.form, fields.numpy(), correction)

    def run(self, x: torch.Tensor, layer: call.Layer) -> torch.Tensor:
        """By the family that suits."""
        return gpu.conv2d(x, layer, self.window) if self.problem.side else gpu.linear(x, layer)

    def wrong(self) -> int:
        """How many sums are not exact."""
        got = self.run(self.stored, gpu.load(self.weights, device=self.device))
        want, pick = self._exact(), torch.arange(SAMPLE, device=self.device)
        flat, rows = got.reshape(-1, self.problem.n), pick * (self.problem.n // SAMPLE or 1) % self.problem.n
        pixels = pick * (len(flat) // SAMPLE or 1) % len(flat)
        windows = self._windows(torch.int64)[pixels]
        sample = (windows[:, None] * self.levels[rows].long()[None]).sum(-1)
        off = int((flat.double() != want.reshape(flat.shape)).sum())
        return off + int((flat[pixels][:, rows].long() != sample).sum())

    def _exact(self) -> torch.Tensor:
        """Sums by float64, tap by tap."""
        taps = self.levels.reshape(self.problem.n, self.window.taps, -1).double()
        if not self.problem.side:
            return self.x.double() @ taps[:, 0].T
        out = torch.zeros((*self.x.shape[:3], self.problem.n), dtype=torch.float64, device=self.device)
        for tap, x in enumerate(self._moved(torch.float64)):
            out += x @ taps[:, tap].T
        return out

    def _moved(self, dtype: torch.dtype) -> Sequence[torch.Tensor]:
        framed = functional.pad(self.x.to(dtype), (0, 0, 1, 1, 1, 1))
        side = self.problem.side
        return [framed[:, y : y + side, z : z + side] for y in range(3) for z in range(3)]

    def _windows(self, dtype: torch.dtype) -> torch.Tensor:
        """[pixels, taps * K]."""
        if not self.problem.side:
            return self.x.to(dtype)
        return torch.cat(list(self._moved(dtype)), -1).reshape(-1, 9 * self.problem.k)


def unfolded(form: Form, fields: torch.Tensor) -> torch.Tensor:
    """Fields int8 [rows, bytes] -> levels int16 [rows, depth], by the rules of docs/gpu.md 2."""
    bits = form.encoding.bits
    shifts = torch.arange(0, 8, bits, device=fields.device, dtype=torch.int32)[:, None]
    codes = fields.view(torch.uint8).to(torch.int32).reshape(len(fields), -1, 1, form.run) >> shifts & 2**bits - 1
    field = (codes ^ 1 << (bits - 1)) - (1 << (bits - 1))
    level = 2 * field + 1 if form.half or form.doubled else field
    runs = level.to(torch.int16).reshape(len(fields), -1)[:, : form.taps * form.runs * form.run]
    return runs.reshape(len(fields), form.taps, -1)[:, :, : form.channels].reshape(len(fields), form.depth)


def check(problem: Problem, device: str, _seconds: float) -> dict[str, Any]:
    """Whether every sum is exact, of the bit-serial family too where both sides are fields."""
    made = Made(problem, device)
    wrong = made.wrong()
    if made.form.act.packed and not problem.side:
        layer = gpu.load(made.weights, device=device)
        wrong += int((gpu.linear_bitserial(made.stored, layer) != made.run(made.stored, layer)).sum())
    return {"exact": wrong == 0, "mismatches": wrong, "elements": problem.m * problem.n * max(1, problem.side) ** 2}


def check_planar(weight: str, shape: tuple[int, int, int, int], device: str, _seconds: float) -> dict[str, Any]:
    """The same of a depthwise convolution of 3 x 3 over u8 images [N, H, W, C], and of pools over its window."""
    rng = torch.Generator().manual_seed(1)
    known = torch.from_numpy(parse(weight).levels().astype(np.int64))
    w = known[torch.randint(0, len(known), (shape[-1], 9, 1), generator=rng)]
    x = torch.randint(0, 256, shape, dtype=torch.int64, generator=rng)
    framed = functional.pad(x, (0, 0, 1, 1, 1, 1))
    moved = torch.stack([framed[:, y : y + shape[1], z : z + shape[2]] for y in range(3) for z in range(3)])
    stored = (x - U8.zero).to(torch.int8).to(device)
    layer = gpu.load(gpu.arrange(w.numpy(), parse(weight), U8, depthwise=True), device=device)
    sums = gpu.load_pool(U8, shape[-1], device=device)
    pairs = (
        (gpu.depthwise2d(stored, layer, SAME), (moved * w[:, :, 0].T[:, None, None, None]).sum(0)),
        (gpu.max_pool(stored, U8, shape[-1], SAME), moved.amax(0) - U8.zero),
        (gpu.average_pool(stored, sums, SAME), moved.sum(0)),
        (gpu.global_average_pool(stored, sums), x.sum((1, 2), keepdim=True)),
    )
    wrong = sum(int((got.cpu().long() != want).sum()) for got, want in pairs)
    return {"exact": wrong == 0, "mismatches": wrong, "elements": sum(want.numel() for _, want in pairs)}


def timed(problem: Problem, device: str, seconds: float, *, goal: float | None, dry: bool = False) -> dict[str, Any]:
    """Exactness, then milliseconds of ours and of the peers; no times where a sum is wrong."""
    made = Made(problem, device)
    if wrong := made.wrong():
        return {"exact": False, "mismatches": wrong}
    number = copies(made.weights.fields.nbytes + made.stored.nbytes, device)
    scale = np.full(problem.n, 1e-4, np.float32)
    layer = gpu.load(made.weights, device=device, out=U8, m=scale, b=np.zeros_like(scale), lo=0, hi=255)
    ours: list[Callable[[], object]] = []
    for _ in range(number):
        own, x = replace(layer, fields=layer.fields.clone()), made.stored.clone()
        ours.append(lambda own=own, x=x: made.run(x, own))  # type: ignore[misc]
    candidates, left_out = {OURS: as_graph(ours, device)}, {}
    for name, build in (CONV_PEERS if problem.side else PEERS).items():
        try:
            candidates[name] = as_graph(build(made), device)
        except Exception as error:  # a peer that fails costs its own column only
            left_out[name] = (str(error) or type(error).__name__).splitlines()[0]
    return {
        "exact": True, "macs": problem.macs, "weight_bytes": int(made.weights.fields.nbytes), "copies": number,
        "goal": goal, "left_out": left_out, **figures(compare(candidates, 0.0 if dry else seconds)),
    }  # fmt: skip


def figures(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Milliseconds of each, and time / ours of the peers."""
    rows = {
        name: {"median": t.median, "min": t.min, "samples": len(t.samples), "ratio": ratio(t, timings[OURS])}
        for name, t in timings.items()
    }
    return {"ours": rows.pop(OURS), "peers": rows}


def _bf16(made: Made) -> list[Callable[[], object]]:
    """cuBLAS, floats of 16 bits."""
    x, w = made.x.to(torch.bfloat16), made.levels.to(torch.bfloat16)
    sets = [(x.clone(), w.clone()) for _ in range(copies(x.nbytes + w.nbytes, made.device))]
    return [lambda x=x, w=w: functional.linear(x, w) for x, w in sets]  # type: ignore[misc]


def _int_mm(made: Made) -> list[Callable[[], object]]:
    """torch's own int8 product, to int32 and without an epilogue."""
    if made.problem.m <= 16:
        raise ValueError(f"takes more than 16 rows, not {made.problem.m}")
    x, w = made.x.clamp(-128, 127).to(torch.int8), made.levels.clamp(-128, 127).to(torch.int8)
    sets = [(x.clone(), w.clone()) for _ in range(copies(x.nbytes + w.nbytes, made.device))]
    return [lambda x=x, w=w: torch._int_mm(x, w.t()) for x, w in sets]  # type: ignore[misc]


def _bitserial(made: Made) -> list[Callable[[], object]]:
    """Our own family of AND and popcount, which dispatch never takes."""
    if not made.form.act.packed:
        raise ValueError("takes fields on both sides")
    layer = gpu.load(made.weights, device=made.device)
    number = copies(made.weights.fields.nbytes + made.stored.nbytes, made.device)
    sets = [(made.stored.clone(), replace(layer, fields=layer.fields.clone())) for _ in range(number)]
    return [lambda x=x, own=own: gpu.linear_bitserial(x, own) for x, own in sets]  # type: ignore[misc]


def _gemlite(made: Made) -> list[Callable[[], object]]:
    """Its layers with 8-bit activations, which it quantises within the call: int8 for w8, fp8 for w4 and w2."""
    if find_spec("gemlite") is None:
        raise ValueError("not installed: pip install gemlite")
    helper = import_module("gemlite.helper")
    n, k = made.problem.n, made.problem.k
    bits = made.form.encoding.bits
    x = made.x.to(torch.float16)
    number = copies(n * k * bits // 8, made.device)
    if bits == 8:
        layers = [helper.A8W8_int8_dynamic().from_weights(made.levels.half()) for _ in range(number)]
    else:
        codes = (made.levels + 2 ** (bits - 1)).to(torch.uint8)
        scales = torch.full((n, 1), 1e-2, dtype=torch.float16, device=made.device)
        zeros = torch.full_like(scales, 2 ** (bits - 1))
        layers = [helper.A8Wn_dynamic().from_weights(codes, scales, zeros, bits, k) for _ in range(number)]
    return [lambda layer=layer: layer(x) for layer in layers]  # type: ignore[misc]


def _cudnn(made: Made) -> list[Callable[[], object]]:
    """cuDNN in fp16, channels last."""
    torch.backends.cudnn.benchmark = True
    n, k = made.problem.n, made.problem.k
    floats = torch.float32 if made.device == "cpu" else torch.float16
    w = made.levels.reshape(n, 3, 3, k).permute(0, 3, 1, 2).to(floats).contiguous(memory_format=torch.channels_last)
    x = made.x.permute(0, 3, 1, 2).to(floats)  # channels last already
    sets = [(x.clone(), w.clone()) for _ in range(copies(x.nbytes + w.nbytes, made.device))]
    return [lambda x=x, w=w: functional.conv2d(x, w, padding=1) for x, w in sets]  # type: ignore[misc]


PEERS: Mapping[str, Callable[[Made], list[Callable[[], object]]]] = {
    "bf16": _bf16, "int_mm": _int_mm, "gemlite": _gemlite, "bit-serial": _bitserial,
}  # fmt: skip
CONV_PEERS: Mapping[str, Callable[[Made], list[Callable[[], object]]]] = {"cudnn-fp16": _cudnn}
