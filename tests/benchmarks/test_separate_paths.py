"""The super-net with separate paths is what it is compared as; its table says what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bitpress.benchmarks import separate_paths as sp
from bitpress.benchmarks.separate_paths import MIB, PATHS, Comparison, Measure, SeparatePaths
from bitpress.core.bops import count
from bitpress.core.cost import hold_channels, search_space, to_plan
from bitpress.core.graph import Graph
from bitpress.core.supernet import SuperNet
from bitpress.core.supernet_starts import fit

from ..core.test_cost import chain, depthwise
from .graphs import residual


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _images(graph: Graph, n: int = 8) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 1, (n, *graph.inputs[0].shape)).astype(np.float32))


def _net(graph: Graph, variant: str = "separate") -> SeparatePaths:
    """Paths whose weights have gone ways of their own."""
    net = SeparatePaths(graph, search_space(graph, group_size=4), PATHS[variant])
    with torch.no_grad():
        for path in net.paths:
            for layer in net.mixed:
                weight = path.tensor(graph.value(layer).consts["weight"])
                weight += 0.3 * weight.std() * torch.randn_like(weight)
            fit(path, [_images(graph, 16)])
    return net.train()


@pytest.mark.parametrize("variant", list(PATHS))
@pytest.mark.parametrize("make", [chain, residual, depthwise])
def test_gradients_reach_every_path(make: object, variant: str) -> None:
    graph: Graph = make()  # type: ignore[operator]
    net = _net(graph, variant)
    optimizer = sp.sgd(net, sp.groups_of(net), sp.RATE)
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in net.parameters()}
    loss = sp.step(net, optimizer, _images(graph), torch.arange(8), 0)
    assert np.isfinite(loss)
    assert all(p.grad is not None for p in net.parameters())
    for layer in net.mixed:
        assert float(net.tensor(f"{layer}.path_weights").grad.abs().sum()) > 0
        weights = [path.tensor(graph.value(layer).consts["weight"]) for path in net.paths]
        assert len({w.data_ptr() for w in weights}) == len(net.pairs)
        assert all(float(w.grad.abs().sum()) > 0 for w in weights)


@pytest.mark.parametrize("variant", list(PATHS))
@pytest.mark.parametrize("make", [chain, residual, depthwise])
def test_the_likeliest_path_extracted_is_that_path_alone(make: object, variant: str) -> None:
    graph: Graph = make()  # type: ignore[operator]
    net = _net(graph, variant)
    rng, x = np.random.default_rng(1), _images(graph)
    best = {layer: int(rng.integers(len(net.pairs))) for layer in net.mixed}
    with torch.no_grad():
        mean = int(net.cost("bops"))
        for layer, i in best.items():
            net.tensor(f"{layer}.path_weights")[i] = 1000.0  # softmax: exactly one
        alone = net.extracted()
        assert {layer: alone.space.given(layer) for layer in best} == {k: net.pairs[i] for k, i in best.items()}
        for training in (True, False):
            assert torch.equal(net.train(training)(x), alone.train(training)(x))
    plan = to_plan(graph, alone.space, alone.choice(), residual=alone.residual)
    assert int(net.cost("bops")) == count(graph, plan).totals.bops
    assert mean != int(net.cost("bops"))


def test_the_figure_is_the_expectation_over_paths() -> None:
    graph = chain()
    net = _net(graph)
    each = [count(graph, to_plan(graph, p.space, p.choice(), residual="int8")).totals.bops for p in net.paths]
    assert float(net.cost("bops").detach()) == pytest.approx(np.mean(each), rel=1e-6)


def test_paths_multiply_what_searched_layers_train_and_nothing_else() -> None:
    graph = chain()
    shared = SuperNet(graph, hold_channels(search_space(graph)))
    thresholds = sum(p.numel() for p in shared.parameters_of("thresholds"))
    everything = sum(p.numel() for p in shared.parameters()) - thresholds
    net = _net(graph)
    own = sum(net.tensor(n).numel() for layer in net.mixed for n in net.owned(layer) if not n.endswith(".bits"))
    assert sum(p.numel() for p in net.parameters()) == everything + 2 * own + 3 * len(net.mixed)


@pytest.mark.parametrize("variant", [v for v in sp.VARIANTS if v != "every"])
def test_a_process_measures_its_variant(variant: str) -> None:
    found = sp.measured(variant, residual(), batch=4, steps=2)
    assert found.peak > MIB
    assert len(found.seconds) == (0 if variant == "none" else 2)
    assert (found.parameters > 0) is (variant != "none")


def _comparison(separate: float, memory: float) -> Comparison:
    """Made-up rounds in which sharing takes 2 s and 100 MiB."""

    def rounds(seconds: float, mib: float, parameters: int) -> tuple[Measure, ...]:
        return tuple(Measure((seconds * f,) * 2, int((50 + mib) * MIB), parameters) for f in (1.0, 3.0))

    found = {
        "none": (Measure((), 50 * MIB, 0),) * 2, "float": rounds(1, 40, 10), "shared": rounds(2, 100, 20),
        "separate": rounds(2 * separate, 100 * memory, 60),
    }  # fmt: skip
    return Comparison("preresnet56", found)


def test_the_table_has_its_columns_and_stands_beside_the_paper() -> None:
    head, rule, *rows = sp.table([_comparison(2.5, 1.5)]).splitlines()
    assert tuple(c.strip() for c in head.strip("|").split("|")) == sp.COLUMNS
    assert rule.count("|") == len(sp.COLUMNS) + 1
    cells = [[c.strip() for c in row.strip("|").split("|")] for row in rows]
    assert [c[1] for c in cells] == [sp.LABELS[v] for v in ("float", "shared", "separate")]
    assert cells[2] == [
        "preresnet56", sp.LABELS["separate"], "3", "10", "2.50", "4.6", "150", "1.50", "3.6", "60", "3.00",
    ]  # fmt: skip
    assert cells[1][4] == cells[1][7] == "1.00"


def test_the_verdict_gives_the_measured_reason_where_sharing_is_not_twice_as_cheap() -> None:
    assert "at least 2 times" in sp.verdict(_comparison(2.5, 1.5))
    assert "at least 2 times" in sp.verdict(_comparison(1.5, 2.5))
    said = sp.verdict(_comparison(1.5, 1.5))
    assert "less than 2 times in both" in said
    assert "A step takes 2 s in floats; sharing adds 2 s (50 % of its step)" in said
    assert "3 paths add 4 s" in said
    assert "40 MiB in floats; sharing adds 60" in said


def test_the_document_says_what_was_run() -> None:
    text = sp.document([_comparison(2.5, 1.5)], command="python -m it", batch=4, threads=1)
    assert "`python -m it`" in text
    assert "random" in text
    assert sp.table([_comparison(2.5, 1.5)]) in text
    assert text.count("\n- preresnet56") == 1


@pytest.mark.slow
def test_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "paths.md"
    assert sp.main(["--model", "digits_cnn", "--batch", "8", "--steps", "1", "--rounds", "1", "-o", str(out)]) == 0
    text = out.read_text()
    assert text.count("| digits_cnn |") == 3
    assert "--model digits_cnn --batch 8" in text


def test_senseless_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert sp.main(["--batch", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
    assert sp.main(["--model", "resnet20", "--every", "preresnet20"]) == 2
    assert "--every preresnet20" in capsys.readouterr().err
