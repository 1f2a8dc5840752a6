"""A float Graph as a torch function, for timing eager torch. Import only where torch is installed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..core.graph import Graph
from ..core.torch_ops import TORCH_OPS


def function(graph: Graph) -> Callable[[np.ndarray], np.ndarray]:
    """float32 [N, C, H, W] -> float32 [N, outputs] by torch's kernels; UnsupportedError at an unknown op."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in graph.consts.items()}
    steps = []
    for node in graph.nodes:
        steps.append((node, TORCH_OPS[node.op], {role: tensors[name] for role, name in node.consts.items()}))
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    done = {i: [n for n, at in last.items() if at == i and n not in graph.outputs] for i in range(len(steps))}

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            values = {graph.inputs[0].name: torch.from_numpy(x)}
            for i, (node, op, consts) in enumerate(steps):
                values[node.name] = op(node, consts, *(values[n] for n in node.inputs))
                for name in done[i]:
                    del values[name]  # memory is used again while it is in the cache
            return values[graph.outputs[0]].numpy()

    return run
