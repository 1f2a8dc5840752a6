"""Agreement of the stages, and what is said where they do not agree."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from bitpress.compiler import artifact
from bitpress.compiler import verify as module
from bitpress.compiler.pipeline import compile_run
from bitpress.compiler.verify import verify
from bitpress.core.errors import EnvironmentMissing, UsageError
from tests.compiler.nets import chain, option_a, residual
from tests.compiler.test_pipeline import golden_run, run_of


@pytest.fixture
def numpy_only(monkeypatch):
    monkeypatch.setattr(module, "native_module", lambda: None)


def broken(program, name):
    """The program with one multiplier of step `name` moved by a unit in the last place or so."""
    steps = list(program.steps)
    at = next(i for i, s in enumerate(steps) if s.name == name)
    b = steps[at].epilogue.b.copy()
    b[1] += 1.0
    steps[at] = replace(steps[at], epilogue=replace(steps[at].epilogue, b=b))
    return artifact.encode(replace(program, steps=tuple(steps), golden_input=None, golden_output=None))


@pytest.mark.usefixtures("numpy_only")
def test_torch_and_reference_agree():
    run = golden_run()
    program = compile_run(run)
    found = verify(artifact.encode(program), run, batches=(1, 4), threads=(1, 2))
    assert found["exact"] is True
    assert found["first_difference"] is None
    assert found["stages"] == ["torch", "reference"]
    assert found["left_out"] == [{"stage": "native", "why": "the native module is not in use"}]
    written = list(dict.fromkeys(program.buffers[s.output].name for s in program.steps))
    assert [row["name"] for row in found["layers"]] == written
    assert all(row["mismatches"] == 0 and row["elements"] > 0 for row in found["layers"])
    assert [(r["batch"], r["threads"]) for r in found["runs"]] == [(1, 1), (4, 1), (1, 2), (4, 2)]
    assert found["golden"] is True


@pytest.mark.usefixtures("numpy_only")
def test_the_first_difference_is_named():
    run = run_of(residual())
    found = verify(broken(compile_run(run), "a.relu"), run, batches=(3,), threads=(1,))
    assert found["exact"] is False
    first = found["first_difference"]
    assert (first["name"], first["layer"], first["stage"]) == ("a.relu", "a", "torch")
    assert first["index"][1] == 1
    assert first["expected"] != first["found"]
    rows = {r["name"]: r["mismatches"] for r in found["layers"]}
    assert rows["stem.relu"] == 0
    assert rows["a.relu"] == first["mismatches"] > 0
    assert found["golden"] is None


@pytest.mark.usefixtures("numpy_only")
def test_a_golden_sample_that_does_not_come_out():
    run = run_of(chain())
    program = compile_run(run)
    found = verify(artifact.encode(replace(program, golden_output=program.golden_output + 1)), run, batches=(1,))
    assert (found["exact"], found["golden"]) == (False, False)
    assert found["first_difference"]["stage"] == "golden sample"


@pytest.mark.usefixtures("numpy_only")
def test_one_stage_cannot_verify_itself():
    with pytest.raises(EnvironmentMissing, match="only the numpy reference can run"):
        verify(artifact.encode(compile_run(run_of(chain()))))


@pytest.mark.usefixtures("numpy_only")
def test_the_run_of_another_network():
    data = artifact.encode(compile_run(run_of(chain())))
    with pytest.raises(UsageError, match="made from another network or plan"):
        verify(data, run_of(residual()))
    with pytest.raises(UsageError, match="another plan"):
        verify(data, run_of(chain(), keep={"a": (0, 1)}))


@pytest.mark.native
def test_without_torch_its_stage_is_left_out_by_name(monkeypatch):
    run = run_of(chain())
    monkeypatch.setitem(sys.modules, "torch", None)
    found = verify(artifact.encode(compile_run(run)), run)
    assert found["exact"] and found["stages"] == ["reference", "native"]
    assert found["left_out"][0]["stage"] == "torch" and "bitpress[search]" in found["left_out"][0]["why"]


@pytest.mark.usefixtures("numpy_only")
def test_a_run_of_other_images_is_named():
    data = artifact.encode(compile_run(run_of(chain())))
    with pytest.raises(UsageError, match=r"takes images \[3, 9, 8\], the artifact's \[3, 8, 8\]"):
        verify(data, run_of(option_a()))


@pytest.mark.usefixtures("numpy_only")
def test_images_of_the_caller():
    run = run_of(chain())
    data = artifact.encode(compile_run(run))
    x = np.random.default_rng(5).normal(size=(2, 3, 8, 8)).astype(np.float32)
    assert verify(data, run, batches=(5,), threads=(1,), data=x)["images"] == 5
    for wrong in (x[:, :2], x.astype(np.float64), x[:0]):
        with pytest.raises(UsageError, match="the network takes float32"):
            verify(data, run, data=wrong)
    with pytest.raises(UsageError, match="batch 0"):
        verify(data, run, batches=(0,))


@pytest.mark.native
def test_native_agrees_layer_by_layer():
    run = golden_run()
    found = verify(artifact.encode(compile_run(run)), run)
    assert found["exact"] is True
    assert found["stages"] == ["torch", "reference", "native"]
    assert found["isa"]


@pytest.mark.native
def test_native_alone():
    found = verify(artifact.encode(compile_run(run_of(residual(), residual="float32"))), batches=(1, 2), threads=(1,))
    assert (found["exact"], found["stages"]) == (True, ["reference", "native"])
    assert found["left_out"] == [{"stage": "torch", "why": "stage torch needs the RUN: --against RUN"}]
