"""From timed steps to the figures of a trainer, and from these to a table."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from statistics import fmean, median
from typing import Any

import torch

from nnssl.common.versions import versions
from nnssl.data.budget import Budget
from nnssl.estimate.phases import PHASES
from nnssl.estimate.steps import Step
from nnssl.training.dry_trainer import DryRun

HEADER = (
    "trainer", "workers", "AMP", "compile", "voxels", "step s", "wall s", "batch s", "data %",
    *(f"{phase} %" for phase in PHASES), "peak MiB", "Mvoxel/s", "s/Mvoxel", "x stock",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One trainer in one setting; seconds are medians over its steps.

    Attributes:
        trainer, workers, amp, compiled: what was measured.
        voxels: voxels that the network sees per step, in pre-training those of all views.
        step: seconds of `train_step`: processor seconds of the training thread on the CPU (a busy
            machine does not matter), wall seconds on CUDA.
        wall: wall seconds of `train_step`.
        processor: processor seconds of the training thread in `train_step`.
        waited: mean wall seconds per step of waiting for a batch.
        batch: processor seconds that making a batch costs a worker.
        shares: of the time of a step and its waiting: `data` (wall), then each phase, whose share
            of the step is measured on the clock of `step`. They sum to at most 1.
        peak_bytes: memory, see `MemoryMeter`; None where unknown.
        voxels_per_second: of a run, waiting included, on this machine as busy as it was.
        per_million: `step` per million voxels.
        relative: `per_million` over that of the first row of the setting, which is stock.
    """

    trainer: str
    workers: int
    amp: bool
    compiled: bool
    voxels: int
    step: float
    wall: float
    processor: float
    waited: float
    batch: float
    shares: Mapping[str, float]
    peak_bytes: int | None
    voxels_per_second: float
    per_million: float
    relative: float = 1.0


def summarise(
    trainer: Any, steps: Sequence[Step], batch: Sequence[float], peak: int | None, **setting: Any
) -> Row:
    """The figures of one trainer's timed steps."""
    wall, processor = (median(getattr(s, name) for s in steps) for name in ("wall", "processor"))
    on_cpu = trainer.device.type == "cpu"
    step, waited, voxels = processor if on_cpu else wall, waiting(steps), voxels_per_step(trainer)
    return Row(
        trainer=type(trainer).__name__,
        **setting,
        voxels=voxels,
        step=step,
        wall=wall,
        processor=processor,
        waited=waited,
        batch=median(batch),
        shares=shares(steps, on_cpu),
        peak_bytes=peak,
        voxels_per_second=voxels / (wall + waited),
        per_million=step / voxels * 1e6,
    )


def waiting(steps: Sequence[Step]) -> float:
    """Mean wall seconds per step; the mean, because several workers deliver in bursts."""
    return fmean(step.waited for step in steps)


def shares(steps: Sequence[Step], on_cpu: bool) -> dict[str, float]:
    """Shares of the whole time, see `Row.shares`."""
    waited, wall = sum(s.waited for s in steps), sum(s.wall for s in steps)
    data = waited / (waited + wall)
    inside = sum(s.processor if on_cpu else s.wall for s in steps)
    return {"data": data} | {
        phase: (1 - data) * sum(s.phases[phase] for s in steps) / inside for phase in PHASES
    }


def voxels_per_step(trainer: Any) -> int:
    """Voxels that the network sees per step; in pre-training those of all views."""
    budget = getattr(trainer, "budget", None)
    if isinstance(budget, Budget):
        return budget.voxels
    return math.prod(trainer.configuration_manager.patch_size) * int(trainer.batch_size)


def cells(row: Row) -> list[str]:
    """The row of the table under `HEADER`."""
    percents = [f"{100 * row.shares[name]:.0f}" for name in ("data", *PHASES)]
    peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"
    return [
        row.trainer,
        str(row.workers),
        "on" if row.amp else "off",
        "on" if row.compiled else "off",
        str(row.voxels),
        *(f"{seconds:.3f}" for seconds in (row.step, row.wall, row.batch)),
        *percents,
        peak,
        f"{row.voxels_per_second / 1e6:.2f}",
        f"{row.per_million:.2f}",
        f"{row.relative:.2f}",
    ]


def over_budget(rows: Sequence[Row], budget: float) -> list[str]:
    """A sentence for each trainer whose step per voxel costs more than `budget` times stock's."""
    return [
        f"{row.trainer} ({row.workers} workers): {row.per_million:.3g} s per million voxels is "
        f"{row.relative:.2f} times stock's, the budget is {budget:g}"
        for row in rows[1:]
        if row.relative > budget
    ]


def machine(device: torch.device) -> dict[str, Any]:
    """Where and when something was measured, for JSON."""
    cuda = device.type == "cuda"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": load,
        "torch_threads": torch.get_num_threads(),
        "versions": versions("nnunetv2", "torch"),
    }


def as_json(rows: Sequence[Row], job: DryRun) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "machine": machine(job.device),
        "job": job.to_dict(),
        "rows": [asdict(row) for row in rows],
    }
