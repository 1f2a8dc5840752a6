"""Program: the flat, executable form that the artifact holds and the runtimes run. No graph, no names of layers needed.

A step names the *problem* (op, encodings, shape), never a kernel symbol: runtimes bind rows at load.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..kernels.packed import PackedTensor

# Ops of the flat program; the number is the position and part of the format.
STEP_OPS = (
    "quantize", "conv2d", "depthwise_conv2d", "requantize", "max_pool2d", "sum_pool2d", "gather",
    "lookup", "product",
)  # fmt: skip
FIRST_OPS = 7  # of them that every reader of version 1 knows; a file with a later one announces it


@dataclass(frozen=True, slots=True)
class Buffer:
    """A value held between steps, NHWC, one byte a level (four for f32), planned at `offset` in a shared arena.

    `offset` (a multiple of 64) and `bytes` (exactly C*H*W times 1 or 4) are per image; a runtime multiplies both by
    its batch chunk. The program's input buffer is the caller's own memory (float32 NCHW): its offset is 0 and it takes
    no room in the arena. Names are unique among buffers. `storage`: activation encoding name, or "f32".
    """

    name: str
    shape: tuple[int, int, int]  # [C, H, W]; a flat value of F features is [F, 1, 1]
    storage: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Epilogue:
    """acc -> stored value, the law of core.quant: t = acc*m[c]; t += b[c]; t += r*m_r; half to even; clamp.

    `m`, `b` float32 [rows]; `lo`, `hi` float32 (integers where a level is stored, +-inf where f32 is unbounded).
    """

    m: np.ndarray
    b: np.ndarray
    lo: float
    hi: float
    m_r: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on buffers.

    conv2d also serves linear layers: a linear after flatten of [C, H, W] is a convolution with kernel (H, W).
    depthwise_conv2d: groups = C; row i belongs to channel out_channels[i] of both input and output.
    `out_channels`: where row i of this step is written in the output's channel dimension (int32 [rows], each once).
    gather: out[c, y, x] = in[channels[c], y*stride_h, x*stride_w] (0 where channels[c] = -1, or outside after padding);
    row i is written at out_channels[i] (concat: several gathers write into one buffer).
    lookup: out = table[code of in], entry by entry. product: in times the second input, which may be of one pixel.
    Only quantize reads the program's input. Names are unique among steps; bounds of stored levels lie within
    quant.act_bounds of the output's encoding.
    """

    op: str
    name: str  # layer or value name, for people
    inputs: tuple[int, ...]  # buffer numbers: data, then residual if any, or the product's other factor
    output: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    weight: PackedTensor | None = None  # [rows, K], K in the order (ky, kx, c)
    epilogue: Epilogue | None = None
    out_channels: np.ndarray | None = None  # None: 0 .. rows-1
    channels: np.ndarray | None = None  # gather only
    table: np.ndarray | None = None  # lookup only: float32 [2^bits of the input], levels where these are stored
    layer: str = ""  # conv or linear layer that the step belongs to ("" if none); segments share it
    hint: str = ""  # name of a row that fits on the baseline target


@dataclass(frozen=True)
class Program:
    """Steps in order over numbered buffers, with what a user of the network must know.

    `meta` is plain JSON data (layer table, groups, provenance) that the C++ runtime never parses.
    """

    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    input: int  # buffer number; the runtime is given float32 NCHW, normalised
    output: int  # buffer number, f32
    arena_bytes: int  # per image
    mean: np.ndarray  # float32 [C]
    std: np.ndarray  # float32 [C]
    labels: tuple[str, ...] = ()
    golden_input: np.ndarray | None = None  # float32 [1, C, H, W]
    golden_output: np.ndarray | None = None  # float32 [1, outputs]
    meta: dict[str, object] = field(default_factory=dict)

    def groups(self) -> list[list[Step]]:
        """Steps that write one buffer together: segments of a layer, parts of a concatenation; as they run."""
        writers: dict[int, list[Step]] = {}
        for step in self.steps:
            writers[step.output] = [*writers.pop(step.output, []), step]  # at the place of its last writer
        return list(writers.values())
