# One line each; `make help` lists them. Every target does its own set-up, in .venv, and only once.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRAS := search,rl,onnx,report,bench,dev
# One process a core; the tests of a file share their fixtures. Each runs on one thread (tests/conftest.py).
PYTEST := .venv/bin/pytest -n auto --dist loadfile
FAST := not slow and not triton_interpret and not triton_aot
BIN := .venv/bin
BUILD = build/cmake-$(shell $(BIN)/python -c "import sys; print(sys.implementation.cache_tag)")
NATIVE_SOURCES := CMakeLists.txt $(wildcard cmake/* kernels/*.def) $(shell find csrc -type f)
CSRC := $(shell find csrc -name '*.cc' -o -name '*.h' -o -name '*.inl')
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup native demo test test-slow test-gpu test-ray test-all test-aarch64 lint fmt types bench bench-gemm golden wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.native ## virtual environment, dependencies, native module, .venv/bin/bitpress-run

native: ## build the native module again
	rm -f .venv/.native && $(MAKE) .venv/.native

demo: setup ## train, search, compile, verify and bench the digits network, in a few minutes
	$(BIN)/python -P -m bitpress.benchmarks.demo

test: setup ## the tests, without the slow ones
	$(PYTEST) -m "$(FAST)"

test-slow: setup ## the slow ones alone; BITPRESS_DATA=DIR adds those on real data
	$(PYTEST) -m "slow and not timed" && $(BIN)/pytest -m "slow and timed"

test-aarch64: setup ## the build for 64-bit Arm, run by qemu; needs g++-aarch64-linux-gnu and qemu-user
	$(BIN)/pytest tests/native/test_aarch64.py

# Two processes: TRITON_INTERPRET turns triton's own library into interpreted functions, which no longer compile.
test-gpu: setup .venv/.gpu ## Triton kernels without a GPU: values by the interpreter, machine code for four chips
	TRITON_INTERPRET=1 $(BIN)/pytest -n auto tests/gpu/test_interpret*.py
	$(BIN)/pytest -n auto tests/gpu/test_aot.py

test-ray: setup .venv/.ray ## sweeps on Ray; installs ray
	$(BIN)/pytest tests/search/test_ray.py

test-all: setup ## all tests but those of test-gpu and test-ray
	$(MAKE) test test-slow

lint: setup ## ruff and clang-format, changing nothing
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/clang-format --dry-run -Werror $(CSRC)

fmt: setup ## let ruff and clang-format rewrite what they can
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format . && $(BIN)/clang-format -i $(CSRC)

# mypy cannot follow the mapping of folders to packages and would pass having looked at one file: it is shown a farm of
# links in which every module lies where its name says.
types: setup ## mypy, strict, over every module of the package
	rm -rf build/types && mkdir -p build/types/bitpress && ln -s -t build/types/bitpress $(addprefix $(CURDIR)/,$(filter-out %__pycache__,$(wildcard bitpress/*)) core kernels compiler benchmarks) && MYPYPATH=build/types $(BIN)/mypy -p bitpress

bench-gemm: setup ## every kernel on the layers of ResNet-20, and the table of README.md from it; on a quiet machine
	$(BIN)/bitpress bench gemm --json build/gemm.json && $(BIN)/python -P -m bitpress.benchmarks.report --summary --into README.md build/gemm.json

bench: setup ## pytest-benchmark suites of kernels and compiled networks
	$(BIN)/pytest benchmarks/suites --benchmark-columns=min,median,iqr,rounds --benchmark-sort=name

golden: setup ## rewrite the golden files of tests/golden; review the diff
	$(BIN)/pytest -m "$(FAST)" --update-golden

wheel: setup ## dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build --no-isolation

clean: ## remove all that make made
	rm -rf .venv build dist demo *.egg-info bitpress/_native*.so && find . -name __pycache__ -prune -exec rm -rf {} +

# Build requirements come first and are used as they are (no build isolation): pinned like everything else, and CMake's
# cache stays good because their paths do not change.
.venv/.deps: pyproject.toml constraints.txt bitpress/_version.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade -c constraints.txt pip setuptools wheel pybind11 cmake ninja
	BITPRESS_NATIVE=0 $(BIN)/python -m pip install -q --no-build-isolation -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

# A gigabyte that only tests/gpu reads: not part of setup.
.venv/.gpu: .venv/.deps
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt triton
	touch $@

# 80 MB, 240 MB on disk, that only tests/search/test_ray.py reads: not part of setup.
.venv/.ray: .venv/.deps
	$(BIN)/python -m pip install -q -c constraints.txt ray
	touch $@

.venv/.native: .venv/.deps setup.py $(NATIVE_SOURCES)
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	if [ "$${BITPRESS_NATIVE:-1}" = 1 ]; then cmake --build $(BUILD) --target bitpress-run && install -m 755 $(BUILD)/bitpress-run $(BIN); fi
	touch $@
