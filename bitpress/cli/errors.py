"""From an exception to a sentence on stderr and an exit code: the one place that knows both."""

from __future__ import annotations

import sys

import click

from ..core.errors import BitpressError, EnvironmentMissing, UsageError
from .environment import speaks

INTERRUPTED = 130
INTERNAL = 70  # a mistake of ours, with its traceback; EX_SOFTWARE of sysexits.h, apart from every promised code
EXTRAS = {
    "torch": "search", "safetensors": "search", "sklearn": "search", "PIL": "search", "onnx": "onnx",
    "onnxruntime": "onnx", "triton": "gpu", "torchvision": "vision", "timm": "vision", "ray": "ray",
    "pytest_benchmark": "bench", "junitparser": "bench", "jsonschema": "dev", "jinja2": "report",
    "matplotlib": "report", "scipy": "report", "stable_baselines3": "rl", "gymnasium": "rl",
}  # fmt: skip


def code_of(error: BaseException) -> int | None:
    """Prints the sentence that belongs to `error` and gives its exit code; None for a mistake of ours.

    Of the processes of one run (core.parallel) one says it.
    """
    if error.__class__.__name__ == "NoArgsIsHelpError" and isinstance(error, click.UsageError):
        print(error.format_message(), file=sys.stderr)  # a class of click 8.2 and later
        return UsageError.exit_code
    found = _sentence(error)
    if found is None:
        return None
    text, code = found
    alike = isinstance(error, KeyboardInterrupt | click.ClickException | click.Abort)  # in every process
    if not (getattr(error, "told", False) or (alike and not speaks())):
        print(f"bitpress: {text}", file=sys.stderr, flush=True)
    return code


def _sentence(error: BaseException) -> tuple[str, int] | None:
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", INTERRUPTED
    if isinstance(error, BitpressError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        name = error.ctx.command_path if error.ctx is not None else "bitpress"
        return f"{error.format_message()} See `{name} --help`.", UsageError.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), UsageError.exit_code
    if isinstance(error, ImportError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is not None:
            return missing_extra(error.name or "", extra), EnvironmentMissing.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", UsageError.exit_code
    return None


def missing_extra(module: str, extra: str) -> str:
    """The sentence for a library that is not installed."""
    return f"{module} is not installed; it comes with the extra [{extra}]: pip install 'bitpress[{extra}]'"
