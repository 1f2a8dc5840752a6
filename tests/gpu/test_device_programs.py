"""Compiled networks on a GPU: every value of every step, and the outputs of CUDA graphs at several batch sizes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'bitpress[gpu]'")
pytest.importorskip("torch", reason="torch is not installed: pip install 'bitpress[search]'")

from bitpress.compiler.execute import execute, values
from bitpress.compiler.gpu_model import MAX_GRAPHS, GpuProgram

from ..runtime import samples
from .cases import assert_same

pytestmark = pytest.mark.gpu


def test_every_value_and_every_batch_size() -> None:
    """More batch sizes than graphs are kept; the first comes again when its graph is gone."""
    program = samples.everything()
    made = GpuProgram(program, "cuda")
    x = np.random.default_rng(3).normal(size=(MAX_GRAPHS + 2, *program.buffers[0].shape)).astype(np.float32)
    got = made.values(x)
    for name, value in values(program, x).items():
        assert_same(value, got[name])
    want = execute(program, x)
    for count in (*range(1, MAX_GRAPHS + 3), 1, 1):
        assert_same(want[:count], made(x[:count]))


def test_every_step_has_a_time() -> None:
    made = GpuProgram(samples.everything(), "cuda")
    x = made.put(np.zeros((2, *made.program.buffers[0].shape), np.float32))
    assert made.profile(x).shape == (len(made.steps),) and (made.profile(x) >= 0).all()
