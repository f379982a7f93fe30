"""Where processes run side by side: one GPU each, or a share of the processor's cores each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise

from nnssl.common.environment import read_variable

CPU = "cpu"
MOST_WORKERS = 12  # nnU-Net's own number of augmentation workers


@dataclass(frozen=True)
class Slot:
    """Where one process may run: what is added to its environment and to its command."""

    variables: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()  # taskset -c 0
    arguments: Sequence[str] = ()  # -device cpu


def make_slots(devices: Sequence[str] | None, processes: int | None) -> list[Slot]:
    """One slot per process on this machine.

    Args:
        devices: numbers of GPUs, or `cpu`; None: all GPUs that are there, else the CPU.
        processes: how many side by side; None: one per GPU, one on the CPU.
    """
    chosen = list(devices or _find_gpus() or [CPU])
    if (CPU in chosen and chosen != [CPU]) or any(d != CPU and not d.isdigit() for d in chosen):
        raise ValueError(f"--devices: found {' '.join(chosen)}; allowed: numbers of GPUs, or cpu")
    number = len(chosen) if processes is None else processes
    if number < 1:
        raise ValueError(f"--processes: found {number}, allowed from 1")
    cores = _find_cores()
    if chosen == [CPU]:
        return [_make_cpu_slot(share, bind=number > 1) for share in share_cores(cores, number)]
    workers = _leave_to_user(count_workers(max(1, len(cores) // number)))
    return [Slot({"CUDA_VISIBLE_DEVICES": gpu, **workers}) for gpu in islice(cycle(chosen), number)]


def share_cores(cores: Sequence[int], number: int) -> list[list[int]]:
    """Divides the cores among `number` processes; with fewer cores than processes they share."""
    if number >= len(cores):
        return [[cores[i % len(cores)]] for i in range(number)]
    bounds = [len(cores) * i // number for i in range(number + 1)]
    return [list(cores[a:b]) for a, b in pairwise(bounds)]


def count_workers(cores: int) -> dict[str, str]:
    """nnU-Net's variables for the number of its background processes."""
    numbers = {"nnUNet_n_proc_DA": min(MOST_WORKERS, cores), "nnUNet_def_n_proc": min(8, cores)}
    return {name: str(number) for name, number in numbers.items()}


def _make_cpu_slot(cores: Sequence[int], bind: bool) -> Slot:
    """nnU-Net starts a thread per core of the machine; on fewer cores these wait passively."""
    bound = bind and shutil.which("taskset") is not None
    prefix = ("taskset", "-c", ",".join(map(str, cores))) if bound else ()
    threads = {"OMP_NUM_THREADS": str(len(cores)), "OMP_WAIT_POLICY": "passive"}
    return Slot(threads | _leave_to_user(count_workers(len(cores))), prefix, ("-device", CPU))


def _leave_to_user(variables: dict[str, str]) -> dict[str, str]:
    """Without what the user has set."""
    return {name: text for name, text in variables.items() if read_variable(name) is None}


def _find_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _find_gpus() -> list[str]:
    import torch  # loaded only where nobody has named devices

    return [str(number) for number in range(torch.cuda.device_count())]
