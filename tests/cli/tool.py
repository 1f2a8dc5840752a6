"""Runs the command line inside the test's process, and reads what it says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner

from bitpress.cli.command import cli

from ..schema.schemas import check


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a verb left: exit code and both streams."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        """Stdout as the document that it must be, alone, and valid by its schema."""
        return check(json.loads(self.out))


def bitpress(*args: object) -> Outcome:
    """`bitpress ARGS`; fails where an exception or a traceback got out."""
    result = CliRunner().invoke(cli, [str(a) for a in args], prog_name="bitpress")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr, result.stderr
    return Outcome(result.exit_code, result.stdout, result.stderr)


def good(*args: object) -> Outcome:
    """`bitpress ARGS`, which must succeed."""
    outcome = bitpress(*args)
    assert outcome.code == 0, outcome.err
    return outcome


def refused(code: int, *args: object) -> str:
    """The sentence with which `bitpress ARGS` ends; it must be the only one that the tool says on its own behalf."""
    outcome = bitpress(*args)
    said = [line for line in outcome.err.splitlines() if line.startswith("bitpress: ")]
    said = [line for line in said if "running numpy reference kernels" not in line]
    assert outcome.code == code, (outcome.code, outcome.err, outcome.out)
    assert len(said) == 1, outcome.err
    return said[0]
