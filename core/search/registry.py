"""The list of methods and the options that each takes; one that would do nothing is refused, with where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..cost import GROUP_SIZE, Space, hold_bits, hold_channels, open_ends
from ..encoding import parse_bits
from ..errors import UnsupportedError, UsageError, close
from ..graph import Graph
from ..job import Schedule, flag
from ..supernet import SuperNet
from ..train import Job
from ..train_gates import agenda
from . import ajpq, bayesian_bits, djpq, sbs, two_stage, uniform

Agenda = Callable[[Schedule], tuple[tuple[str, int, float], ...]]
SEARCHING = frozenset({"epochs_search", "lr_search", "lr_thresholds"})
PRUNING = frozenset({"group_size", "max_pruning_ratio"})
# Those that not every method takes.
OPTIONS = SEARCHING | PRUNING | {
    "mode", "variant", "bits", "prune_share", "stages_of", "restrict", "convention", "filters", "episodes",
}  # fmt: skip
BITS = "w8a8"  # where widths are given but not said
EPISODES = 120  # HAQ takes 600, each with an epoch of training
PRUNE_SHARE = 0.25  # of the fall of ln BOPs: 1.4x where widths do the rest of 4x, near the paper's 1.5x (methods C)


@dataclass(frozen=True, slots=True)
class Mode:
    """What a search moves: `holds` names what is given instead (bits, channels); `takes`: the options it reads."""

    takes: frozenset[str]
    holds: frozenset[str] = frozenset()

    def space(self, graph: Graph, space: Space, terms: Terms) -> Space:
        """The part of `space` that is searched; UnsupportedError where there is nothing to prune."""
        if terms.parts.space is not None:
            space = terms.parts.space(graph, space)
        if terms.convention == "djpq":
            space = open_ends(graph, space)
        if "filters" in self.takes:
            space = ajpq.space(space, terms.filters)
        if "channels" in self.holds:
            space = hold_channels(space)
        elif not space.gates and terms.bits:
            raise UnsupportedError(
                f"{terms.said}: this network has no channels that may be removed, or the pruning ratio allows none; "
                "--method sbs --search bits searches widths alone"
            )
        if "bits" in self.holds:
            return hold_bits(graph, space, parse_bits(terms.bits))
        if terms.bits:
            hold_bits(graph, space, parse_bits(terms.bits))  # refuses what has no kernel
        return space


@dataclass(frozen=True, slots=True)
class Method:
    """A row. `modes`: of --search, the default first; "" alone where it has none. `bits` "": they must be said.

    `group_size`: channels a gate where nobody says; `space`: what the method makes of a space; `stages`: its phases
    take the parts of another method, and their options; `libraries`: that the extra of the method brings; `alone`: why
    torchrun's processes cannot share its batches, "" where they can; `warm`: whether a search can begin with the net
    that another one left under a larger budget.
    """

    run: Callable[[Job], SuperNet]
    agenda: Agenda
    modes: Mapping[str, Mode]
    needs_budget: bool = True
    bits: str = BITS
    group_size: int = GROUP_SIZE
    space: Callable[[Graph, Space], Space] | None = None
    stages: bool = False
    libraries: tuple[str, ...] = ()
    alone: str = ""
    warm: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """A method, the options it reads, and what these resolve to; "" and None where it has none of that kind."""

    name: str
    method: Method
    mode: str
    takes: frozenset[str]
    variant: str
    bits: str
    prune_share: float | None
    stages_of: str
    restrict: str
    convention: str
    filters: str
    episodes: int | None

    @property
    def parts(self) -> Method:
        """The method whose quantisers and gates these are: the one that lends them to stages, else the method."""
        return SEARCHES[self.stages_of] if self.method.stages else self.method

    @property
    def chosen(self) -> Mode:
        """The row of the mode."""
        return self.method.modes[self.mode]

    @property
    def said(self) -> str:
        """How the command line names it."""
        return f"--method {self.name}" + (f" --search {self.mode}" if self.mode else "")


SEARCHES: Mapping[str, Method] = {
    "sbs": Method(
        sbs.search, agenda,
        {
            "joint": Mode(SEARCHING | PRUNING | {"mode", "variant"}),
            "bits": Mode(SEARCHING | {"mode", "variant"}, frozenset({"channels"})),
            "prune": Mode(SEARCHING | PRUNING | {"mode", "variant", "bits"}, frozenset({"bits"})),
        },
        warm=True,
    ),
    "djpq": Method(
        djpq.search, agenda, {"": Mode(SEARCHING - {"lr_thresholds"} | PRUNING | {"restrict", "convention"})},
        group_size=1, space=djpq.space, warm=True,
    ),
    "ajpq": Method(
        ajpq.search, agenda, {"": Mode(SEARCHING - {"lr_thresholds"} | PRUNING | {"filters", "episodes"})},
        group_size=1, libraries=("gymnasium", "stable_baselines3"),
        alone="its episodes of a few steps come one after the other, each learning from the one before",
    ),
    "bayesian-bits": Method(
        bayesian_bits.search, agenda, {"": Mode(SEARCHING - {"lr_thresholds"} | PRUNING | {"convention"})},
        group_size=1, warm=True,
    ),
    "two-stage": Method(
        two_stage.search, two_stage.agenda, {"": Mode(frozenset({"bits", "prune_share", "stages_of"}))}, stages=True
    ),
    "uniform": Method(
        uniform.search, uniform.agenda, {"": Mode(frozenset({"bits"}), frozenset({"bits", "channels"}))},
        needs_budget=False, bits="",
    ),
}  # fmt: skip
VARIANTS = ("guided", "paper")  # of SBS, the default first
STAGES_OF = ("sbs", "djpq")  # joint methods whose parts two-stage takes, the default first
RESTRICTIONS = ("pow2", "free")  # of DJPQ: widths are powers of two while it trains, or only once it has
CONVENTIONS = ("sbs", "djpq")  # in which a budget of BOPs may be counted, the default first
MODES = tuple(dict.fromkeys(mode for row in SEARCHES.values() for mode in row.modes if mode))


def method_of(name: str) -> Method:
    """The method of that name; UsageError where there is none."""
    if name not in SEARCHES:
        raise UsageError(f"unknown --method {name!r}{close(name, SEARCHES)}; valid: {', '.join(SEARCHES)}")
    return SEARCHES[name]


def resolve(name: str, given: Mapping[str, Any]) -> Terms:
    """The method `name` with `given` options (None: not given); UsageError for one that it does not take."""
    method = method_of(name)
    said = {key: value for key, value in given.items() if key in OPTIONS and value is not None}
    mode = said.get("mode", next(iter(method.modes)))
    if mode not in method.modes:
        if mode not in MODES:
            raise UsageError(f"--search {mode!r} is unknown{close(mode, MODES)}; valid: {', '.join(MODES)}")
        raise UsageError(f"--search {mode} does nothing with --method {name}; it goes with {_takers('mode')}")
    stages_of = _one_of("stages_of", STAGES_OF, said)
    takes = _takes(method, mode, stages_of)
    for key in sorted(said.keys() - takes):
        here = f"--method {name}" + (f" --search {mode}" if mode else "")
        here += f" --stages-of {stages_of}" if method.stages else ""
        raise UsageError(f"{flag(key)} does nothing with {here}; it goes with {_takers(key)}")
    bits = str(said.get("bits", method.bits)) if "bits" in takes else ""
    if "bits" in takes and not bits:
        raise UsageError(f"--method {name} needs --bits, for example --bits w4a4: widths of weights and activations")
    if bits:
        try:
            parse_bits(bits)
        except ValueError as error:
            raise UsageError(f"--bits: {error}") from error
    share = said.get("prune_share", PRUNE_SHARE) if "prune_share" in takes else None
    if share is not None and not 0 <= share <= 1:
        raise UsageError(f"--prune-share {share} is a share of what ln BOPs must lose, within [0, 1]")
    variant, restrict = (
        _one_of(key, valid, said) if key in takes else ""
        for key, valid in (("variant", VARIANTS), ("restrict", RESTRICTIONS))
    )
    convention = _one_of("convention", CONVENTIONS, said)
    filters = str(said.get("filters", ajpq.MIXED)) if "filters" in takes else ""
    episodes = int(said.get("episodes", EPISODES)) if "episodes" in takes else None
    if episodes is not None and episodes < 1:
        raise UsageError(f"--episodes {episodes}: a search takes at least 1")
    return Terms(
        name, method, mode, takes, variant, bits, share, stages_of, restrict, convention, filters, episodes
    )  # fmt: skip


def _takes(method: Method, mode: str, stages_of: str) -> frozenset[str]:
    """Options that a method reads in a mode, with those of the parts that its stages take."""
    own = method.modes[mode].takes
    if not method.stages:
        return own
    return own | next(iter(SEARCHES[stages_of].modes.values())).takes - {"mode", "variant"}


def _one_of(key: str, valid: tuple[str, ...], said: Mapping[str, Any]) -> str:
    """What was said, by default the first; UsageError for a word that is none of them."""
    word = str(said.get(key, valid[0]))
    if word not in valid:
        raise UsageError(f"{flag(key)} {word!r} is none of {', '.join(valid)}{close(word, valid)}")
    return word


def _takers(key: str) -> str:
    """Methods, and modes of theirs, that take an option."""
    out = []
    for name, method in SEARCHES.items():
        modes = [mode for mode in method.modes if any(key in _takes(method, mode, of) for of in STAGES_OF)]
        if len(modes) == len(method.modes):
            parts = [of for of in STAGES_OF if key in _takes(method, modes[0], of)]
            out.append(f"--method {name}" + (f" --stages-of {parts[0]}" if len(parts) < len(STAGES_OF) else ""))
        else:
            out += [f"--method {name} --search {mode}" for mode in modes]
    return ", ".join(out)
