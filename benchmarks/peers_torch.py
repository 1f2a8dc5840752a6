"""A float Graph as a torch function, for timing eager torch. Import only where torch is installed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UnsupportedError
from ..core.graph import Graph
from ..core.torch_ops import TORCH_OPS


class Network(torch.nn.Module):
    """A graph as a module, constants as its buffers; UnsupportedError at an unknown op."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._input, self._output = graph.inputs[0].name, graph.outputs[0]
        names = {name: f"const{i}" for i, name in enumerate(graph.consts)}
        for name, array in graph.consts.items():
            self.register_buffer(names[name], torch.from_numpy(np.array(array)))
        self._steps = []
        for node in graph.nodes:
            if node.op not in TORCH_OPS:
                raise UnsupportedError(f"{node.name}: op {node.op} is unknown to the torch peer")
            consts = {role: names[name] for role, name in node.consts.items()}
            self._steps.append((node, TORCH_OPS[node.op], consts))
        last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
        self._done = {
            i: [n for n, at in last.items() if at == i and n not in graph.outputs] for i in range(len(graph.nodes))
        }

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, outputs]."""
        values = {self._input: x}
        for i, (node, op, consts) in enumerate(self._steps):
            tensors = {role: getattr(self, name) for role, name in consts.items()}
            values[node.name] = op(node, tensors, *(values[n] for n in node.inputs))
            for name in self._done[i]:
                del values[name]  # memory is used again while it is in the cache
        return values[self._output]


def function(graph: Graph) -> Callable[[np.ndarray], np.ndarray]:
    """float32 [N, C, H, W] -> float32 [N, outputs] by torch's kernels; UnsupportedError at an unknown op."""
    network = Network(graph).eval()

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(x)).numpy()

    return run
