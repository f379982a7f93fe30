"""Where processes run side by side: one GPU each, or a share of the processor's cores each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import pairwise

from nnssl.common.environment import read_variable
from nnssl.studies.run.attempts import Slot

CPU = "cpu"
MOST_WORKERS = 12  # nnU-Net's own number of augmentation workers


def slots(devices: Sequence[str] | None, processes: int | None) -> list[Slot]:
    """One slot per process.

    Args:
        devices: numbers of GPUs, or `cpu`; None: all GPUs that are there, else the CPU.
        processes: how many side by side; None: one per GPU, one on the CPU.

    Raises:
        ValueError: something else than GPU numbers or `cpu`, or no process at all.
    """
    chosen = list(devices or _gpus() or [CPU])
    if (CPU in chosen and chosen != [CPU]) or any(d != CPU and not d.isdigit() for d in chosen):
        raise ValueError(f"--devices: found {' '.join(chosen)}; allowed: numbers of GPUs, or cpu")
    number = len(chosen) if processes is None else processes
    if number < 1:
        raise ValueError(f"--processes: found {number}, allowed from 1")
    if chosen == [CPU]:
        return [_of_cpu(cores, number) for cores in shares(_cores(), number)]
    return [_of_gpu(chosen[i % len(chosen)], number) for i in range(number)]


def shares(cores: Sequence[int], number: int) -> list[list[int]]:
    """Divides the cores among `number` processes; with fewer cores than processes they share."""
    if number >= len(cores):
        return [[cores[i % len(cores)]] for i in range(number)]
    bounds = [len(cores) * i // number for i in range(number + 1)]
    return [list(cores[a:b]) for a, b in pairwise(bounds)]


def _of_cpu(cores: Sequence[int], processes: int) -> Slot:
    """nnU-Net starts a thread per core of the machine; on fewer cores these wait passively."""
    bound = processes > 1 and shutil.which("taskset") is not None
    prefix = ("taskset", "-c", ",".join(map(str, cores))) if bound else ()
    threads = {"OMP_NUM_THREADS": str(len(cores)), "OMP_WAIT_POLICY": "passive"}
    return Slot({**threads, **_workers(len(cores))}, prefix, ("-device", CPU))


def _of_gpu(device: str, processes: int) -> Slot:
    workers = _workers(max(1, len(_cores()) // processes))
    return Slot({"CUDA_VISIBLE_DEVICES": device, **workers})


def _workers(cores: int) -> dict[str, str]:
    """Background processes of nnU-Net, unless the user has set their number."""
    numbers = {"nnUNet_n_proc_DA": min(MOST_WORKERS, cores), "nnUNet_def_n_proc": min(8, cores)}
    return {name: str(n) for name, n in numbers.items() if read_variable(name) is None}


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _gpus() -> list[str]:
    import torch  # loaded only where nobody has named devices

    return [str(number) for number in range(torch.cuda.device_count())]
