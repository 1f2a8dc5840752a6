"""What all verbs share: options, configuration file, output, exit codes. A verb is a function that gives a `Result`."""

from __future__ import annotations

import json
import logging
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from .._version import __version__
from ..core.errors import CheckFailed, EnvironmentMissing, UsageError, close
from ..core.host import write_text
from . import environment
from .errors import INTERNAL, code_of
from .progress import Progress
from .tables import FORMATS, Table, to_csv, to_jsonl, to_markdown, to_rich

VERBS = (
    "doctor", "plan", "profile", "search", "compile", "inspect", "run", "eval", "verify", "bench", "compare", "report",
    "export",
)  # fmt: skip
FORMS = {"bench": ("gemm",)}  # words right behind a verb that make it another one, in a file of its own: bench_gemm.py
COMMANDS = (*VERBS, *(f"{verb} {form}" for verb, forms in FORMS.items() for form in forms))


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every verb has, resolved."""

    json: str | None
    format: str
    quiet: bool
    verbose: bool
    seed: int
    threads: tuple[int, ...]  # one number but for verbs that take a list
    given: frozenset[str]  # parameters that the command line or the configuration file named
    progress: Progress
    device: str = "cpu"  # cuda only for verbs that take it

    @property
    def thread(self) -> int:
        """The thread count of a verb that takes one."""
        return self.threads[0]


@dataclass(frozen=True, slots=True)
class Result:
    """What a verb found: the document, how people see it, and the sentence of a check that failed ("" if none)."""

    document: Mapping[str, Any]
    tables: Sequence[Table] = ()
    notes: Sequence[str] = field(default=())
    failure: str = ""


class Names(click.ParamType):  # type: ignore[type-arg]
    """One of some names; the error offers the nearest and lists all."""

    name = "name"

    def __init__(self, *valid: str) -> None:
        self.valid = valid

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself."""
        if value not in self.valid:
            self.fail(
                f"{value!r} is unknown{close(str(value), self.valid)}; valid: {', '.join(self.valid)}.", param, ctx
            )
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """The names, in help texts."""
        return "|".join(self.valid)


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers by comma, each within bounds; also a TOML list."""

    name = "N,N"

    def __init__(self, lo: int = 1, hi: int = 1 << 20, *, most: int | None = None) -> None:
        self.lo, self.hi, self.most = lo, hi, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """`value` as numbers."""
        parts = [str(v) for v in value] if isinstance(value, list | tuple) else str(value).split(",")
        bad = [p for p in parts if not p.strip().isdecimal() or not self.lo <= int(p) <= self.hi]
        if bad or (self.most is not None and len(parts) > self.most):
            what = "one whole number" if self.most == 1 else "whole numbers by comma"
            self.fail(f"{value!r}: {what} from {self.lo} to {self.hi} expected.", param, ctx)
        return tuple(int(p) for p in parts)


class Floats(click.ParamType):  # type: ignore[type-arg]
    """Numbers by comma; also a TOML list."""

    name = "X,X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """`value` as numbers."""
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            return tuple(float(p) for p in parts)
        except (TypeError, ValueError):
            self.fail(f"{value!r}: numbers by comma expected.", param, ctx)


class Words(click.ParamType):  # type: ignore[type-arg]
    """Words by comma; also a TOML list."""

    name = "A,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:  # noqa: ARG002
        """`value` as words; none for an empty text."""
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(str(p).strip() for p in parts if str(p).strip())


class Group(click.Group):
    """The verbs, each loaded when it is called; every exception becomes a sentence and an exit code here."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """In the order in which one uses them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Imports the file of a verb, or of a form of one ("bench gemm")."""
        if cmd_name not in COMMANDS:
            return None
        from importlib import import_module

        command: click.Command = import_module(f".{cmd_name.replace(' ', '_')}", __package__).command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """UsageError with the nearest verbs where there is none of that name."""
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            raise click.UsageError(
                f"there is no verb {args[0]!r}{close(args[0], VERBS)}; verbs: {', '.join(VERBS)}.", ctx
            )
        if len(args) > 1 and args[1] in FORMS.get(args[0], ()):
            args = [f"{args[0]} {args[1]}", *args[2:]]
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Exits with the code of the error; a traceback is for mistakes of ours only."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: no complaint at exit
            code = 0
        except (Exception, KeyboardInterrupt) as error:
            found = code_of(error)
            if found is None:
                traceback.print_exc()
                print("bitpress: this is a mistake of Bitpress, please report it", file=sys.stderr)
            code = INTERNAL if found is None else found
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="bitpress")
def cli() -> None:
    """Joint pruning and mixed-precision search, compiled to packed low-bit kernels, measured."""


def verb(
    name: str, *, table: bool = True, lists: bool = False, gpu: bool = False
) -> Callable[[Callable[..., Result]], click.Command]:
    """Makes a function (Common, **own parameters) -> Result into the command `name`.

    `table`: has `-o FORMAT`. `lists`: `--threads` takes several numbers. `gpu`: takes `--device cuda`.
    """

    def decorate(function: Callable[..., Result]) -> click.Command:
        def body(**given: Any) -> int:
            common = _common(given, gpu=gpu)
            _told(common, given)
            with common.progress:
                result = function(common, **given)
            return _show(result, common)

        body.__doc__ = function.__doc__
        own = getattr(function, "__click_params__", [])
        body.__click_params__ = [*_options(table=table, lists=lists), *own]  # type: ignore[attr-defined]
        said = str(function.__globals__["__doc__"]).partition(": ")[2].partition("\n")[0]  # of the verb's file
        return click.command(name, short_help=said, context_settings={"show_default": True})(body)

    return decorate


def _options(*, table: bool, lists: bool) -> list[click.Parameter]:
    """Common options; click keeps parameters in reverse order."""
    format_ = [
        click.Option(
            ["-o", "--format", "format"], type=Names(*FORMATS), default="table", help="How tables are printed."
        )
    ]
    several = ", several by comma" if lists else ""
    many = Numbers(1, 256, most=None if lists else 1)
    return [
        *(format_ if table else []),
        click.Option(["--config"], type=click.Path(), is_eager=True, expose_value=False, callback=_read_config,
                     metavar="F", help="TOML file with options; the command line wins."),
        click.Option(["--device"], type=Names("cpu", "cuda"), default="cpu", help="Where it runs."),
        click.Option(["--threads"], type=many, default=None,
                     help=f"Threads{several}. Default: BITPRESS_NUM_THREADS, else 1 (search: all if steps are long)."),
        click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of all randomness."),
        click.Option(["-v", "--verbose"], is_flag=True, help="More on stderr."),
        click.Option(["-q", "--quiet"], is_flag=True, help="No progress."),
        click.Option(["--json"], metavar="PATH|-", default=None, help="Write the document there; - is stdout, alone."),
    ]  # fmt: skip


def _common(given: dict[str, Any], *, gpu: bool) -> Common:
    """Takes the common options out of `given`."""
    ctx = click.get_current_context()
    environment.check()
    device = given.pop("device")
    if device == "cuda" and not gpu:
        raise EnvironmentMissing(
            f"--device cuda: `bitpress {ctx.command.name}` works on the CPU only; search trains on a GPU, inspect, "
            "run, eval, verify and bench run compiled networks there, profile times tiles. Leave --device out"
        )
    target = given.pop("json")
    if target not in (None, "-"):
        writable("--json", target)
    threads = given.pop("threads") or (int(os.environ.get("BITPRESS_NUM_THREADS", "1")),)
    named = frozenset(
        name for name in ctx.params if ctx.get_parameter_source(name) not in (click.core.ParameterSource.DEFAULT, None)
    )
    quiet, verbose = given.pop("quiet"), given.pop("verbose")
    if quiet and verbose:
        raise UsageError("-q and -v contradict each other: give one of them")
    if not environment.speaks():
        quiet, verbose = True, False
    _log(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)
    return Common(
        json=target, format=given.pop("format", "table"), quiet=quiet, verbose=verbose,
        seed=given.pop("seed"), threads=threads, given=named, device=device, progress=Progress(quiet=quiet),
    )  # fmt: skip


def writable(option: str, path: str) -> None:
    """UsageError, before any work, where the folder of a file that `option` asks for is not there."""
    if not Path(path).parent.is_dir():
        raise UsageError(f"{option} {path}: cannot write there, {Path(path).parent} is no folder")


def _told(common: Common, given: Mapping[str, Any]) -> None:
    """With -v: what the verb was asked for, defaults filled in, and the environment values that are set."""
    logger = logging.getLogger("bitpress")
    values = {**given, "seed": common.seed, "threads": ",".join(map(str, common.threads))}
    logger.debug("options: %s", ", ".join(f"{key} {value}" for key, value in values.items() if value is not None))
    forced = {key: value for key, value in sorted(os.environ.items()) if key.startswith("BITPRESS_")}
    logger.debug("environment: %s", ", ".join(f"{key}={value}" for key, value in forced.items()) or "nothing set")


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever stderr is at that moment."""

    @property
    def stream(self) -> Any:
        """Where it writes."""
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """The base class sets it; it changes nothing."""


def _log(level: int) -> None:
    logger = logging.getLogger("bitpress")
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)


def _read_config(ctx: click.Context, param: click.Parameter, value: str | None) -> None:  # noqa: ARG001
    """Options of a TOML file as defaults: at the top level for every verb that has them, in a table [VERB] for one."""
    if value is None:
        return
    try:
        document = tomllib.loads(Path(value).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {value}: {getattr(error, 'strerror', None) or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config {value} is no TOML: {error}") from error
    names = {p.name: p for p in ctx.command.params if p.name not in ("config", "help", None)}
    spelled = {alias: name for name, p in names.items() for alias in _spellings(p)}
    top = {k: v for k, v in document.items() if not isinstance(v, dict)}
    tables = {k: v for k, v in document.items() if isinstance(v, dict)}
    verb_name = ctx.command.name or ""
    if wrong := [t for t in tables if t not in COMMANDS]:
        raise UsageError(
            f"--config {value}: [{wrong[0]}] is no verb{close(wrong[0], VERBS)}; verbs: {', '.join(VERBS)}"
        )
    own = tables.get(verb_name, {})  # of "bench gemm": ["bench gemm"]
    for key in (*top, *own):
        if key.replace("_", "-") not in spelled:
            known = sorted(spelled)
            raise UsageError(
                f"--config {value}: {verb_name} has no option {key!r}{close(key, known)}; options: {', '.join(known)}"
            )
    ctx.default_map = {spelled[k.replace("_", "-")]: _plain(v) for k, v in {**top, **own}.items()}


def _spellings(param: click.Parameter) -> list[str]:
    """Names of a parameter in a configuration file: its long options without dashes, an argument's name."""
    longs = [opt.lstrip("-") for opt in (*param.opts, *param.secondary_opts) if opt.startswith("--")]
    return longs or [(param.name or "").replace("_", "-")]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _show(result: Result, common: Common) -> int:
    """Prints and writes what the verb found; exit code 1 where a check failed."""
    if not environment.speaks():
        return CheckFailed.exit_code if result.failure else 0
    text = json.dumps(result.document, indent=2, allow_nan=False) + "\n"
    if common.json not in (None, "-"):
        write_text(Path(str(common.json)), text)
    if common.json == "-" or common.format == "json":
        sys.stdout.write(text)
    elif common.format == "csv":
        sys.stdout.write(to_csv(result.tables[0]) if result.tables else "")
    elif common.format == "jsonl":
        sys.stdout.write(to_jsonl(result.tables[0]) if result.tables else "")
    elif common.format == "md":
        sys.stdout.write("\n".join([*map(to_markdown, result.tables), *(f"{note}\n" for note in result.notes)]))
    else:
        _print(result)
    sys.stdout.flush()
    if result.failure:
        print(f"bitpress: {result.failure}", file=sys.stderr, flush=True)
        return CheckFailed.exit_code
    return 0


def _print(result: Result) -> None:
    from rich.console import Console

    # Without a terminal a line is as long as it needs to be: a pipe has no edge.
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    for table in result.tables:
        console.print(to_rich(table))
    for note in result.notes:
        console.print(note, markup=False)
