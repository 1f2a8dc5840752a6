"""Two processes that see different data take the same decisions, and those that one process takes on all of it.

They are started as torchrun does it, but for the store by which they meet; tests/cli/test_scale_out.py has torchrun.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from bitpress.core import supernet
from bitpress.core.cost import search_space
from bitpress.core.errors import BitpressError, CheckFailed, Interrupted, UsageError
from bitpress.core.graph import Node
from bitpress.core.parallel import any_of, averaged, by_first, from_first, gathered, joined, ready, share, together
from bitpress.core.rundir import FLOAT, SEARCHED, read_tensors
from bitpress.core.search import search
from bitpress.core.supernet import FloatNet, SuperNet
from bitpress.core.supernet_starts import fit
from bitpress.core.torch_ops import TORCH_OPS
from bitpress.core.train import evaluate

from ..search.test_search import NETS, QUICK
from .test_cost import chain

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 300  # seconds until a rank that waits for the other gives up
RANKS, STEPS, BATCH = 2, 16, 16
LAMBDA, RATE = 0.1, 0.001
# Fifty steps of search in batches of 20: 10 epochs of 100 images.
FIFTY: dict[str, Any] = {
    **QUICK, "train_images": 100, "epochs_search": 10, "epochs_finetune": 0, "lr_thresholds": 0.003,
    "budgets": ["bops=2.5%"], "followed": [["bops=2%"]],
}  # fmt: skip
# DJPQ's Adam carries its quantisers over their whole range within a search, whatever its length: what rounding moves by
# 1e-6 in three steps lies 0.1 apart in ten. So three.
METHODS: dict[str, dict[str, Any]] = {
    "sbs": {}, "bayesian-bits": {"lr_thresholds": None},
    "djpq": {"lr_thresholds": None, "train_images": 60, "epochs_search": 1},
}  # fmt: skip
# Why not exact: gradients over 20 images are float32 sums, here of two halves; another order moves them by 2**-24 of
# their terms, a few times over. 50 steps of rate 0.003 and momentum 0.9 carry 50 * 0.003 / (1 - 0.9) * 2**-24 = 9e-8 of
# what the terms of a threshold's gradient add up to, below 100. A code on a rounding edge would move it by more;
# in this fixed case none does.
CLOSE = 1e-5


def _images(generator: torch.Generator, rank: int) -> Tensor:
    """Normal for rank 0, a few bright points for the others: batch norm does not level that."""
    x = torch.randn(BATCH, 3, 8, 8, generator=generator)
    return x if rank == 0 else x * (x > 2)


def _to_the_edge(net: SuperNet) -> None:
    """Every threshold of activations where it is hardest to decide: at what the ranks measure on average."""
    with torch.no_grad():
        for layer in net.space.searched:
            net.tensor(f"{layer}.threshold_a").copy_(averaged(net.tensor(f"{layer}.mean_residual")))


def _searched(rank: int) -> dict[str, Any]:
    """Some steps of a data-parallel search: same start, own data, gradients averaged -> what this rank holds then."""
    graph = chain()
    torch.manual_seed(0)
    common = torch.Generator().manual_seed(0)
    net = SuperNet(graph, search_space(graph, group_size=4))
    fit(net, [torch.cat([_images(common, r) for r in range(RANKS)])])
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9)
    own = torch.Generator().manual_seed(1 + rank)
    for step in range(STEPS):
        if step == STEPS // 2:
            _to_the_edge(net)
        x, y = _images(own, rank), torch.randint(0, 10, (BATCH,), generator=own)
        loss = F.cross_entropy(net(x), y) + LAMBDA * torch.log(net.cost("bops")).float()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for p in net.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)
            p.grad /= RANKS
        optimizer.step()
        net.clamp_thresholds()
    choice = net.choice()
    return {
        "residuals": {layer: net.tensor(f"{layer}.mean_residual").clone() for layer in net.space.searched},
        "choice": {"weight": dict(choice.weight), "act": dict(choice.act), "parts": dict(choice.parts)},
    }


def _with_frozen_norms(net: FloatNet, node: Node, ins: list[Tensor]) -> Tensor:
    """One op of a super-net; batch norms use the running statistics of the float network, and leave them."""
    if isinstance(net, SuperNet):
        return TORCH_OPS[node.op](node, net.consts(node), *ins)
    return COMPUTE(net, node, ins)


COMPUTE = FloatNet.compute


def _fifty(out: Path, method: str, **options: Any) -> None:
    """A real search of 50 steps with frozen norms."""
    FloatNet.compute = _with_frozen_norms  # type: ignore[method-assign]
    try:
        search(f"{NETS}:chain", method=method, out=out, **{**FIFTY, **METHODS[method], **options})
    finally:
        FloatNet.compute = COMPUTE  # type: ignore[method-assign]


def _said(function: Any) -> tuple[str, str, bool]:
    """The error of a call, and whether another process says it."""
    try:
        function()
    except BitpressError as error:
        return type(error).__name__, str(error), error.told
    return "", "", False


@joined
def _prepared(rank: int) -> None:
    if rank == 1:
        raise UsageError("only here")
    ready()


def _agreements(rank: int) -> dict[str, Any]:
    """What the processes tell each other."""

    def fail() -> None:
        raise CheckFailed(f"of {rank}")

    def fail_together() -> None:
        with together():
            if rank == 1:
                fail()

    x = torch.arange(12.0).reshape(6, 2)
    net = FloatNet(chain())
    images = np.random.default_rng(0).normal(size=(1100, 3, 8, 8)).astype(np.float32)  # three batches among two
    return {
        "rows": x[share(6)].tolist(), "any": (any_of(rank == 1), any_of(False)), "first": from_first(rank),
        "all": gathered(rank), "by_first": by_first(lambda: f"by {rank}"), "fails_first": _said(lambda: by_first(fail)),
        "fails_one": _said(fail_together), "fails_prepared": _said(lambda: _prepared(rank)),
        "evaluated": evaluate(net, images, np.arange(1100) % 10),
    }  # fmt: skip


def _rank(rank: int, folder: Path, methods: list[str]) -> None:
    """One process: a search as it is, then one whose statistics stay at home; then the searches with frozen norms."""
    torch.set_num_threads(1)
    waits = timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=RANKS, timeout=waits)
    found: dict[str, Any] = {}
    if "sbs" in methods:
        found = {"mean": averaged(torch.tensor([1.0, float(rank)])), "shared": _searched(rank)}
        supernet.averaged = lambda x: x
        found["alone"] = _searched(rank)
        supernet.averaged = averaged
        found["agreed"] = _agreements(rank)
    for method in methods:
        _fifty(folder / f"two-{method}", method, weights=folder / "one-sbs" / FLOAT, epochs_float=0)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _ranks(folder: Path, *methods: str) -> list[dict[str, Any]]:
    """What each of two gloo processes found; one process has searched before, and trained the float network."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch was built without gloo: nothing runs in parallel")
    torch.set_num_threads(1)
    _fifty(folder / "one-sbs", "sbs", epochs_float=8)
    for method in filter(lambda name: name != "sbs", methods):
        _fifty(folder / f"one-{method}", method, weights=folder / "one-sbs" / FLOAT, epochs_float=0)
    command = [sys.executable, "-m", "tests.core.test_parallel"]
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ}
    processes = [
        subprocess.Popen([*command, str(rank), str(folder), *methods], cwd=ROOT, env=environment)
        for rank in range(RANKS)
    ]
    assert [p.wait(2 * PATIENCE) for p in processes] == [0] * RANKS
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of two gloo processes found."""
    return _ranks(folder, "sbs")


def test_alone_a_process_averages_nothing() -> None:
    x = torch.tensor([0.25, 3.0])
    assert averaged(x) is x


def test_the_average_is_over_all_processes(ranks: list[dict[str, Any]]) -> None:
    assert [r["mean"].tolist() for r in ranks] == [[1.0, 0.5]] * RANKS


def test_statistics_of_gates_are_the_same_bits_on_both_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = (r["shared"]["residuals"] for r in ranks)
    assert first.keys() == second.keys() == {"b", "c", "hidden"}
    assert all(torch.equal(first[layer], second[layer]) for layer in first)


def test_decisions_are_equal_on_both_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = (r["shared"]["choice"] for r in ranks)
    assert first == second
    assert min(first["act"].values()) < 8  # gates did close


def test_without_the_average_ranks_would_part(ranks: list[dict[str, Any]]) -> None:
    """So the tests above can fail: the same search with each rank's own statistics."""
    first, second = (r["alone"] for r in ranks)
    assert not any(torch.equal(first["residuals"][layer], second["residuals"][layer]) for layer in first["residuals"])
    assert first["choice"]["act"] != second["choice"]["act"]


def test_two_processes_decide_as_one_with_the_same_batches(folder: Path, ranks: list[dict[str, Any]]) -> None:
    assert len(ranks) == RANKS
    _decide_alike(folder, "sbs")
    apart = _apart(folder, "sbs")
    assert any("threshold" in name for name in apart) and max(apart.values()) <= CLOSE, apart
    (choice,) = (what for event, what in _decisions(folder / "one-sbs") if event == "choice")
    assert len({*choice["weight"].values(), *choice["act"].values()}) > 1
    runs = [folder / name for name in ("one-sbs", "two-sbs")]
    said = [json.loads((run / "run.json").read_text())["processes"] for run in runs]
    assert said == [json.loads((run / "result.json").read_text())["processes"] for run in runs] == [1, 2]


@pytest.mark.slow
def test_two_processes_decide_as_one_by_other_methods(tmp_path: Path) -> None:
    _ranks(tmp_path, "bayesian-bits", "djpq")
    _decide_alike(tmp_path, "bayesian-bits")
    _decide_alike(tmp_path, "djpq")
    assert max(_apart(tmp_path, "djpq").values()) <= CLOSE  # noise of the whole batch, a share each


def _decide_alike(folder: Path, method: str) -> None:
    """The plans are the same, and so is every decision."""
    one, two = (folder / f"{count}-{method}" for count in ("one", "two"))
    assert (one / "plan.json").read_bytes() == (two / "plan.json").read_bytes()
    assert _decisions(one) == _decisions(two)


def _apart(folder: Path, method: str) -> dict[str, float]:
    """How far thresholds and what else gates hold lie apart when the search ends."""
    first, second = (read_tensors(folder / f"{count}-{method}" / SEARCHED) for count in ("one", "two"))
    others = read_tensors(folder / "one-sbs" / FLOAT).keys()
    gates = [name for name in first if name not in others and not name.endswith(("_clip", "gates_frozen"))]
    return {name: float(np.abs(first[name].astype(float) - second[name]).max()) for name in gates}


def _decisions(run: Path) -> list[tuple[str, dict[str, Any]]]:
    """(event, what was decided) of every move."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    kept = ("weight", "act", "parts", "side", "name", "to")
    return [(e["event"], {k: e[k] for k in kept if k in e}) for e in events if e["event"] not in ("epoch", "start")]


def test_what_the_processes_tell_each_other(ranks: list[dict[str, Any]]) -> None:
    first, second = (r["agreed"] for r in ranks)
    assert [first["rows"], second["rows"]] == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    for found in (first, second):
        assert found["any"] == (True, False) and found["first"] == 0 and found["all"] == [0, 1]
        assert found["by_first"] == "by 0"
    images = np.random.default_rng(0).normal(size=(1100, 3, 8, 8)).astype(np.float32)
    assert first["evaluated"] == second["evaluated"] == evaluate(FloatNet(chain()), images, np.arange(1100) % 10)


def test_an_error_of_one_is_an_error_of_all_and_said_once(ranks: list[dict[str, Any]]) -> None:
    first, second = (r["agreed"] for r in ranks)
    assert first["fails_first"] == ("CheckFailed", "of 0", False) and second["fails_first"] == (
        "CheckFailed",
        "of 0",
        True,
    )
    assert first["fails_one"] == ("CheckFailed", "of 1", True) and second["fails_one"] == ("CheckFailed", "of 1", False)
    assert first["fails_prepared"] == ("UsageError", "only here", True)
    assert second["fails_prepared"] == ("UsageError", "only here", False)


def test_a_process_that_lost_another_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda *_args, **_options: ended.clear())
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append("ended"))

    @joined
    def fails(text: str) -> None:
        raise RuntimeError(text)

    with pytest.raises(Interrupted, match="has lost another one"):
        fails("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        fails("a mistake of ours")
    assert ended == ["ended"]


if __name__ == "__main__":
    _rank(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
