"""A search run's terms: the values that change its result, their defaults, and the folder that nobody else may use.

Knows nothing of torch, methods or networks.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import CorruptError, UsageError
from .rundir import SETTINGS, read_json, write_json

RUN_SCHEMA = "bitpress.settings"
RUN_VERSION = 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """Epochs and learning rates of float training, search and fine-tuning, and the batch."""

    epochs_float: int
    epochs_search: int
    epochs_finetune: int
    lr_float: float
    lr_search: float
    lr_thresholds: float
    lr_finetune: float
    batch: int
    schedule: str = "cosine"  # of `SHAPES`: how the rates of float training and fine-tuning fall


SHAPES = ("cosine", "step")  # step: a tenth at 50 % and again at 75 % of the epochs
DEVICES = ("cpu", "cuda")
PRECISIONS = ("fp32", "bf16")
DISTILL = 0.5  # share of the loss that comes from the float network (methods F)

# CIFAR and photographs: epochs of the paper (methods A.1.7), rates of our own runs (methods F). Digits: ours, for a
# minute on one core. A set of the user's own is taken for something of CIFAR's size.
SCHEDULES: Mapping[str, Schedule] = {
    "digits": Schedule(12, 20, 15, 0.05, 0.01, 0.003, 0.02, 32),
    "cifar10": Schedule(200, 30, 200, 0.1, 0.005, 0.02, 0.02, 128),
    "cifar100": Schedule(200, 30, 200, 0.1, 0.005, 0.02, 0.02, 128),
    "imagefolder": Schedule(90, 10, 90, 0.1, 0.002, 0.01, 0.01, 64),
    "detection": Schedule(60, 10, 30, 0.01, 0.002, 0.01, 0.005, 32),
}


def schedule(data: str, changes: Mapping[str, int | float | str | None]) -> Schedule:
    """Defaults of a data set, with the values that are not None put in; UsageError for one that makes no sense."""
    base = SCHEDULES.get(data.partition(":")[0], SCHEDULES["cifar10"])
    found = Schedule(**{**asdict(base), **{k: v for k, v in changes.items() if v is not None}})
    for field in fields(found):
        value = getattr(found, field.name)
        if field.name == "schedule":
            continue
        least = 0 if field.name.startswith("epochs") else 1 if field.name == "batch" else 1e-12
        if not value >= least or value == float("inf"):
            raise UsageError(f"{flag(field.name)} {value} makes no sense: at least {least:g}")
    if found.schedule not in SHAPES:
        raise UsageError(f"--schedule {found.schedule!r} is none of {', '.join(SHAPES)}")
    return found


@dataclass(frozen=True, slots=True)
class Settings:
    """Every resolved value that changes a run's result; run.json holds it. Files count by their SHA-256."""

    model: str
    data: str
    method: str
    mode: str  # of --search; "" where the method has none
    variant: str  # of --sbs-variant; "" where the method has none
    bits: str  # widths that are given, not searched; "" where there are none
    prune_share: float | None
    budget: tuple[str, ...]
    files: Mapping[str, str]  # what was read -> SHA-256
    classes: int
    in_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    residual: str
    schedule: Schedule
    seed: int
    threads: int
    group_size: int
    max_pruning_ratio: float
    distill: float
    train_images: int | None  # drawn by the seed; None: all
    label_smoothing: float = 0.0
    device: str = "cpu"
    precision: str = "fp32"  # of convolutions and products while training
    restrict: str = ""  # of --restrict; "" where the method has none
    convention: str = "sbs"  # in which a budget of BOPs is counted
    filters: str = ""  # of --precision: mixed or fixed:N; "" where the method has none
    episodes: int | None = None  # that a search by reward makes plans in
    stages_of: str = "sbs"  # of --stages-of; only two-stage reads it
    held_images: int | None = None  # of the held-out slice, drawn by the seed; None: all
    processes: int = 1  # that torchrun started, each of which takes its share of a batch

    def document(self) -> dict[str, Any]:
        """Flat JSON document of the values."""
        flat = asdict(self)
        plain: dict[str, Any] = json.loads(json.dumps({**flat.pop("schedule"), **flat}))
        return plain


# What RUNs did that were begun before these settings were recorded.
_UNSAID: Mapping[str, Any] = {
    "schedule": "cosine", "label_smoothing": 0.0, "device": "cpu", "precision": "fp32", "restrict": "",
    "convention": "sbs", "filters": "", "episodes": None, "stages_of": "sbs", "held_images": None, "processes": 1,
}  # fmt: skip
_FLAGS = {
    "model": "MODEL", "mode": "--search", "variant": "--sbs-variant", "filters": "--precision mixed|fixed:N",
    "files": "--weights, --latency-table, --data or MODEL (the files differ)",
    "processes": "processes of torchrun (--nproc-per-node times --nnodes)",
}  # fmt: skip


def flag(name: str) -> str:
    """How the command line spells a setting."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_run(folder: Path, settings: Settings) -> bool:
    """Makes `folder` a RUN of these settings, or checks that it is one; whether it was there before.

    UsageError where it holds something else, or a RUN of other settings (naming the flags).
    """
    path = folder / SETTINGS
    wanted = settings.document()
    if path.exists():
        recorded = {**_UNSAID, **_read(path)}
        different = sorted(k for k in wanted.keys() | recorded.keys() if wanted.get(k) != recorded.get(k))
        if different:
            told = ((flag(k), _shown(recorded.get(k)), _shown(wanted.get(k))) for k in different)
            rows = "; ".join(f"{name}: {there} there, {now} now" for name, there, now in told)
            raise UsageError(f"{folder} is a RUN of other settings ({rows}); give another --out, or these values")
        return True
    if folder.exists() and (not folder.is_dir() or any(p.name != LOCK for p in folder.iterdir())):
        raise UsageError(f"{folder} exists and is no RUN of a search (no {SETTINGS}); give another --out")
    write_json(path, {"schema": RUN_SCHEMA, "schema_version": RUN_VERSION, **wanted})
    return False


def _shown(value: Any) -> str:
    """A setting as people read it, files by the begin of their hashes; one that was not given is "none"."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {str(digest)[:8]}" for name, digest in sorted(value.items())) or "none"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def _read(path: Path) -> dict[str, Any]:
    document = read_json(path)
    schema, version = document.pop("schema", None), document.pop("schema_version", None)
    if (schema, version) != (RUN_SCHEMA, RUN_VERSION):
        raise CorruptError(f"{path} is {schema} version {version}, expected {RUN_SCHEMA} version {RUN_VERSION}")
    return document


LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds RUN/.lock, which carries the process id; UsageError while another process holds it.

    The kernel drops the lock with its process, however that ends, so a stale file never stands in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UsageError(
                f"{folder} is in use by process {file.read().strip() or 'unknown'}; wait for it, or give another --out"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)
