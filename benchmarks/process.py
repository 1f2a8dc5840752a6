"""One network in processes of its own: what it is, and its time, verified before it is taken.

`python -m bitpress.benchmarks.process REQUEST` is the child, for `compare` alone; the other runtime is `bitpress-run`,
in any build. Calls of one process agree with each other far better than with those of the next, where memory lies
elsewhere: hence one time a process.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from ..compiler import artifact
from ..compiler.execute import execute
from ..compiler.inspect import layer_rows
from ..compiler.lower import problem_of
from ..compiler.model import Model
from ..compiler.program import Program
from ..core.errors import (
    BitpressError,
    CheckFailed,
    CorruptError,
    EnvironmentMissing,
    UnsupportedError,
    UsageError,
)
from ..core.host import cpu_name
from ..kernels.registry import explain
from .counters import instructions
from .facts import Network, Row, Side
from .harness import measure

TOOL = "bitpress-run"
IMAGES = 4  # whose outputs are compared
ERRORS = {e.exit_code: e for e in (CheckFailed, UsageError, UnsupportedError, CorruptError, EnvironmentMissing)}


@dataclass(frozen=True, slots=True)
class Job:
    """What every process of one side does. `seconds`: of timing in one process; `environment`: on top of ours."""

    artifact: str
    threads: int = 1
    batch: int = 1
    seconds: float = 0.3
    environment: Mapping[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """Something that runs an artifact in a process of its own."""

    def side(self) -> Side:
        """The facts. CheckFailed where the golden sample or the numpy reference disagrees."""

    def time(self, output: str) -> float:
        """Milliseconds: the median of a new process, whose outputs must have the digest `output` before it is timed."""


class Python:
    """This Bitpress."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def side(self) -> Side:
        """As Runtime.side."""
        found = self._child("")
        row = found["network"]
        kernels = {step: Row(**kernel) for step, kernel in row.pop("kernels").items()}
        shape, layers = tuple(row.pop("in_shape")), tuple(row.pop("layers"))
        row.pop("times")
        network = Network(**row, in_shape=shape, layers=layers, kernels=kernels)
        return Side(self._job.artifact, found["host"], (network,), environment=self._job.environment)

    def time(self, output: str) -> float:
        """As Runtime.time."""
        return float(self._child(output)["median"])

    def _child(self, output: str) -> Any:
        job = self._job
        request = {
            "artifact": job.artifact, "threads": job.threads, "batch": job.batch, "seconds": job.seconds,
            "output": output,
        }  # fmt: skip
        command = [sys.executable, "-P", "-m", __name__, json.dumps(request)]
        return _document(command, job, Path(sys.executable).name)


class Tool:
    """A build of `bitpress-run`; what it does not say of the artifact is read here."""

    def __init__(self, path: str, job: Job) -> None:
        """UsageError where `path` is nothing to execute, or a batch is asked for, which the tool does not time."""
        if not (Path(path).is_file() and os.access(path, os.X_OK)):
            raise UsageError(f"runtime {path} is no program: give a build of bitpress-run")
        if job.batch != 1:
            raise UsageError(f"--batch {job.batch}: bitpress-run times one image; leave --batch out, or the runtimes")
        self._path, self._job = str(Path(path).resolve()), job

    @cached_property
    def _fixed(self) -> np.ndarray:
        """The fixed images, in the shape that the artifact takes."""
        program = artifact.read(self._job.artifact)
        return images(program.buffers[program.input].shape)

    def side(self) -> Side:
        """As Runtime.side."""
        data = artifact.load_bytes(self._job.artifact)
        program = artifact.decode(data)
        golden = [] if program.golden_input is None else ["--verify"]
        found, outputs = self._run(golden)
        _check_reference(self._job.artifact, program, outputs)
        try:
            network = _network(program, data, found["steps"], digest(outputs), None)
            host = {**found["host"], "gpu": None}
        except (KeyError, TypeError) as error:
            raise self._foreign() from error
        return Side(self._job.artifact, host, (network,), runtime=self._path, environment=self._job.environment)

    def time(self, output: str) -> float:
        """As Runtime.time; the tool computes outputs first, and its time is dropped where they are wrong."""
        found, outputs = self._run(["--bench", str(self._job.seconds)])
        if digest(outputs) != output:
            raise CheckFailed(_changed(self._job.artifact))
        try:
            return float(found["bench"]["total"]["median"])
        except (KeyError, TypeError) as error:
            raise self._foreign() from error

    def _run(self, options: Sequence[str]) -> tuple[Any, np.ndarray]:
        """The tool's document and the outputs of the fixed images."""
        job = self._job
        with TemporaryDirectory(prefix="bitpress-compare-") as folder:
            x, y = Path(folder, "x.npy"), Path(folder, "y.npy")
            np.save(x, self._fixed)
            command = [self._path, job.artifact, "--input", str(x), "--output", str(y), "--threads", str(job.threads)]
            found = _document([*command, *options, "--json", "-"], job, self._path)
            try:
                return found, np.load(y, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise self._foreign() from error

    def _foreign(self) -> UsageError:
        return UsageError(f"runtime {self._path} does not say what bitpress-run says: give a build of bitpress-run")


def runtime(path: str | None, job: Job) -> Runtime:
    """The build of bitpress-run at `path`, or this Bitpress."""
    return Python(job) if path is None else Tool(path, job)


def images(shape: Sequence[int]) -> np.ndarray:
    """The images whose outputs are compared, always the same: float32 [IMAGES, C, H, W], multiples of 1/256 to 2."""
    return (np.random.default_rng(0).integers(-512, 513, (IMAGES, *shape)) / 256).astype(np.float32)


def digest(outputs: np.ndarray) -> str:
    """SHA-256 of float32 values, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(outputs, "<f4").tobytes()).hexdigest()


def _document(command: Sequence[str], job: Job, program: str) -> Any:
    """What a child printed, as JSON; its error as the exception that it was."""
    environment = {**os.environ, **job.environment}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"cannot run {program}: {error.strerror}") from error
    if job_error := _error(done, program):
        raise job_error
    if done.returncode:
        raise EnvironmentMissing(
            f"{program} ended with {done.returncode} while it ran {job.artifact}: {_last(done.stderr) or 'no message'}"
        )
    try:
        found = json.loads(done.stdout)
    except ValueError as error:
        raise UsageError(f"{program} printed no document: give a build of bitpress-run") from error
    if "error" in found:
        raise ERRORS[found["code"]](found["error"])
    return found


def _error(done: subprocess.CompletedProcess[str], program: str) -> BitpressError | None:
    """What bitpress-run says with its exit code. Our own child puts errors in its document: other codes are crashes."""
    said = _last(done.stderr)
    if done.returncode not in ERRORS or not said.startswith(f"{TOOL}: "):
        return None
    return ERRORS[done.returncode](f"{program}: {said.removeprefix(f'{TOOL}: ')}")


def _last(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _changed(artifact_name: str) -> str:
    return f"{artifact_name}: outputs are not those of the process before; nothing is timed. Try `bitpress verify`"


def _check_reference(name: str, program: Program, outputs: np.ndarray) -> None:
    """The first image through numpy must be the first output, bit by bit."""
    want = execute(program, images(program.buffers[program.input].shape)[:1])
    off = int((outputs[:1] != want).sum())
    if off:
        raise CheckFailed(f"{name}: {off} of {want.size} outputs differ from the reference; nothing is compared")


def _network(
    program: Program, data: bytes, bound: Sequence[Mapping[str, Any]], output: str, executed: int | None
) -> Network:
    """Facts of a program whose steps run as `bound` says (step, kernel, isa)."""
    totals = program.meta.get("totals")
    weights = sum(s.weight.fields.nbytes for s in program.steps if s.weight is not None)
    padding = dict(artifact.parts(data))["padding"]
    return Network(
        name=str(program.meta.get("model", "")),
        in_shape=tuple(program.buffers[program.input].shape),
        outputs=int(np.prod(program.buffers[program.output].shape)),
        layers=tuple(row["name"] for row in layer_rows(program, bound)),
        counts={
            "file_bytes": len(data),
            "content_bytes": len(data) - padding,
            "weight_bytes": weights,
            "bops": totals.get("bops") if isinstance(totals, Mapping) else None,
            "launches": len(program.steps),
            "instructions": executed,
        },
        kernels={
            step.name: Row(str(row["kernel"]), str(row["isa"]), _cost(program, number, str(row["kernel"])))
            for number, (step, row) in enumerate(zip(program.steps, bound, strict=True))
        },
        output=output,
    )


def _cost(program: Program, number: int, kernel: str) -> float | None:
    """Microseconds that the cost model gives the row for this step; None where it cannot run here or is not known."""
    verdicts = explain(problem_of(program.steps[number], program.buffers))
    found = next((v.cost for v in verdicts if v.kernel.name == kernel), None)
    return None if found is None else round(float(found), 6)


def facts_of(name: str, data: bytes, model: Model, threads: int) -> dict[str, Any]:
    """Host and network of a loaded artifact, as documents. CheckFailed where it does not compute what it should."""
    if model.golden_check() is False:
        raise CheckFailed(f"{name}: the golden sample does not come out; nothing is compared. Try `bitpress verify`")
    fixed = images(model.shape)
    outputs = model(fixed)
    _check_reference(name, model.program, outputs)

    def counted() -> Any:
        session = Model(data, threads=threads).session
        return lambda: session.run(fixed[:1])

    executed = None if model.session is None else instructions(counted)
    network = _network(model.program, data, model.inspect_rows(), digest(outputs), executed)
    host = {"cpu": cpu_name(), "isa": model.isa, "threads": threads, "gpu": None}
    return {"host": host, "network": network.document()}


def call_of(model: Model, batch: int) -> Callable[[], np.ndarray]:
    """One call of the network on `batch` of the fixed images."""
    x = np.ascontiguousarray(np.resize(images(model.shape), (batch, *model.shape)))
    if model.session is None:
        return partial(execute, model.program, x)
    return partial(model.session.run, x)


def child(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the child answers: facts without `output`, else the time of a network that gives it."""
    name, threads = str(request["artifact"]), int(request["threads"])
    data = artifact.load_bytes(name)
    model = Model(data, threads=threads)
    if not request["output"]:
        return facts_of(name, data, model, threads)
    if digest(model(images(model.shape))) != request["output"]:
        raise CheckFailed(_changed(name))
    run = call_of(model, int(request["batch"]))
    return {"median": measure({"": run}, seconds=float(request["seconds"]))[""].median}


def main() -> int:
    """Prints what `child` answers, or its error, as JSON."""
    try:
        found = child(json.loads(sys.argv[1]))
    except BitpressError as error:
        found = {"error": str(error), "code": error.exit_code}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
