"""Two processes that see different data take the same decisions, because their gates read the same statistics."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from bitpress.core import supernet
from bitpress.core.cost import search_space
from bitpress.core.parallel import averaged
from bitpress.core.supernet import SuperNet
from bitpress.core.supernet_starts import fit

from .test_cost import chain

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 60  # seconds until a rank that waits for the other gives up
RANKS, STEPS, BATCH = 2, 16, 16
LAMBDA, RATE = 0.1, 0.001


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


def _rank(rank: int, folder: Path) -> None:
    """One process: a search as it is, then one whose statistics stay at home."""
    torch.set_num_threads(1)
    waits = timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=RANKS, timeout=waits)
    found = {"mean": averaged(torch.tensor([1.0, float(rank)])), "shared": _searched(rank)}
    supernet.averaged = lambda x: x
    found["alone"] = _searched(rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes found."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch was built without gloo: nothing runs in parallel")
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.core.test_parallel"]
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ}
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], cwd=ROOT, env=environment) for rank in range(RANKS)
    ]
    assert [p.wait(2 * PATIENCE) for p in processes] == [0] * RANKS
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


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


if __name__ == "__main__":
    _rank(int(sys.argv[1]), Path(sys.argv[2]))
