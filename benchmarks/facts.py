"""What of a compiled network needs no clock: bytes, BOPs, kernels, launches, outputs; and what may not get worse.

Pure: it measures nothing and reads no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..core.errors import UsageError, close

REFERENCE = "reference"
# Count of a network -> the key under which `--allow` accepts more of it.
COUNTS = {
    "file_bytes": "bytes", "content_bytes": "bytes", "weight_bytes": "bytes", "bops": "bops", "launches": "launches",
    "instructions": "instructions",
}  # fmt: skip
KEYS = ("bytes", "bops", "launches", "instructions", "kernel", "output")
SLACK = {"instructions": 0.01}  # interrupts and page faults of other work move this count, none of the others
SAME, FEWER, MORE, OTHER, FASTER, SLOWER, UNKNOWN = "same", "fewer", "more", "other", "faster", "slower", "unknown"
WORSE = (MORE, OTHER, SLOWER)


@dataclass(frozen=True, slots=True)
class Row:
    """What runs one step. `cost`: microseconds for one image by the cost model of the kernels; None where unknown."""

    kernel: str
    isa: str
    cost: float | None


@dataclass(frozen=True, slots=True)
class Network:
    """One compiled network as one runtime runs it.

    `counts`: of COUNTS, None where the host or the file does not say; content is the file without padding. `kernels`:
    step -> Row. `output`: SHA-256 over the outputs of the fixed images. `times`: milliseconds, one median a process.
    `in_shape`, `outputs`, `layers` say which network it is; None and empty in files that do not hold them.
    """

    name: str
    in_shape: tuple[int, ...] | None
    outputs: int | None
    layers: tuple[str, ...]
    counts: Mapping[str, int | None]
    kernels: Mapping[str, Row]
    output: str | None
    times: tuple[float, ...] = ()

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            **asdict(self), "in_shape": None if self.in_shape is None else list(self.in_shape),
            "layers": list(self.layers), "times": [round(t, 6) for t in self.times],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """BASE or NEW: where it comes from, on which host (cpu, isa, threads, gpu), and its networks.

    `stored`: read from a file; its times were not measured next to those of the other side.
    """

    source: str
    host: Mapping[str, Any]
    networks: tuple[Network, ...]
    stored: bool = False
    runtime: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "source": self.source, "stored": self.stored, "runtime": self.runtime,
            "environment": dict(self.environment), "host": dict(self.host),
            "networks": [network.document() for network in self.networks],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One fact of both sides. `key`: of KEYS; `what`: for people; `change`: what NEW is to BASE."""

    key: str
    what: str
    base: Any
    new: Any
    change: str
    allowed: bool = False

    @property
    def passed(self) -> bool:
        """Not worse, or allowed."""
        return self.allowed or self.change not in WORSE

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        return {**asdict(self), "passed": self.passed}

    def sentence(self) -> str:
        """What changed, with the numbers."""
        if self.key == "kernel":
            return f"{self.what} is {_row(self.new)} instead of {_row(self.base)}"
        if self.key == "output":
            return f"{self.what} differs: {str(self.new)[:12]} instead of {str(self.base)[:12]}"
        return f"{self.what} {self.new:,} instead of {self.base:,} ({self.new - self.base:+,})"


def check_allowed(allow: Sequence[str]) -> None:
    """UsageError for a key that no check has."""
    for key in allow:
        if key not in KEYS:
            raise UsageError(f"--allow {key}: there is no such check{close(key, KEYS)}; valid: {', '.join(KEYS)}")


def checks(base: Side, new: Side, allow: Sequence[str] = ()) -> tuple[Check, ...]:
    """Every fact of both; UsageError where they are not the same networks."""
    found = []
    for first, second in pairs(base, new):
        prefix = f"{first.name}: " if len(base.networks) > 1 else ""
        found += [replace(c, what=prefix + c.what, allowed=c.key in allow) for c in _checks(first, second)]
    return tuple(found)


def pairs(base: Side, new: Side) -> list[tuple[Network, Network]]:
    """The networks of both sides that belong together; UsageError where one has no partner or is another network."""
    if len(base.networks) == len(new.networks) == 1:
        found = [(base.networks[0], new.networks[0])]
    else:
        names = {network.name: network for network in new.networks}
        gone = [network.name for network in base.networks if network.name not in names]
        if gone:
            raise UsageError(
                f"{new.source} has no {gone[0]}, one of {len(base.networks)} networks of {base.source}: record both by "
                "the same command"
            )
        found = [(network, names[network.name]) for network in base.networks]
    for first, second in found:
        _same_network(base.source, first, new.source, second)
    return found


def _same_network(base: str, first: Network, new: str, second: Network) -> None:
    remedy = "give a BASE of the same network"
    for what, a, b in (
        ("input", first.in_shape, second.in_shape),
        ("number of outputs", first.outputs, second.outputs),
    ):
        if a != b:
            raise UsageError(
                f"{new} is another network than {base}: its {what} is {_text(b)}, not {_text(a)}; {remedy}"
            )
    other = sorted(set(first.layers) ^ set(second.layers))
    if other:
        holder = base if other[0] in first.layers else new
        raise UsageError(
            f"{new} is another network than {base}: {len(other)} layers are in one of them only, {other[0]} in "
            f"{holder}; {remedy}"
        )


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _checks(base: Network, new: Network) -> Iterator[Check]:
    for name, key in COUNTS.items():
        if name in base.counts and name in new.counts:
            a, b = base.counts[name], new.counts[name]
            yield Check(key, name.replace("_", " "), a, b, _change(a, b, SLACK.get(key, 0.0)))
    moved = list(_kernels(base.kernels, new.kernels))
    yield from moved
    if not moved and base.kernels:
        steps = f"{len(base.kernels)} steps"
        yield Check("kernel", "kernels", steps, steps, SAME)
    if base.output is not None and new.output is not None:
        yield Check("output", "output", base.output, new.output, SAME if base.output == new.output else OTHER)


def _change(base: int | None, new: int | None, slack: float) -> str:
    if base is None or new is None:
        return UNKNOWN
    if abs(new - base) <= slack * base:
        return SAME
    return MORE if new > base else FEWER


def _kernels(base: Mapping[str, Row], new: Mapping[str, Row]) -> Iterator[Check]:
    """Steps of both that another row runs. One whose cost nobody knows counts as slower: nobody has shown otherwise."""
    for step, row in base.items():
        other = new.get(step)
        if other is None or (row.kernel, row.isa) == (other.kernel, other.isa):
            continue
        if REFERENCE in (row.isa, other.isa):  # numpy has no cost, and nothing is slower
            change = SLOWER if other.isa == REFERENCE else FASTER
        elif row.cost is None or other.cost is None:
            change = SLOWER
        else:
            change = SLOWER if other.cost > row.cost else FASTER
        yield Check("kernel", f"kernel of {step}", asdict(row), asdict(other), change)


def _row(row: Mapping[str, Any]) -> str:
    cost = "cost unknown" if row["cost"] is None else f"about {row['cost']:.3g} us"
    return f"{row['kernel']} ({cost})"


def failure(found: Sequence[Check]) -> str:
    """The sentence about what got worse, "" if nothing did."""
    worse = [check for check in found if not check.passed]
    if not worse:
        return ""
    keys = ",".join(dict.fromkeys(check.key for check in worse))
    shown = "; ".join(check.sentence() for check in worse[:4])
    rest = f"; and {len(worse) - 4} more" if len(worse) > 4 else ""
    return f"NEW is worse than BASE: {shown}{rest}. Where that is meant, --allow {keys} accepts it"


def summary(found: Sequence[Check]) -> dict[str, Any]:
    """The `deterministic` part of the document."""
    return {
        "passed": all(check.passed for check in found),
        "failed": list(dict.fromkeys(check.key for check in found if not check.passed)),
        "allowed": list(dict.fromkeys(check.key for check in found if check.allowed and check.change in WORSE)),
        "checks": [check.document() for check in found],
    }
