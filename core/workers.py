"""Calls in processes of Ray: on this machine, or on the cluster that RAY_ADDRESS names. Knows nothing of searches.

Every machine of a cluster finds the same files under the same paths. Ray is imported when it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import BitpressError, EnvironmentMissing, Interrupted, UsageError

RAY = "ray"
LEAVE = 60.0  # seconds that workers have to save their state
LOOK = 1.0  # seconds between two looks at what they do


def on_ray(
    calls: Sequence[Mapping[str, Any]],
    function: Callable[..., dict[str, Any]],
    look: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of a call, what `function` gives for it), as they end; each takes its `threads` CPUs, and a GPU for cuda.

    `look` is called now and then meanwhile. The first error of a call stops the others, which save what they have, and
    is raised. Interrupted on a signal, too. EnvironmentMissing where a worker dies.
    """
    import ray

    _connect(ray)
    task = ray.remote(max_retries=0)(_call)
    waiting = {}
    for number, call in enumerate(calls):
        needs = {"num_cpus": call["threads"], "num_gpus": int(call.get("device") == "cuda")}
        waiting[task.options(**needs).remote(function, dict(call), str(Path.cwd()))] = number
    try:
        while waiting:
            ended, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOK)
            look()
            for done in ended:
                yield waiting.pop(done), _result(ray, done)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted: each point has saved its state; the same command continues") from error
    finally:
        _stop(ray, list(waiting))


def _connect(ray: Any) -> None:
    """To the cluster of RAY_ADDRESS, or to one of this machine alone, which ends with this process."""
    if ray.is_initialized():
        return
    try:
        ray.init(include_dashboard=False, configure_logging=False)  # workers' warnings come through
    except Exception as error:  # Ray raises this very class where it runs out of time
        where = os.environ.get("RAY_ADDRESS") or "this machine"
        raise EnvironmentMissing(
            f"Ray does not start on {where} ({str(error).splitlines()[0]}); start it there with `ray start`, or unset "
            "RAY_ADDRESS to use this machine alone"
        ) from error


def _call(function: Callable[..., dict[str, Any]], call: dict[str, Any], folder: str) -> dict[str, Any] | Exception:
    """In a worker: the result, or the error of a user. `folder`: what relative paths begin at."""
    try:
        os.chdir(folder)
        return function(**call)
    except (BitpressError, ImportError) as error:
        return error
    except OSError as error:
        return UsageError(
            f"{error.filename}: {error.strerror}, on a machine of the cluster; all must see the same files"
        )


def _result(ray: Any, done: Any) -> dict[str, Any]:
    try:
        found = ray.get(done)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        raise EnvironmentMissing(
            f"a worker of Ray died ({str(error).splitlines()[0]}); finished points and checkpoints are kept, and the "
            "same command continues"
        ) from error
    if isinstance(found, Exception):
        raise found
    return dict(found)


def _stop(ray: Any, left: Sequence[Any]) -> None:
    """Interrupts what still runs, as a signal would, and waits until it has saved its state."""
    for one in left:
        ray.cancel(one)
    if left:
        ray.wait(list(left), num_returns=len(left), timeout=LEAVE)
