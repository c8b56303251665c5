"""Commands that end badly, for the tests of the command line."""

from __future__ import annotations

import importlib
import os
import signal
import time

from kspace.errors import InputError


def crash(how: str) -> int:
    """End in the way that `how` names."""
    if how == "input":
        raise InputError("12 channels came,\n14 were expected", "scan.h5", "copy it again")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "import":
        importlib.import_module("tests.support.interrupted")
        time.sleep(10)
    if how == "memory":
        raise MemoryError("Unable to allocate 3 TiB")
    if how == "torch-memory":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried to allocate")
    if how == "bug":
        raise ZeroDivisionError("division by zero")
    if how == "status":
        return 2
    os.kill(os.getpid(), getattr(signal, how))
    return 0
