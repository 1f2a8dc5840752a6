"""Other runtimes on the same dense network: each family prepares its models once, then gives callables per run.

The fair int8 setting of onnxruntime is static QDQ with u8 activations and s8 weights per channel: with s8 activations
it falls off its fast kernels on x86 and becomes slower than float. Another compiled network of ours is a peer, too, as
it is. Knows nothing of timing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .._version import __version__
from ..compiler.model import Model
from ..compiler.onnx_export import fold_batch_norm, to_onnx
from ..core.errors import CheckFailed, EnvironmentMissing, UsageError
from ..core.graph import Graph


@dataclass(frozen=True, slots=True)
class Peer:
    """One rival: `run` takes float32 [batch, C, H, W] and gives float32 [batch, outputs]."""

    name: str
    version: str
    run: Callable[[np.ndarray], np.ndarray]


class Family(Protocol):
    """One library with all the rows that it adds."""

    def peers(self, batch: int, threads: int) -> Iterator[Sequence[Peer]]:
        """Ready peers for one batch size and thread count; what it set in the process is undone afterwards."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What every family gets: the dense float graph, calibration images [n, C, H, W] and a folder for its files."""

    graph: Graph
    calibration: np.ndarray
    folder: Path


def onnxruntime_session(model: str | bytes, threads: int, sizes: Mapping[str, int] = {}) -> Any:
    """Session of a file or its bytes: sequential, `threads` workers, all optimisations; `sizes` of named dimensions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_request(model: bytes, threads: int, shape: Sequence[int]) -> Any:
    """Request of an ONNX model whose input has that shape: one stream, `threads` workers, latency hint."""
    import openvino

    core = openvino.Core()
    network = core.read_model(model, b"")
    network.reshape(list(shape))
    config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    return core.compile_model(network, "CPU", config).create_infer_request()


class OnnxRuntime:
    """onnxruntime in fp32 and in static int8."""

    def __init__(self, setting: Setting) -> None:
        self._files = {"fp32": write_fp32(setting), "int8": write_int8(setting)}
        self._input = setting.graph.inputs[0].name

    @contextmanager
    def peers(self, batch: int, threads: int) -> Iterator[Sequence[Peer]]:
        """Batch size fixed."""
        import onnxruntime

        def peer(kind: str, file: Path) -> Peer:
            session = onnxruntime_session(str(file), threads, {"N": batch})

            def run(x: np.ndarray) -> np.ndarray:
                out: np.ndarray = session.run(None, {self._input: x})[0]
                return out

            return Peer(f"onnxruntime-{kind}", onnxruntime.__version__, run)

        yield [peer(kind, file) for kind, file in self._files.items()]


class OpenVino:
    """OpenVINO on the same int8 model that onnxruntime runs."""

    def __init__(self, setting: Setting) -> None:
        self._file = write_int8(setting)
        self._shape = setting.graph.inputs[0].shape

    @contextmanager
    def peers(self, batch: int, threads: int) -> Iterator[Sequence[Peer]]:
        """Batch size fixed."""
        import openvino

        request = openvino_request(self._file.read_bytes(), threads, (batch, *self._shape))

        def run(x: np.ndarray) -> np.ndarray:
            request.infer([x], share_inputs=True)
            return np.asarray(request.get_output_tensor().data)

        yield [Peer("openvino-int8", openvino.__version__.split("-")[0], run)]


class Torch:
    """torch in eager mode."""

    def __init__(self, setting: Setting) -> None:
        self._graph = fold_batch_norm(setting.graph)

    @contextmanager
    def peers(self, batch: int, threads: int) -> Iterator[Sequence[Peer]]:  # noqa: ARG002
        """Batch norms folded, `threads` threads for the time of the context."""
        import torch

        from .peers_torch import function

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield [Peer("torch-fp32", torch.__version__, function(self._graph))]
        finally:
            torch.set_num_threads(before)


class LiteRt:
    """LiteRT (XNNPACK) on a static int8 model that its own tools make, one file a batch size."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._graph = setting, fold_batch_norm(setting.graph)

    @contextmanager
    def peers(self, batch: int, threads: int) -> Iterator[Sequence[Peer]]:
        """Batch size fixed."""
        from importlib.metadata import version

        from . import peers_litert

        path = self._setting.folder / f"int8-{batch}.tflite"
        if not path.exists():
            peers_litert.write_int8(self._graph, self._setting.calibration, batch, path)
        yield [Peer("litert-int8", version("ai-edge-litert"), peers_litert.function(path, threads))]


class Compiled:
    """Another `.bpk` of ours, at its own bits and pruned as it is; its name is the file's."""

    def __init__(self, source: str, setting: Setting) -> None:
        self._source = Path(source)
        model, want = Model(self._source), tuple(setting.graph.inputs[0].shape)
        if model.shape != want:
            raise UsageError(f"--vs {source} takes {model.shape} [C, H, W], the network under test {want}")
        if model.golden_check() is False:
            raise CheckFailed(f"--vs {source}: the golden sample does not come out; try `bitpress verify`")

    @contextmanager
    def peers(self, batch: int, threads: int) -> Iterator[Sequence[Peer]]:  # noqa: ARG002
        """Any batch size."""
        model = Model(self._source, threads=threads)
        yield [Peer(self._source.name, __version__, model.run)]


@dataclass(frozen=True, slots=True)
class Row:
    """A name of `--vs`: the modules that it needs, how to get them, and what makes its peers."""

    modules: tuple[str, ...]
    remedy: str
    make: Callable[..., Any]


FAMILIES: Mapping[str, Row] = {
    "onnxruntime": Row(("onnx", "onnxruntime"), "pip install 'bitpress[onnx]'", OnnxRuntime),
    "openvino": Row(("onnx", "onnxruntime", "openvino"), "pip install 'bitpress[onnx]' openvino", OpenVino),
    "litert": Row(
        ("onnx", "torch", "litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
        "pip install 'bitpress[search,onnx]' litert-torch", LiteRt,
    ),
    "torch": Row(("onnx", "torch"), "pip install 'bitpress[search,onnx]'", Torch),
}  # fmt: skip

DEFAULT = ("onnxruntime",)


def at_hand(names: Sequence[str], families: Mapping[str, Row] = FAMILIES) -> tuple[tuple[str, ...], str]:
    """The rows `names` of `families` that can run here, and a sentence about the others, empty if there are none."""
    usable, reasons = [], []
    for name in names:
        try:
            check((name,), families)
            usable.append(name)
        except EnvironmentMissing as error:
            reasons.append(str(error))
    return tuple(usable), f"left out: {'; '.join(reasons)}" if reasons else ""


def check(names: Sequence[str], families: Mapping[str, Row] = FAMILIES) -> None:
    """Refuses before any work: UsageError for an unknown name, EnvironmentMissing for a library that is not here."""
    for name in names:
        if _compiled(name):
            continue  # read by `make`
        if name not in families:
            raise UsageError(f"--vs {name!r} is unknown; valid: {', '.join(families)}, and files that end with .bpk")
        missing = [module for module in families[name].modules if find_spec(module) is None]
        if missing:
            raise EnvironmentMissing(f"--vs {name} needs {', '.join(missing)}: {families[name].remedy}")


def make(names: Sequence[str], setting: Setting) -> list[Any]:
    """The families of `names`, models written."""
    check(names)
    return [Compiled(name, setting) if _compiled(name) else FAMILIES[name].make(setting) for name in names]


def _compiled(name: str) -> bool:
    return name.endswith(".bpk")


def write_fp32(setting: Setting) -> Path:
    """Float ONNX model with batch norms folded, in the setting's folder."""
    path = setting.folder / "fp32.onnx"
    if not path.exists():
        path.write_bytes(to_onnx(fold_batch_norm(setting.graph)).SerializeToString())
    return path


def write_int8(setting: Setting) -> Path:
    """QDQ model: u8 activations, s8 weights per output channel, min-max ranges over the calibration images."""
    path = setting.folder / "int8.onnx"
    if path.exists():
        return path
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with _quiet_root_logger():
        quantize_static(
            write_fp32(setting), path, _reader(setting), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=not host_has_vnni(),
        )  # fmt: skip
    return path


def _reader(setting: Setting) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library is untyped
        def __init__(self) -> None:
            self.images = iter(setting.calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {setting.graph.inputs[0].name: image[None]}

    return Reader()


def host_has_vnni() -> bool:
    """Without VNNI, onnxruntime's u8 x s8 products saturate at full range; its advice is 7-bit weights then."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_vnni" in text or "avx_vnni" in text


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Keeps the quantiser's advice (pre-process first: the batch norms are folded already) from the user."""
    root = logging.getLogger()

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root.addFilter(errors_only)
    try:
        yield
    finally:
        root.removeFilter(errors_only)
