"""What the compiler made: no symbol that could leak between instruction sets, the right registers, small C++ tests."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from bitpress.kernels import native

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
OBJECTS = {path.stem.removesuffix(".cc").removeprefix("isa_"): path for path in BUILD.rglob("isa_*.o")}
pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(not OBJECTS, reason="no objects in build/: the native module was not built in this checkout"),
]
REGISTERS = {"generic": "xmm", "avx2": "ymm", "avxvnni": "ymm"}


def tool(name: str, *arguments: str | Path) -> str:
    """Output of a binary utility; skips where it is absent."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_every_isa_of_this_processor_has_an_object() -> None:
    arm = platform.machine() in ("aarch64", "arm64")
    assert set(OBJECTS) == {isa for isa in native.isas() if isa == "generic" or isa.startswith("neon") == arm}


@pytest.mark.parametrize("isa", OBJECTS)
def test_no_weak_symbols(isa: str) -> None:
    """A weak function compiled for AVX-512 may be the one that the linker keeps for everybody."""
    lines = tool("nm", "-C", OBJECTS[isa]).splitlines()
    weak = [line for line in lines if re.match(r"^[0-9a-f ]{16,17}[WwVvu] ", line)]
    assert not weak, weak
    outside = {line.split(maxsplit=1)[1] for line in lines if re.match(r"^\s+U ", line)}
    assert outside <= {"memcpy", "memset", "memmove", "_GLOBAL_OFFSET_TABLE_"}, outside


@pytest.mark.parametrize("isa", OBJECTS)
def test_kernels_use_the_registers_of_their_set(isa: str) -> None:
    code = tool("objdump", "-d", "--no-show-raw-insn", OBJECTS[isa])
    widest = "zmm" if "%zmm" in code else "ymm" if "%ymm" in code else "xmm"
    assert widest == REGISTERS.get(isa, "zmm")
    assert not re.search(r"vfn?m(add|sub)\d+", code), "multiply and add are fused: results would differ between hosts"


@pytest.mark.parametrize(
    ("isa", "instruction"),
    [("avxvnni", "vpdpbusd"), ("avx512vnni", "vpdpbusd"), ("avx512vbmi", "vpopcnt"), ("avx512vbmi", "vpermb"),
     ("amx", "tdpbusd"), ("avx2", "vpmaddubsw"), ("avx2", "vpshufb"), ("avx512", "vpmaddubsw"),
     ("avx512", "vpternlog")],
)  # fmt: skip
def test_the_instruction_that_a_set_is_for(isa: str, instruction: str) -> None:
    if isa not in OBJECTS:
        pytest.skip(f"{isa} is not built for this processor")
    assert instruction in tool("objdump", "-d", "--no-show-raw-insn", OBJECTS[isa])


@pytest.mark.parametrize(("isa", "instruction"), [("avx512vnni", "vpdpbusd"), ("avx512vbmi", "vpermb")])
def test_accumulators_stay_in_registers(isa: str, instruction: str) -> None:
    """No zmm is stored to the stack between two dot products or look-ups: that halved the speed once."""
    if isa not in OBJECTS:
        pytest.skip(f"{isa} is not built for this processor")
    code = tool("objdump", "-d", "--no-show-raw-insn", OBJECTS[isa]).splitlines()
    at = [i for i, line in enumerate(code) if instruction in line]
    spills = [
        line
        for before, after in pairwise(at)
        if after - before < 12
        for line in code[before:after]
        if re.search(r"vmovdq\w+\s+%zmm\d+,.*\(%r[sb]p", line)
    ]
    assert not spills, spills[:5]


def test_pairs_are_added_in_registers() -> None:
    """Between two look-ups of a tile nothing is stored; what 16 bits hold is in memory, for there are 16 registers."""
    if "avx2" not in OBJECTS:
        pytest.skip("avx2 is not built for this processor")
    code = tool("objdump", "-d", "-C", "--no-show-raw-insn", OBJECTS["avx2"])
    header = r"^[0-9a-f]+ <[^\n]*::lut_tile<[^\n]*?Tables, (\d, \d)>[^\n]*>:\n"  # and no call
    bodies = re.findall(header + r"(.*?)\n\n", code, re.DOTALL | re.MULTILINE)
    assert {"2, 4", "1, 8"} <= {tile for tile, _ in bodies}
    for tile, body in bodies:
        lines = body.splitlines()
        looks = [i for i, line in enumerate(lines) if "vpshufb" in line]
        near = [lines[a:b] for a, b in pairwise(looks) if b - a < 12]
        assert near and not [line for part in near for line in part if re.search(r"%ymm\d+,.*\(%r[sb]p", line)], tile


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_counters_stay_in_registers(isa: str) -> None:
    """No vector is stored to the stack where lists are added; 16 registers do not hold all of four planes."""
    if isa not in OBJECTS:
        pytest.skip(f"{isa} is not built for this processor")
    code = tool("objdump", "-d", "-C", "--no-show-raw-insn", OBJECTS[isa])
    header = r"^[0-9a-f]+ <[^\n]*::add_list<[^\n]*?(\w*Slices, \d)>[^\n]*>:\n"  # and no call
    bodies = dict(re.findall(header + r"(.*?)\n\n", code, re.DOTALL | re.MULTILINE))
    kinds = ["Slices", "FewSlices"] if isa == "avx512" else ["Slices"]
    assert set(bodies) == {f"{kind}, {planes}" for kind in kinds for planes in (1, 2, 4)}
    for name, body in bodies.items():
        spills = re.findall(r"vmovdq\w+\s+%[yz]mm\d+,.*\(%r[sb]p.*", body)
        assert len(spills) <= (16 if isa == "avx2" and name.endswith("4") else 0), (name, spills)


@pytest.mark.parametrize("name", ["ties", "pool"])
def test_program(name: str, tmp_path: Path) -> None:
    """tests/csrc/NAME.cc, linked with the runtime as it was built."""
    compiler = shutil.which("c++") or shutil.which("g++")
    library = BUILD / "libbitpress_runtime.a"
    if compiler is None or not library.exists():
        pytest.skip("no C++ compiler, or no libbitpress_runtime.a in build/")
    source = ROOT / "tests" / "csrc" / f"{name}.cc"
    command = [compiler, "-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", str(source), str(library), "-pthread"]
    subprocess.run([*command, "-o", str(tmp_path / name)], check=True, capture_output=True, text=True)
    done = subprocess.run([str(tmp_path / name)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
