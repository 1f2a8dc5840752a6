"""Tables of timed tiles: which row serves which problem, and what is refused. Needs neither triton nor torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bitpress.cli import doctor
from bitpress.core.encoding import parse
from bitpress.core.errors import CorruptError
from bitpress.kernels.gpu import tuned
from bitpress.kernels.gpu.layout import Form, Storage, form_of, packed
from bitpress.kernels.gpu.tiles import Tile

from ..cli.tool import good, refused
from ..schema.schemas import check

NAME = "NVIDIA Test 1"
TILES = tuple(Tile(16, rows, 1, 4, 3) for rows in (16, 32, 64, 128))


def document(*rows: tuple[str, int, int, int, Tile]) -> dict[str, object]:
    """Rows of (family, weight bits, pixels, rows = depth, tile)."""
    return {
        "schema": "bitpress.tiles", "schema_version": 1, "bitpress": "0", "device": NAME,
        "host": {"cpu": "", "isa": "sm90", "threads": 1, "gpu": NAME},
        "rows": [
            {"family": family, "w_bits": bits, "a_bits": 8, "taps": 1, "pixels": pixels, "rows": size, "depth": size,
             "tile": asdict(tile), "ms": 1.0, "usual_ms": 2.0}
            for family, bits, pixels, size, tile in rows
        ],
    }  # fmt: skip


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the table of this host goes; there is none yet."""
    monkeypatch.setenv("BITPRESS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuned, "TABLES", tmp_path / "none")
    tuned.table.cache_clear()
    return tuned.own(NAME)


def form(weight: str, size: int) -> Form:
    return form_of((size, 1, size), parse(weight), Storage(parse("u8")))


def test_the_nearest_row_serves(table: Path) -> None:
    near, far, wide, vector = TILES
    made = document(
        ("gemm", 4, 16, 1024, near),
        ("gemm", 4, 64, 1024, far),
        ("gemm", 8, 16, 1024, wide),
        ("gemv", 4, 1, 1024, vector),
    )
    table.write_text(json.dumps(check(made)), encoding="utf-8")
    rows = tuned.table(NAME)
    assert tuned.found(NAME) == table and len(rows) == 4
    for pixels, tile in ((16, near), (20, near), (31, near), (33, far), (128, far), (129, None), (7, None)):
        assert tuned.best(rows, "gemm", form("o4", 1024), pixels) == tile, pixels
    assert (
        tuned.best(rows, "gemm", form("i8", 1024), 16) == wide
        and tuned.best(rows, "gemv", form("i4", 2048), 2) == vector
    )
    assert tuned.best(rows, "gemm", form("i4", 2049), 16) is None, "out of reach"
    assert tuned.best(rows, "conv", form("i4", 1024), 16) is None
    fields = form_of((1024, 1, 1024), parse("i4"), packed(parse("u4"), 1024))
    assert tuned.best(rows, "gemm", fields, 16) is None, "other activations"


def test_without_a_table_there_is_no_row(table: Path) -> None:
    assert not table.exists() and tuned.found(NAME) is None and tuned.table(NAME) == ()
    assert tuned.best((), "gemm", form("i4", 64), 1) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"schema": "bitpress.bench", "schema_version": 1, "rows": []}',
     *(json.dumps(document(("gemm", 4, 16, 64, Tile(16, rows, 1, 4, 3)))) for rows in (48, 0, 1 << 20))],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused(table: Path, text: str) -> None:
    table.write_text(text, encoding="utf-8")
    with pytest.raises(CorruptError, match="is no table of tiles"):
        tuned.table(NAME)


def test_doctor_tells_of_the_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert good("doctor", "--json", "-").document()["gpu"]["tiles"] is None or Path("/dev/nvidia0").exists()
    monkeypatch.setattr(doctor, "_gpu", lambda: NAME)
    assert "no table of timed tiles for NVIDIA Test 1" in good("doctor").out
    table.write_text(json.dumps(document(("gemm", 4, 16, 64, TILES[0]))), encoding="utf-8")
    assert f"1 timed tiles: {table}" in good("doctor").out.replace("\n", "")
    table.write_text("{}", encoding="utf-8")
    tuned.table.cache_clear()
    assert "is no table of tiles" in good("doctor", "--json", "-").document()["gpu"]["tiles"]


def test_profile_refuses_what_tiles_do_not_have() -> None:
    assert "MODEL with --device cuda" in refused(2, "profile", "digits_cnn", "--device", "cuda")
    assert "grid with --device cuda" in refused(2, "profile", "--grid", "3", "--device", "cuda")
    assert "-o TABLE.json is missing" in refused(2, "profile", "digits_cnn")
