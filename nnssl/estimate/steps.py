"""Timed training steps of one trainer, or of several in turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter, thread_time
from typing import Any

import torch

from nnssl.estimate.memory import MemoryMeter
from nnssl.estimate.phases import PhaseClock, instrumented
from nnssl.training.dry_trainer import DryRun, build, loaders

WARM_UP = 3  # untimed steps on batches made in this process
MOST_DRAINED = 16  # batches that at most are taken before a block, so that workers have no lead
BLOCKED, BLOCKS = 0.002, 2  # seconds of waiting, and how often, that show an empty queue


@dataclass(frozen=True)
class Step:
    """One timed step.

    Attributes:
        began: time at which its batch was asked for, on the wall clock of `perf_counter`.
        waited: wall seconds until the batch was there.
        wall: wall seconds of `train_step`, the device synchronised.
        processor: processor seconds of the training thread in `train_step`.
        phases: seconds by phase, on the clock of the subject.
    """

    began: float
    waited: float
    wall: float
    processor: float
    phases: Mapping[str, float]


@dataclass
class Subject:
    """A trainer that is measured.

    Attributes:
        trainer: initialised, warmed up.
        loader: its training loader with real workers.
        val_loader: its validation loader, or None.
        workers: of the loader.
        clock: hooked into the trainer.
        batch: processor seconds that one batch costs a worker, per batch made in this process.
        peak: bytes, see `MemoryMeter`; None where unknown.
    """

    trainer: Any
    loader: Any
    val_loader: Any
    workers: int
    clock: PhaseClock
    batch: Sequence[float]
    peak: int | None
    taken: list[Step] = field(default_factory=list)

    def block(self, steps: int) -> list[Step]:
        """Drops the lead of the workers, does one step untimed, then `steps` timed ones."""
        self._drain()
        self._step()
        taken = [self._step() for _ in range(steps)]
        self.taken += taken
        return taken

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
        end = perf_counter()
        return Step(began, begin - began, end - begin, thread_time() - processor, self.clock.take())


def alternate(subjects: Iterable[Subject], rounds: int, steps: int) -> None:
    """Blocks of steps in turn, so that a change of the machine's load meets all of them."""
    subjects = list(subjects)
    for _ in range(rounds):
        for one in subjects:
            one.block(steps)


@contextmanager
def subject(
    name: str,
    job: DryRun,
    workers: int,
    timed_steps: int,
    amp: bool = True,
    processor_clock: bool = True,
) -> Iterator[Subject]:
    """Builds a trainer, warms it up and opens its loaders; call it inside `dry_folders`.

    Args:
        name: of the trainer.
        job: what it trains on.
        workers: background processes of the loader.
        timed_steps: steps that will be timed, for making the caches that these need beforehand.
        amp: False switches mixed precision off.
        processor_clock: phases in processor seconds of the training thread, else wall seconds.
    """
    meter = MemoryMeter(job.device)
    trainer = build(name, job)
    clock = PhaseClock(job.device, thread_time if processor_clock else perf_counter)
    with instrumented(trainer, clock, amp):
        fill_caches(trainer, timed_steps + WARM_UP + 2 * MOST_DRAINED)
        batch = _warm_up(trainer)
        clock.take()
        peak = meter.peak()
        with loaders(trainer, workers) as (train, val):
            yield Subject(trainer, train, val, workers, clock, batch, peak)


def fill_caches(trainer: Any, steps: int) -> None:
    """Lets a pre-trainer draw the places of its next steps: a case is looked at once per run."""
    if not hasattr(trainer, "batch_maker"):
        return
    maker = trainer.batch_maker
    for step in range(trainer.step, trainer.step + steps):
        maker.sampler.draw((maker.seed, step, maker.rank))


def _warm_up(trainer: Any) -> list[float]:
    """A few steps on batches made here, in one thread as a worker; their processor seconds."""
    trainer.network.train()
    with loaders(trainer, 0) as (train, _):
        made = [_made(train) for _ in range(WARM_UP)]
    for batch, _ in made:
        trainer.train_step(batch)
    synchronise(trainer.device)
    return [seconds for _, seconds in made]


def _made(loader: Any) -> tuple[Any, float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin = thread_time()
    batch = next(loader)
    seconds = thread_time() - begin
    torch.set_num_threads(threads)
    return batch, seconds


def synchronise(device: torch.device) -> None:
    """Waits for what CUDA has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
