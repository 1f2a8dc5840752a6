"""What this CPU gets out of networks and kernels, beside its own measured bounds and its peers, on one page.

    python -m bitpress.benchmarks.cpu FOLDER [--searched NAME=X.bpk ...] -o benchmarks/results/cpu_NAME.md

Networks are unpruned, of one pair of bits, 8 at the ends, with random weights: time does not depend on what they show,
but for kernels whose additions do. Each measurement is a command of its own, whose document stays in FOLDER; those that
are there are not made again. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.tables import Column, Table, to_markdown
from ..compiler.model import native_module
from ..core.errors import BitpressError, EnvironmentMissing
from ..core.host import cpu_name, write_text
from ..core.rundir import read_json
from ..kernels import native
from .peers import at_hand, host_has_vnni

NETWORKS: Mapping[str, tuple[str, ...]] = {
    "resnet20": ("w8a8", "w4a4", "w2a4", "w2a2"), "resnet56": ("w8a8", "w2a2"), "vgg7": ("w8a8", "w2a2"),
    "resnet18": ("w8a8", "w4a4", "w2a2"), "mobilenet_v1": ("w8a8",), "mobilenet_v2": ("w8a8",),
}  # fmt: skip
LAYERED = "resnet20"  # the network whose layers the page shows
BESIDE, BESIDE_BITS = ("resnet20", "resnet18"), ("w2a2", "w2a4")  # networks whose layers stand beside those of 8 bits
SETTINGS = ((1, 1), (2, 1), (1, 16))  # threads, batch
SECONDS = {"bench": 2.0, "gemm": 0.05}  # of each run; of each kernel on a shape
SHAPES, BITS = "resnet20,resnet18,mobilenet_v1,4096x4096x1", "w1a1,w1a2,w2a2,w2a4,w4a4,w2a8,w4a8,w8a8"
DENSE, FEW = "w8a8", ("w2a2", "w2a4", "w4a4")
TRAINED, SPARSE = 0.62, 0.2  # shares of weights that are not 0: as training leaves them, and where it is led to zeros
SPARSE_SHAPES, SPARSE_BITS = "resnet20,resnet18", "w2a2,w2a4,w8a8"
STACKS: Mapping[str, tuple[str, str]] = {
    "depthwise-512x14x14": ("depthwise_512", "3,14,14"),
    "depthwise-256x28x28": ("depthwise_256", "3,28,28"),
    "depthwise-128x56x56": ("depthwise_128", "3,56,56"),
}  # factory of stacks.py and shape of its input
AT = "@"  # between a network and the instruction set that it was held to
LOWER: Mapping[str, str | None] = {"avx512vbmi": "AVX512_CORE_BF16", "avx512vnni": "AVX512_CORE_VNNI", "avx2": None}
"""Sets below the best one, to which we are held by BITPRESS_FORCE_ISA, OpenVINO by what oneDNN calls the same. None: no
peers, because those of a CPU without VNNI get other weights."""
PEERS = ("onnxruntime", "openvino")  # those that are installed
SLOW_PEERS = ("litert",)  # to make: of the dense networks only
Columns = tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One document: the commands that make it, the last of which writes it, and what stands in their environment."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None


def jobs(folder: Path, searched: Mapping[str, str]) -> Iterator[Job]:
    """Everything that is measured, in order."""
    threads, batches = (",".join(map(str, sorted({s[i] for s in SETTINGS}))) for i in (0, 1))
    timed = ("--threads", threads, "--batch", batches, "--seconds", str(SECONDS["bench"]), "--vs")
    few, every = (",".join(at_hand(names)[0]) for names in (PEERS, PEERS + SLOW_PEERS))
    reduced = () if host_has_vnni() else ((f"{DENSE}-reduced", (DENSE, "--reduce-range")),)
    for network, widths in NETWORKS.items():
        for bits, terms in (*((bits, (bits,)) for bits in widths), *reduced):
            name = f"{network}-{bits}"
            file = str(folder / f"{name}.bpk")
            make = ("compile", network, "--quantize", *terms, "--calibrate", "random:16", "-o", file)
            yield Job(name, (make, ("bench", file, *timed, every if bits == DENSE else few)))
    for name, file in searched.items():
        yield Job(name, (("bench", file, *timed, few),))
    for name, (factory, shape) in STACKS.items():
        file = str(folder / f"{name}.bpk")
        source = (f"{Path(__file__).with_name('stacks.py')}:{factory}", "--in-shape", shape, "--classes", "10")
        make = ("compile", *source, "--quantize", DENSE, "--calibrate", "random:16", "-o", file)
        yield Job(name, (make, ("bench", file, *_one(), "--vs", few)))
    for isa in lower():
        for name in STACKS:
            yield _held_job(name, str(folder / f"{name}.bpk"), None, isa)
        for name, file, dense in held(folder, searched):
            yield _held_job(name, file, dense, isa)
        yield from _drawn_jobs(folder, isa, make=isa == lower()[0])
    for name, shapes, bits, share in (
        ("gemm", SHAPES, BITS, TRAINED), ("gemm-sparse", SPARSE_SHAPES, SPARSE_BITS, SPARSE),
    ):  # fmt: skip
        kernels = ("--shapes", shapes, "--bits", bits, "--isa", "all", "--vs", "", "--nonzero", str(share))
        yield Job(name, (("bench", "gemm", *kernels, "--seconds", str(SECONDS["gemm"])),))


def lower() -> tuple[str, ...]:
    """Those of LOWER that this CPU has and that are not all it has."""
    module = native_module()
    has: Sequence[str] = () if module is None else module.cpu_isas()
    return tuple(isa for isa in LOWER if isa in has[:-1])


def held(folder: Path, searched: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Name, file, and file of the dense network at 8 bits, of all that is timed with a lower instruction set."""
    dense = {network: str(folder / f"{network}-{DENSE}.bpk") for network in NETWORKS}
    for network, widths in NETWORKS.items():
        for bits in widths:
            yield f"{network}-{bits}", str(folder / f"{network}-{bits}.bpk"), dense[network]
    for name, file in searched.items():
        yield name, file, dense[LAYERED]


def drawn() -> Iterator[tuple[str, str, str, float]]:
    """Name, network, bits and share of weights that are not 0, of networks with drawn weights."""
    for network in BESIDE:
        for bits in BESIDE_BITS:
            for share in (TRAINED, SPARSE):
                yield f"{network}-{bits}-{share:.0%}", network, bits, share


def _drawn_jobs(folder: Path, isa: str, *, make: bool) -> Iterator[Job]:
    for name, network, bits, share in drawn():
        file, weights = str(folder / f"{name}.bpk"), folder / f"{name}.safetensors"
        terms = ("--weights", str(weights), "--quantize", bits, "--calibrate", "random:16")
        made = (("compile", network, *terms, "-o", file),) if make else ()
        prepare = partial(draw, network, share, weights) if make else None
        yield Job(f"{name}{AT}{isa}", (*made, ("bench", file, *_one())), {"BITPRESS_FORCE_ISA": isa}, prepare)


def draw(network: str, share: float, path: Path, seed: int = 0) -> None:
    """The network's weights, but of all layers between its ends drawn from {-1, 0, 1} times one number of each layer,
    `share` of them not 0: what 2 bits hold exactly.
    """
    from safetensors.numpy import save_file

    from ..core.models.loading import load

    rng = np.random.default_rng(seed)
    state = {key: value.numpy().copy() for key, value in load(network).module.state_dict().items()}
    for key in [key for key, value in state.items() if value.ndim > 1][1:-1]:  # of convolutions and linear layers
        weight = state[key]
        signs = rng.choice([-1.0, 1.0], weight.shape) * (rng.random(weight.shape) < share)
        state[key] = (signs * float(weight.std()) / share**0.5).astype(np.float32)
    save_file(state, path)


def _held_job(name: str, file: str, dense: str | None, isa: str) -> Job:
    limit = LOWER[isa]
    few = () if limit is None else at_hand(PEERS)[0]
    vs = (*few, *(() if dense is None or file == dense else (dense,)))
    variables = {"BITPRESS_FORCE_ISA": isa, **({} if limit is None else {"ONEDNN_MAX_CPU_ISA": limit})}
    return Job(f"{name}{AT}{isa}", (("bench", file, *_one(), "--vs", ",".join(vs)),), variables)


def _one() -> tuple[str, ...]:
    """How a network is timed with a lower instruction set."""
    return ("--threads", "1", "--batch", "1", "--seconds", str(SECONDS["bench"]))


def measure(folder: Path, searched: Mapping[str, str]) -> dict[str, Any]:
    """Name -> document of every job, made where it is not there; EnvironmentMissing with what a command said."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = list(jobs(folder, searched))
    for number, job in enumerate(todo, 1):
        path = folder / f"{job.name}.json"
        if path.is_file():
            continue
        print(f"cpu: {job.name}, {number} of {len(todo)}", file=sys.stderr)
        part = path.with_suffix(".part")
        if job.prepare is not None:
            job.prepare()
        for command in job.commands:
            last = ("--json", str(part)) if command is job.commands[-1] else ()
            _run((*command, "-q", *last), job.environment)
        part.replace(path)
    return {job.name: read_json(folder / f"{job.name}.json") for job in todo}


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bitpress", *command], capture_output=True, text=True, env=os.environ | environment
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
        raise EnvironmentMissing(f"bitpress {' '.join(command)}: {said[-1]}")


def page(documents: Mapping[str, Any], words: str) -> str:
    """The page of all documents; `words`: how it was asked for."""
    gemm, sparse = documents["gemm"], documents["gemm-sparse"]
    networks = {
        name: one for name, one in documents.items()
        if not name.startswith("gemm") and AT not in name and name not in STACKS
    }  # fmt: skip
    best = gemm["isas"][-1]
    below = [isa for isa in LOWER if any(name.endswith(AT + isa) for name in documents)]
    shown = [name for name in networks if name.split("-")[0] == LAYERED or "-w" not in name]
    parts: list[tuple[str, str, Table]] = [
        ("Whole networks", NETWORKS_SAY, _networks(networks)),
        ("Each peer", PEERS_SAY, _peers({f"{name}-{DENSE}": networks[f"{name}-{DENSE}"] for name in NETWORKS})),
        ("BOPs and time", RANKS_SAY, _ranks(networks)),
        (f"Layers of {LAYERED}", LAYERS_SAY, _layers({name: networks[name] for name in shown})),
        ("Depthwise layers", STACKS_SAY, _stacks(documents, best)),
        ("Kernels", KERNELS_SAY, _kernels(gemm)),
        *((f"Held to {isa}", HELD_SAY, _held(documents, isa)) for isa in below),
        *((f"Layers held to {isa}", BESIDE_SAY, _beside(documents, isa)) for isa in below),
        *((f"Kernels of {isa}", FASTEST_SAY, _fastest(gemm, isa)) for isa in below),
        *((f"Few weights, {isa}", SPARSE_SAY, _fastest(sparse, isa)) for isa in (best, *below)),
        ("Bounds", "Rates of one thread, measured in the same runs: operations of a family's innermost instructions, "
         "multiply-accumulates or products and additions of bits; reads.", _roofs(gemm)),
    ]  # fmt: skip
    lines = [
        f"# What {cpu_name()} gets", "",
        f"Written by `python -m bitpress.benchmarks.cpu {words}` on {datetime.date.today()}: {cpu_name()}, "
        f"best instruction set {gemm['host']['isa']}.",
        "Peers run the same network with 8-bit weights and activations, all in turns in one run; medians. A ratio",
        "above 1 says how many times longer the peer takes.",
        *filter(None, (at_hand(PEERS + SLOW_PEERS)[1],)),
    ]  # fmt: skip
    for title, said, table in parts:
        lines += ["", f"## {title}", "", said, "", to_markdown(table).rstrip()]
    return "\n".join(lines) + "\n"


NETWORKS_SAY = (
    "`t` threads, `b` images at a time. *Bounds*: the whole inference over the sum of its layers' measured bounds, one "
    "thread, one image. `-reduced`: weights of 8 bits within seven (`compile --reduce-range`), as peers have theirs "
    "on a CPU without VNNI, on which their full range would overflow; ours without it stays exact."
)
PEERS_SAY = "8 bits, one thread, one image: a peer's time over ours."
RANKS_SAY = "Spearman's rank correlation of the layers' BOPs and times in one network, one thread, one image."
LAYERS_SAY = "Microseconds, one thread, one image; below BOPs of the layer at that pair of bits."
STACKS_SAY = (
    "Networks of twelve depthwise layers of 3x3, stride 1, 8 bits: C x H x W. *layer*: the median of ours; *peak*: its "
    "products at the rate of the widest instructions, over its time; *best*: the least of the peers' whole times over "
    "ours. One thread, one image; OpenVINO is held to the same instructions, onnxruntime is not."
)
KERNELS_SAY = (
    "The row that a compiled network gets, one thread, rounding to 8 bits or fewer included; *peak*: share of the "
    "family's innermost instructions; *by cycles*: the same at one clock, for a CPU lowers its clock under wide "
    "loads and tiles, and neighbours lower it, too; *faster*: the time "
    "at w8a8 over this one, in the same run. Weights are drawn so that 62 % are not 0, as training leaves "
    "them, but of one bit."
)
HELD_SAY = (
    "One thread, one image. *own w8a8 / ours*: our dense network of 8 bits beside this one, in turns in one run. Peers "
    "are dense with 8 bits; OpenVINO is held to the same instructions (`ONEDNN_MAX_CPU_ISA`), onnxruntime is not. "
    "*bounds*, *rank correlation*: as above."
)
BESIDE_SAY = (
    "Where layers stand in their network, and bit slices hand planes to each other, as a layer alone does not show: "
    "microseconds, at 8 bits and at few. The runs are not in turns with each other. Weights are drawn as those above, "
    "for layers between the ends."
)
SPARSE_SAY = "The same with 20 % of the weights not 0."
FASTEST_SAY = (
    "The fastest row that this instruction set has, at 8 bits with its share of its family's innermost instructions "
    "as above, and of few bits, how many times faster."
)


def _int8(run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    peers = [peer for peer in run["peers"] if peer["name"].endswith("int8")]
    return min(peers, key=lambda peer: float(peer["ratio"]), default=None)


def _at(document: Mapping[str, Any], setting: tuple[int, int]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(r for r in document["runs"] if (r["threads"], r["batch"]) == setting)
    return found


def _networks(documents: Mapping[str, Any]) -> Table:
    rows = []
    for name, document in documents.items():
        row: dict[str, Any] = {"name": name}
        for setting in SETTINGS:
            run, key = _at(document, setting), _setting(setting)
            peer = _int8(run)
            row |= {key: run["total"]["median"], f"{key} peer": None if peer is None else f"{peer['ratio']:.2f}"}
            if setting == SETTINGS[0]:
                row |= {"peer": None if peer is None else peer["name"], "bounds": _over_bounds(run)}
        rows.append(row)
    timed = [
        column
        for setting in SETTINGS
        for column in (
            Column(_setting(setting), f"{_setting(setting)} ms", "ms"),
            Column(f"{_setting(setting)} peer", "best int8 peer / ours"),
        )
    ]
    return Table("", (Column("name", "network"), *timed, Column("bounds", "bounds"), Column("peer", "best peer")), rows)


def _peers(documents: Mapping[str, Any]) -> Table:
    rows: list[dict[str, Any]] = []
    for name, document in documents.items():
        peers = _at(document, SETTINGS[0])["peers"]
        rows.append({"name": name, **{f"{p['name']} {p['version']}": f"{p['ratio']:.2f}" for p in peers}})
    names = dict.fromkeys(key for row in rows for key in row if key != "name")
    return Table("", (Column("name", "network"), *(Column(name, name) for name in names)), rows)


def _setting(setting: tuple[int, int]) -> str:
    return f"t{setting[0]} b{setting[1]}"


def _over_bounds(run: Mapping[str, Any]) -> str | None:
    """The whole inference over the sum of its layers' bounds."""
    bounds = [layer["bound"] for layer in run["layers"] if layer["bound"]]
    return f"{run['total']['median'] / sum(bounds):.2f}" if bounds else None


def _products(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Layers that have BOPs."""
    return [layer for layer in run["layers"] if layer["bops"]]


def _rank(run: Mapping[str, Any]) -> str:
    from ..reporting.layers import rank

    return f"{rank(_products(run)):.2f}"


def _ranks(documents: Mapping[str, Any]) -> Table:
    rows = []
    for name, document in documents.items():
        run = _at(document, SETTINGS[0])
        layers = _products(run)
        rows.append({
            "name": name, "layers": len(layers), "bops": sum(row["bops"] for row in layers),
            "ms": sum(row["median"] for row in layers), "rank": _rank(run),
        })  # fmt: skip
    columns = (
        Column("name", "network"), Column("layers", "layers", "int"), Column("bops", "BOPs", "count"),
        Column("ms", "their ms", "ms"), Column("rank", "rank correlation"),
    )  # fmt: skip
    return Table("", columns, rows)


def _layers(documents: Mapping[str, Any]) -> Table:
    rows: dict[str, dict[str, Any]] = {}
    for name, document in documents.items():
        for layer in _at(document, SETTINGS[0])["layers"]:
            if layer["bops"]:
                row = rows.setdefault(layer["name"], {"layer": layer["name"], "macs": layer["macs"]})
                row |= {name: layer["median"], f"{name} bops": layer["bops"]}
    timed = [
        column
        for name in documents
        for column in (Column(name, f"{name} us", "us"), Column(f"{name} bops", "BOPs", "count"))
    ]
    return Table("", (Column("layer", "layer"), Column("macs", "MACs", "count"), *timed), list(rows.values()))


def _stacks(documents: Mapping[str, Any], best: str) -> Table:
    rows = []
    for name, document in documents.items():
        stack, _, isa = name.partition(AT)
        if stack not in STACKS:
            continue
        run = _at(document, SETTINGS[0])
        layers = [layer for layer in run["layers"] if layer["op"] == "depthwise_conv2d"]
        shares = [layer["bound"] / layer["median"] for layer in layers if layer["bound"]]
        rows.append({
            "stack": stack.removeprefix("depthwise-"), "isa": isa or best,
            "layer": statistics.median(layer["median"] for layer in layers),
            "peak": statistics.median(shares) if shares else None, "ms": run["total"]["median"],
            "best": f"{min(p['ratio'] for p in run['peers']):.2f}" if run["peers"] else None,
            **{p["name"]: f"{p['ratio']:.2f}" for p in run["peers"]},
        })  # fmt: skip
    fixed = {"stack", "isa", "layer", "peak", "ms", "best"}
    peers = dict.fromkeys(key for row in rows for key in row if key not in fixed)
    columns = (
        Column("stack", "layers"), Column("isa", "ISA"), Column("layer", "layer us", "us"),
        Column("peak", "peak", "percent"), Column("ms", "network ms", "ms"), Column("best", "best"),
        *(Column(name, name) for name in peers),
    )  # fmt: skip
    return Table("", columns, rows)


def _kernels(document: Mapping[str, Any]) -> Table:
    rows, dense = [], {}
    for row in document["rows"]:
        if row["chosen"] and row["bits"] == DENSE:
            dense[_shape(row)] = row["median"]
    for row in document["rows"]:
        if row["chosen"]:
            base = dense.get(_shape(row))
            rows.append({
                "shape": row["shape"], "layer": " ".join(row["layers"][:1]), "bits": row["bits"],
                "kernel": row["kernel"], "ms": row["median"], "gmacs": row["gmacs"],
                **_shares(row),
                "faster": None if base is None else f"{base / row['median']:.2f}",
            })  # fmt: skip
    columns = (
        Column("shape", "M x K x N"), Column("layer", "first layer"), Column("bits", "bits"),
        Column("kernel", "kernel"), Column("ms", "us", "us"), Column("gmacs", "GMAC/s", "float"),
        *SHARES, Column("faster", "faster"),
    )  # fmt: skip
    return Table("", columns, rows)


def _held(documents: Mapping[str, Any], isa: str) -> Table:
    rows = []
    for name, document in documents.items():
        if name.endswith(AT + isa) and "%" not in name and name.split(AT)[0] not in STACKS:
            run = _at(document, SETTINGS[0])
            peer, own = _int8(run), next((p for p in run["peers"] if p["name"].endswith(f"{DENSE}.bpk")), None)
            rows.append({
                "name": name.split(AT)[0], "ms": run["total"]["median"],
                "own": None if own is None else f"{own['ratio']:.2f}",
                "peer": None if peer is None else f"{peer['ratio']:.2f}", "who": None if peer is None else peer["name"],
                "bounds": _over_bounds(run), "rank": _rank(run),
            })  # fmt: skip
    columns = (
        Column("name", "network"), Column("ms", "ms", "ms"), Column("own", f"own {DENSE} / ours"),
        Column("peer", "best int8 peer / ours"), Column("who", "best peer"), Column("bounds", "bounds"),
        Column("rank", "rank correlation"),
    )  # fmt: skip
    return Table("", columns, rows)


def _beside(documents: Mapping[str, Any], isa: str) -> Table:
    """Layers between the ends of the networks of BESIDE at 8 bits and at few."""

    def layers(name: str) -> dict[str, Mapping[str, Any]]:
        return {layer["name"]: layer for layer in _products(_at(documents[f"{name}{AT}{isa}"], SETTINGS[0]))}

    rows: list[dict[str, Any]] = []
    kinds: dict[str, str] = {}
    for network in BESIDE:
        dense = layers(f"{network}-{DENSE}")
        of = {layer: {"layer": f"{network}:{layer}", DENSE: one["median"]} for layer, one in list(dense.items())[1:-1]}
        for name, of_network, bits, share in drawn():
            if of_network != network:
                continue
            key = f"{bits}-{share}"
            kinds[key] = f"{bits} {share:.0%}"
            for layer, one in layers(name).items():
                if layer in of:
                    kernel = one["kernel"].rpartition("_")[0]
                    of[layer][key] = f"{one['median'] * 1e3:.1f} {kernel} {dense[layer]['median'] / one['median']:.2f}"
        rows += of.values()
    columns = (
        Column("layer", "layer"), Column(DENSE, f"{DENSE} us", "us"),
        *(Column(key, f"{kind}: us, kernel, faster") for key, kind in kinds.items()),
    )  # fmt: skip
    return Table("", columns, rows)


def _fastest(document: Mapping[str, Any], isa: str) -> Table:
    inside = native.contained()[isa]
    best: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in document["rows"]:
        if row["isa"] in inside and row["median"] is not None:
            at = best.setdefault(_shape(row), {})
            if row["bits"] not in at or row["median"] < at[row["bits"]]["median"]:
                at[row["bits"]] = row
    rows = []
    for at in best.values():
        dense = at[DENSE]
        few = {b: row for b, row in at.items() if b in FEW}
        rows.append({
            "shape": dense["shape"], "layer": " ".join(dense["layers"][:1]), "kernel": dense["kernel"],
            "ms": dense["median"], **_shares(dense),
            **{f"{b} kernel": row["kernel"] for b, row in few.items()},
            **{b: f"{dense['median'] / row['median']:.2f}" for b, row in few.items()},
        })  # fmt: skip
    columns = (
        Column("shape", "M x K x N"), Column("layer", "first layer"), Column("kernel", f"{DENSE} kernel"),
        Column("ms", "us", "us"), *SHARES,
        *(column for b in FEW for column in (Column(f"{b} kernel", f"{b} kernel"), Column(b, "faster"))),
    )  # fmt: skip
    return Table("", columns, rows)


SHARES: Columns = (Column("peak", "peak", "percent"), Column("even", "by cycles", "percent"))


def _shares(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Of its family's instructions: as timed, and cycle by cycle."""
    peak = row["gmacs"] / row["peak"] if row["peak"] else None
    even = row["peak_cycles"] / row["cycles"] if row["peak_cycles"] and row["cycles"] else None
    return {"peak": peak, "even": even}


def _shape(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["shape"], *row["layers"]


def _roofs(document: Mapping[str, Any]) -> Table:
    from ..cli.bench_gemm import tables

    return tables(document)[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code as everywhere."""
    parser = argparse.ArgumentParser(prog="python -m bitpress.benchmarks.cpu", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where documents are kept")
    parser.add_argument("--searched", metavar="NAME=X.bpk", action="append", default=[], help="a compiled RUN, too")
    parser.add_argument("-o", "--output", type=Path, help="page to write; default: stdout")
    asked = parser.parse_args(arguments)
    searched = dict(word.split("=", 1) for word in asked.searched)
    words = " ".join(["FOLDER", *(f"--searched {name}={name}.bpk" for name in searched)])
    try:
        text = page(measure(asked.folder, searched), words)
        print(text, end="") if asked.output is None else write_text(asked.output, text)
    except BitpressError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
