"""Search methods: one file a method (phases and objective only); the list of them is registry.py.

`search` is what the command line calls: everything that can be refused is refused before any work; then float
training, the method, and one look at the test part, by the integer semantics.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import bops
from ..cost import MAX_PRUNING_RATIO, Budget, Costs, parse_budget, plan_cost, search_space
from ..data import CLASSIFICATION, Data
from ..data import load as load_data
from ..errors import CheckFailed, UsageError
from ..evaluate import evaluate as accuracy
from ..factory import is_factory, is_onnx
from ..graph import Graph, refuse_unknown
from ..host import head
from ..integer import integer
from ..job import DEVICES, DISTILL, PRECISIONS, Schedule, Settings, locked, open_run, schedule, sha256
from ..latency import Target, load_table, target
from ..network import network, refuse_quantised
from ..parallel import by_first, joined, processes, ready, threads_each, together
from ..plan import RESIDUALS
from ..projection import check_reachable
from ..rundir import FLOAT, RESULT, SEARCHED, read_json, read_tensors, write_json, write_run, write_tensors
from ..semantics import Semantics
from ..supernet import FloatNet, Place, SuperNet, placed
from ..train import ALL, Job, Loop, Progress, Samples, Training, at_once, smoothed
from ..train_goals import GOALS
from . import ajpq
from .registry import MODES, SEARCHES, Method, Terms, method_of, resolve

# Operations of a step below which threads wait for each other more than they save: on a busy 2-core host, digits took
# 13 times the CPU time with 2 threads that it took with 1 (96 s against 7.5 s).
SMALL_STEP = 5e9
ROUNDING = 1e-9  # of a sum of milliseconds in another order
TRAINING_COST = 6  # operations of a float step per MAC and image: forward and backward, two each


@joined
def search(
    model: str,
    *,
    data: str,
    out: str | Path,
    budgets: Sequence[str] = (),
    method: str = "sbs",
    mode: str | None = None,
    bits: str | None = None,
    prune_share: float | None = None,
    stages_of: str | None = None,
    weights: str | Path | None = None,
    classes: int | None = None,
    in_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    residual: str = "int8",
    epochs_float: int | None = None,
    epochs_search: int | None = None,
    epochs_finetune: int | None = None,
    lr_float: float | None = None,
    lr_search: float | None = None,
    lr_thresholds: float | None = None,
    lr_finetune: float | None = None,
    batch: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    group_size: int | None = None,
    max_pruning_ratio: float | None = None,
    distill: float = DISTILL,
    variant: str | None = None,
    restrict: str | None = None,
    convention: str | None = None,
    latency_table: str | Path | None = None,
    train_images: int | None = None,
    held_images: int | None = None,
    label_smoothing: float = 0.0,
    shape: str | None = None,
    device: str = "cpu",
    precision: str | None = None,
    episodes: int | None = None,
    start: str | Path | None = None,
    followed: Sequence[Sequence[str]] = (),
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Searches `model` on `data` under `budgets` and leaves a RUN in `out`; the content of its result.json.

    `mode`: joint, bits or prune, of methods that have them; `bits`: "w4a4", where widths are given and not searched;
    `prune_share`, `stages_of` (sbs or djpq): of two-stage; `variant`: of sbs, guided or paper; `restrict`: of djpq,
    pow2 or free; `convention`: of djpq and bayesian-bits, sbs or djpq (the ends are searched);
    `latency_table`: file of `bitpress profile`, which a budget of latency needs;
    `train_images`, `held_images`: how many of the training part and of its held-out slice, drawn by the seed;
    `shape`: of the learning rates (core.job.SHAPES);
    `device`: cpu or cuda; `precision`: fp32 or bf16, by default fp32 on the CPU and bf16 on a GPU; of ajpq,
    by comma, mixed or fixed:N too: whether filters of a layer may differ; `episodes`: of ajpq. A RUN of the same
    settings is continued (on the CPU as if it had never stopped), a finished one returns its result. Processes that
    torchrun started train one network, each on its share of every batch. Of a sweep (core.pareto): `start`, a finished
    RUN of the same method under a larger budget, whose net at the end of its search this one begins with; `followed`,
    the budgets of what comes later, refused now where they cannot be reached.
    UsageError (an option that the method does not take, a GPU that is not there), UnsupportedError or CheckFailed (a
    budget that cannot be reached) before any work; Interrupted on a signal, with the state saved.
    """
    found = tuple(parse_budget(text) for text in budgets)
    changes = {
        "epochs_float": epochs_float, "epochs_search": epochs_search, "epochs_finetune": epochs_finetune,
        "lr_float": lr_float, "lr_search": lr_search, "lr_thresholds": lr_thresholds, "lr_finetune": lr_finetune,
        "batch": batch, "schedule": shape,
    }  # fmt: skip
    precision, filters = _precisions(precision)
    pruning = {"group_size": group_size, "max_pruning_ratio": max_pruning_ratio}
    terms = resolve(
        method,
        {
            **changes, **pruning, "mode": mode, "bits": bits, "prune_share": prune_share, "variant": variant,
            "stages_of": stages_of, "restrict": restrict, "convention": convention, "filters": filters,
            "episodes": episodes,
        },
    )  # fmt: skip
    _check(found, terms, residual, distill, seed, threads)
    _check_alone(terms)
    for library in terms.method.libraries:
        import_module(library)
    place = _place(label_smoothing, device, precision)
    planned = _schedule(data, changes, terms)
    group_size = terms.parts.group_size if group_size is None else group_size
    max_pruning_ratio = MAX_PRUNING_RATIO if max_pruning_ratio is None else max_pruning_ratio
    if epochs_float is None and (weights is not None or is_onnx(model)):  # whose weights are its own
        planned = replace(planned, epochs_float=0)
    with _torch(threads or 1, seed):
        loaded = network(
            model, classes=classes, in_shape=in_shape, weights=weights, mean=mean, std=std, floats=True
        )  # fmt: skip
        refuse_quantised(loaded, "a search takes floats")
        graph = loaded.graph
        refuse_unknown(graph, model)
        space = search_space(graph, group_size=group_size, max_pruning_ratio=max_pruning_ratio)
        if latency_table is not None:
            space = replace(space, target=on_target(latency_table, graph, model, residual))
        space = terms.chosen.space(graph, space, terms)
        for texts in (budgets, *followed):
            check_reachable(graph, tuple(parse_budget(text) for text in texts), space)
        images = load_data(data, in_shape=loaded.in_shape, seed=seed)
        images.require_fit(loaded.in_shape, graph.value(graph.outputs[0]).shape)
        if label_smoothing and images.task != CLASSIFICATION:
            raise UsageError(f"--label-smoothing {label_smoothing}: {data} has boxes, which are no classes")
        _check_counts(images, train_images, held_images)
        if threads is None:
            threads = threads_each(default_threads(TRAINING_COST * bops.count(graph).totals.macs * planned.batch))
            torch.set_num_threads(threads)
        _check_shares(min(planned.batch, train_images or len(images.train)))
        settings = Settings(
            model, data, method, terms.mode, terms.variant, terms.bits, terms.prune_share, tuple(sorted(budgets)),
            _files(model, weights, latency_table, images, start),
            loaded.classes, loaded.in_shape, loaded.mean, loaded.std, residual, planned,
            seed, threads, group_size, max_pruning_ratio, distill, train_images,
            label_smoothing, place.device, place.precision, terms.restrict, terms.convention,
            terms.filters, terms.episodes, terms.stages_of, held_images, processes(),
        )  # fmt: skip
        ready()
        folder = Path(out)
        with ExitStack() as stack:
            if (result := by_first(lambda: _opened(folder, settings, stack))) is not None:
                return result
            with together():
                samples = _samples(images, settings)
            loop = _loop(folder, graph, samples, settings, terms, progress)
            with loop.signals(), placed(place):
                teacher = _float(graph, samples, settings, loop)
                trained = graph.with_nodes(graph.nodes, teacher.float_tensors())
                keeps = bool(followed) and terms.method.warm
                job = Job(settings, trained, space, found, samples, loop, teacher, _state(start), keeps)
                net, begun = terms.method.run(job), started(start)
                return by_first(lambda: _finish(folder, job, net, images, images.labels or loaded.labels, begun))


def _state(start: str | Path | None) -> dict[str, torch.Tensor]:
    """The net that the search of the RUN `start` left."""
    return {} if start is None else {k: torch.from_numpy(v) for k, v in read_tensors(Path(start) / SEARCHED).items()}


def started(start: str | Path | None) -> dict[str, Any] | None:
    """The RUN that a search began with, and the epochs, by phase, that its net had been trained for by then."""
    if start is None:
        return None
    result = read_json(Path(start) / RESULT)
    behind = dict((result["start"] or {"epochs": {}})["epochs"])
    for phase, epochs in result["epochs"].items():
        if phase != "finetune":
            behind[phase] = behind.get(phase, 0) + epochs
    return {"run": Path(start).name, "epochs": behind}


def _opened(folder: Path, settings: Settings, stack: ExitStack) -> dict[str, Any] | None:
    """RUN, locked until `stack` ends; its result if it is finished."""
    stack.enter_context(locked(folder))
    open_run(folder, settings)
    return read_json(folder / RESULT) if (folder / RESULT).exists() else None


def default_threads(work: float) -> int:
    """Threads for steps of `work` operations where nobody says: one if a step is small, else the CPUs we may use."""
    return 1 if work < SMALL_STEP else len(os.sched_getaffinity(0))


def _precisions(said: str | None) -> tuple[str | None, str | None]:
    """What `precision` says of the training, and of filters; UsageError where it says one of them twice."""
    words = [word.strip() for word in (said or "").split(",") if word.strip()]
    filters = [word for word in words if word.partition(":")[0] in (ajpq.MIXED, ajpq.FIXED)]
    training = [word for word in words if word not in filters]
    if len(filters) > 1 or len(training) > 1:
        raise UsageError(f"--precision {said}: one of fp32 and bf16, and one of mixed and fixed:N, please")
    return next(iter(training), None), next(iter(filters), None)


def _place(label_smoothing: float, device: str, precision: str | None) -> Place:
    """Device and precision; UsageError for a share or a name that makes no sense, or a GPU that is not there."""
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"--label-smoothing {label_smoothing} is a share of each label, at least 0 and below 1")
    if device not in DEVICES:
        raise UsageError(f"--device {device!r} is none of {', '.join(DEVICES)}")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"--precision {precision!r} is none of {', '.join(PRECISIONS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"--device cuda: torch {torch.__version__} finds no CUDA device here; leave --device out to train on the "
            "CPU, or use a machine with an NVIDIA GPU and a torch that is built for CUDA"
        )
    return Place(device, precision or ("bf16" if device == "cuda" else "fp32"))


def _schedule(data: str, changes: Mapping[str, int | float | str | None], terms: Terms) -> Schedule:
    """Epochs and rates. A method without a search fine-tunes by default for the epochs that a search has in all."""
    planned = schedule(data, changes)
    if "epochs_search" in terms.takes:
        return planned
    epochs = planned.epochs_finetune
    if changes["epochs_finetune"] is None:
        epochs += planned.epochs_search
    return replace(planned, epochs_search=0, epochs_finetune=epochs)


def _check_counts(images: Data, train: int | None, held: int | None) -> None:
    """UsageError for a part that is asked to have no images, or more than it has."""
    parts = (("train", train, images.train, "to train on"), ("held", held, images.validation, "to validate with"))
    for name, count, part, use in parts:
        if count is not None and not 1 <= count <= len(part):
            raise UsageError(f"--{name}-images {count}: {images.spec} has {len(part)} {use}")


def _check(
    budgets: tuple[Budget, ...], terms: Terms, residual: str, distill: float, seed: int, threads: int | None
) -> None:
    if not budgets and terms.method.needs_budget:
        raise UsageError("a search needs a budget, for example --budget bops=2%")
    kinds = [b.kind for b in budgets]
    if len(set(kinds)) < len(kinds):
        raise UsageError(f"budgets {', '.join(b.text for b in budgets)}: one bound of a kind, please")
    if residual not in RESIDUALS:
        raise UsageError(f"--residual {residual!r} is none of {', '.join(RESIDUALS)}")
    if not 0 <= distill <= 1:
        raise UsageError(f"--distill {distill} is a share of the loss, within [0, 1]")
    if seed < 0:
        raise UsageError(f"--seed {seed}: at least 0")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: at least 1")


def _check_alone(terms: Terms) -> None:
    """UsageError for a method whose batches torchrun's processes cannot share."""
    if processes() > 1 and terms.method.alone:
        raise UsageError(
            f"--method {terms.name} does not run in {processes()} processes of torchrun: {terms.method.alone}; start "
            "it without torchrun; the points of a sweep can be shared out with --workers ray"
        )


def _check_shares(batch: int) -> None:
    """UsageError for a batch that torchrun's processes cannot share evenly."""
    if batch % processes():
        raise UsageError(
            f"{processes()} processes of torchrun cannot share a batch of {batch} images evenly; give --batch a "
            f"multiple of {processes()}"
        )


@contextmanager
def _torch(threads: int, seed: int) -> Iterator[None]:
    """Torch with that many threads and that seed; threads as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_target(path: str | Path, graph: Graph, model: str, residual: str) -> Target:
    """What the latency table `path` says of a graph; a table of another machine is said aloud."""
    table = load_table(path)
    if said := table.warning():
        logging.getLogger("bitpress").warning(said)
    return target(table, graph, model, residual)


def _files(
    model: str, weights: str | Path | None, latency_table: str | Path | None, images: Data, start: str | Path | None
) -> dict[str, str]:  # fmt: skip
    """SHA-256 of everything that was read."""
    out = {f"data/{name}": digest for name, digest in images.files.items()}
    before = None if start is None else Path(start) / SEARCHED
    if before is not None and not before.is_file():
        raise UsageError(f"{before} is missing, with which this search begins; remove {start} to search there anew")
    for what, path in (("weights", weights), ("latency-table", latency_table), ("start", before)):
        if path is not None:
            out[what] = sha256(Path(path))
    for what, spec in (("model", model), ("data", images.spec)):
        if is_factory(spec):
            out[what] = sha256(Path(spec.rpartition(":")[0]).expanduser())
    if is_onnx(model):
        out["model"] = sha256(Path(model))
    return out


def _samples(images: Data, settings: Settings) -> Samples:
    """The training part, drawn with augmentation; the held-out slice, normalised."""
    train, held = images.train, images.validation
    if not len(train) or not len(held):
        raise UsageError(f"{images.spec} has {len(train)} images to train on and {len(held)} to validate with")
    chosen = _chosen(len(train), settings.train_images, settings.seed)
    judging = _chosen(len(held), settings.held_images, settings.seed)

    def draw(
        numbers: np.ndarray, rng: np.random.Generator, rows: slice = ALL, /
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        own = chosen[numbers][rows]
        raw = images.augment(np.asarray(train.images[own]), rng, of=len(numbers), first=rows.start or 0)
        labels = train.labels[own]
        if settings.label_smoothing:
            labels = smoothed(labels, settings.classes, settings.label_smoothing)
        return images.normalise(raw, settings.mean, settings.std), labels

    normalised = images.normalise(np.asarray(held.images[judging]), settings.mean, settings.std)
    return Samples(len(chosen), draw, (normalised, held.labels[judging]), GOALS[images.task])


def _chosen(count: int, wanted: int | None, seed: int) -> np.ndarray:
    """Numbers of `wanted` images of `count`, drawn by the seed, in order; None: all."""
    if wanted is None:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:wanted])


def _loop(
    folder: Path, graph: Graph, samples: Samples, settings: Settings, terms: Terms,
    progress: Callable[[Progress], None] | None,
) -> Loop:  # fmt: skip
    """The loop over all phases, where a checkpoint left it."""
    plan = settings.schedule
    return Loop(
        folder, samples, batch=plan.batch, seed=settings.seed,
        work=TRAINING_COST * bops.count(graph).totals.macs * plan.batch,
        agenda=(("float", plan.epochs_float, 1.0), *terms.method.agenda(plan)), progress=progress,
        device=settings.device, shape=plan.schedule,
    )  # fmt: skip


def _float(graph: Graph, samples: Samples, settings: Settings, loop: Loop) -> FloatNet:
    """The float network, trained unless its weights were given; in evaluation mode."""
    net, plan = FloatNet(graph), settings.schedule
    if "float" in loop.carry:
        net.load_state_dict(loop.carry["float"])
    elif plan.epochs_float:
        groups = [{"params": list(net.parameters())}]
        phase = Training("float", net, groups, epochs=plan.epochs_float, lr=plan.lr_float, samples=samples)
        loop.run(phase)
        net.load_state_dict(phase.best)
        loop.finish("float", net.state_dict())
    return net.eval().requires_grad_(False)


def _finish(
    folder: Path, job: Job, net: SuperNet, images: Data, labels: tuple[str, ...], begun: dict[str, Any] | None
) -> dict[str, Any]:  # fmt: skip
    """Extracts, tests once, writes the RUN; result.json comes last and says that it is finished."""
    settings = job.settings
    net.cpu().eval()
    plan, tensors = net.extract()
    tensors["golden_input"] = job.samples.held[0][:1].astype(np.float32)
    graph = job.graph.with_nodes(job.graph.nodes, {k: tensors[k] for k in job.graph.consts})
    on = job.space.target
    figures, whole = plan_cost(graph, plan, settings.convention, on), Costs(job.graph, job.space).whole
    totals = bops.count(graph, plan, convention=settings.convention).totals
    for budget in job.budgets:
        figure, bound = figures[budget.kind], budget.bound(whole[budget.kind])
        if figure > bound * (1 + ROUNDING):
            raise CheckFailed(f"budget {budget.text} is missed: {figure:.10g} of {bound:.10g}")
    with placed(Place()):
        teacher = FloatNet(job.graph).eval()  # on the CPU in float32, wherever training was
    test = images.test()
    semantics = Semantics(integer(graph, plan, tensors), settings.threads)

    def prepare(x: np.ndarray) -> np.ndarray:
        return images.normalise(x, settings.mean, settings.std)

    def run_float(x: np.ndarray) -> np.ndarray:
        size = at_once(job.graph)
        with torch.no_grad():
            parts = [teacher(torch.from_numpy(x[i : i + size])).flatten(1) for i in range(0, len(x), size)]
        return np.concatenate([part.numpy() for part in parts])

    def check(_done: int) -> None:
        job.loop.check()

    before = accuracy(run_float, test.images, test.labels, prepare=prepare, progress=check, task=images.task)
    after = accuracy(semantics.run, test.images, test.labels, prepare=prepare, progress=check, task=images.task)
    meta = {
        "model": settings.model, "in_shape": list(settings.in_shape), "classes": settings.classes,
        "mean": list(settings.mean), "std": list(settings.std), "labels": list(labels),
    }  # fmt: skip
    write_tensors(folder / FLOAT, job.graph.consts)  # before training went on; peers run it
    write_run(folder, graph, plan, tensors, meta)
    result = {
        **head("bitpress.search", threads=settings.threads),
        "method": settings.method, "mode": settings.mode or None, "bits": settings.bits or None,
        "precision": settings.filters or None, "restrict": settings.restrict or None,
        "stages_of": settings.stages_of if settings.method == "two-stage" else None,
        "baseline_top1": before.top1, "baseline_top5": before.top5, "baseline_iou": before.iou,
        "top1": after.top1, "top5": after.top5, "iou": after.iou, "n": after.n,
        "predictions_sha256": after.sha256, "bops": totals.bops, "bops_fp32": totals.bops_fp32,
        "bops_ratio": totals.bops_ratio, "bops_convention": totals.bops_convention,
        "weight_bytes": totals.weight_bytes, "fp32_bytes": totals.fp32_bytes, "latency": figures.get("latency"),
        "latency_table": None if on is None else {**on.table.document(), "w8a8": whole["latency"]},
        "budget": list(settings.budget),
        "epochs": {name: epochs for name, epochs, _ in job.loop.agenda}, "processes": settings.processes,
        "start": begun,
        "seconds": job.loop.seconds, "data": settings.data, "seed": settings.seed,
    }  # fmt: skip
    write_json(folder / RESULT, result)
    return result


__all__ = ["MODES", "SEARCHES", "Method", "method_of", "search"]
