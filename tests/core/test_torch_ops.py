"""Float ops in torch against their numpy definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitpress.core.curves import CURVES
from bitpress.core.graph import FLOAT_OPS, Node, run
from bitpress.core.ops import OPS
from bitpress.core.torch_ops import TORCH_OPS
from tests.benchmarks.graphs import everything, tolerance


def test_every_float_op_as_numpy_defines_it():
    graph = everything()
    x = np.random.default_rng(1).normal(size=(2, *graph.inputs[0].shape)).astype(np.float32)
    want = run(graph, {"image": x}, keep=True)
    values = {"image": torch.from_numpy(x)}
    for node in graph.nodes:
        consts = {role: torch.from_numpy(graph.consts[name]) for role, name in node.consts.items()}
        values[node.name] = TORCH_OPS[node.op](node, consts, *(values[i] for i in node.inputs))
        assert values[node.name].shape == want[node.name].shape, node.name
    bound = tolerance(graph, x)
    for name, value in values.items():
        assert np.abs(value.numpy() - want[name]).max() <= bound, name


@pytest.mark.parametrize("op", [*CURVES, "mul"])
def test_curves_and_products(op):
    rng = np.random.default_rng(3)
    inputs = [rng.normal(0, 4, (2, 3, 4, 5)).astype(np.float32)]
    if op == "mul":
        inputs.append(rng.normal(size=(2, 3, 1, 1)).astype(np.float32))
    node = Node(op, "y", ("x", "g")[: len(inputs)], (3, 4, 5))
    want = OPS[op].meaning(node, {}, *inputs)
    got = TORCH_OPS[op](node, {}, *map(torch.from_numpy, inputs)).numpy()
    assert want.dtype == got.dtype == np.float32
    # torch rounds after each of at most four operations
    assert np.abs(got - want).max() <= 4 * np.finfo(np.float32).eps * np.abs(want).max()


def test_every_float_op_has_a_row():
    assert set(TORCH_OPS) == FLOAT_OPS


def test_a_pool_with_more_padding_than_torch_takes():
    node = Node(
        "max_pool2d", "p", ("x",), (1, 3, 3), attrs={"kernel": (2, 2), "stride": (2, 2), "padding": (1, 1, 2, 2)}
    )
    wide = replace(node, attrs={**node.attrs, "kernel": (3, 3), "padding": (2, 2, 2, 2)})
    x = np.random.default_rng(2).normal(size=(1, 1, 3, 3)).astype(np.float32)
    for one in (node, wide):
        np.testing.assert_array_equal(
            TORCH_OPS["max_pool2d"](one, {}, torch.from_numpy(x)).numpy(), OPS["max_pool2d"].meaning(one, {}, x)
        )
