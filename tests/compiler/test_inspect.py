"""The rows that people and scripts read, against the counts of the plan."""

import numpy as np

from bitpress.compiler import artifact
from bitpress.compiler.inspect import inspect
from bitpress.compiler.pipeline import compile_run
from bitpress.core import bops
from tests.compiler.nets import chain, flat, preact
from tests.compiler.test_lower import KEPT, ZERO_TO_EIGHT
from tests.compiler.test_pipeline import run_of
from tests.runtime.samples import straight


def of(run):
    data = artifact.encode(compile_run(run))
    return inspect(data), data


def test_rows_are_the_counts_of_the_plan():
    for graph, keep in ((chain(), {"a": (0, 1, 2)}), (flat(), {"a": (3, 4), "hidden": (0, 1, 2)}), (preact(), {})):
        run = run_of(graph, weight="i4", act=3, keep=keep)
        found, data = of(run)
        counts = bops.count(run.graph, run.plan)
        assert len(found["layers"]) == len(counts.layers)
        for row, want in zip(found["layers"], counts.layers, strict=True):
            assert row["bytes"] == want.weight_bytes
            for key in ("name", "op", "w_bits", "a_bits", "channels_kept", "channels_total", "macs", "bops"):
                assert row[key] == getattr(want, key), (row["name"], key)
            assert row["in_shape"] == list(want.in_shape)
            assert row["out_shape"] == list(want.out_shape)
            assert row["kernel"] and row["isa"] and row["why"]
            assert "segments" not in row
        assert sum(p["bytes"] for p in found["parts"]) == found["totals"]["file_bytes"] == len(data)
        for key in ("macs", "bops", "bops_fp32", "bops_ratio", "bops_convention", "weight_bytes", "fp32_bytes"):
            assert found["totals"][key] == getattr(counts.totals, key), key


def test_segments():
    found, _ = of(run_of(chain(), keep={"a": KEPT}, segments={"a": ZERO_TO_EIGHT}))
    row = found["layers"][0]
    assert (row["name"], row["w_bits"], row["channels_kept"], row["channels_total"]) == ("a", None, 7, 12)
    assert row["w_bits_hist"] == {"2": 2, "4": 2, "8": 3}
    assert [(s["w_bits"], s["filters"], s["bytes"]) for s in row["segments"]] == [(2, 2, 14), (8, 3, 81), (4, 2, 28)]
    assert row["bytes"] == 14 + 81 + 28


def test_what_is_not_quantised_is_named():
    found, _ = of(run_of(preact(), residual="float32"))
    assert found["residual"] == "float32"
    assert found["floats"] == ["stem", "one", "short", "two"] or set(found["floats"]) >= {"stem", "one", "two"}
    assert of(run_of(preact()))[0]["floats"] == []


def test_input():
    run = run_of(chain())
    found, _ = of(run)
    assert found["input"]["name"] == "image"
    assert (found["input"]["encoding"], found["input"]["zero_point"]) == ("i4", 0)
    assert np.isclose(found["input"]["scale"], abs(run.tensors["a.act_clip"]) / 7)


def test_an_artifact_without_a_layer_table():
    found = inspect(artifact.encode(straight()))
    assert [r["name"] for r in found["layers"]] == ["conv", "fc"]
    assert found["layers"][0]["channels_total"] == 12
    assert found["totals"]["bops"] is None
    assert found["totals"]["bops_ratio"] is None
