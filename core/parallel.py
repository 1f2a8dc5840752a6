"""Processes that train one network together, as torchrun starts them: what they must agree on, and which one speaks.

Each takes its share of every batch. Without torchrun there is one process, and nothing here changes anything. Every
process must call these functions as often and in the same order. Knows nothing of networks, gates or schedules.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import BitpressError, Interrupted

PATIENCE = timedelta(days=1)  # the others wait while the first one tests; where one dies, torchrun ends all
P = ParamSpec("P")
T = TypeVar("T")
_READY: ContextVar[bool] = ContextVar("ready")


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0; the first one writes files and prints."""
    return dist.get_rank() if processes() > 1 else 0


def threads_each(count: int) -> int:
    """Of `count` threads of this machine those that each of its processes may have, one at least."""
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if processes() > 1 else count


def share(count: int) -> slice:
    """Those of `count` rows that are this process's; `count` is a multiple of `processes()`."""
    each = count // processes()
    return slice(rank() * each, (rank() + 1) * each)


# -- tensors ----------------------------------------------------------------------------------------------------------


def summed(x: Tensor) -> Tensor:
    """Sum of `x` over all processes, the same bits in each; `x` itself where there is one.

    Same shape and dtype everywhere; without gradient.
    """
    if processes() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def averaged(x: Tensor) -> Tensor:
    """Mean, as `summed`."""
    return x if processes() == 1 else summed(x) / processes()


def average(tensors: Iterable[Tensor]) -> None:
    """`averaged` in place, of many at once."""
    found = list(tensors)
    if processes() == 1 or not found:
        return
    flat = torch.cat([x.detach().flatten() for x in found])
    dist.all_reduce(flat)
    flat /= processes()
    for x, mean in zip(found, torch.split(flat, [x.numel() for x in found]), strict=True):
        x.detach().copy_(mean.view_as(x))


def level(tensors: Iterable[Tensor]) -> None:
    """All tensors become those of the first process, in place: floats that a GPU summed in another order, too."""
    if processes() > 1:
        for x in tensors:
            dist.broadcast(x.detach(), 0)


# -- values -----------------------------------------------------------------------------------------------------------


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if processes() == 1:
        return [value]
    out: list[T | None] = [None] * processes()
    dist.all_gather_object(out, value)
    return cast(list[T], out)


def from_first(value: T) -> T:
    """The value of the first process."""
    if processes() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, 0)
    return held[0]


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    if processes() == 1:
        return flag
    total = torch.tensor(float(flag))
    dist.all_reduce(total)
    return bool(total > 0)


# -- errors -----------------------------------------------------------------------------------------------------------


def common(error: BitpressError) -> BitpressError:
    """An error that all processes raise at the same place: the first one says it."""
    error.told = rank() > 0
    return error


SHARED = (BitpressError, ImportError, OSError)  # errors of a user, as the command line knows them


@contextmanager
def together() -> Iterator[None]:
    """What goes wrong inside in one process is raised in all of them, and said by the first that has met it.

    For work that they do side by side: inside of it they must not wait for each other.
    """
    try:
        yield
    except SHARED as error:
        _agree(error)
    else:
        _agree(None)


def ready() -> None:
    """The end of what a `joined` function does to prepare: what went wrong before it is treated as by `together`."""
    _READY.set(True)
    _agree(None)


def _agree(mine: Exception | None) -> None:
    errors = gathered(mine)
    at = next((i for i, error in enumerate(errors) if error is not None), None)
    if at is not None:
        raise _said_by(at, cast(Exception, mine or errors[at]))


def by_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, which does it alone; its error is an error of all."""
    result: T | None = None
    mine: Exception | None = None
    if rank() == 0:
        try:
            result = work()
        except SHARED as error:
            mine = error
    result, met = from_first((result, mine))
    if met is not None:
        raise _said_by(0, mine or met)
    return cast(T, result)


def _said_by(at: int, error: Exception) -> Exception:
    """An error that the process `at` says."""
    error.told = rank() != at  # type: ignore[attr-defined]
    return error


# -- start and end ----------------------------------------------------------------------------------------------------


def joined(function: Callable[P, T]) -> Callable[P, T]:
    """`function` with the processes that torchrun started as one group: gloo, and nccl where `device` is cuda.

    It calls `ready` where it has been prepared. Interrupted where another process is lost: what was saved is good.
    """

    def prepared(*args: P.args, **kwargs: P.kwargs) -> T:
        before = _READY.set(False)
        try:
            return function(*args, **kwargs)
        except SHARED as error:
            if not _READY.get():
                _agree(error)
            raise
        finally:
            _READY.reset(before)

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not (dist.is_available() and dist.is_torchelastic_launched()) or dist.is_initialized():
            return prepared(*args, **kwargs)
        backend = "gloo"
        if kwargs.get("device") == "cuda" and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=PATIENCE)
        try:
            return prepared(*args, **kwargs)
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):  # gloo has no class of its own
                raise
            raise Interrupted(
                f"process {rank()} of {processes()} has lost another one, which says why if it could; what was saved "
                "last is kept, and the same command continues"
            ) from error
        finally:
            dist.destroy_process_group()

    return run
