"""BASE or NEW from a file: a document of `bitpress compare`, or what pytest-benchmark wrote. Read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import CorruptError, UsageError
from ..core.host import SCHEMA_VERSION
from .facts import COUNTS, Network, Row, Side

COMPARE = "bitpress.compare"
PLUGIN = "bitpress"  # key of extra_info under which the pytest plugin keeps host and network
KINDS = {
    str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "an object",
}  # fmt: skip


def is_stored(source: str) -> bool:
    """Whether `source` names a file that this module reads: by its ending, .json."""
    return Path(source).suffix.lower() == ".json"


def read(source: str) -> Side:
    """The NEW side of a stored comparison, or the networks of a file of pytest-benchmark.

    UsageError where the file cannot be read, is another document, or a comparison that failed; CorruptError where it is
    empty, no JSON, of another version, or lacks a key.
    """
    document = _load(source)
    if "schema" not in document and "machine_info" in document:
        return _recorded(source, document)
    schema = need(source, document, "schema", str)
    if schema != COMPARE:
        raise UsageError(
            f"{source} is a document {schema}; BASE and NEW are .bpk files, documents of `bitpress compare --json` or "
            "files of pytest-benchmark"
        )
    version = need(source, document, "schema_version", int)
    if version != SCHEMA_VERSION:
        raise CorruptError(
            f"{source} has schema_version {version}, this Bitpress reads {SCHEMA_VERSION}: record it anew"
        )
    if need(source, document, "verdict", str) == "fail":
        raise UsageError(
            f"{source} holds a comparison that failed, which is no baseline: accept what changed with --allow KEY and "
            "store that document"
        )
    side = need(source, document, "new", dict)
    host = _host(source, "new.host", side)
    rows = need(source, side, "new.networks", list)
    if not rows:
        raise CorruptError(f"{source}: new.networks is empty: record it anew")
    networks = tuple(_network(source, f"new.networks[{i}]", row) for i, row in enumerate(rows))
    return Side(source, host, networks, stored=True)


def _load(source: str) -> dict[str, Any]:
    def constant(word: str) -> float:
        raise ValueError(f"{word} is no number")

    try:
        text = Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorruptError(f"{source} is no JSON: {error}") from error
    if not text.strip():
        raise CorruptError(f"{source} is empty: record it anew with `bitpress compare BASE NEW --json {source}`")
    try:
        document = json.loads(text, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{source} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise CorruptError(f"{source} holds {type(document).__name__}, not a document: record it anew")
    return document


def need(source: str, holder: Any, path: str, kind: type) -> Any:
    """The value under the last part of `path`; CorruptError where it is missing or of another kind."""
    key = path.rpartition(".")[2]
    if not isinstance(holder, Mapping) or key not in holder:
        raise CorruptError(f"{source} lacks the key {path}: record it anew")
    value = holder[key]
    number = kind is float and isinstance(value, int)
    if isinstance(value, bool) or not (number or isinstance(value, kind)):
        raise CorruptError(f"{source}: {path} is {json.dumps(value)[:40]}, not {KINDS[kind]}")
    return value


def _host(source: str, path: str, holder: Any) -> dict[str, Any]:
    host = need(source, holder, path, dict)
    cpu, threads = need(source, host, f"{path}.cpu", str), need(source, host, f"{path}.threads", int)
    return {"cpu": cpu, "isa": host.get("isa"), "threads": threads, "gpu": host.get("gpu")}


def _time(source: str, path: str, value: float) -> float:
    if value <= 0:
        raise CorruptError(f"{source}: {path} is {value}, not a time")
    return value


def _maybe(source: str, holder: Any, path: str, kind: type) -> Any:
    """As `need`; a value may be null."""
    key = path.rpartition(".")[2]
    if isinstance(holder, Mapping) and key in holder and holder[key] is None:
        return None
    return need(source, holder, path, kind)


def _network(source: str, path: str, row: Any) -> Network:
    shape = _maybe(source, row, f"{path}.in_shape", list)
    counts, kernels = need(source, row, f"{path}.counts", dict), need(source, row, f"{path}.kernels", dict)
    for index, time in enumerate(need(source, row, f"{path}.times", list)):
        need(source, {f"times[{index}]": time}, f"{path}.times[{index}]", float)
        _time(source, f"{path}.times[{index}]", time)
    return Network(
        name=need(source, row, f"{path}.name", str),
        in_shape=None if shape is None else tuple(shape),
        outputs=_maybe(source, row, f"{path}.outputs", int),
        layers=tuple(need(source, row, f"{path}.layers", list)),
        counts={name: _maybe(source, counts, f"{path}.counts.{name}", int) for name in COUNTS},
        kernels={step: _kernel(source, f"{path}.kernels.{step}", found) for step, found in kernels.items()},
        output=_maybe(source, row, f"{path}.output", str),
        times=tuple(float(time) for time in row["times"]),
    )


def _kernel(source: str, path: str, row: Any) -> Row:
    return Row(
        need(source, row, f"{path}.kernel", str), need(source, row, f"{path}.isa", str),
        _maybe(source, row, f"{path}.cost", float),
    )  # fmt: skip


def _recorded(source: str, document: Mapping[str, Any]) -> Side:
    """A file of pytest-benchmark. What its benchmarks do not agree on is not said of the host."""
    machine = need(source, document, "machine_info", dict)
    cases = need(source, document, "benchmarks", list)
    if not cases:
        raise CorruptError(f"{source} holds no benchmarks: record it anew")
    found = [_case(source, f"benchmarks[{i}]", case, machine) for i, case in enumerate(cases)]
    hosts = [host for host, _ in found]
    if len({host["cpu"] for host in hosts}) > 1:
        raise CorruptError(f"{source} holds benchmarks of several processors: record it anew, on one")
    common = {key: value if all(host[key] == value for host in hosts) else None for key, value in hosts[0].items()}
    return Side(source, common, tuple(network for _, network in found), stored=True)


def _case(source: str, path: str, case: Any, machine: Mapping[str, Any]) -> tuple[dict[str, Any], Network]:
    """Host and network of a benchmark: one of the plugin, or one whose extra_info says bytes, bops, kernel and isa."""
    said = f"{path}.extra_info"
    info, stats = need(source, case, said, dict), need(source, case, f"{path}.stats", dict)
    if PLUGIN in info:
        whole = need(source, info, f"{said}.{PLUGIN}", dict)
        host = _host(source, f"{said}.{PLUGIN}.host", whole)
        network = _network(source, f"{said}.{PLUGIN}.network", need(source, whole, f"{said}.{PLUGIN}.network", dict))
    else:
        cpu = machine.get("bitpress_cpu") or need(source, machine.get("cpu"), "machine_info.cpu.brand_raw", str)
        host, network = {"cpu": cpu, "isa": None, "threads": None, "gpu": None}, _plain(source, said, info)
    seconds = need(source, stats, f"{path}.stats.median", float)
    name = need(source, case, f"{path}.fullname", str)
    return host, replace(network, name=name, times=(_time(source, f"{path}.stats.median", 1e3 * seconds),))


def _plain(source: str, path: str, info: Mapping[str, Any]) -> Network:
    counts = {
        "weight_bytes": need(source, info, f"{path}.bytes", int), "bops": need(source, info, f"{path}.bops", int),
    }  # fmt: skip
    kernel = info.get("kernel")
    names = kernel if isinstance(kernel, list) else [need(source, info, f"{path}.kernel", str)]
    row = Row("+".join(map(str, names)), need(source, info, f"{path}.isa", str), None)
    return Network("", None, None, (), counts, {"step": row}, None)
