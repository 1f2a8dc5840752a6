"""What a host without triton or without a GPU hears: one sentence with the remedy. Needs neither."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bitpress.compiler.program import STEP_OPS
from bitpress.core.encoding import parse
from bitpress.core.errors import EnvironmentMissing
from bitpress.kernels import gpu, registry
from bitpress.kernels.gpu.rows import ROWS

from ..cli.tool import good

WEIGHTS = gpu.arrange(np.ones((2, 1, 8), np.int64), parse("i8"), gpu.Storage(parse("u8")))


@pytest.mark.parametrize(("library", "extra"), [("triton", "gpu"), ("torch", "search")])
def test_without_a_library_one_sentence_names_the_extra(
    library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gpu.find_spec
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name == library else found(name) or object())
    assert gpu.missing() == f"{library} is not installed: pip install 'bitpress[{extra}]'"
    for call in (
        lambda: gpu.load(WEIGHTS, device="cpu"),
        lambda: gpu.linear(None, None),
        lambda: gpu.conv2d(None, None, None),
        lambda: gpu.depthwise2d(None, None, None),
        lambda: gpu.linear_bitserial(None, None),
        lambda: gpu.load_pool("f32", 1, device="cpu"),
        lambda: gpu.max_pool(None, "f32", 1, None),
        lambda: gpu.average_pool(None, None, None),
        lambda: gpu.global_average_pool(None, None),
    ):
        with pytest.raises(EnvironmentMissing, match=rf"{library} is not installed.*bitpress\[{extra}\]"):
            call()


def test_without_a_gpu_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda _name: object())
    monkeypatch.setattr(gpu, "DEVICES", ("/dev/no-such-gpu",))
    assert gpu.missing() == "no GPU: /dev/no-such-gpu does not exist"
    monkeypatch.setattr(gpu, "DEVICES", ("/dev/null",))
    assert gpu.missing() == ""


def test_the_face_loads_neither_triton_nor_torch() -> None:
    code = "import sys, bitpress.kernels.gpu as g; g.missing(); print({'torch', 'triton'} & set(sys.modules) or '-')"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "-"


def test_every_op_of_a_program_has_a_row_that_doctor_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "missing", lambda: "no GPU here")
    shown = {(row["name"], row["op"]): row for row in good("doctor", "--json", "-").document()["kernels"]}
    assert {row.op for row in ROWS} == set(STEP_OPS)
    for row in ROWS:
        assert (shown[row.name, row.op]["isa"], shown[row.name, row.op]["why"]) == ("gpu", "no GPU here")
    assert not {row.name for row in ROWS} & {row.name for row in registry.ROWS}
