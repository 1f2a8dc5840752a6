"""`python -m bitpress.benchmarks.gate_study record|judge|live|table`: how often `bitpress compare` errs.

Three arms, each ResNet-20 w4a4 in `bitpress-run` against `bitpress-run`: the same build twice, and builds whose
convolutions are slowed down so far that the network takes 10 or 25 % longer. `record` draws pairs of processes as the
verb does and keeps their times; `judge` puts the verb's own rule, gate.py, to what was recorded; `live` calls the verb
itself; `table` writes benchmarks/results/gate.md from what they stored. `record` and `live` go on where they were
stopped. Needs the sources and CMake; network and builds are made once, in build/gate.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..cli.progress import Progress
from ..core.errors import BitpressError, CheckFailed, EnvironmentMissing, UsageError
from ..core.host import cpu_name, write_text
from ..core.rundir import read_json
from .compare import Pairs, timer
from .gate_judge import ARMS, COMMAND, SAME, STEPS, judge, page, recorded
from .harness import pinned
from .process import TOOL, Job, runtime

ROOT = Path(__file__).resolve().parents[1]
STORE = Path(__file__).parent / "results" / "gate"
TABLE = Path(__file__).parent / "results" / "gate.md"
WORK = ROOT / "build" / "gate"  # the network, the builds
MODEL, BITS, CALIBRATION = "resnet20", "w4a4", "random:8"
PAIRS = 400  # of an arm
BLOCK = 40  # pairs of one arm before it is the turn of the next; what a kill loses
RUNS = 20  # of the verb, an arm


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or that of what went wrong."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of an arm (record)")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of the verb, an arm (live)")
    parser.add_argument("--store", type=Path, default=STORE, help="folder of the documents")
    parser.add_argument("--table", type=Path, default=TABLE, help="the page (table)")
    asked = parser.parse_args(arguments)
    try:
        if asked.step == "record":
            record(asked.store, asked.pairs)
        elif asked.step == "judge":
            judge(asked.store)
        elif asked.step == "live":
            live(asked.store, asked.runs)
        else:
            write_text(asked.table, page(asked.store))
            print(f"{asked.table} written")
    except BitpressError as error:
        print(f"gate_study: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gate_study: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


@dataclass(frozen=True, slots=True)
class Rig:
    """What is timed: the network's file, and the bitpress-run that is NEW of each arm; that of SAME is BASE of all."""

    network: Path
    tools: Mapping[str, Path]
    delays: Mapping[str, float]  # percent by which convolutions of a build are slowed down
    isa: str


def record(store: Path, pairs: int, block: int = BLOCK) -> None:
    """Times `pairs` pairs of every arm, in blocks that take turns; a block is stored when it is complete."""
    files = {arm: store / f"{arm}.json" for arm in ARMS}
    kept = {arm: read_json(file) for arm, file in files.items() if file.exists()}
    rig = _rig({arm: document["delay"] for arm, document in kept.items()})
    facts = _facts(rig)
    for arm, document in kept.items():
        _check_same(files[arm], document, facts)
    fresh = {arm: {**facts, "planted": ARMS[arm], "delay": rig.delays[arm], "blocks": []} for arm in ARMS}
    documents = {arm: {**kept.get(arm, fresh[arm]), "command": f"{COMMAND} record --pairs {pairs}"} for arm in ARMS}
    store.mkdir(parents=True, exist_ok=True)
    have = {arm: sum(len(b["pairs"]) for b in document["blocks"]) for arm, document in documents.items()}
    missing = sum(max(0, pairs - count) for count in have.values())
    drawn = 0
    with pinned(1), Progress(quiet=False) as progress:
        draws = {arm: _draw(rig, arm) for arm in ARMS} if missing else {}
        while short := [arm for arm in ARMS if have[arm] < pairs]:
            arm = min(short, key=lambda each: have[each] // block)
            count, times = min(block, pairs - have[arm]), []
            at = datetime.now(UTC).isoformat(timespec="seconds")
            what = f"record, {arm}, pairs {have[arm] + 1} to {have[arm] + count} of {pairs}"
            for _ in range(count):
                progress(what, drawn / missing)
                times.append([round(t, 5) for t in draws[arm]()])
                drawn += 1
            documents[arm]["blocks"].append({"at": at, "pairs": times})
            have[arm] += count
            write_text(files[arm], _lines(documents[arm]))
    print(f"{store}: {', '.join(f'{count} pairs of {arm}' for arm, count in have.items())}")


def _facts(rig: Rig) -> dict[str, Any]:
    """What pairs of one record have in common."""
    return {
        "cpu": cpu_name(), "isa": rig.isa, "seconds": Job("").seconds, "network": f"{MODEL} {BITS}, {CALIBRATION}",
        "sha256": hashlib.sha256(rig.network.read_bytes()).hexdigest(),
    }  # fmt: skip


def _check_same(file: Path, document: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        if document.get(key) != value:
            raise UsageError(
                f"{file} was recorded with {key} {document.get(key)!r}, now it is {value!r}: remove {file.parent}, or "
                "give another --store"
            )


def _lines(document: Mapping[str, Any]) -> str:
    """JSON, one block of pairs a line."""
    head = {key: value for key, value in document.items() if key != "blocks"}
    blocks = ",\n".join(json.dumps(block, separators=(",", ":")) for block in document["blocks"])
    return f'{json.dumps(head)[:-1]}, "blocks": [\n{blocks}\n]}}\n'


def _draw(rig: Rig, arm: str) -> Pairs:
    job = Job(str(rig.network))
    sides = [runtime(str(rig.tools[name]), job) for name in (SAME, arm)]
    base, new = (timer(live, live.side()) for live in sides)
    return Pairs(base, new)


def _rig(delays: Mapping[str, float]) -> Rig:
    """Makes what is not there yet; `delays` of arms that were recorded before."""
    if not (ROOT / "CMakeLists.txt").exists():
        raise EnvironmentMissing(f"the study builds {TOOL} from its sources, which {ROOT} does not hold: clone them")
    WORK.mkdir(parents=True, exist_ok=True)
    network = WORK / f"{MODEL}-{BITS}.bpk"
    if not network.exists():
        from ..delivery import Recipe
        from ..delivery import compile as compile_network

        print(f"compiling {network.name}", file=sys.stderr)
        compile_network(MODEL, network, recipe=Recipe(BITS, CALIBRATION))
    base = _build(0.0)
    told = _bench(base, network)
    steps = told["steps"]
    convolutions = sum(step["median"] for step in steps if step["op"] == "conv2d")
    share = round(convolutions / sum(step["median"] for step in steps), 2)
    needed = {arm: delays.get(arm, round(100 * (ratio - 1) / share, 2)) for arm, ratio in ARMS.items()}
    return Rig(network, {arm: _build(delay) for arm, delay in needed.items()}, needed, told["host"]["isa"])


def _build(delay: float) -> Path:
    """bitpress-run whose convolutions take `delay` percent longer; built once."""
    tool = WORK / f"{TOOL}-{delay:g}"
    if tool.exists():
        return tool
    print(f"building {tool.name}", file=sys.stderr)
    tree = WORK / "tree"
    _run("cmake", "-S", ROOT, "-B", tree, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DBITPRESS_DELAY={delay:g}")
    _run("cmake", "--build", tree, "--target", TOOL)
    part = tool.with_name(f".{tool.name}")
    shutil.copy2(tree / TOOL, part)
    return part.replace(tool)


def _run(*command: str | Path) -> None:
    """Runs a tool of this environment or of the system; EnvironmentMissing where it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    words, environment = [str(word) for word in command], {**os.environ, "PATH": path}
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise EnvironmentMissing(f"cannot run {words[0]}, which the study builds {TOOL} with: {error}") from error
    if done.returncode:
        raise EnvironmentMissing(f"{words[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")


def _bench(tool: Path, network: Path) -> Any:
    """What the tool itself says of host and steps."""
    command = [str(tool), str(network), "--bench", "1", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentMissing(f"{tool.name} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def live(store: Path, runs: int) -> None:
    """Runs `bitpress compare` until there are `runs` runs of every arm, in turns; each is stored when it ends."""
    file = store / "live.json"
    delays = {arm: document["delay"] for arm, document in recorded(store).items()}
    rig = _rig(delays)
    kept: dict[str, Any] = read_json(file) if file.exists() else {"cpu": cpu_name(), "runs": []}
    _check_same(file, kept, {"cpu": cpu_name()})
    have = {arm: sum(run["arm"] == arm for run in kept["runs"]) for arm in ARMS}
    missing, done = sum(max(0, runs - count) for count in have.values()), 0
    with Progress(quiet=False) as progress:
        while short := [arm for arm in ARMS if have[arm] < runs]:
            arm = min(short, key=lambda each: have[each])
            progress(f"live, {arm}, run {have[arm] + 1} of {runs}", done / missing)
            kept["runs"].append({"arm": arm, **_compare(rig, arm)})
            have[arm] += 1
            done += 1
            rows = ",\n".join(json.dumps(run) for run in kept["runs"])
            write_text(file, f'{{"cpu": {json.dumps(kept["cpu"])}, "runs": [\n{rows}\n]}}\n')
    print(f"{file}: {', '.join(f'{count} runs of {arm}' for arm, count in have.items())}")


def _compare(rig: Rig, arm: str) -> dict[str, Any]:
    """One run of the verb, as it is typed."""
    network, at = str(rig.network), datetime.now(UTC).isoformat(timespec="seconds")
    command = [
        sys.executable, "-P", "-m", "bitpress", "compare", network, network, "-q", "--json", "-",
        "--runtime-base", str(rig.tools[SAME]), "--runtime-new", str(rig.tools[arm]),
    ]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    if done.returncode not in (0, 1) or not done.stdout:
        raise EnvironmentMissing(f"bitpress compare ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout)
    if found["paired"] is None:
        raise CheckFailed(f"bitpress compare timed nothing: {found['why']}")
    return {
        "at": at, "verdict": found["verdict"], "ratio": round(found["ratio"], 4),
        "ci": [round(end, 4) for end in found["ci"]], "detectable": round(found["detectable"], 4),
        "pairs": sum(map(len, found["paired"]["batches"])), "seconds": round(seconds, 1),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
