"""Every peer computes the network that it is timed on."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from bitpress.benchmarks import peers
from bitpress.core.errors import EnvironmentMissing, UsageError
from bitpress.core.graph import Graph, run

from .graphs import everything, residual, tolerance


def setting(graph: Graph, folder: Path) -> peers.Setting:
    images = np.random.default_rng(3).normal(0, 1, (16, *graph.inputs[0].shape)).astype(np.float32)
    return peers.Setting(graph, images, folder)


def need(family: str) -> None:
    absent = [module for module in peers.FAMILIES[family].modules if find_spec(module) is None]
    if absent:
        pytest.skip(f"{family} needs {', '.join(absent)}")


@pytest.mark.parametrize("family", sorted(peers.FAMILIES))
@pytest.mark.parametrize("net", [everything, residual])
def test_peers_agree_with_the_graph(family: str, net: Callable[[], Graph], tmp_path: Path) -> None:
    need(family)
    graph = net()
    made = peers.make([family], setting(graph, tmp_path))[0]
    for batch, threads in ((1, 1), (4, 2)):
        x = np.random.default_rng(batch).normal(0, 1, (batch, *graph.inputs[0].shape)).astype(np.float32)
        want = run(graph, {"image": x})[graph.outputs[0]]
        with made.peers(batch, threads) as ready:
            for peer in ready:
                got = peer.run(x)
                assert got.shape == want.shape and got.dtype == np.float32, peer.name
                assert peer.version[0].isdigit()
                if peer.name.endswith("fp32"):
                    assert np.abs(got - want).max() <= tolerance(graph, x), peer.name
                elif net is residual:
                    # 8 bits: the error of a layer is below its range / 255, and a few layers add up. OpenVINO 2026.4
                    # gets the other net wrong in int8 (right in fp32); that is what `output_matches` is for.
                    assert np.abs(got - want).max() <= len(graph.nodes) * np.ptp(want) / 255, peer.name


def test_int8_model_is_the_fair_one(tmp_path: Path) -> None:
    need("onnxruntime")
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load(peers.write_int8(setting(residual(), tmp_path)))
    consts = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    convs = [n for n in model.graph.node if n.op_type == "Conv"]
    makers = {name: node for node in model.graph.node for name in node.output}
    assert len(convs) == 3
    for conv in convs:
        data, weight = (makers[name] for name in conv.input[:2])
        assert data.op_type == weight.op_type == "DequantizeLinear"
        assert consts[data.input[2]].dtype == np.uint8 and consts[data.input[1]].size == 1
        assert consts[weight.input[0]].dtype == np.int8 and consts[weight.input[1]].size == 16
    assert not [n for n in model.graph.node if n.op_type == "BatchNormalization"]
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_thread_count_of_torch_is_restored(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the torch peer needs the extra `search`")
    before = torch.get_num_threads()
    with peers.Torch(setting(residual(), tmp_path)).peers(1, before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_unknown_and_absent_peers_are_refused_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'tensorflow' is unknown; valid: onnxruntime, openvino, litert, torch"):
        peers.check(["onnxruntime", "tensorflow"])
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "litert_torch" else object())
    with pytest.raises(
        EnvironmentMissing, match=r"needs litert_torch: pip install 'bitpress\[search,onnx\]' litert-torch"
    ):
        peers.check(["litert"])
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(EnvironmentMissing, match=r"needs onnxruntime: pip install 'bitpress\[onnx\]'"):
        peers.check(["onnxruntime"])
