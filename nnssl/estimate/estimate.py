"""What a whole run will cost, from a few dry steps that leave nothing behind."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import torch

from nnssl.estimate.read_volume import bytes_per_batch
from nnssl.estimate.steps import Subject, subject, synchronise
from nnssl.estimate.summary import machine, waiting
from nnssl.training.dry_trainer import RESULTS, DryRun, dry_folders
from nnssl.training.preflight import COPIES

DRY_STEPS = 10
DRY_VALIDATION_STEPS = 3
DATA_BINDS = 0.1  # share of the time spent waiting above which the data bind
TIGHT_MEMORY = 0.9
GIBIBYTE = 2**30


@dataclass(frozen=True)
class Estimate:
    """Figures of a run of `trainer`, the final validation not counted.

    Attributes:
        trainer: its name.
        job: dataset, configuration, fold, plans, device.
        workers: of the loader.
        steps, val_steps: of the whole run.
        seconds_per_step: median wall seconds of a step, and the mean of what it waits for data.
        seconds_waited: the latter alone.
        seconds_per_val_step: median wall seconds, waiting included.
        batch_seconds: processor seconds that a batch costs a worker.
        memory_bytes: on CUDA what torch allocates at most, else growth of the process; or None.
        memory_limit: of the CUDA device, or None.
        checkpoint_bytes: of all checkpoints that lie side by side while one is written.
        cache_bytes: of nnSSL's own files beside the preprocessed data.
        free_bytes: on the disk of `nnUNet_results`, or None.
        read_rate: compressed bytes per second that the loader has to read.
        machine: where and when it was measured.
    """

    trainer: str
    job: dict[str, str]
    workers: int
    steps: int
    val_steps: int
    seconds_per_step: float
    seconds_waited: float
    seconds_per_val_step: float
    batch_seconds: float
    memory_bytes: int | None
    memory_limit: int | None
    checkpoint_bytes: int
    cache_bytes: int
    free_bytes: int | None
    read_rate: float
    machine: dict[str, Any]

    @property
    def hours(self) -> float:
        """(steps x seconds per step + validation steps x seconds per validation step) / 3600."""
        train = self.steps * self.seconds_per_step
        return (train + self.val_steps * self.seconds_per_val_step) / 3600

    @property
    def binding(self) -> Literal["data", "arithmetic"]:
        """What the speed depends on."""
        share = self.seconds_waited / self.seconds_per_step
        return "data" if share > DATA_BINDS else "arithmetic"

    @property
    def workers_needed(self) -> int:
        """Workers that make batches as fast as the steps use them up."""
        return max(1, math.ceil(self.batch_seconds / self.arithmetic_seconds))

    @property
    def arithmetic_seconds(self) -> float:
        return self.seconds_per_step - self.seconds_waited

    def advice(self) -> list[str]:
        """Sentences on what could be changed."""
        return [*self._on_speed(), *self._on_space(), *self._on_load()]

    def _on_speed(self) -> list[str]:
        needed, share = self.workers_needed, self.seconds_waited / self.seconds_per_step
        if self.binding == "arithmetic":
            return []
        waits = f"{100 * share:.0f} % of the time is spent waiting for data"
        if needed > self.workers:
            cores = self.machine["cores"]
            lack = f" (this machine has {cores} cores)" if cores and needed >= cores else ""
            return [f"{waits}: export nnUNet_n_proc_DA={needed}{lack}"]
        return [f"{waits}, though {self.workers} workers should do: the disk or the load is slow"]

    def _on_space(self) -> list[str]:
        said = []
        if self.memory_limit and (self.memory_bytes or 0) > TIGHT_MEMORY * self.memory_limit:
            said.append(
                f"the GPU has {self.memory_limit / GIBIBYTE:.1f} GiB: take smaller plans, or for "
                "pre-training nnssl_overrides='training.voxel_budget=0.5'"
            )
        needed = self.checkpoint_bytes + self.cache_bytes
        if self.free_bytes is not None and self.free_bytes < needed:
            said.append(
                f"{RESULTS} has {self.free_bytes / GIBIBYTE:.1f} GiB free, "
                f"{needed / GIBIBYTE:.1f} GiB are needed"
            )
        return said

    def _on_load(self) -> list[str]:
        load, cores = self.machine["load_average"], self.machine["cores"]
        if load is None or not cores or load <= cores:
            return []
        return [f"the machine is busy (load {load:.1f} on {cores} cores): hours may be too many"]

    def to_dict(self) -> dict[str, Any]:
        derived = ("hours", "binding", "workers_needed")
        return {**asdict(self), **{k: getattr(self, k) for k in derived}, "advice": self.advice()}


def estimate(trainer: str, job: DryRun, workers: int, steps: int = DRY_STEPS) -> Estimate:
    """Runs dry steps of a trainer with its real loaders, in temporary folders.

    Args:
        trainer: name of a trainer of nnSSL or nnU-Net.
        job: what it would train on.
        workers: background processes of the loader.
        steps: dry steps to be timed.

    Raises:
        ValueError, RuntimeError: what nnU-Net or the trainer refuses.
    """
    if steps < 1 or workers < 0:
        raise ValueError(f"steps: found {steps}, allowed from 1; workers: {workers}, from 0")
    free = _free()
    with (
        redirect_stdout(StringIO()),  # of what nnU-Net prints
        dry_folders(job) as folder,
        subject(trainer, job, workers, steps, processor_clock=False) as dry,
    ):
        dry.block(steps)
        return _figures(trainer, job, dry, folder, free)


def _figures(name: str, job: DryRun, dry: Subject, folder: Path, free: int | None) -> Estimate:
    trainer = dry.trainer
    epochs, waited = trainer.num_epochs, waiting(dry.taken)
    per_epoch = _steps_per_epoch(trainer)
    seconds = median(step.wall for step in dry.taken) + waited
    return Estimate(
        trainer=name,
        job=job.to_dict(),
        workers=dry.workers,
        steps=epochs * per_epoch,
        val_steps=epochs * trainer.num_val_iterations_per_epoch,
        seconds_per_step=seconds,
        seconds_waited=waited,
        seconds_per_val_step=_validation(dry),
        batch_seconds=median(dry.batch),
        memory_bytes=dry.peak,
        memory_limit=_memory_limit(job.device),
        checkpoint_bytes=COPIES * _checkpoint_bytes(trainer, folder),
        cache_bytes=_cache_bytes(trainer),
        free_bytes=free,
        read_rate=bytes_per_batch(trainer) / seconds,
        machine=machine(job.device),
    )


def _steps_per_epoch(trainer: Any) -> int:
    settings = getattr(trainer, "settings", trainer)
    return int(settings.num_iterations_per_epoch)


def _validation(dry: Subject) -> float:
    """Median wall seconds of a validation step; the first is not counted."""
    trainer = dry.trainer
    if dry.val_loader is None or not trainer.num_val_iterations_per_epoch:
        return 0.0
    trainer.network.eval()
    with torch.no_grad():
        seconds = [_validation_step(dry) for _ in range(DRY_VALIDATION_STEPS + 1)]
    trainer.network.train()
    return median(seconds[1:])


def _validation_step(dry: Subject) -> float:
    begin = perf_counter()
    dry.trainer.validation_step(next(dry.val_loader))
    synchronise(dry.trainer.device)
    return perf_counter() - begin


def _checkpoint_bytes(trainer: Any, folder: Path) -> int:
    """Size of a checkpoint as the trainer writes it."""
    file = folder / "checkpoint.pth"
    trainer.disable_checkpointing = False
    trainer.save_checkpoint(str(file))
    trainer.disable_checkpointing = True
    return file.stat().st_size


def _cache_bytes(trainer: Any) -> int:
    """Tissue tables of all cases, at the mean size of those that are there."""
    folders = getattr(trainer, "folders", None)
    if folders is None:
        return 0
    sizes = [file.stat().st_size for file in (folders.own / "occupancy").glob("*.npz")]
    cases = len(trainer.drawn_cases) + len(trainer.val_cases)
    return round(cases * _mean(sizes)) + (folders.own / "geometry.json").stat().st_size


def _mean(sizes: Sequence[int]) -> float:
    return sum(sizes) / max(1, len(sizes))


def _memory_limit(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def _free() -> int | None:
    """Free bytes where the run would write; None where the variable names no folder."""
    folder = os.environ.get(RESULTS)
    return shutil.disk_usage(folder).free if folder and Path(folder).is_dir() else None
