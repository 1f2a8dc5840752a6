"""Who may import whom. Reads the sources with `ast`, so that it holds whatever is installed, and names the offender.

    core  <-  kernels  <-  compiler  <-  bitpress (the face), benchmarks, tests

The folders are mapped to one import package: core/quant.py is `bitpress.core.quant`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "bitpress": "bitpress",
    "core": "bitpress.core",
    "kernels": "bitpress.kernels",
    "compiler": "bitpress.compiler",
    "benchmarks": "bitpress.benchmarks",
}
# Layer -> what of ours it may import, by prefix. The face and benchmarks may import everything.
MAY_IMPORT = {
    "bitpress.core": ("core", "_version"),
    "bitpress.kernels": ("kernels", "core.encoding", "core.quant", "core.errors", "_native"),
    "bitpress.compiler": ("compiler", "kernels", "core", "_native", "_version"),
}
# Third party -> where it may be imported at the top of a module, and where inside functions only.
TORCH = (
    "core/capture.py", "core/parallel.py", "core/supernet*.py", "core/train*.py", "core/semantics.py",
    "core/calibrate.py", "core/magnitudes.py", "core/equalize.py", "core/sensitivity.py", "core/torch_*.py",
    "core/models/*.py", "core/search/*.py", "kernels/gpu/*.py", "benchmarks/gpu_*.py",
    "benchmarks/peers_litert.py", "benchmarks/peers_torch.py", "benchmarks/separate_paths.py", "benchmarks/stacks.py",
    "benchmarks/training.py",
    "core/agents.py", "compiler/gpu_*.py",
)  # fmt: skip
TORCH_INSIDE = (
    "compiler/verify.py",
    "bitpress/nn/*.py",
    "benchmarks/peers*.py",
    "benchmarks/latency_networks.py",
    "benchmarks/ptq.py",
    "benchmarks/zoo.py",
)
ANYWHERE = ("*",)
THIRD_PARTY = {
    "torch": (TORCH, TORCH_INSIDE),
    "torchvision": (TORCH, TORCH_INSIDE),
    "timm": (TORCH, TORCH_INSIDE),
    "triton": (("kernels/gpu/*.py",), ("bitpress/cli/doctor.py",)),
    # heavy, or in an extra that need not be there: never at the top
    "safetensors": (TORCH, ANYWHERE),
    "onnx": ((), ANYWHERE),
    "onnxruntime": ((), ANYWHERE),
    "openvino": ((), ANYWHERE),
    "litert_torch": ((), ANYWHERE),
    "ai_edge_quantizer": ((), ANYWHERE),
    "ai_edge_litert": ((), ANYWHERE),
    "sklearn": ((), ANYWHERE),
    "gymnasium": (("core/agents.py",), ()),
    "ray": ((), ("core/workers.py",)),
    "stable_baselines3": (("core/agents.py",), ()),
    "PIL": ((), ANYWHERE),
    "scipy": (("bitpress/reporting/layers.py",), ()),
    "matplotlib": (("bitpress/page/figures.py",), ()),
    "jinja2": (("bitpress/page/__init__.py",), ()),
}
SEARCH = "bitpress.core.search"
SEARCH_LISTS = ("__init__", "registry")  # where the list of methods stands, which imports them all
PYTHON_IN_C = re.compile(r'^\s*#\s*include\s*[<"](Python\.h|pybind11/)', re.MULTILINE)
ROUNDS_AWAY = re.compile(r"\b(std::)?l?l?round[fl]?\s*\(")


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module (dotted; the last part may be a name in it) and where in its file it stands."""

    target: str
    line: int
    inside: bool  # within a function, or for the type checker only
    relative: bool


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import of a module whose package is `package`."""

    def visit(node: ast.AST, inside: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, inside, relative=False)
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join((*parent, *filter(None, [node.module])))
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, inside, relative=node.level > 0)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        inside |= function or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(source), inside=False)


def violations(root: Path) -> list[str]:
    """What breaks a rule below `root`, one sentence each, file first."""
    found = []
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if name.startswith("benchmarks/suites/"):
                continue  # tests, not part of the package
            inner = ".".join((package, *path.relative_to(root / folder).parent.parts))
            for one in imports(path.read_text(encoding="utf-8"), inner):
                why = _wrong(name, inner, path.stem, one)
                found += [f"{name}:{one.line}: {why}"] if why else []
    for path in sorted((root / "csrc").rglob("*.*")):
        name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        if name != "csrc/python.cc" and PYTHON_IN_C.search(text):
            found.append(f"{name}: includes Python, which csrc/python.cc alone may")
        if ROUNDS_AWAY.search(text):
            found.append(f"{name}: round() takes ties away from zero; the law is half to even (nearbyint)")
    return found


def _wrong(name: str, package: str, module: str, one: Import) -> str:
    """Why the import is wrong, "" if it is not."""
    first = one.target.split(".")[0]
    if first in FOLDERS and not one.relative:
        return f"import of {one.target}: inside the package imports are relative"
    if first in THIRD_PARTY:
        top, inside = THIRD_PARTY[first]
        if any(fnmatch(name, p) for p in top) or (one.inside and any(fnmatch(name, p) for p in inside)):
            return ""
        where = "inside a function" if one.inside else "at the top"
        return f"imports {first} {where}, where it may not"
    if first != "bitpress":
        return ""
    layer = ".".join(package.split(".")[:2])
    target = one.target.removeprefix("bitpress.")
    allowed = MAY_IMPORT.get(layer)
    if allowed is not None and not any(target == a or target.startswith(a + ".") for a in allowed):
        return f"imports {one.target}; {layer} may import {', '.join(allowed)} only"
    if package == SEARCH and module not in SEARCH_LISTS and one.target.startswith(SEARCH + "."):
        return f"imports {one.target}: search methods may not know each other"
    return ""


def test_imports_go_one_way() -> None:
    found = violations(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("core/bops.py", "from ..kernels.packed import pack", "bitpress.core may import core"),
        ("core/bops.py", "from .. import compiler", "bitpress.core may import core"),
        ("core/bops.py", "def f():\n    from .. import _native", "bitpress.core may import core"),
        ("core/models/net.py", "from ...kernels import registry", "bitpress.core may import core"),
        ("kernels/native.py", "from ..core.graph import Graph", "bitpress.kernels may import"),
        ("kernels/gpu/gemm.py", "from ...core import ops", "bitpress.kernels may import"),
        ("compiler/lower.py", "from ..benchmarks import harness", "bitpress.compiler may import"),
        ("compiler/lower.py", "from ..cli import main", "bitpress.compiler may import"),
        ("compiler/lower.py", "import bitpress.core", "relative"),
        ("compiler/lower.py", "from core import quant", "relative"),
        ("core/bops.py", "import torch.nn as nn", "imports torch at the top"),
        ("core/bops.py", "def f():\n    from torch import nn", "imports torch inside a function"),
        ("compiler/verify.py", "import torch", "imports torch at the top"),
        ("compiler/verify.py", "if True:\n    import torch", "imports torch at the top"),
        ("core/train.py", "import triton", "imports triton at the top"),
        ("benchmarks/peers.py", "import onnxruntime", "imports onnxruntime at the top"),
        ("core/search/sbs.py", "from .djpq import Gate", "may not know each other"),
        ("core/search/sbs.py", "from . import djpq", "may not know each other"),
        ("csrc/runtime/session.cc", "#include <Python.h>\n", "includes Python"),
        ("csrc/runtime/session.h", "# include <pybind11/numpy.h>\n", "includes Python"),
        ("csrc/runtime/session.cc", "int f(float x) { return std::lround(x); }\n", "half to even"),
    ],
)
def test_a_planted_violation_is_found(file: str, text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    found = violations(tmp_path)
    assert len(found) == 1 and found[0].startswith(file) and why in found[0], found


def test_what_is_allowed_is_not_reported(tmp_path: Path) -> None:
    for file, text in {
        "core/train.py": "import torch\nfrom .search import sbs\nfrom . import quant\n",
        "core/search/__init__.py": "from . import sbs, djpq\n",
        "core/search/sbs.py": "from ..supernet import Gate\n",
        "compiler/verify.py": "def f():\n    import torch\n",
        "compiler/model.py": "def f():\n    from .. import _native\n",
        "kernels/packed.py": "from ..core.encoding import Encoding\nfrom ..core import quant\n",
        "benchmarks/suites/test_gemm.py": "from bitpress.kernels import registry\n",
        "bitpress/cli/eval.py": "def f():\n    from ..core import semantics\n    from ..compiler import model\n",
        "csrc/python.cc": "#include <Python.h>\n",
        "csrc/runtime/session.cc": "float f(float x) { return std::nearbyint(x) + surround(x); }\n",
    }.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert violations(tmp_path) == []
