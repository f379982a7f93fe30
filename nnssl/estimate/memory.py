"""Largest memory since a moment: of the CUDA device, or of this process."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryMeter:
    """Growth of memory since it was made, at its largest.

    On CUDA it counts what torch allocates; elsewhere the resident memory of this process, which
    only Linux tells.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        gc.collect()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
            self._base: int | None = torch.cuda.memory_allocated(device)
        else:
            self._base = _start_process()

    def peak(self) -> int | None:
        """Bytes; None where it cannot be told."""
        if self._base is None:
            return None
        now = torch.cuda.max_memory_allocated() if self._cuda else _status("VmHWM")
        return max(0, now - self._base)


def _start_process() -> int | None:
    """Resident bytes now, after the allocator has returned what is free and the peak is reset."""
    try:
        with suppress(AttributeError, OSError):  # the C library may be another than glibc
            ctypes.CDLL(None).malloc_trim(0)
        RESET.write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
