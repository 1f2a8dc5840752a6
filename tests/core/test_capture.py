"""A captured graph computes what the module computes; what has no row among our ops is named and not guessed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="capture needs torch: extra [search]")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from bitpress.core.capture import capture  # noqa: E402
from bitpress.core.errors import UnsupportedError, UsageError  # noqa: E402
from bitpress.core.graph import Graph, Node, from_json, run, to_json  # noqa: E402
from bitpress.core.models import load  # noqa: E402

from ..benchmarks.graphs import tolerance  # noqa: E402

SHAPE = (3, 9, 8)


class Do(nn.Module):
    """A forward out of a function and parts."""

    def __init__(self, forward: Callable[..., torch.Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.function = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def live(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode, its batch norms with statistics as a trained one has."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator) * 0.3)
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
    return module.eval()


def same(module: nn.Module, shape: tuple[int, int, int] = SHAPE, n: int = 3) -> Graph:
    """The captured graph, which gives the module's outputs (on another batch size than capture's example)."""
    torch.set_num_threads(1)
    live(module)
    graph = capture(module, shape)
    x = np.random.default_rng(0).standard_normal((n, *shape)).astype(np.float32)
    got = run(graph, {"input": x})[graph.outputs[0]]
    with torch.no_grad():
        want = module(torch.from_numpy(x)).numpy()
    assert got.shape == want.shape
    assert got[0].shape == graph.value(graph.outputs[0]).shape
    assert np.abs(got - want).max() <= tolerance(graph, x)
    return graph


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph]


def only(graph: Graph, op: str) -> Node:
    (node,) = (n for n in graph if n.op == op)
    return node


def test_conv_forms() -> None:
    parts = {
        "a": nn.Conv2d(3, 8, 3, padding="same", dilation=2), "b": nn.Conv2d(8, 8, (3, 2), (2, 1), (1, 0), groups=2),
        "c": nn.Conv2d(8, 8, 3, groups=8, bias=False, padding="valid"), "d": nn.Conv2d(8, 4, 4, padding="same"),
    }  # fmt: skip
    graph = same(Do(lambda m, x: m.d(m.c(m.b(m.a(x)))), **parts), (3, 12, 11))
    assert [n.name for n in graph] == ["a", "b", "c", "d"]
    assert ops(graph) == ["conv2d"] * 4
    assert graph.value("a").attrs["padding"] == (2, 2, 2, 2)
    assert graph.value("b").attrs["padding"] == (1, 0, 1, 0)
    assert graph.value("d").attrs["padding"] == (1, 1, 2, 2)  # torch puts the odd pixel at the end
    assert set(graph.consts) == {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "d.weight", "d.bias"}


def test_linear_forms() -> None:
    head = nn.Linear(6, 4, bias=False)
    parts = {"a": nn.Linear(3 * 9 * 8, 6), "head": head}
    same(Do(lambda m, x: m.head(F.relu(m.a(x.flatten(1)))), **parts))
    graph = same(Do(lambda m, x: torch.addmm(m.a.bias, x.flatten(1), m.a.weight.t()) @ m.head.weight.t(), **parts))
    assert ops(graph) == ["flatten", "linear", "linear"]
    assert [n.name for n in graph][1:] == ["a", "head"]


def test_batch_norms() -> None:
    parts = {
        "conv": nn.Conv2d(3, 5, 1), "bn": nn.BatchNorm2d(5), "plain": nn.BatchNorm2d(5, affine=False, eps=1e-3),
        "flat": nn.BatchNorm1d(5),
    }  # fmt: skip
    graph = same(Do(lambda m, x: m.flat(F.adaptive_avg_pool2d(m.plain(m.bn(m.conv(x))), 1).flatten(1)), **parts))
    assert ops(graph) == ["conv2d", "batch_norm", "batch_norm", "global_avg_pool", "flatten", "batch_norm"]
    assert graph.value("bn").consts == {
        "mean": "bn.running_mean", "var": "bn.running_var", "weight": "bn.weight", "bias": "bn.bias",
    }  # fmt: skip
    assert graph.value("plain").attrs["eps"] == 1e-3
    np.testing.assert_array_equal(graph.consts["plain.weight"], np.ones(5, np.float32))


def test_a_batch_norm_without_statistics_is_unknown() -> None:
    module = Do(lambda m, x: m.bn(x), bn=nn.BatchNorm2d(3, track_running_stats=False)).eval()
    assert ops(capture(module, SHAPE)) == ["unknown"]


@pytest.mark.parametrize(
    ("function", "op", "attrs"),
    [
        (F.relu, "relu", {}),
        (lambda x: F.relu_(x * 1 if False else x.clone()), "relu", {}),
        (F.relu6, "clip", {"lo": 0.0, "hi": 6.0}),
        (lambda x: F.hardtanh(x, -0.5, 0.75), "clip", {"lo": -0.5, "hi": 0.75}),
        (lambda x: x.clamp(-1, 0.5), "clip", {"lo": -1.0, "hi": 0.5}),
        (lambda x: x.clamp(min=0), "relu", {}),
        (lambda x: torch.clamp_min(x, 0.0), "relu", {}),
    ],
)
def test_activations(function: Callable[[torch.Tensor], torch.Tensor], op: str, attrs: dict[str, float]) -> None:
    graph = same(Do(lambda m, x: function(m.conv(x)), conv=nn.Conv2d(3, 4, 1)))
    assert ops(graph) == ["conv2d", op]
    assert only(graph, op).attrs == attrs


def test_in_place_ops_do_not_change_what_others_read() -> None:
    """x is read before and after an in-place ReLU: the first reader sees the old value, the last the new one."""

    def forward(m: Do, x: torch.Tensor) -> torch.Tensor:
        x = m.conv(x)
        before = m.other(x)
        y = m.act(x)
        y += before
        return y + x

    graph = same(Do(forward, conv=nn.Conv2d(3, 4, 1), other=nn.Conv2d(4, 4, 1), act=nn.ReLU(inplace=True)))
    assert ops(graph) == ["conv2d", "conv2d", "relu", "add", "add"]


def test_pools() -> None:
    def forward(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(x, 3, 2, 1)
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        return F.avg_pool2d(x, (3, 2), 1, (1, 0))

    graph = same(Do(forward), (3, 17, 18))
    assert ops(graph) == ["max_pool2d", "max_pool2d", "avg_pool2d"]
    assert list(graph)[1].attrs["padding"] == (0, 0, 1, 1)  # the ceiling, as padding at the end


def test_pools_with_a_divisor_of_their_own_are_unknown() -> None:
    def forward(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        return F.avg_pool2d(x, 2, 1, divisor_override=3)

    graph = capture(Do(forward), SHAPE)
    assert [n.attrs["target"] for n in graph] == ["aten.avg_pool2d"] * 3
    assert [n.shape for n in graph] == [(3, 9, 8), (3, 5, 4), (3, 4, 3)]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean([-1, -2], keepdim=True).view(x.size(0), -1),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)).squeeze(-1).squeeze(-1).reshape(x.shape[0], -1),
    ],
)
def test_global_pools(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    graph = same(Do(lambda _m, x: function(x)))
    assert [op for op in ops(graph) if op != "unknown"] == ["global_avg_pool", "flatten"][: len(graph.nodes)]


def test_adaptive_pools_that_divide() -> None:
    graph = same(Do(lambda _m, x: F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(x, (3, 4)), (3, 4))))
    assert ops(graph) == ["avg_pool2d"]
    assert only(graph, "avg_pool2d").attrs["kernel"] == (3, 2)
    assert ops(capture(Do(lambda _m, x: F.adaptive_avg_pool2d(x, (2, 3))), SHAPE)) == ["unknown"]


def test_slices_pads_and_concats() -> None:
    def forward(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.pad(x[:, :, ::2, 1:8:2], (0, 0, 0, 0, 2, 3))
        return torch.cat([y[:, 1:3], y], 1)

    graph = same(Do(forward))
    assert ops(graph) == ["slice", "pad", "slice", "concat"]
    assert next(iter(graph)).attrs["slices"] == ((None, None, None), (None, None, 2), (1, None, 2))
    assert list(graph)[1].attrs["pads"] == ((2, 3), (0, 0), (0, 0))
    assert ops(same(Do(lambda _m, x: x[:, :, 2:8][:, :, 1:4]))) == ["slice", "slice"]


def test_padding_in_front_of_windows_becomes_theirs() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = m.conv(F.pad(x, (0, 1, 2, 3)))
        x = F.max_pool2d(F.pad(x, (1, 0, 1, 0), value=float("-inf")), 2)
        return F.avg_pool2d(F.pad(x, (0, 1)), 2, 1)

    graph = same(Do(forward, conv=nn.Conv2d(3, 4, 3, padding=1)))
    assert ops(graph) == ["conv2d", "max_pool2d", "avg_pool2d"]
    assert [n.attrs["padding"] for n in graph] == [(3, 1, 4, 2), (1, 1, 0, 0), (0, 0, 0, 1)]


def test_padding_that_somebody_else_reads_stays() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 1, 0, 1))
        return m.conv(x) + F.relu(x)[:, :, :9, :8]

    assert sorted(ops(same(Do(forward, conv=nn.Conv2d(3, 3, 2))))) == ["add", "conv2d", "pad", "relu", "slice"]


def test_what_does_nothing_vanishes() -> None:
    parts = {"drop": nn.Dropout(0.5), "nothing": nn.Identity(), "drop2": nn.Dropout2d(0.5)}
    graph = same(Do(lambda m, x: m.drop2(m.nothing(F.relu(m.drop(x)))).contiguous().clone().detach(), **parts))
    assert [n.name for n in graph] == ["relu"]


def test_curves_and_gates() -> None:
    """The gate comes second, whichever way it is written."""

    def forward(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        gate = F.hardsigmoid(F.adaptive_avg_pool2d(F.silu(x), 1))
        x = gate * F.hardswish(x)
        return x * torch.sigmoid(x)

    graph = same(Do(forward))
    assert ops(graph) == ["silu", "global_avg_pool", "hard_sigmoid", "hard_swish", "mul", "sigmoid", "mul"]
    assert graph.nodes[4].inputs == ("hard_swish", "hard_sigmoid")


@pytest.mark.parametrize(
    ("function", "target"),
    [
        (torch.tanh, "aten.tanh"),
        (lambda x: x * 2.0, "aten.mul.Tensor"),
        (lambda x: x * x.mean((1, 2, 3), keepdim=True), "aten.mul.Tensor"),
        (lambda x: x + 1, "aten.add.Tensor"),
        (lambda x: torch.add(x, x, alpha=2), "aten.add.Tensor"),
        (lambda x: x + x.mean((2, 3), keepdim=True), "aten.add.Tensor"),
        (lambda x: x.clamp(max=1.0), "aten.clamp"),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "aten.pad"),
        (lambda x: F.pad(x, (1, 1), value=2.0), "aten.pad"),
        (lambda x: F.pad(x, (-1, 1)), "aten.pad"),
        (lambda x: F.pad(x, (1, 1), value=float("-inf")), "aten.constant_pad_nd"),
        (lambda x: F.max_pool2d(x, 2, dilation=2), "aten.max_pool2d"),
        (lambda x: x.flatten(2), "aten.view"),
        (lambda x: x.transpose(2, 3), "aten.transpose.int"),
        (lambda x: torch.cat([x, x], 2), "aten.cat"),
        (lambda x: x.mean(1), "aten.mean.dim"),
    ],
)
def test_unknown_ops_are_named(function: Callable[[torch.Tensor], torch.Tensor], target: str) -> None:
    module = Do(lambda _m, x: function(x)).eval()
    graph = capture(module, SHAPE)
    assert target in [n.attrs.get("target") for n in graph if n.op == "unknown"]
    with torch.no_grad():
        assert graph.value(graph.outputs[0]).shape == tuple(module(torch.zeros(2, *SHAPE)).shape[1:])


def test_unknown_ops_with_several_results_and_computed_weights() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, _ = torch.sort(x, dim=3)
        return F.conv2d(a, m.conv.weight * 2)

    graph = capture(Do(forward, conv=nn.Conv2d(3, 4, 1)), (3, 4, 4))
    targets = [n.attrs.get("target", n.op) for n in graph]
    assert targets[0] == "aten.sort" and targets[-2:] == ["aten.mul.Tensor", "aten.conv2d"]
    assert graph.value(graph.outputs[0]).shape == (4, 4, 4)


def test_a_split_is_a_slice_for_each_part() -> None:
    def forward(_m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b, c = x.split([1, 4, 3], dim=1)
        d, e = b.chunk(2, dim=1)
        f, g = c.split(2, dim=1)
        return torch.cat([g, d + e, a, f], dim=1)

    graph = same(Do(forward), (8, 5, 6))
    assert sorted(set(ops(graph))) == ["add", "concat", "slice"]
    cuts = [n.attrs["slices"][0] for n in graph if n.op == "slice"]
    assert cuts[:3] == [(None, 1, None), (1, 5, None), (5, None, None)]


def test_names_are_unique_readable_and_stable() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.relu(self.conv(x) + x) + self.relu(x)

    graph = same(nn.Sequential(Block(), Block()))
    assert [n.name for n in graph][:5] == ["0.conv", "0.add", "0.relu", "0.relu_2", "0.add_2"]
    assert capture(nn.Sequential(Block(), Block()), SHAPE).text() == graph.text()


def test_a_layer_called_twice_shares_its_constants() -> None:
    graph = same(Do(lambda m, x: m.conv(m.conv(x)), conv=nn.Conv2d(3, 3, 1)))
    assert [n.name for n in graph] == ["conv", "conv_2"]
    assert [n.consts["weight"] for n in graph] == ["conv.weight"] * 2


def test_capture_leaves_the_module_alone() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    module.train()
    module[1].eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    graph = capture(module, SHAPE)
    assert [part.training for part in module.modules()] == [True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    with torch.no_grad():
        module[0].weight.zero_()
    assert np.abs(graph.consts["0.weight"]).max() > 0  # a copy


def test_what_cannot_be_captured_is_said() -> None:
    with pytest.raises(UsageError, match=r"does not take inputs of shape \[4, 9, 8\]"):
        capture(nn.Conv2d(3, 4, 1), (4, 9, 8))
    with pytest.raises(UnsupportedError, match="cannot be traced"):
        capture(Do(lambda _m, x: x if float(x.sum()) > 0 else -x), SHAPE)
    with pytest.raises(UnsupportedError, match="not computed from its input"):
        capture(Do(lambda m, _x: m.conv.weight, conv=nn.Conv2d(3, 4, 1)), SHAPE)


def test_a_network_that_cannot_be_traced_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedError) as error:
        capture(Do(lambda _m, x: x if float(x.sum()) > 0 else -x), SHAPE)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_graph_survives_json() -> None:
    graph = capture(load("mobilenet_v1", in_shape=(3, 32, 32)).module, (3, 32, 32))
    again = from_json(to_json(graph), graph.consts)
    assert again == graph
    assert again.fingerprint() == graph.fingerprint()


ZOO_SHAPES = {
    "digits_cnn": (1, 8, 8), "resnet20": (3, 32, 32), "resnet56": (3, 16, 16), "preresnet20": (3, 32, 32),
    "preresnet56": (3, 16, 16), "vgg7": (3, 16, 16), "resnet18": (3, 32, 32), "resnet50": (3, 32, 32),
    "mobilenet_v1": (3, 32, 32), "mobilenet_v1_075": (3, 32, 32), "mobilenet_v2": (3, 32, 32),
    "mobilenet_v2_tf": (3, 32, 32), "skynet": (3, 32, 48), "efficientnet_lite0": (3, 32, 32),
    "mobilenet_v3_small": (3, 32, 32),
}  # fmt: skip
HEAVY = {
    "resnet50",
    "resnet18",
    "vgg7",
    "mobilenet_v1",
    "resnet56",
    "preresnet56",
    "mobilenet_v2_tf",
    "efficientnet_lite0",
    "mobilenet_v3_small",
}  # run five times in numpy


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in ZOO_SHAPES]
)
def test_the_zoo_is_captured_whole(name: str) -> None:
    torch.manual_seed(0)
    graph = same(load(name, in_shape=ZOO_SHAPES[name]).module, ZOO_SHAPES[name], n=1)
    assert "unknown" not in ops(graph)
    layers = {n.name for n in graph if n.op in ("conv2d", "linear")}
    assert all(n.consts["weight"] == f"{n.name}.weight" for n in graph if n.name in layers)


def test_golden_graphs(golden: Callable[[str, str], None]) -> None:
    for name in ("digits_cnn", "resnet20", "mobilenet_v2"):
        loaded = load(name)
        golden(f"float/{name}.txt", capture(loaded.module, loaded.in_shape).text())
