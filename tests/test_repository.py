"""What the repository promises as a whole: light imports, one version, small clean files, honest documents."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch", "onnx", "onnxruntime", "sklearn", "scipy", "PIL", "safetensors", "triton", "click", "rich", "hypothesis",
    "matplotlib", "jinja2",
)  # fmt: skip
# What ties a file to one machine or network: absolute homes, and hosts that packages are fetched from.
FOREIGN = re.compile(
    r"(?<![\w.])/(home|root|Users|work|tmp)/"
    r"|\b(pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org|deb\.debian\.org|huggingface\.co)\b"
)


@cache
def tracked() -> tuple[str, ...]:
    """Files in git, and those about to be."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return tuple(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


@cache
def texts() -> dict[str, str]:
    """Contents of the tracked files that are text."""
    found = {}
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" not in data:
            found[name] = data.decode("utf-8")
    return found


def python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter away from the checkout."""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light() -> None:
    loaded = python(f"import sys, bitpress; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]", f"`import bitpress` loads {loaded}"


def test_command_line_loads_no_extra() -> None:
    heavy = tuple(m for m in HEAVY if m not in ("click", "rich"))
    loaded = python(f"import sys, bitpress.__main__; print([m for m in {heavy!r} if m in sys.modules])")
    assert loaded == "[]", f"`bitpress --help` loads {loaded}"


@pytest.mark.timed
@pytest.mark.slow
def test_import_is_quick() -> None:
    """0.3 s beside a bare interpreter, the best of five."""
    clock = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
    assert min(float(python(clock.format("import bitpress"))) for _ in range(5)) < 0.3


def test_one_version() -> None:
    import bitpress

    assert re.fullmatch(r"\d+\.\d+\.\d+", bitpress.__version__)
    changelog = texts()["CHANGELOG.md"]
    assert f"## {bitpress.__version__}" in changelog or "## Unreleased" in changelog
    digits = re.escape(bitpress.__version__)
    elsewhere = [n for n in ("pyproject.toml", "setup.py", "CMakeLists.txt") if re.search(rf"\b{digits}\b", texts()[n])]
    assert not elsewhere, f"bitpress/_version.py is the one place for {bitpress.__version__}, not {elsewhere}"


def test_files_are_small() -> None:
    large = [f"{name}: {size} bytes" for name in tracked() if (size := (ROOT / name).stat().st_size) > 1024 * 1024]
    assert not large, "\n".join(large)


def test_files_are_free_of_one_machine() -> None:
    own = Path(__file__).relative_to(ROOT).as_posix()
    found = [
        f"{name}:{number}: {match[0]}"
        for name, text in texts().items()
        if name != own
        for number, line in enumerate(text.splitlines(), 1)
        if (match := FOREIGN.search(line))
    ]
    assert not found, "\n".join(found)


def test_every_extra_is_declared_and_every_tool_pinned_once() -> None:
    project = tomllib.loads(texts()["pyproject.toml"])["project"]
    extras = project["optional-dependencies"]
    assert set(extras) >= {"search", "gpu", "onnx", "rl", "ray", "vision", "report", "bench", "dev", "all"}
    pins = [line.split("==")[0] for line in texts()["constraints.txt"].splitlines() if line and line[0] != "#"]
    assert len(pins) == len(set(pins))
    used = [
        *project["dependencies"],
        *(d for e in ("search", "rl", "ray", "onnx", "report", "bench", "dev") for d in extras[e]),
    ]
    names = {re.split(r"[\[>=<]", d)[0] for d in used} - {"bitpress"}
    assert names <= set(pins), f"without a pin: {sorted(names - set(pins))}"


def test_packages_are_complete() -> None:
    """setup.py lists every folder that holds modules; one that it lacks would be missing from wheels."""
    listed = set(re.findall(r'"bitpress(?:\.\w+)*": "([\w/]+)"', texts()["setup.py"]))
    folders = {
        str(Path(name).parent)
        for name in tracked()
        if name.endswith(".py") and name.split("/")[0] in ("bitpress", "core", "kernels", "compiler", "benchmarks")
    }
    assert {f for f in folders if not f.startswith("benchmarks/suites")} == listed


NAMED = re.compile(
    r"(?<![\w/`.-])((?:core|kernels|compiler|csrc|benchmarks|bitpress|tests|docs|\.ci)/[\w./-]*\w)(?![\w*<{/])"
)


def test_documents_name_files_that_exist() -> None:
    missing = []
    for name, text in texts().items():
        if not name.endswith(".md") or name == "CHANGELOG.md":
            continue
        for path in NAMED.findall(re.sub(r"[`*]", " ", text)):
            if not (ROOT / path).exists() and not list(ROOT.glob(path + ".*")):
                missing.append(f"{name}: {path}")
    assert not missing, "\n".join(sorted(set(missing)))


def test_architecture_names_every_module() -> None:
    text = texts()["ARCHITECTURE.md"]
    folders = ("core", "kernels", "compiler", "benchmarks", "bitpress")
    modules = [Path(n) for n in tracked() if n.endswith(".py") and str(Path(n).parent) in folders]
    missing = [str(m) for m in modules if not m.name.startswith("_") and m.name not in text]
    assert not missing, f"ARCHITECTURE.md does not say what these are: {missing}"


def test_documents_link_to_files_that_exist() -> None:
    missing = []
    for name, text in texts().items():
        for target in re.findall(r"\]\(([^)#\s]+)", text) if name.endswith(".md") else []:
            if "://" not in target and not (ROOT / name).parent.joinpath(target).exists():
                missing.append(f"{name}: {target}")
    assert not missing, "\n".join(missing)


def test_comments_point_to_sections_that_exist() -> None:
    """ "methods A.1.3" in a comment is a heading of docs/methods.md; so with numerics and format."""
    missing = []
    for document in ("methods", "numerics", "format", "bitgemm"):
        headings = set(re.findall(r"^#+ ([A-Z\d][\d.]*\d|[A-Z\d])[. ]", texts()[f"docs/{document}.md"], re.MULTILINE))
        pointer = re.compile(rf"\b{document}(?:\.md)?,? (?:section )?([A-F](?:\.\d+)*|\d+(?:\.\d+)*)\b(?! bit)")
        for name, text in texts().items():
            if name.endswith((".py", ".cc", ".h", ".inl", ".def")):
                missing += [f"{name}: {document} {n}" for n in pointer.findall(text) if n not in headings]
    assert not missing, "\n".join(missing)


def test_make_help_names_every_target() -> None:
    text = texts()["Makefile"]
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    described = re.findall(r"^([a-z0-9-]+):.*## ", text, re.MULTILINE)
    assert sorted(described) == sorted(phony[1].split())
    contributing = texts()["CONTRIBUTING.md"]
    assert all(f"make {target}" in contributing for target in described if target != "help")


def test_numerics_names_each_implementation_and_test() -> None:
    """Rows of the table of implementations: each names a function that exists, and a test that does."""
    rows = re.findall(r"^\| .* \| `([\w./]+)` `([\w.]+)` \| `([\w./]+)` \|$", texts()["docs/numerics.md"], re.MULTILINE)
    assert len(rows) >= 4
    for file, symbol, test in rows:
        assert symbol.split(".")[-1] in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {symbol}"
        assert (ROOT / test).exists(), f"{test} does not exist"


@pytest.mark.slow
def test_types_sees_every_module(tmp_path: Path) -> None:
    """An error planted in one module of each folder is found through the farm of links of `make types`."""
    pytest.importorskip("mypy", reason="the extra `dev` is not installed")
    for folder in ("bitpress", "core", "kernels", "compiler", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    planted = ("bitpress/host.py", "core/quant.py", "kernels/packed.py", "compiler/program.py", "benchmarks/harness.py")
    for name in planted:
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write('\n\n_planted: int = "no"\n')
    farm = tmp_path / "build" / "types" / "bitpress"
    shutil.copytree(tmp_path / "bitpress", farm, symlinks=True)
    for folder in ("core", "kernels", "compiler", "benchmarks"):
        (farm / folder).symlink_to(tmp_path / folder)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "bitpress"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "MYPYPATH": str(farm.parent)},
    )  # fmt: skip
    for name in planted:
        module = name if name.startswith("bitpress/") else f"bitpress/{name}"
        assert re.search(rf"{re.escape(module)}:\d+: error: Incompatible types", done.stdout), f"{name}\n{done.stdout}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the package unpacked from a wheel that was built from this checkout's tracked files."""
    pytest.importorskip("build", reason="the extra `dev` is not installed")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(target / "dist"), str(source)],
        check=True, capture_output=True, env={**os.environ, "PATH": path}, cwd=target,
    )  # fmt: skip
    (made,) = (target / "dist").glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target / "site"), str(made)],
        check=True, cwd=target,
    )  # fmt: skip
    return target / "site"


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    def run(*command: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(wheel)}
        done = subprocess.run([sys.executable, "-P", *command], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import bitpress, bitpress.compiler.artifact as a, bitpress.benchmarks.bench as b; print(bitpress.__file__)"
    assert run("-c", code).strip() == str(wheel / "bitpress" / "__init__.py")
    kinds = (".py", ".def", ".typed", ".pyi", ".html", ".css", ".js")
    modules = {Path(n).as_posix() for n in tracked() if n.endswith(kinds)}
    for name in modules:
        top = name.split("/")[0]
        if top in ("core", "kernels", "compiler", "benchmarks", "bitpress") and "/suites/" not in name:
            inside = name if top == "bitpress" else f"bitpress/{name}"
            assert (wheel / inside).exists(), f"{name} is not in the wheel"
    if os.environ.get("BITPRESS_NATIVE") != "0":
        assert list((wheel / "bitpress").glob("_native*.so")), "the wheel has no native module"
    assert "doctor" in run("-m", "bitpress", "--help")
    assert '"schema": "bitpress.doctor"' in run("-m", "bitpress", "doctor", "--json", "-").replace('":"', '": "')


def test_documented_names_are_importable() -> None:
    """Every name that the face exports is there."""
    face = importlib.import_module("bitpress")
    assert all(hasattr(face, name) for name in face.__all__)
