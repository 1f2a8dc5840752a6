"""Other runtimes on one quantised layer, for `bench gemm`: 8-bit weights and activations in, 8-bit levels out.

They have no narrower products on a CPU, so what stands beside w2a2 is their 8-bit time. Weights keep to 7 bits: hosts
without VNNI add pairs of products in 16 bits, which then cannot saturate, and no time depends on it. Knows no kernels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np

from ..core.graph import Node
from ..core.ops import conv_products
from .peers import Row, onnxruntime_session, openvino_request
from .shapes import Shape

COPIES = 8  # of a short layer in one model, so that each bears an eighth of what a call from Python costs
SHORT = 1 << 24  # multiply-accumulates below which that cost counts
ZERO = 128  # level of a sum of 0: outputs are unsigned


@dataclass(frozen=True, slots=True)
class GemmPeer:
    """One rival on one layer: `run` computes it `copies` times, `output` gives levels [rows, pixels] of the last."""

    name: str
    version: str
    run: Callable[[], object]
    output: Callable[[], np.ndarray]
    copies: int = 1


class Layer:
    """A shape with random data: levels `x` uint8 [1, C, H, W], weights `w` int8 [rows, C / groups, kh, kw].

    `scale`: of sums, a power of two, so that the last rounding is the only one. `want`: levels [rows, pixels].
    """

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.shape, self.copies = shape, COPIES if shape.macs < SHORT else 1
        self.x = rng.integers(0, 256, (1, *shape.in_shape)).astype(np.uint8)
        channels = shape.in_shape[0] // shape.groups
        self.w = rng.integers(-64, 64, (shape.rows, channels, *shape.kernel)).astype(np.int8)
        self.scale = 2.0 ** -round(log2(64 * shape.depth**0.5))
        node = Node("conv2d", "layer", ("x",), shape.out_shape, attrs=self.windows)
        sums = conv_products(node, self.w, self.x).reshape(shape.rows, shape.pixels)
        self.want = np.clip(np.rint(sums * self.scale) + ZERO, 0, 255)

    def matches(self, peer: GemmPeer) -> float:
        """Share of `peer`'s outputs that is equal to `want`; 0 where one is off by more than a level."""
        peer.run()
        off = np.abs(peer.output() - self.want)
        return float((off == 0).mean()) if off.max() <= 1 else 0.0

    @property
    def windows(self) -> dict[str, Any]:
        """Attributes of the convolution, as core/ops.py names them."""
        return {name: getattr(self.shape, name) for name in ("stride", "padding", "dilation", "groups")}


def _model(layer: Layer) -> bytes:
    """ONNX in QDQ form: the layer `copies` times side by side, each with weights of its own that nothing can merge."""
    from onnx import TensorProto, helper, numpy_helper

    shape, plain = layer.shape, layer.shape.plain
    fixed: dict[str, Any] = {
        "xs": np.float32(1), "xz": np.uint8(0), "ws": np.ones(shape.rows, np.float32),
        "wz": np.zeros(shape.rows, np.int8), "ys": np.float32(1 / layer.scale), "yz": np.uint8(ZERO),
    }  # fmt: skip
    nodes = [helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"])]
    for i in range(layer.copies):
        weight = np.roll(layer.w, i - layer.copies + 1, axis=0)  # the last one is as it is
        fixed[f"w{i}"] = weight.reshape(shape.rows, -1).T if plain else weight
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{i}", "ws", "wz"], [f"wf{i}"], axis=1 if plain else 0),
            helper.make_node("MatMul", ["xf", f"wf{i}"], [f"yf{i}"]) if plain else helper.make_node(
                "Conv", ["xf", f"wf{i}"], [f"yf{i}"], strides=shape.stride, pads=shape.padding,
                dilations=shape.dilation, group=shape.groups,
            ),
            helper.make_node("QuantizeLinear", [f"yf{i}", "ys", "yz"], [f"y{i}"]),
        ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, _input(layer).shape)
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.UINT8, None) for i in range(layer.copies)]
    constants = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in fixed.items()]
    graph = helper.make_graph(nodes, "layer", [x], outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def _input(layer: Layer) -> np.ndarray:
    """Levels as a peer reads them: [pixels, K] for a matrix product, else [1, C, H, W]."""
    shape = layer.shape
    return np.ascontiguousarray(layer.x.reshape(shape.depth, shape.pixels).T) if shape.plain else layer.x


def _levels(layer: Layer, output: np.ndarray) -> np.ndarray:
    """What a peer wrote, as [rows, pixels]."""
    return output.T if layer.shape.plain else output.reshape(layer.shape.rows, layer.shape.pixels)


@contextmanager
def _onnxruntime(layer: Layer, threads: int) -> Iterator[GemmPeer]:
    """MLAS: inputs and outputs bound once, so that no call copies them."""
    import onnxruntime

    session, last = onnxruntime_session(_model(layer), threads), layer.copies - 1
    binding = session.io_binding()
    binding.bind_cpu_input("x", _input(layer))
    for i in range(layer.copies):
        binding.bind_output(f"y{i}")

    def output() -> np.ndarray:
        return _levels(layer, binding.copy_outputs_to_cpu()[last])

    yield GemmPeer(
        "onnxruntime-int8", onnxruntime.__version__, lambda: session.run_with_iobinding(binding), output, layer.copies
    )


@contextmanager
def _openvino(layer: Layer, threads: int) -> Iterator[GemmPeer]:
    import openvino

    x = _input(layer)
    request = openvino_request(_model(layer), threads, x.shape)
    request.infer([x], share_inputs=True)

    def output() -> np.ndarray:
        return _levels(layer, np.asarray(request.get_output_tensor(layer.copies - 1).data))

    version = openvino.__version__.split("-")[0]
    yield GemmPeer("openvino-int8", version, request.infer, output, layer.copies)


@contextmanager
def _torch(layer: Layer, threads: int) -> Iterator[GemmPeer]:
    """oneDNN behind torch's quantised operators, in eager mode: a call is one operator."""
    import torch

    before = torch.get_num_threads(), torch.backends.quantized.engine
    torch.set_num_threads(threads)
    torch.backends.quantized.engine = "onednn"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch is about to drop quantised tensors, and says so
            run = _torch_call(layer)
        yield GemmPeer("torch-int8", torch.__version__, run, lambda: _levels(layer, run().int_repr().numpy()))
    finally:
        torch.set_num_threads(before[0])
        torch.backends.quantized.engine = before[1]


def _torch_call(layer: Layer) -> Callable[[], Any]:
    import torch

    shape, rows = layer.shape, layer.shape.rows
    top, left, bottom, right = shape.padding
    x, padding = _input(layer), [top, left]
    if (top, left) != (bottom, right):  # torch pads alike on both sides: here it gets the border for nothing
        x, padding = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right))), [0, 0]
    w = layer.w.reshape(rows, -1) if shape.plain else layer.w
    data = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), 1.0, 0)
    scales, zeros = torch.ones(rows, dtype=torch.double), torch.zeros(rows, dtype=torch.long)
    weight = torch._make_per_channel_quantized_tensor(torch.from_numpy(w), scales, zeros, 0)
    ops: Any = torch.ops.quantized
    if shape.plain:
        packed, call = ops.linear_prepack(weight, None), ops.linear.default
    else:
        data = data.contiguous(memory_format=torch.channels_last)
        packed = ops.conv2d_prepack(weight, None, list(shape.stride), padding, list(shape.dilation), shape.groups)
        call = ops.conv2d.new

    def run() -> Any:
        with torch.inference_mode():
            return call(data, packed, 1 / layer.scale, ZERO)

    return run


FAMILIES: Mapping[str, Row] = {
    "onnxruntime": Row(("onnx", "onnxruntime"), "pip install 'bitpress[onnx]'", _onnxruntime),
    "openvino": Row(("onnx", "openvino"), "pip install 'bitpress[onnx]' openvino", _openvino),
    "torch": Row(("torch",), "pip install 'bitpress[search]'", _torch),
}
