"""Seconds a training step on the CPU: the float network, the frozen super-net and the searching one, way by way.

The frozen net holds 4 bits (8 at the ends) and learns from its float network too, as fine-tuning does; the searching
one has all its gates and the figure in its loss. Ways run in turns in one process, so that their ratios bear a busy
machine; images and labels are random, as time does not depend on what they show. `core.train` does "channels last", and
"bf16" where it is asked for.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from ..core.capture import capture
from ..core.cost import Choice, Space, largest, search_space
from ..core.data import CLASSIFICATION
from ..core.errors import BitpressError, UsageError
from ..core.graph import Graph
from ..core.host import cpu_name, write_text
from ..core.models import load
from ..core.storage import STREAM_BITS
from ..core.supernet import FloatNet, Place, SuperNet, placed
from ..core.supernet_rounding import TINY, decomposed, least, mean_residuals, rounded_to, steps
from ..core.supernet_starts import fit
from ..core.train import sgd, to_torch
from ..core.train_goals import GOALS

WAYS: Mapping[str, str] = {
    "apart": "channels last, rounding by separate operations", "eager": "channels first", "last": "channels last",
    "compile": "channels last, torch.compile", "bf16": "channels last, bf16",
}  # fmt: skip
NETS = ("float", "frozen", "searching")
RATE, LAMBDA, DISTILL = 1e-4, 0.01, 0.5
FROZEN_BITS = 4
FITTED = 16  # images that clips are fitted to
BUSY = 0.5  # load average beyond our own threads from which a machine counts as shared
Step = Callable[[], float]  # -> the loss
Times = Mapping[tuple[str, str], Sequence[float]]  # (way, net) -> seconds of each step


class Apart(SuperNet):
    """The super-net with activations divided, clipped and rounded operation by operation, as autograd takes them."""

    def _round(self, x: Tensor, clip: str | None) -> Tensor:
        if clip is None or (self.watch is not None and not self.watch(clip, x)):
            return x
        domain, layer = self.domains[clip], self.layer_of(clip)
        v = self.tensor(clip).abs() + TINY
        z = torch.clamp(x / v, least(domain), 1.0)
        if layer is None or layer not in self.space.searched or self.frozen or not self.training:
            bits = STREAM_BITS if layer is None else int(self.tensor(f"{layer}.bits")[1])
            return v * rounded_to(z, steps(domain, bits))
        self.tensor(f"{layer}.mean_residual").lerp_(mean_residuals(z, domain), self.residual_momentum)
        gates = self.last.act[layer] = self.act_gates(layer)
        return v * decomposed(z, *gates, domain)


def step_of(way: str, kind: str, graph: Graph, space: Space, batch: int) -> Step:
    """One step of a network of that kind, trained in that way."""
    torch.manual_seed(0)
    x = to_torch(torch.randn(batch, *graph.inputs[0].shape).numpy())
    y = torch.randint(graph.value(graph.outputs[0]).shape[0], (batch,))
    if way == "eager":
        x = x.contiguous()
    with placed(Place("cpu", "bf16" if way == "bf16" else "fp32")):
        net, teacher = _made(way, kind, graph, space, x), FloatNet(graph).eval().requires_grad_(False)
    optimizer = sgd(net, [{"params": list(net.parameters())}], RATE)
    forward: Callable[[Tensor], Tensor] = net
    taught: nn.Module | Callable[[Tensor], Tensor] = teacher
    if way == "compile":
        forward, taught = torch.compile(net), torch.compile(teacher)

    def step() -> float:
        targets = None
        if kind != "float":
            with torch.no_grad():
                targets = taught(x)
        loss = GOALS[CLASSIFICATION].objective(forward(x), y, targets, DISTILL)
        if kind == "searching":
            assert isinstance(net, SuperNet)
            loss = loss + LAMBDA * torch.log(net.cost("bops")).float()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    return step


def _made(way: str, kind: str, graph: Graph, space: Space, x: Tensor) -> FloatNet:
    if kind == "float":
        return FloatNet(graph).train()
    net = (Apart if way == "apart" else SuperNet)(graph, space)
    if kind == "frozen":
        whole, four = largest(space), dict.fromkeys(space.searched, FROZEN_BITS)
        net.freeze(Choice({**whole.weight, **four}, {**whole.act, **four}, whole.parts))
    fit(net, [x[:FITTED]])
    return net.train()


def timed(calls: Mapping[tuple[str, str], Step], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of `rounds` steps of each, in turns, after one that is not counted; of the processor with one thread."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    found: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for i in range(rounds + 1):
        for key, call in calls.items():
            start = clock()
            call()
            if i:
                found[key].append(clock() - start)
    return found


def table(times: Times) -> str:
    """Markdown, one row a way: medians, and how many times as fast as "channels last" they are."""
    ways = tuple(dict.fromkeys(way for way, _ in times))
    head = [cell for net in NETS for cell in (f"{net}, s", "speed")]
    lines = ["| training | " + " | ".join(head) + " |", "| --- " + "| --: " * len(head) + "|"]
    for way in ways:
        cells = []
        for net in NETS:
            ratios = [a / b for a, b in zip(times["last", net], times[way, net], strict=True)]
            cells += [f"{median(times[way, net]):.3g}", f"{median(ratios):.2f}"]
        lines.append(f"| {WAYS[way]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def document(times: Times, *, command: str, model: str, batch: int, threads: int) -> str:
    """The whole file."""
    busy, rounds = os.getloadavg()[0], len(next(iter(times.values())))
    shared = busy > threads + BUSY
    return f"""# Seconds a training step

Printed by `{command}`
on {datetime.datetime.now(datetime.UTC).date()}: {cpu_name()}, {os.cpu_count()} cores, threads: {threads}; torch
{torch.__version__}. Load average of the machine at the end {busy:.1f}{
        ": it was shared, so seconds are a hint; ways ran in turns, which ratios bear better" if shared else ""
    }.
Seconds are {"processor" if threads == 1 else "wall-clock"} time.

{model}, batch of {batch}, random images and labels. Medians of {rounds} steps each, in turns; "speed" is the median of
the turns' ratios, "channels last" = 1. Frozen: 4 bits, 8 at the ends, with the float network as teacher; searching: all
gates, the teacher, and the figure in the loss.

{table(times)}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where everything ran."""
    parser = argparse.ArgumentParser(prog="python -m bitpress.benchmarks.training", description=__doc__)
    parser.add_argument("--model", default="resnet20", metavar="SPEC", help="network [resnet20]")
    parser.add_argument("--batch", type=int, default=128, help="images a step [128]")
    parser.add_argument("--rounds", type=int, default=7, help="counted steps of each [7]")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch [1]")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; minutes before the first step")
    parser.add_argument("-o", "--output", metavar="FILE.md", type=Path, help="write there instead of printing")
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(given)
    torch.set_num_threads(max(1, chosen.threads))
    try:
        if min(chosen.batch, chosen.rounds, chosen.threads) < 1:
            raise UsageError("--batch, --rounds and --threads must be at least 1")
        loaded = load(chosen.model)
        graph = capture(loaded.module, loaded.in_shape)
        space = search_space(graph)
        ways = [way for way in WAYS if way != "compile" or chosen.compile]
        calls = {(w, n): step_of(w, n, graph, space, chosen.batch) for w in ways for n in NETS}
        text = document(
            timed(calls, chosen.rounds), command=f"{parser.prog} {shlex.join(given)}", model=chosen.model,
            batch=chosen.batch, threads=chosen.threads,
        )  # fmt: skip
        if chosen.output:
            write_text(chosen.output, text)
        else:
            print(text)
    except BitpressError as error:
        print(f"training: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
