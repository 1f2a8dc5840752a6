"""Instructions that this process executes, where the processor and the system let it count them. Linux only."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable

# perf_event_open(2): number of the system call, and the fields of perf_event_attr that are not 0
_CALLS = {"x86_64": 298, "aarch64": 241}
_SIZE = 128  # of perf_event_attr, as of its fifth version
_HARDWARE, _INSTRUCTIONS = 0, 1
_INHERIT, _NO_KERNEL, _NO_HYPERVISOR = 1 << 1, 1 << 5, 1 << 6  # threads that start later count too; ours alone


def instructions(prepare: Callable[[], Callable[[], object]]) -> int | None:
    """Instructions of one call of what `prepare` gives, all threads that it starts included; None where nobody counts.

    The counter is opened before `prepare`, because only threads that start later are seen; the call is warmed up once.
    """
    counter = _open()
    if counter is None:
        return None
    try:
        run = prepare()
        run()
        before = _read(counter)
        run()
        return _read(counter) - before
    finally:
        os.close(counter)


def _open() -> int | None:
    call = _CALLS.get(platform.machine())
    if sys.platform != "linux" or call is None:
        return None
    attributes = bytearray(_SIZE)
    struct.pack_into("=IIQ", attributes, 0, _HARDWARE, _SIZE, _INSTRUCTIONS)
    struct.pack_into("=Q", attributes, 40, _INHERIT | _NO_KERNEL | _NO_HYPERVISOR)
    buffer = ctypes.create_string_buffer(bytes(attributes), _SIZE)
    here, any_cpu, no_group, flags = 0, -1, -1, 0
    counter = ctypes.CDLL(None).syscall(call, buffer, here, any_cpu, no_group, flags)
    return int(counter) if counter >= 0 else None


def _read(counter: int) -> int:
    return int(struct.unpack("=Q", os.read(counter, 8))[0])
