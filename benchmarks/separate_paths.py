"""Bit sharing against separate paths (methods C): what a step of the search costs. An experiment beside the product.

The other super-net is that of DNAS: a searched layer holds one path for each pair of widths, with weights and clips of
its own; all are evaluated and mixed by a softmax of architecture weights, whose expectation is the figure in the loss.
Each variant runs in processes of its own, in turns; memory is counted beyond a process that has only imported torch and
made the images. Images are random: neither time nor memory depends on what they show.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import pickle
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.capture import capture
from ..core.cost import WIDTHS, Space, hold_bits, hold_channels, search_space
from ..core.errors import BitpressError, CheckFailed, UsageError
from ..core.graph import Graph, Node
from ..core.host import cpu_name, write_text
from ..core.models import load
from ..core.plan import LayerId
from ..core.supernet import FloatNet, SuperNet
from ..core.train import sgd, to_torch

Pair = tuple[int, int]  # (weight, activation) bits
PATHS: Mapping[str, tuple[Pair, ...]] = {
    "separate": tuple((b, b) for b in WIDTHS),  # one for each width, as DNAS
    "every": tuple((w, a) for w in WIDTHS for a in WIDTHS),  # one for each point that sharing spans
}
VARIANTS = ("none", "float", "shared", *PATHS)  # "none": no network, what memory is counted from
LABELS = {
    "float": "the float network", "shared": "bits shared (`core.supernet`)", "separate": "separate paths, w = a",
    "every": "separate paths, every pair",
}  # fmt: skip
COLUMNS = (
    "network", "variant", "paths a layer", "s a step", "x shared", "paper", "peak MiB", "x shared", "paper",
    "trainable parameters", "x shared",
)  # fmt: skip
LAMBDA, RATE = 0.1, 1e-3
WARM_UP = 1  # steps of a process that are not counted: optimiser and allocator are new
BUSY = 0.5  # load average beyond our own threads from which a machine counts as shared
CHEAPER = 2.0  # times, in time or memory, that sharing should be
PAPER = {"20": (3.5, 2.9), "56": (4.6, 3.6)}  # depth -> separate / shared, time and memory (methods C)
EVERY = f'; "{LABELS["every"]}": one for each choice that sharing has in a layer'
MIB = 1 << 20


class _Path(SuperNet):
    """The network held at one pair of widths, layer by layer."""

    def of(self, node: Node, x: Tensor) -> Tensor:
        """Output of a layer from its unrounded input."""
        return self.compute(node, [self._round(x, f"{node.name}.act_clip")])


class SeparatePaths(SuperNet):
    """A super-net with one path for each of `pairs` in every searched layer of `space`; nothing is pruned.

    `paths` share all tensors but those of searched layers; the network's own tensors are those of the first path.
    """

    def __init__(self, graph: Graph, space: Space, pairs: Sequence[Pair], *, residual: str = "int8") -> None:
        spaces = [hold_bits(graph, hold_channels(space), pair) for pair in pairs]
        super().__init__(graph, spaces[0], residual=residual)
        self.pairs, self.mixed = tuple(pairs), space.searched
        self.paths = tuple(_Path(graph, s, residual=residual) for s in spaces)
        self.trees = nn.ModuleList(self.paths)
        own = {name for layer in self.mixed for name in self.owned(layer)}
        for i, path in enumerate(self.paths):
            for name, (module, leaf) in path._tensors.items():
                if name not in own:
                    setattr(module, leaf, self.tensor(name))
                elif i == 0:
                    setattr(*self._tensors[name], path.tensor(name))
        for layer in self.mixed:
            self._hold(f"{layer}.path_weights", torch.zeros(len(pairs)), learnt=True)

    def owned(self, layer: LayerId) -> tuple[str, ...]:
        """Names of the tensors that each path has for itself."""
        bits = f"{layer}.bits"
        return (*self.graph.value(layer).consts.values(), f"{layer}.weight_clip", f"{layer}.act_clip", bits)

    def shares(self, layer: str) -> Tensor:
        """Share of each path in a layer's output, [paths]."""
        return torch.softmax(self.tensor(f"{layer}.path_weights"), 0)

    def read(self, node: Node, ins: list[Tensor]) -> list[Tensor]:
        """Paths round what they read themselves."""
        return ins if node.name in self.mixed else super().read(node, ins)

    def left(self, node: Node, value: Tensor) -> Tensor:
        """As it is where the only reader is a layer whose paths round it."""
        clip = self.stored_clip(node.name)
        return value if clip is not None and self.layer_of(clip) in self.mixed else super().left(node, value)

    def compute(self, node: Node, ins: list[Tensor]) -> Tensor:
        """All paths of a searched layer, mixed."""
        if node.name not in self.mixed:
            return super().compute(node, ins)
        outputs = (
            share * path.of(node, ins[0]) for share, path in zip(self.shares(node.name), self.paths, strict=True)
        )
        total = next(outputs)
        for output in outputs:
            total = total + output
        return total

    def cost(self, kind: str, *, weights: bool = True, acts: bool = True) -> Tensor:  # noqa: ARG002
        """Expected BOPs or bytes, differentiable; a path's weights and activations cannot be told apart."""
        total = torch.zeros((), dtype=torch.float64)
        for term in self.costs.terms:
            pairs = self.pairs if term.layer in self.mixed else (self.space.given(term.layer),)
            each = [w * a * term.unit if kind == "bops" else w * term.depth / 8 for w, a in pairs]
            prices = term.c_in * term.c_out * torch.tensor(each, dtype=torch.float64)
            shares = self.shares(term.layer).double() if term.layer in self.mixed else torch.ones(1).double()
            total = total + (shares * prices).sum()
        return total

    def extracted(self) -> SuperNet:
        """The likeliest path of every layer alone: a net of given widths, as fine-tuning takes it."""
        best = {layer: int(self.shares(layer).argmax()) for layer in self.mixed}
        space = replace(self.space, held={layer: self.paths[i].space.given(layer) for layer, i in best.items()})
        net = SuperNet(self.graph, space, residual=self.residual)
        source = {name: self.paths[i] for layer, i in best.items() for name in self.owned(layer)}
        with torch.no_grad():
            for name in net._tensors:
                net.tensor(name).copy_(source.get(name, self).tensor(name))
        return net


# -- one process --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measure:
    """What one process found: seconds of each counted step, bytes at its peak, numbers that are trained."""

    seconds: tuple[float, ...]
    peak: int
    parameters: int


def made(variant: str, graph: Graph) -> FloatNet:
    """The network of a variant, in training mode; clips are not fitted, which would cost time and change no figure."""
    space = hold_channels(search_space(graph))
    if variant == "float":
        return FloatNet(graph).train()
    if variant == "shared":
        return SuperNet(graph, space).train()
    return SeparatePaths(graph, space, PATHS[variant]).train()


def groups_of(net: FloatNet) -> list[dict[str, object]]:
    """Parameter groups for SGD: only the network's own parameters decay."""
    nets = [net, *getattr(net, "paths", ())]
    decays = {
        id(p): p for n in nets for p in ([*n.parameters()] if type(n) is FloatNet else n.parameters_of("network"))
    }
    others = [p for p in net.parameters() if id(p) not in decays]
    return [{"params": [*decays.values()]}, {"params": others, "weight_decay": 0.0}]


def step(net: FloatNet, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, turn: int) -> float:
    """One step on CE + lambda ln BOPs (the float network: CE); the loss. Sides take turns as in a search."""
    loss = F.cross_entropy(net(x), y)
    if isinstance(net, SuperNet):
        figure = net.cost("bops", weights=turn % 2 == 0, acts=turn % 2 == 1)
        loss = loss + LAMBDA * torch.log(figure).float()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if isinstance(net, SuperNet):
        net.clamp_thresholds()
    return float(loss.detach())


def measured(variant: str, graph: Graph, *, batch: int, steps: int) -> Measure:
    """`steps` counted steps of a variant in this process, on random images and labels.

    One thread is timed by its processor time, which does not count waiting for others' work.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    torch.manual_seed(0)
    x = to_torch(torch.randn(batch, *graph.inputs[0].shape).numpy())
    y = torch.randint(0, graph.value(graph.outputs[0]).shape[0], (batch,))
    seconds, parameters = [], 0
    if variant != "none":
        net = made(variant, graph)
        optimizer = sgd(net, groups_of(net), RATE)
        parameters = sum(p.numel() for p in net.parameters())
        for turn in range(WARM_UP + steps):
            start = clock()
            step(net, optimizer, x, y, turn)
            seconds.append(clock() - start)
    return Measure(tuple(seconds[WARM_UP:]), _peak(), parameters)


def _peak() -> int:
    """Bytes that this process has held at most. What getrusage says of a new process includes its parent's on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# -- all of them --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A network's variants: the measures of each, round by round."""

    network: str
    found: Mapping[str, tuple[Measure, ...]]

    def seconds(self, variant: str) -> float:
        """Median of all counted steps."""
        return median(s for m in self.found[variant] for s in m.seconds)

    def slower(self, variant: str) -> float:
        """Time over sharing's: the median of the rounds' ratios, whose processes ran side by side."""
        pairs = zip(self.found[variant], self.found["shared"], strict=True)
        return median(median(a.seconds) / median(b.seconds) for a, b in pairs)

    def memory(self, variant: str) -> float:
        """Bytes at the peak, beyond the process without a network."""
        return median(m.peak for m in self.found[variant]) - median(m.peak for m in self.found["none"])

    def larger(self, variant: str) -> float:
        """Memory over sharing's; nan where a network is too small to be seen."""
        shared = self.memory("shared")
        return self.memory(variant) / shared if shared > 0 else math.nan

    def parameters(self, variant: str) -> int:
        """Numbers that are trained."""
        return self.found[variant][0].parameters


def compare(
    models: Mapping[str, Sequence[str]], *, batch: int, steps: int, rounds: int, threads: int, seconds: float = math.inf
) -> list[Comparison]:
    """Runs the variants of every model in turns, each time in a new process.

    `rounds` at most, fewer where another one would not end within `seconds`, one at least.
    """
    found: dict[str, dict[str, list[Measure]]] = {m: {v: [] for v in variants} for m, variants in models.items()}
    with tempfile.TemporaryDirectory(prefix="bitpress-paths-") as folder:
        graphs = {m: Path(folder) / f"{i}.pickle" for i, m in enumerate(models)}
        start = time.monotonic()
        for model, graph in graphs.items():  # captured elsewhere, so that this process stays small
            _child("--capture", model, "--graph", graph, threads=threads)
        for _ in range(rounds):
            begin = time.monotonic()
            for model, variants in models.items():
                for variant in variants:
                    terms = ("--graph", graphs[model], "--batch", batch, "--steps", steps)
                    out = json.loads(_child("--measure", variant, *terms, threads=threads).splitlines()[-1])
                    found[model][variant].append(Measure(tuple(out["seconds"]), out["peak"], out["parameters"]))
            now = time.monotonic()
            if now - start + (now - begin) > seconds:
                break
    return [Comparison(model, {v: tuple(m) for v, m in each.items()}) for model, each in found.items()]


def _child(*arguments: object, threads: int) -> str:
    """Standard output of this module in a new process; CheckFailed where it fails."""
    command = [sys.executable, "-m", __spec__.name, *map(str, arguments), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        raise CheckFailed(f"{shlex.join(command[2:])} ended with exit code {done.returncode}")
    return done.stdout


# -- what is written ----------------------------------------------------------------------------------------------


def table(comparisons: Sequence[Comparison]) -> str:
    """Markdown, one row a variant."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- " + "| --: " * (len(COLUMNS) - 2) + "|"]
    for c in comparisons:
        for variant in (v for v in c.found if v != "none"):
            ratios = [c.slower(variant), c.larger(variant)]
            paper = [f"{p:.1f}" for p in PAPER.get(c.network[-2:], ())] if variant == "separate" else []
            time_, memory = paper or ("-", "-")
            paths = len(PATHS.get(variant, ())) or 1
            row = (
                c.network, LABELS[variant], paths, f"{c.seconds(variant):.3g}", f"{ratios[0]:.2f}", time_,
                f"{c.memory(variant) / MIB:.0f}", f"{ratios[1]:.2f}", memory, f"{c.parameters(variant):,}",
                f"{c.parameters(variant) / c.parameters('shared'):.2f}",
            )  # fmt: skip
            lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def verdict(c: Comparison, variant: str = "separate") -> str:
    """Whether sharing is as much cheaper as it should be; where not, what was measured of why."""
    slower, larger = c.slower(variant), c.larger(variant)
    said = f"{c.network}, {LABELS[variant]}: {slower:.2f} times the time and {larger:.2f} times the memory of sharing"
    if max(slower, larger) >= CHEAPER:
        return f"{said}: at least {CHEAPER:g} times in one of them."
    plain, shared, paths = (c.seconds(v) for v in ("float", "shared", variant))
    k = len(PATHS[variant])
    more = c.memory("shared") - c.memory("float")
    return (
        f"{said}: less than {CHEAPER:g} times in both. Why, as measured: only convolutions and rounding of searched "
        f"layers are done once a path, all else once. A step takes {plain:.3g} s in floats; sharing adds "
        f"{shared - plain:.3g} s ({100 * (shared - plain) / shared:.0f} % of its step), for rounding, residuals of "
        f"{len(WIDTHS)} widths and gates; {k} paths add {paths - plain:.3g} s, for convolutions and plain rounding. "
        f"Likewise {c.memory('float') / MIB:.0f} MiB in floats; sharing adds {more / MIB:.0f}, the residuals that "
        f"gates' gradients need among them, {k} paths {(c.memory(variant) - c.memory('float')) / MIB:.0f}."
    )


def document(comparisons: Sequence[Comparison], *, command: str, batch: int, threads: int) -> str:
    """The whole file."""
    rounds = len(comparisons[0].found["shared"])
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    shared = ": it was shared, so seconds are a hint; variants ran in turns, which ratios bear better"
    verdicts = "\n".join(f"- {verdict(c, v)}" for c in comparisons for v in c.found if v in PATHS)
    return f"""# Bit sharing against separate paths

Printed by `{command}`
on {datetime.datetime.now(datetime.UTC).date()}: {cpu_name()}, {cores} cores, threads: {threads}; torch
{torch.__version__}. Load average of the machine at the end {busy:.1f}, this run's threads among
them{shared if busy > threads + BUSY else ""}. Seconds are {"processor" if threads == 1 else "wall-clock"} time.

Same network, batch of {batch}, loss (cross-entropy + {LAMBDA:g} ln BOPs), optimiser and number of steps, nothing
pruned; images and labels are random, so that no data is needed. Processes of each variant: {rounds}, in turns;
seconds are the median of all their steps, "x shared" of time is the median of the rounds' ratios. Peak memory is that
of the process less that of one that has only imported torch and made the images. Paper: ABS on a GPU, for the network
of that depth with projection shortcuts.

"{LABELS["separate"]}": one path for each of {", ".join(map(str, WIDTHS))} bits, weights and activations alike: a part
of what sharing spans{EVERY if any("every" in c.found for c in comparisons) else ""}.

{table(comparisons)}

{verdicts}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where all processes came through."""
    parser = argparse.ArgumentParser(prog="python -m bitpress.benchmarks.separate_paths", description=__doc__)
    parser.add_argument("--model", action="append", metavar="SPEC", help="network; may be repeated [preresnet20]")
    parser.add_argument("--batch", type=int, default=128, help="images a step [128]")
    parser.add_argument("--steps", type=int, default=3, help="counted steps a process [3]")
    parser.add_argument("--rounds", type=int, default=3, help="processes a variant [3]")
    parser.add_argument("--seconds", type=float, default=math.inf, help="fewer rounds where this would be exceeded")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch [1]")
    parser.add_argument(
        "--every", action="append", metavar="SPEC", help="a --model to be run with a path for each pair of widths too"
    )
    parser.add_argument("-o", "--output", metavar="FILE.md", type=Path, help="write there instead of printing")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--capture", metavar="SPEC", help=argparse.SUPPRESS)
    parser.add_argument("--graph", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(given)
    torch.set_num_threads(chosen.threads)
    try:
        if min(chosen.batch, chosen.steps, chosen.rounds, chosen.threads) < 1:
            raise UsageError("--batch, --steps, --rounds and --threads must be at least 1")
        if chosen.capture:
            loaded = load(chosen.capture)
            chosen.graph.write_bytes(pickle.dumps(capture(loaded.module, loaded.in_shape)))
        elif chosen.measure:
            graph = pickle.loads(chosen.graph.read_bytes())
            print(json.dumps(asdict(measured(chosen.measure, graph, batch=chosen.batch, steps=chosen.steps))))
        else:
            _run(chosen, f"{parser.prog} {shlex.join(given)}")
    except BitpressError as error:
        print(f"separate_paths: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(chosen: argparse.Namespace, command: str) -> None:
    models, every = chosen.model or ["preresnet20"], chosen.every or []
    if lost := [m for m in every if m not in models]:
        raise UsageError(f"--every {lost[0]}: it is none of the networks that are run, {', '.join(models)}")
    print("random images and labels: time and memory do not depend on what they show", file=sys.stderr)
    variants = {m: [v for v in VARIANTS if v != "every" or m in every] for m in models}
    found = compare(
        variants, batch=chosen.batch, steps=chosen.steps, rounds=chosen.rounds, threads=chosen.threads,
        seconds=chosen.seconds,
    )  # fmt: skip
    text = document(found, command=command, batch=chosen.batch, threads=chosen.threads)
    if chosen.output:
        write_text(chosen.output, text)
    else:
        print(text)


if __name__ == "__main__":
    sys.exit(main())
