"""x86 rows as portable C++: SIMDe in place of the compiler's intrinsics (tests/csrc/emulated), against the oracle.

What a host without AVX-512 or AVX-VNNI can still say of those rows: that they are right if the instructions are. That
they are is left to hosts which have them, in tests/kernels/test_conformance.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bitpress.kernels import native

from . import golden
from .conftest import ROOT, Tree, build, run, tool_path

pytestmark = [pytest.mark.native, pytest.mark.slow]
HEADERS = Path("/usr/include/simde/x86")
ROWS = tuple(
    row.name for row in native.rows() if row.isa.startswith(("avx", "amx")) and row.op in ("conv2d", "depthwise_conv2d")
)


@pytest.fixture(scope="module")
def tree() -> Tree:
    """The tool and the library with emulated rows, every instruction set among them."""
    if not HEADERS.is_dir():
        pytest.skip(f"{HEADERS} is not there (Debian: libsimde-dev): NO ROW THAT THIS HOST LACKS IS TESTED")
    options = ("-DBITPRESS_EMULATE=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1")
    return Tree(build(ROOT / "build" / "emulated", *options, targets=["bitpress-run", "bitpress"]))


@pytest.fixture(scope="module")
def conform(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree.compile(ROOT / "tests" / "native" / "conform.c", tmp_path_factory.mktemp("conform") / "conform")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> golden.Golden:
    return golden.write(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("kernel", ROWS)
def test_rows_that_multiply(kernel: str, tree: Tree, conform: Path, cases: golden.Golden) -> None:
    forced = {"BITPRESS_FORCE_KERNEL": kernel}
    steps = json.loads(run([tree.tool, cases.fitting(kernel), "--json"], **forced).stdout)["steps"]
    assert steps[-1]["kernel"] == kernel
    cases.check(kernel, lambda file: run([conform, file], **forced))


@pytest.mark.skipif(not HEADERS.is_dir(), reason="SIMDe is not installed")
def test_no_vector_instruction_is_left(tree: Tree) -> None:
    """Nothing in these objects needs more than the baseline of x86-64."""
    for path in [*tree.folder.rglob("isa_avx*.o"), *tree.folder.rglob("isa_amx.o")]:
        code = run([tool_path("objdump"), "-d", "--no-show-raw-insn", path]).stdout
        assert "%xmm" in code and not re.search("%[yzt]mm", code), path
