"""The whole way of a search on digits, as it is typed: from network to RUN to artifact, the same answers everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def digits(folder: Path, *options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(result, layers of `inspect`) of a search with `options` into `folder`/run.

    At most two points are lost and a layer is pruned; the artifact is exact, and it, the RUN and the search predict
    alike.
    """
    out, packed = folder / "run", folder / "x.bpk"
    result = _tool("search", "digits_cnn", "--data", "digits", *options, "--threads", "1", "--out", str(out))
    assert result["baseline_top1"] - result["top1"] <= 2
    _tool("compile", str(out), "-o", str(packed))
    rows = _tool("inspect", str(packed))["layers"]
    assert any(row["channels_kept"] < row["channels_total"] for row in rows)
    assert _tool("verify", str(packed), "--against", str(out))["exact"]
    digests = {_tool("eval", str(what), "--data", "digits")["predictions_sha256"] for what in (out, packed)}
    assert digests == {result["predictions_sha256"]}
    return result, rows


def _tool(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "bitpress", *words, "--json", "-", "-q"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found
