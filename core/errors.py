"""Errors a user can cause, each with the exit code that the command line returns for it.

Everything raised on purpose derives from `BitpressError`; the face prints the message, never a traceback.
A message holds the numbers and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BitpressError(Exception):
    """Base of every deliberate error; `exit_code` is what `bitpress` returns.

    `told`: whether another process of the same run says it (core.parallel).
    """

    exit_code = 1
    told = False


class CheckFailed(BitpressError):
    """A check ran and failed: mismatch, regression, budget missed or unreachable."""

    exit_code = 1


class UsageError(BitpressError):
    """The request makes no sense: unknown value, no such file, wrong shape, dtype or class count."""

    exit_code = 2


class UnsupportedError(BitpressError):
    """The network, op or bit-width is not supported, or no kernel row fits."""

    exit_code = 3


class CorruptError(BitpressError):
    """A file is damaged or incompatible, holds NaN or infinity, or a plan does not fit its graph."""

    exit_code = 4


class EnvironmentMissing(BitpressError):
    """The host lacks something: an ISA, a GPU, an extra, the native module."""

    exit_code = 5


class Interrupted(BitpressError):
    """SIGINT or SIGTERM came; the state is saved and the same command continues."""

    exit_code = 130


def close(word: str, known: Iterable[str]) -> str:
    """What to add to a message about an unknown word.

    >>> close("resnet2", ["resnet20", "vgg7"]), close("x", ["vgg7"])
    (' (did you mean resnet20?)', '')
    """
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
