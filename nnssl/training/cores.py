"""How many threads a process on the CPU may use."""

from __future__ import annotations

import os

import torch


def limit_threads(device: torch.device) -> None:
    """Give a process on the CPU no more torch threads than cores that it may run on.

    nnU-Net starts one per core of the machine, also where the process is bound to fewer (`taskset`,
    a scheduler's share, a study's share); these then wait for each other.
    """
    if device.type == "cpu" and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))
