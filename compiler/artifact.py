"""Program <-> bytes of a `.bpk` (docs/format.md). Deterministic; written whole or not at all; read with suspicion.

The shell of the file is in `container.py`, its records in `records.py`, what a program must satisfy in `check.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..core.errors import UsageError
from ..core.host import write_bytes
from . import container, records
from .check import check
from .container import FormatError, Section
from .program import FIRST_OPS, STEP_OPS, Buffer, Program


def write(program: Program, path: str | Path) -> int:
    """Writes `program` to `path` through a temporary sibling and a rename; returns the file's bytes.

    FormatError if the program breaks a rule of docs/format.md; UsageError if the file cannot be written. In both
    cases an earlier file stays as it was.
    """
    data = encode(program)
    write_bytes(Path(path), data)
    return len(data)


def read(path: str | Path) -> Program:
    """Program in the file `path`; UsageError if it cannot be opened, FormatError if it breaks a rule."""
    return decode(load_bytes(path))


def load_bytes(path: str | Path) -> bytes:
    """The file's bytes; UsageError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def sections(source: str | Path | bytes) -> tuple[Section, ...]:
    """Sections of a file (path or bytes) in order; FormatError if the container is damaged."""
    return container.split(source if isinstance(source, bytes) else load_bytes(source))


def parts(source: str | Path | bytes) -> list[tuple[str, int]]:
    """(name, bytes) of everything in the file: header, table, sections, padding; the sum is the file's size.

    Weights sections are named `weights:<step name>`.
    """
    data = source if isinstance(source, bytes) else load_bytes(source)
    weighted = [step.name for step in decode(data).steps if step.weight is not None]
    found = container.split(data)
    out = [("header", container.HEADER.itemsize), ("section table", len(found) * container.RECORD.itemsize)]
    out += [(f"weights:{weighted[s.index]}" if s.kind == "weights" else s.kind, s.bytes) for s in found]
    return [*out, ("padding", len(data) - sum(size for _, size in out))]


def encode(program: Program) -> bytes:
    """The bytes of a `.bpk`: the same program gives the same bytes on every host. FormatError if it breaks a rule."""
    check(program)
    names = records.Names()
    steps = np.zeros(len(program.steps), records.STEP)
    constants: list[np.ndarray] = []
    indices: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for record, step in zip(steps, program.steps, strict=True):
        records.encode_step(record, step, program, names)
        epilogue = (step.epilogue.m, step.epilogue.b) if step.epilogue is not None else ()
        table = (step.table,) if step.table is not None else ()
        record["constants"] = records.append(constants, (*epilogue, *table), "<f4")
        numbers = (a for a in (step.out_channels, step.channels) if a is not None)
        record["indices"] = records.append(indices, numbers, "<i4")
        record["weights"] = len(weights) if step.weight is not None else records.NONE
        weights += [step.weight.fields] if step.weight is not None else []
    buffers = np.zeros(len(program.buffers), records.BUFFER)
    for record, buffer in zip(buffers, program.buffers, strict=True):
        records.encode_buffer(record, buffer, names)
    return container.join([
        ("program", 0, records.encode_head(program)),
        ("names", 0, records.encode_strings(names.strings)),
        ("buffers", 0, buffers.tobytes()),
        ("steps", 0, steps.tobytes()),
        ("constants", 0, b"".join(a.tobytes() for a in constants)),
        ("indices", 0, b"".join(a.tobytes() for a in indices)),
        *(("weights", i, np.ascontiguousarray(fields).tobytes()) for i, fields in enumerate(weights)),
        ("golden_input", 0, records.floats(program.golden_input)),
        ("golden_output", 0, records.floats(program.golden_output)),
        ("labels", 0, records.encode_strings(program.labels) if program.labels else b""),
        ("meta", 0, records.encode_meta(program.meta)),
    ], features=_features(program))  # fmt: skip


def _features(program: Program) -> int:
    later = any(STEP_OPS.index(step.op) >= FIRST_OPS for step in program.steps)
    return container.LATER_OPS if later else 0


def decode(data: bytes) -> Program:
    """Program in the bytes of a `.bpk`; FormatError, with the rule's name, if anything about them is wrong."""
    content: dict[str, bytes] = {}
    weights: list[bytes] = []
    for section in container.split(data):
        piece = data[section.offset : section.offset + section.bytes]
        if section.kind == "weights":
            weights.append(piece)
        else:
            content[section.kind] = piece
    head, mean, std = records.decode_head(content["program"])
    names = records.decode_strings(content["names"], "names")
    if names[:1] != [""] or len(set(names)) != len(names):
        raise FormatError("DuplicateName", "string 0 of names is not empty, or a string occurs twice")
    rows = records.split(content["buffers"], records.BUFFER, "buffers")
    buffers = tuple(records.decode_buffer(row, names) for row in rows)
    pools = records.Pools(
        records.split(content.get("constants", b""), np.dtype("<f4"), "constants"),
        records.split(content.get("indices", b""), np.dtype("<i4"), "indices"),
        weights,
    )
    rows = records.split(content["steps"], records.STEP, "steps")
    steps = tuple(records.decode_step(row, names, buffers, pools) for row in rows)
    pools.finish()
    labels = tuple(records.decode_strings(content["labels"], "labels")) if "labels" in content else ()
    program = Program(
        steps=steps,
        buffers=buffers,
        input=head["input"],
        output=head["output"],
        arena_bytes=head["arena_bytes"],
        mean=mean,
        std=std,
        labels=labels,
        golden_input=_golden(content, "golden_input", buffers, head["input"]),
        golden_output=_golden(content, "golden_output", buffers, head["output"]),
        meta=records.decode_meta(content["meta"]),
    )
    if container.features(data) != _features(program):
        raise FormatError(
            "BadFeature",
            f"the file announces features {container.features(data):#x}, its steps need {_features(program):#x}",
        )
    check(program)
    return program


def _golden(content: dict[str, bytes], kind: str, buffers: tuple[Buffer, ...], number: int) -> np.ndarray | None:
    if kind not in content:
        return None
    values = records.split(content[kind], np.dtype("<f4"), kind)
    if number >= len(buffers):
        raise FormatError("BadReference", f"program: buffer {number}, there are {len(buffers)}")
    shape = buffers[number].shape
    if len(values) != int(np.prod(shape, dtype=object)):
        raise FormatError("SizeMismatch", f"{kind}: {len(values)} values, the buffer has shape {shape}")
    return values.reshape(1, *shape) if kind == "golden_input" else values.reshape(1, -1)
