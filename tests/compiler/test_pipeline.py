"""Stages in order, their texts, deterministic bytes, golden sample, metadata, and the size that the format promises."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from bitpress.compiler import artifact
from bitpress.compiler.execute import execute
from bitpress.compiler.model import native_module
from bitpress.compiler.pipeline import STAGES, compile_graph, compile_run, text
from bitpress.compiler.program import Program
from bitpress.core import bops
from bitpress.core.errors import CorruptError, EnvironmentMissing, UsageError
from bitpress.core.graph import Graph
from bitpress.kernels.native import contained
from bitpress.kernels.registry import BASELINE, ROWS
from tests.compiler.nets import NETS, chain, inverted, option_a, plan_of, preact, random_plan, residual, tensors_of

META = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "model": "net", "data": "digits", "method": "ptq"}


@dataclass
class Run:
    graph: Graph
    plan: Any
    tensors: dict[str, np.ndarray]
    meta: dict[str, Any] = field(default_factory=lambda: dict(META))


def run_of(graph, **choice):
    plan = plan_of(graph, **choice)
    c = graph.inputs[0].shape[0]
    return Run(graph, plan, tensors_of(graph, plan), {**META, "mean": META["mean"][:c], "std": META["std"][:c]})


def golden_run():
    """A residual net with several widths, a pruned group and a padded shortcut."""
    graph = option_a()
    segments = {"d": {"o2": tuple(range(0, 16, 2)), "o8": tuple(range(1, 16, 2))}}
    return fixed(run_of(graph, keep={"a": (0, 2, 3), "c": (1, 4, 5, 8)}, segments=segments))


def fixed(run):
    """Ranges that owe nothing to float sums, whose order is the host's: texts hold multipliers."""
    for i, name in enumerate(sorted(n for n in run.tensors if n.endswith("clip") and "weight" not in n)):
        run.tensors[name] = np.float32(2 + i / 4).reshape(())
    return run


def test_texts_of_all_stages(golden, tmp_path):
    compile_run(golden_run(), dump_dir=tmp_path)
    names = [f"{i:02d}_{name}.txt" for i, name in enumerate(STAGES, 1)]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    for name in names[:-1]:
        golden(f"stages/{name}", (tmp_path / name).read_text())


@pytest.mark.parametrize(("net", "kind"), [(preact, "int8"), (preact, "float32"), (inverted, "int8")])
def test_texts_of_fused_graphs(golden, net, kind):
    run = fixed(run_of(net(), weight="i8", act=8, residual=kind))
    golden(f"fused/{net.__name__}_{kind}.txt", text(compile_run(run, stop_after="fuse")))


@pytest.mark.parametrize("stage", STAGES)
def test_stop_after(stage):
    result = compile_run(golden_run(), stop_after=stage)
    assert isinstance(result, Program) == (stage in ("lower", "finish"))
    assert isinstance(result, Graph) == (stage in ("integer", "prune", "fuse"))
    assert text(result)


def test_unknown_stage_and_folder_that_cannot_be():
    with pytest.raises(UsageError, match="there is no stage 'link'; stages are integer, prune"):
        compile_run(golden_run(), stop_after="link")
    with pytest.raises(UsageError, match="cannot write"):
        compile_run(golden_run(), dump_dir="/dev/null/folder")


@pytest.mark.parametrize("net", NETS)
def test_the_same_run_gives_the_same_bytes(net):
    graph = NETS[net]()
    plan = random_plan(graph, np.random.default_rng(1))
    tensors = tensors_of(graph, plan)
    shuffled = {k: tensors[k] for k in reversed(tensors)}
    c = graph.inputs[0].shape[0]
    meta = {"mean": [0.5] * c, "std": [0.25] * c}
    first = artifact.encode(compile_graph(graph, plan, tensors, meta))
    assert artifact.encode(compile_graph(graph, plan, shuffled, dict(reversed(meta.items())))) == first


def test_facts_and_golden_sample():
    run = run_of(residual())
    run.tensors["golden_input"] = np.full((1, 3, 8, 8), 0.25, np.float32)
    run.meta["labels"] = [f"class {i}" for i in range(10)]
    program = artifact.decode(artifact.encode(compile_run(run)))
    assert np.array_equal(program.golden_input, run.tensors["golden_input"])
    assert np.array_equal(program.golden_output, execute(program, program.golden_input))
    assert program.labels[3] == "class 3"
    assert np.array_equal(program.mean, np.float32(META["mean"]))
    assert {k: program.meta[k] for k in ("model", "data", "method")} == {
        k: META[k] for k in ("model", "data", "method")
    }
    assert program.meta["residual"] == "int8"
    counts = bops.count(run.graph, run.plan)
    assert program.meta["totals"]["bops"] == counts.totals.bops
    assert [r["macs"] for r in program.meta["layers"]] == [r.macs for r in counts.layers]


def test_golden_sample_without_data_is_seeded():
    one, two = (compile_run(run_of(residual(seed))) for seed in (0, 1))
    assert np.array_equal(one.golden_input, two.golden_input)
    assert not np.array_equal(one.golden_output, two.golden_output)


@pytest.mark.native
def test_a_target_changes_hints_only():
    run = run_of(option_a())  # a gather among its steps, which has a baseline row only
    base = compile_run(run)
    x = np.zeros((1, *base.buffers[base.input].shape), np.float32)
    for isa in native_module().cpu_isas():
        other = compile_run(run, target=isa)
        hints = {s.hint for s in other.steps}
        assert hints <= {row.name for row in ROWS if row.isa in contained()[isa]}
        assert (hints == {s.hint for s in base.steps}) == (isa == BASELINE)
        assert np.array_equal(execute(base, x), execute(other, x))


def test_a_target_that_there_is_not(monkeypatch):
    with pytest.raises(UsageError, match="target 'frob' is unknown; valid: generic, avx2"):
        compile_run(run_of(chain()), target="frob")
    monkeypatch.setenv("BITPRESS_NATIVE", "0")
    with pytest.raises(EnvironmentMissing, match="target avx2: its kernels cannot be chosen here"):
        compile_run(run_of(chain()), target="avx2")


def test_missing_ranges_are_refused():
    run = run_of(chain())
    del run.tensors["b.act_clip"]
    with pytest.raises(CorruptError, match=r"b\.act_clip"):
        compile_run(run)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_size_apart_from_weights(net, seed):
    """docs/format.md, section 4."""
    graph = NETS[net]()
    plan = random_plan(graph, np.random.default_rng(seed))
    c = graph.inputs[0].shape[0]
    program = compile_graph(
        graph, plan, tensors_of(graph, plan), {"mean": [0.5] * c, "std": [1.0] * c, "model": "m" * 40}
    )
    data = artifact.encode(program)
    spent = sum(
        size
        for name, size in artifact.parts(data)
        if not name.startswith("weights:") and name not in ("golden_input", "golden_output", "labels")
    )
    channels = sum(b.shape[0] for b in program.buffers)
    assert spent <= 8000 + 16 * channels + 128 * len(program.steps) + 128 * len(artifact.sections(data))
