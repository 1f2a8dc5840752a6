"""`bench`: a compiled network, layer by layer and against its peers, in one interleaved run. Formats nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from ..compiler.execute import execute
from ..compiler.model import Model, native_module
from ..compiler.program import Program
from ..core.errors import CheckFailed, UsageError
from ..core.host import head
from . import dense as dense_network
from . import peers as peer_families
from . import roofline
from .causes import fixed_parts
from .harness import SETTLE_SECONDS, Timing, measure, pinned, ratio
from .layers import Layers

OURS = "bitpress"
STEPS = "steps"  # ours again with a clock around every step: a candidate of its own, so that `total` is undisturbed

Progress = Callable[[str, float], None]


def bench(
    artifact: str | Path,
    *,
    vs: Sequence[str] | None = None,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    against: str | Path | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    seconds: float = 2.0,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = lambda _what, _share: None,
) -> dict[str, Any]:
    """The `bitpress.bench` document: times in milliseconds, one entry of `runs` per batch size and thread count.

    `vs`: names of `peers.FAMILIES`; None: `peers.DEFAULT`, without those whose libraries are missing, which
    `peers_left_out` tells. `seconds` for each run; `progress` is told what is under way and the share done.
    `device`: "cuda" times X.bpk on a GPU, one graph replayed, steps one by one, without peers and bounds.
    Nothing is timed that answers wrongly: CheckFailed if the golden sample or the reference disagrees.
    """
    left_out = ""
    if device != "cpu":
        vs, left_out = _without_peers(vs)
    elif vs is None:
        vs, left_out = peer_families.at_hand(peer_families.DEFAULT)
    peer_families.check(vs)
    for name, values in (("--batch", batches), ("--threads", threads)):
        if not values or min(values) < 1:
            raise UsageError(f"{name} {','.join(map(str, values))}: numbers of at least 1 are needed")
    begin = perf_counter()
    loaded = Model(artifact, device=device)
    load = 1e3 * (perf_counter() - begin)
    program, rng = loaded.program, np.random.default_rng(seed)
    if loaded.golden_check() is False:
        raise CheckFailed(f"{artifact}: the golden sample does not come out; nothing is timed. Try `bitpress verify`")
    progress("bench, preparing the peers", 0.0)
    net = dense_network.dense(program, against=against, model=model, weights=weights)
    images = dense_network.images(program, net.data or _recorded_data(program), rng)
    runs = []
    with TemporaryDirectory(prefix="bitpress-bench-") as folder:
        families = peer_families.make(vs, peer_families.Setting(net.graph, images.calibration, Path(folder)))
        settings = [(t, b) for t in threads for b in batches]
        for i, (count, batch) in enumerate(settings):

            def share(part: float, i: int = i, count: int = count, batch: int = batch) -> None:
                progress(f"bench, batch {batch}, {count} thread{'s' if count > 1 else ''}", (i + part) / len(settings))

            runs.append(_run(artifact, families, images.check, batch, count, device, seconds, share))
    return {
        **head("bitpress.bench", isa=loaded.isa, threads=max(threads), gpu=loaded.gpu_name),
        "artifact": str(artifact),
        "peer_source": net.source,
        "peers_left_out": left_out,
        "images": images.source,
        "seed": seed,
        "load": load,
        "memory": _memory(loaded, artifact),
        "runs": runs,
    }


def _without_peers(vs: Sequence[str] | None) -> tuple[Sequence[str], str]:
    """Peers of a network on a GPU: none, and the sentence about it."""
    why = "peers run on the CPU; `python -m bitpress.benchmarks.gpu` compares with torch on a GPU"
    if vs:
        raise UsageError(f"--vs {','.join(vs)} with --device cuda: {why}")
    return (), why


def _memory(loaded: Model, artifact: str | Path) -> dict[str, int | None]:
    """Bytes of the file and of what one session holds; None where numpy runs, which keeps no account."""
    parts = {} if loaded.session is None else loaded.session.memory()
    file = Path(artifact).stat().st_size
    return {"file": file, **{part: parts.get(part) for part in ("layouts", "arena", "working")}}


def _recorded_data(program: Program) -> str | None:
    data = program.meta.get("data")
    return data if isinstance(data, str) else None


def _run(
    artifact: str | Path,
    families: Sequence[Any],
    check: np.ndarray,
    batch: int,
    threads: int,
    device: str,
    seconds: float,
    progress: Callable[[float], None],
) -> dict[str, Any]:
    with ExitStack() as stack:
        cpus = stack.enter_context(pinned(threads))
        model = Model(artifact, threads=threads, device=device)
        ready = [peer for family in families for peer in stack.enter_context(family.peers(batch, threads))]
        x = model.prepare(np.resize(check, (batch, *check.shape[1:])))
        _verified(model, x, artifact)
        ours = _answers(model, check, batch) if ready else None
        matches = {peer.name: float(np.mean(_answers(peer.run, check, batch) == ours)) for peer in ready}
        table = Layers(model, x)
        candidates: dict[str, Callable[[], object]] = {OURS: table.plain}
        candidates |= {peer.name: (lambda run=peer.run: run(x)) for peer in ready}
        if table.timed:
            candidates[STEPS] = table.profile

        def observe(name: str, result: Any) -> None:
            if name == STEPS:
                table.observe(result)

        settle = SETTLE_SECONDS * (threads > 1)
        timings = measure(candidates, seconds=seconds, settle=settle, observe=observe, progress=progress)
        native = None if model.gpu is not None else native_module()
        roofs = roofline.measure(native, table.kernels, model.program, threads)
        names = [name for name, _ in table.kernels]
        fixed = {} if native is None else fixed_parts(native, model.program, names, batch=batch, threads=threads)
    total = timings[OURS]
    layers = table.table(roofs, fixed)
    known = [row["median"] for row in layers if row["median"] is not None]
    return {
        "batch": batch,
        "threads": threads,
        "pinned": list(cpus),
        "total": _spread(total),
        "layers": layers,
        "unattributed": total.median - sum(known) if known else None,
        "peers": [
            {
                "name": peer.name,
                "version": peer.version,
                "median": timings[peer.name].median,
                "min": timings[peer.name].min,
                "ratio": ratio(timings[peer.name], total),
                "output_matches": matches[peer.name],
            }
            for peer in ready
        ],
        "roofs": {
            "bytes_per_second": roofs.bytes_per_second,
            **{f"{family}_{isa}": rate for (family, isa), rate in sorted(roofs.operations.items())},
        },
    }


def _spread(timing: Timing) -> dict[str, Any]:
    return {
        "median": timing.median,
        "min": timing.min,
        "p10": timing.percentile(10),
        "p90": timing.percentile(90),
        "samples": [round(sample, 6) for sample in timing.samples],
    }


def _verified(model: Model, x: np.ndarray, artifact: str | Path) -> None:
    """The first image through numpy must equal the timed path, bit by bit, alone and inside the batch."""
    want = execute(model.program, x[:1])
    for got in (model(x[:1]), model(x)[:1]):
        if not np.array_equal(got, want):
            off = int((got != want).sum())
            raise CheckFailed(f"{artifact}: {off} of {want.size} outputs differ from the reference; nothing is timed")


def _answers(run: Callable[[np.ndarray], np.ndarray], check: np.ndarray, batch: int) -> np.ndarray:
    """Top-1 of every check image, in calls of exactly `batch` images."""
    count = -(-len(check) // batch) * batch
    padded = np.ascontiguousarray(np.resize(check, (count, *check.shape[1:])))
    parts = [np.argmax(run(padded[i : i + batch]).reshape(batch, -1), axis=1) for i in range(0, count, batch)]
    return np.concatenate(parts)[: len(check)]
