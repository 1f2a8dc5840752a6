"""`python -m bitpress` and the console script: the same program."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec

HIDDEN = (
    "bitpress: the folder bitpress/ of a checkout hides the installed package, and has no core of its own: "
    "run `bitpress` instead, start from another folder, or install the checkout with `pip install -e .`"
)


def main() -> None:
    """Runs the command line and exits with its code."""
    if find_spec("bitpress.core") is None:
        print(HIDDEN, file=sys.stderr)
        sys.exit(5)
    from .cli.command import cli

    signal.signal(signal.SIGTERM, _stop)
    cli(prog_name="bitpress")


def _stop(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
