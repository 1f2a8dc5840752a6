"""A float Graph as a LiteRT model of 8 bits, made by Google's converter and quantiser. Import only where they are.

Static int8 per channel, ranges over the calibration images; input and output stay float32, as those of other peers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.graph import Graph
from .peers_torch import Network

CALIBRATION = 32  # images: the interpreter that collects ranges takes a second for them


def write_int8(graph: Graph, calibration: np.ndarray, batch: int, path: Path) -> None:
    """The `.tflite` file of a graph without batch norms for [batch, C, H, W]; its converter has sizes fixed."""
    with _quietly():
        import litert_torch
        from ai_edge_quantizer import quantizer, recipe

        module = litert_torch.to_channel_last_io(Network(graph).eval(), args=[0])
        shape = graph.inputs[0].shape
        image = torch.zeros((batch, *shape[1:], shape[0]))
        converted = path.with_suffix(".float.tflite")
        litert_torch.convert(module, (image,)).export(str(converted))
        made = quantizer.Quantizer(str(converted))
        made.load_quantization_recipe(recipe.static_wi8_ai8())
        for end in ("INPUT", "OUTPUT"):
            made.update_quantization_recipe(regex=".*", operation_name=end, algorithm_key="no_quantize")
        signature, name = _signature(converted)
        count = -(-min(CALIBRATION, len(calibration)) // batch)
        images = np.resize(calibration, (count, batch, *shape)).astype(np.float32)
        images = np.ascontiguousarray(images.transpose(0, 1, 3, 4, 2))
        ranges = made.calibrate({signature: [{name: some} for some in images]})
        made.quantize(ranges).export_model(str(path), overwrite=True)


def _signature(path: Path) -> tuple[str, str]:
    """Names of a model's only signature and of its input."""
    from ai_edge_litert.interpreter import Interpreter

    ((signature, tensors),) = Interpreter(str(path)).get_signature_list().items()
    return signature, tensors["inputs"][0]


def function(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """float32 [N, C, H, W] -> float32 [N, outputs] for the batch of the file, by XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    with _quietly():
        interpreter: Any = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
    data, out = (details[0]["index"] for details in (interpreter.get_input_details(), interpreter.get_output_details()))

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(data, np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(out), np.float32).reshape(len(x), -1)

    return run


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The tools print progress, some of it from C++; stdout is for documents."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, level)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        away = stack.enter_context(Path(os.devnull).open("w"))
        for stream in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(stream(away))
        for number in (1, 2):
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(away.fileno(), number)
        yield
