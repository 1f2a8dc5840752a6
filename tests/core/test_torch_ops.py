"""Float ops in torch against their numpy definitions."""

import numpy as np
import torch

from bitpress.core.graph import run
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
