"""Kernels compiled for a chip that need not be here, and what their machine code says of itself.

ptxas and cuobjdump come with triton. TRITON_INTERPRET must not be set in the process: it turns triton's own library
into interpreted functions, which no longer compile.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bitpress.core.encoding import parse
from bitpress.kernels.gpu import bitserial, call, depthwise, gemv, pool
from bitpress.kernels.gpu.layout import form_of
from bitpress.kernels.gpu.tiles import PLANAR, SERIAL, VECTOR, Tile, choose
from bitpress.kernels.gpu.window import Window

from .cases import storage

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm89": GPUTarget("cuda", 89, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {
    "x": "*i8", "w": "*i8", "m": "*fp32", "b": "*fp32", "correction": "*i32", "windows": "*i32", "fill": "*i8",
    "columns": "*i32", "sums": "*i32", "counts": "*i32",
    "m_r": "fp32", "lo": "fp32", "hi": "fp32",
}  # fmt: skip
# As a launch finds them: what torch allocates lies at multiples of 16, and so do the sizes of even layers.
ALIGNED = ("x", "w", "o", "m", "b", "correction", "windows", "residual", "fill", "columns", "sums", "N", "K", "WIDTH")
TENSOR_CORE = re.compile(r"IGMMA|IMMA|v_mfma_i32")
LOAD = re.compile(r"LDG|global_load|buffer_load")


@dataclass(frozen=True)
class Code:
    """Resources in bytes and registers; all instructions, and those of the innermost loop that multiplies.

    `ir`: PTX, or the assembly itself.
    """

    registers: int
    spills: int
    shared: int
    all: tuple[str, ...]
    loop: tuple[str, ...]
    ir: str

    def count(self, pattern: str) -> int:
        """Instructions of the loop whose name matches."""
        return sum(bool(re.match(pattern, one)) for one in self.loop)

    def names(self) -> Counter[str]:
        """What the loop is made of, for messages."""
        return Counter(one.split()[0].split(".")[0] for one in self.loop)


def build(
    family: ModuleType,
    kind: tuple[str, str, bool],
    target: str,
    *,
    rows: int = 256,
    channels: int = 256,
    window: Window | None = None,
    tile: Tile | None = None,
    out: call.Out = "f32",
    residual: call.Out | None = None,
    columns: bool = False,
    even: bool = True,
) -> Code:
    """The family's kernel as `launch` would compile it for such a layer; `even`: sizes are multiples of 16."""
    taps = window.kernel[0] * window.kernel[1] if window else 1
    flat = family is depthwise
    form = form_of(
        (rows, taps, 1 if flat else channels),
        parse(kind[0]),
        storage(kind[1], channels, kind[2]),
        depthwise=flat,
    )
    usual = {gemv: VECTOR, depthwise: PLANAR, bitserial: SERIAL}
    tile = call.fit(tile or usual.get(family) or choose(target, 4096), out, scattered=columns)
    constants = family.constants(form, window, tile) if window else family.constants(form, tile)
    if family is bitserial:
        constants |= {"ASM": bitserial.assembler(target)}
    elif not flat:
        constants |= call.constants(form, target, assembly=True)
    types = dict(family.SCALARS)
    if family in (gemv, bitserial):
        types |= {"x": "*i32", "w": "*i32"}
    function = getattr(family, family.__name__.rpartition(".")[2])
    constants |= result(out, residual, columns)
    need = LOAD if family in (gemv, depthwise, bitserial) else TENSOR_CORE
    return compile_(function, constants, types, target, tile, need, out=out, residual=residual, even=even)


def build_pool(
    kernel: str,
    source: call.Out,
    target: str,
    *,
    window: Window | None = None,
    out: call.Out = "f32",
    residual: call.Out | None = None,
    columns: bool = False,
    even: bool = True,
) -> Code:
    """A kernel of the pools as its launch would compile it."""
    tile = call.fit(PLANAR, source if kernel == "max_pool" else out)
    constants = pool.reading(source)
    if kernel == "max_pool":
        constants |= {"LEAST": pool.least(source)}
        out = source
    else:
        constants |= result(out, residual, columns)
    constants |= pool.constants(window, tile) if window else {"BM": tile.pixels, "BN": tile.rows}
    types = {**pool.SCALARS, "x": KINDS.get(source, "*i8")}
    return compile_(getattr(pool, kernel), constants, types, target, tile, LOAD, out=out, residual=residual, even=even)


KINDS: dict[Any, str] = {"f32": "*fp32", "i32": "*i32"}


def result(out: call.Out, residual: call.Out | None, columns: bool) -> dict[str, Any]:
    """What an epilogue of these kinds gives a kernel at compile time."""
    nothing: Any = None
    end = call.Epilogue(out, residual, nothing, nothing, 0, 0, 0, width=0, columns=nothing)
    return {**call.result(end), "SCATTERED": columns}


def compile_(
    function: Any,
    constants: dict[str, Any],
    types: dict[str, str],
    target: str,
    tile: Tile,
    need: re.Pattern[str],
    *,
    out: call.Out,
    residual: call.Out | None,
    even: bool,
) -> Code:
    """`types`: of the arguments that are no constants, beside POINTERS; `need`: what the loop that counts holds."""
    types = {**POINTERS, "o": KINDS.get(out, "*i8"), "residual": KINDS.get(residual, "*i8"), **types}
    names = function.arg_names
    source = ASTSource(
        fn=function,
        signature={name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={(names.index(name),): constants[name] for name in names if name in constants},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name in ALIGNED
            if name in names and (even or name not in ("N", "K", "WIDTH"))
        },
    )
    made = triton.compile(source, target=TARGETS[target], options=call.options(tile))
    return _amd(made, need) if target.startswith("gfx") else _nvidia(made, need)


def _nvidia(made: Any, need: re.Pattern[str]) -> Code:
    usage = _dump(made.asm["cubin"], "-res-usage")
    registers, stack, local = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([^;]+);", _dump(made.asm["cubin"], "-sass"))
    lines = [(int(at, 16), text.strip()) for at, text in found]
    loop: list[str] = []
    for at, text in lines:
        back = re.match(r"BRA.*?0x([0-9a-f]+)", text)
        if back and int(back[1], 16) < at:
            body = [one for where, one in lines if int(back[1], 16) <= where <= at]
            if any(need.match(one) for one in body) and (not loop or len(body) < len(loop)):
                loop = body
    return Code(
        registers, stack + local, made.metadata.shared, tuple(text for _, text in lines), tuple(loop), made.asm["ptx"]
    )


def _amd(made: Any, need: re.Pattern[str]) -> Code:
    text = made.asm["amdgcn"]
    (registers,) = map(int, re.findall(r"\.vgpr_count: +(\d+)", text))
    spills = sum(map(int, re.findall(r"\.(?:[vs]gpr_spill_count|private_segment_fixed_size): +(\d+)", text)))
    lines = [line.split(";")[0].strip() for line in text.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.LBB\w+:", line)}
    loop: list[str] = []
    for i, line in enumerate(lines):
        back = re.match(r"s_c?branch\w* (\.LBB\w+)", line)
        if back and labels.get(back[1], i) < i:
            body = [one for one in lines[labels[back[1]] : i + 1] if re.match(r"[a-z]", one)]
            if any(need.match(one) for one in body) and (not loop or len(body) < len(loop)):
                loop = body
    every = tuple(one for one in lines if re.match(r"[a-z]\w+ ", one))
    return Code(registers, spills, made.metadata.shared, every, tuple(loop), text)


def _dump(cubin: bytes, flag: str) -> str:
    path = Path(triton.knobs.cache.dir) / "kernel.cubin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, flag, str(path)], capture_output=True, text=True, check=True).stdout
