"""Timed training steps of a trainer, and the memory that they take."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from time import perf_counter, thread_time
from typing import Any

import torch

from nnssl.estimate.dry_run import DryRun, build_trainer, open_loaders

WARM_UP = 3  # untimed steps on batches made in this process
MOST_DRAINED = 16  # batches that at most are taken before a block, so that workers have no lead
BLOCKED, BLOCKS = 0.002, 2  # seconds of waiting, and how often, that show an empty queue
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

TakePhases = Callable[[], Mapping[str, float]]  # seconds per phase since the last call


@dataclass(frozen=True)
class Step:
    """One timed step."""

    began: float  # time at which its batch was asked for, on the wall clock of `perf_counter`
    waited: float  # wall seconds until the batch was there
    wall: float  # wall seconds of `train_step`, the device synchronised
    processor: float  # processor seconds of the training thread in `train_step`
    phases: Mapping[str, float]  # seconds by phase; empty where nothing tells them apart


@dataclass
class TimedTrainer:
    """A trainer whose steps are timed."""

    trainer: Any  # initialised, warmed up
    loader: Any  # its training loader with real workers
    val_loader: Any  # its validation loader, or None
    workers: int  # of the loader
    batch_seconds: Sequence[float]  # of the processor, per batch made in this process
    peak_bytes: int | None  # see `MemoryMeter`; None where unknown
    take_phases: TakePhases  # tells the phases of a step
    steps: list[Step] = field(default_factory=list)  # those that were timed

    def run_block(self, steps: int) -> None:
        """Drops the lead of the workers, does one step untimed, then `steps` timed ones."""
        self._drain()
        self._step()
        self.steps += [self._step() for _ in range(steps)]

    def _drain(self) -> None:
        blocked = 0
        for _ in range(MOST_DRAINED if self.workers else 0):
            begin = perf_counter()
            next(self.loader)
            blocked += perf_counter() - begin > BLOCKED
            if blocked >= BLOCKS:
                return

    def _step(self) -> Step:
        began = perf_counter()
        batch = next(self.loader)
        begin, processor = perf_counter(), thread_time()
        self.trainer.train_step(batch)
        synchronise(self.trainer.device)
        wall, processor = perf_counter() - begin, thread_time() - processor
        return Step(began, begin - began, wall, processor, self.take_phases())


def mean_wait(steps: Sequence[Step]) -> float:
    """Mean wall seconds per step; the mean, because several workers deliver in bursts."""
    return fmean(step.waited for step in steps)


@contextmanager
def open_timed(
    name: str,
    job: DryRun,
    workers: int,
    timed_steps: int,
    instrument: Callable[[Any], AbstractContextManager[TakePhases]] = lambda _: nullcontext(dict),
) -> Iterator[TimedTrainer]:
    """Builds a trainer, warms it up and opens its loaders; call it inside `dry_folders`.

    Args:
        timed_steps: steps that will be timed, for making the caches that these need beforehand.
        instrument: hooks that tell the phases of a step, and are gone afterwards.
    """
    meter = MemoryMeter(job.device)
    trainer = build_trainer(name, job)
    with instrument(trainer) as take_phases:
        _fill_caches(trainer, timed_steps + WARM_UP + 2 * MOST_DRAINED)
        seconds = _warm_up(trainer)
        take_phases()
        peak = meter.read_peak()
        with open_loaders(trainer, workers) as (train, val):
            yield TimedTrainer(trainer, train, val, workers, seconds, peak, take_phases)


def _fill_caches(trainer: Any, steps: int) -> None:
    """Lets a pre-trainer draw the places of its next steps: a case is looked at once per run."""
    if not hasattr(trainer, "batch_maker"):
        return
    maker = trainer.batch_maker
    for step in range(trainer.step, trainer.step + steps):
        maker.sampler.draw((maker.seed, step, maker.rank))


def _warm_up(trainer: Any) -> list[float]:
    """A few steps on batches made here, in one thread as a worker; their processor seconds."""
    trainer.network.train()
    batches, seconds, threads = [], [], torch.get_num_threads()
    with open_loaders(trainer, 0) as (train, _):
        torch.set_num_threads(1)
        for _ in range(WARM_UP):
            begin = thread_time()
            batches.append(next(train))
            seconds.append(thread_time() - begin)
        torch.set_num_threads(threads)
    for batch in batches:
        trainer.train_step(batch)
    synchronise(trainer.device)
    return seconds


def synchronise(device: torch.device) -> None:
    """Waits for what CUDA has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
            self._base = _reset_peak_of_process()

    def read_peak(self) -> int | None:
        """Bytes; None where it cannot be told."""
        if self._base is None:
            return None
        now = torch.cuda.max_memory_allocated() if self._cuda else _read_status("VmHWM")
        return max(0, now - self._base)


def _reset_peak_of_process() -> int | None:
    """Resident bytes now, after the allocator has returned what is free and the peak is reset."""
    try:
        with suppress(AttributeError, OSError):  # the C library may be another than glibc
            ctypes.CDLL(None).malloc_trim(0)
        RESET.write_text("5")
        return _read_status("VmRSS")
    except OSError:
        return None


def _read_status(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
