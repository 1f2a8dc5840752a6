"""Everything that is to be known of a GPU, in one resumable script: exactness of every kernel, then times beside peers.

`python -m bitpress.benchmarks.gpu` goes on where it was stopped, row by row, and stops by itself before --seconds are
over; run it again until it says that all is done. Rows lie in gpu_<device>.json, `table FILE` prints them. `--dry`
rehearses it where there is no GPU, on tiny shapes in triton's interpreter: its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..core.errors import BitpressError, CheckFailed, UsageError
from ..core.host import head, write_text

STORE = Path(__file__).parent / "results"
PARTS = ("check", "gemm", "conv", "networks")
SECONDS, ROW_SECONDS = 480.0, 0.5
NETWORKS = (("resnet18", 1, 1.3), ("resnet18", 64, 1.6), ("mobilenet_v2", 1, 1.2), ("resnet20", 1, None))
NETWORK_BITS = ("w8a8", "w4a8")
LIBRARIES = ("torch", "triton", "gemlite")


@dataclass(frozen=True, slots=True)
class Case:
    """A row to be made: its part, its name, and the call that makes it in so many seconds."""

    part: str
    name: str
    facts: Mapping[str, Any]
    make: Callable[[float], Mapping[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where rows were made or all are there, 1 where a kernel is not exact, else that of the error."""
    chosen = _parser().parse_args(arguments)
    try:
        if chosen.words:
            return _table(chosen.words)
        wanted = tuple(chosen.part.split(","))
        if unknown := [part for part in wanted if part not in PARTS]:
            raise UsageError(f"--part {unknown[0]!r} is unknown; valid: {', '.join(PARTS)}")
        return _measure(wanted, chosen.seconds, chosen.row_seconds, Path(chosen.output), dry=chosen.dry)
    except BitpressError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bitpress.benchmarks.gpu", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="table FILE", help="print the rows of FILE as a table instead")
    parser.add_argument("--part", default=",".join(PARTS), help=f"by comma [{','.join(PARTS)}]")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"no row begins later [{SECONDS:.0f}]")
    parser.add_argument("--row-seconds", type=float, default=ROW_SECONDS, help=f"of timing, a row [{ROW_SECONDS}]")
    parser.add_argument("--dry", action="store_true", help="rehearse on tiny shapes, in triton's interpreter")
    parser.add_argument("-o", "--output", default=str(STORE), metavar="FOLDER", help="where the rows go [results]")
    return parser


def _table(words: Sequence[str]) -> int:
    if len(words) != 2 or words[0] != "table":
        raise UsageError(f"{' '.join(words)!r}: the only words are `table FILE`")
    try:
        document = json.loads(Path(words[1]).read_text(encoding="utf-8"))
        text = table(document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{words[1]} is no file of this script: {error}") from error
    print(text)
    return 0


def _measure(parts: Sequence[str], seconds: float, row_seconds: float, folder: Path, *, dry: bool) -> int:
    if not folder.is_dir():
        raise UsageError(f"-o {folder} is no folder")
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is loaded
    from ..kernels import gpu

    device, begin = gpu.device(), time.monotonic()
    path = folder / f"gpu_{_slug('dry' if dry else gpu.name(device))}.json"
    document = _document(path, gpu.name(device), gpu.target(device))
    rows: list[dict[str, Any]] = document["rows"]
    done = {row["name"] for row in rows}
    cases = [case for case in _cases(device, dry=dry) if case.part in parts]
    left = [case for case in cases if case.name not in done]
    for i, case in enumerate(left):
        if time.monotonic() - begin > seconds:
            print(f"gpu: {len(left) - i} of {len(cases)} rows are left: the same command goes on", file=sys.stderr)
            return 0
        print(f"gpu: {len(cases) - len(left) + i + 1} of {len(cases)}, {case.name}", file=sys.stderr, flush=True)
        rows.append({"part": case.part, "name": case.name, **case.facts, **case.make(row_seconds)})
        write_text(path, json.dumps(document, indent=1) + "\n")
    print(f"gpu: all {len(cases)} rows of {', '.join(parts)} are in {path}", file=sys.stderr)
    if wrong := [row["name"] for row in rows if not row["exact"]]:
        raise CheckFailed(f"{len(wrong)} of {len(rows)} rows are not exact, the first {wrong[0]}")
    return 0


def _document(path: Path, name: str, target: str) -> dict[str, Any]:
    """What is there already, else a new one; UsageError where it is of other versions."""
    versions = {library: _version(library) for library in LIBRARIES}
    new = {**head("bitpress.gpu", isa=target, gpu=name), "versions": versions, "rows": []}
    if not path.exists():
        return new
    try:
        old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = (old["schema"], old["versions"], old["bitpress"]) == (new["schema"], versions, new["bitpress"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no file of this script: remove it, or name another folder with -o") from error
    if not same:
        raise UsageError(f"{path} was made with other versions: remove it, or name another folder with -o")
    return old


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def _cases(device: str, *, dry: bool) -> Iterator[Case]:
    """All rows there are; few and tiny ones where `dry`."""
    from . import gpu_layers as layers
    from . import gpu_networks as networks

    sizes: Sequence[tuple[int, ...]] = ((2, 33, 128),) if dry else layers.CHECKED
    windows: Sequence[tuple[int, ...]] = () if dry else ((2, 40, 128, 14), (1, 130, 64, 7))
    for kind in (*layers.PAIRS.values(), *layers.GRIDS):
        for problem in (layers.Problem(kind, *size) for size in (*sizes, *windows)):
            yield Case("check", f"check {problem.name}", {}, partial(layers.check, problem, device))
    images = (1, 3, 3, 40) if dry else (2, 14, 14, 96)
    for weight in ("i8", "o4") if dry else ("i8", "o8", "i4", "o4", "i2", "o2"):
        yield Case(
            "check", f"check {weight} depthwise, pools", {}, partial(layers.check_planar, weight, images, device)
        )

    def timed(part: str, bits: str, shape: str, problem: layers.Problem, goal: float) -> Case:
        make = partial(layers.timed, problem, device, goal=goal, dry=dry)
        return Case(part, f"{part} {bits} {shape}", {"bits": bits, "shape": shape}, make)

    pairs = list(layers.PAIRS.items())[: 2 if dry else None]
    for (m, n), goals in {(3, 128): (1.0,) * len(pairs)}.items() if dry else layers.GOALS.items():
        for (bits, kind), goal in zip(pairs, goals, strict=True):
            yield timed("gemm", bits, f"M={m}, N=K={n}", layers.Problem(kind, m, n, n), goal)
    count = 1 if dry else layers.IMAGES
    for side, channels in ((2, 128),) if dry else layers.SIDES:
        for bits, kind in pairs[1:] if dry else pairs:
            problem = layers.Problem(kind, count, channels, channels, side)
            yield timed("conv", bits, f"{count} x {side} x {side} x {channels}, 3x3", problem, layers.CONV_GOAL)
    for model, batch, least in (("digits_cnn", 1, None),) if dry else NETWORKS:
        for bits in NETWORK_BITS[: 1 if dry else None]:
            make = partial(networks.timed, model, bits, batch, device, goal=least, dry=dry)
            facts = {"bits": bits, "shape": f"{model}, batch {batch}"}
            yield Case("networks", f"network {bits} {facts['shape']}", facts, make)


def table(document: Mapping[str, Any]) -> str:
    """Markdown: what was exact, then ours in microseconds and each peer's time / ours beside the goal."""
    rows, host = document["rows"], document["host"]
    checks = [row for row in rows if row["part"] == "check"]
    said = ", ".join(f"{name} {number}" for name, number in document["versions"].items() if number)
    lines = [
        f"{host['gpu']} ({host['isa']}); {said}; bitpress {document['bitpress']}. Exact: "
        f"{sum(row['exact'] for row in checks)} of {len(checks)} checks; rows that are not exact have no times.",
        "",
    ]
    for part in PARTS[1:]:
        timed = [row for row in rows if row["part"] == part]
        if not timed:
            continue
        peers = list(dict.fromkeys(name for row in timed for name in row.get("peers", ())))
        lines += [
            f"| {part} | bits | us | {' | '.join(f'{peer} / ours' for peer in peers)} | goal |",
            f"| --- | --- | --: | {' | '.join('--:' for _ in peers)} | --: |",
            *(_line(row, peers) for row in timed), "",
        ]  # fmt: skip
    reasons = {f"{name}: {why}" for row in rows for name, why in row.get("left_out", {}).items()}
    return "\n".join([*lines, *(f"Left out: {reason}" for reason in sorted(reasons))]).rstrip()


def _line(row: Mapping[str, Any], peers: Sequence[str]) -> str:
    if not row["exact"]:
        return f"| {row['shape']} | {row['bits']} | not exact | {' | '.join('' for _ in peers)} | |"
    ratios = [f"{row['peers'][peer]['ratio']:.2f}" if peer in row["peers"] else "" for peer in peers]
    goal = "" if row["goal"] is None else f"{row['goal']:g}"
    return f"| {row['shape']} | {row['bits']} | {1e3 * row['ours']['median']:.1f} | {' | '.join(ratios)} | {goal} |"


if __name__ == "__main__":
    sys.exit(main())
