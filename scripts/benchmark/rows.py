"""Trainers beside stock nnU-Net in alternating blocks of steps, and the rows of their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch

from benchmark.bare import BareNetwork, count_voxels
from benchmark.phases import PHASES, time_phases
from nnssl.common.environment import set_variables
from nnssl.estimate.dry_run import DryRun, dry_folders
from nnssl.estimate.estimate import describe_machine
from nnssl.estimate.steps import Step, TimedTrainer, mean_wait, open_timed
from nnssl.training.settings import PretrainingSettings

STOCK, COMPILE = "nnUNetTrainer", "nnUNet_compile"
HEADER = (
    "trainer", "workers", "precision", "compile", "voxels", "step s", "wall s", "batch s", "data %",
    *(f"{phase} %" for phase in PHASES), "peak MiB", "Mvoxel/s", "s/Mvoxel", "x stock", "x bare",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One trainer in one setting; seconds are medians over its steps.

    Attributes:
        trainer, workers, amp, compiled: what was measured.
        precision: type of the matrix products.
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
        bare: seconds of forward and backward of the same network on the same voxels, measured in
            turn with the steps; None where it was not asked for.
    """

    trainer: str
    workers: int
    amp: bool
    compiled: bool
    precision: str
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
    bare: float | None = None


@dataclass(frozen=True)
class Setting:
    """One way of running a trainer.

    Attributes:
        workers: background processes of each loader.
        amp: mixed precision, where the trainer asks for it (on the CPU only pre-trainers do).
        compiled: `torch.compile` (CUDA only).
    """

    workers: int
    amp: bool
    compiled: bool


def list_settings(
    device: torch.device, workers: Sequence[int], amp: Sequence[bool], compiled: Sequence[bool]
) -> list[Setting]:
    """All combinations; on the CPU nothing is compiled, and the trainer says the precision."""
    if device.type != "cuda":
        amp, compiled = [True], [False]
    return [Setting(*values) for values in product(workers, amp, compiled)]


def compare(
    names: Sequence[str], job: DryRun, setting: Setting, rounds: int, steps: int, bare: bool = False
) -> tuple[list[Row], list[TimedTrainer]]:
    """Stock nnU-Net first, then each trainer, in alternating blocks of steps.

    Blocks in turn let a change of the machine's load meet all of them.

    Args:
        names: trainers; stock is added.
        job: what they train on.
        setting: how.
        rounds: blocks per trainer.
        steps: timed steps of a block.
        bare: whether each block is followed by one of the bare network.

    Returns:
        A row and the timed steps of each trainer, stock first.
    """
    names = [STOCK, *(name for name in dict.fromkeys(names) if name != STOCK)]
    with ExitStack() as stack:
        stack.enter_context(dry_folders(job))
        stack.enter_context(set_variables({COMPILE: str(int(setting.compiled))}))
        instrument = partial(time_phases, amp=setting.amp)
        timed = [
            stack.enter_context(open_timed(name, job, setting.workers, rounds * steps, instrument))
            for name in names
        ]
        bares = [BareNetwork(t.trainer, _find_dtype(t.trainer, setting)) for t in timed * bare]
        for _ in range(rounds):
            for number, one in enumerate(timed):
                one.run_block(steps)
                for network in bares[number : number + 1]:
                    network.run_block(steps)
        rows = [summarise(one, setting) for one in timed]
        if bare:
            rows = [replace(row, bare=one.seconds) for row, one in zip(rows, bares, strict=True)]
        stock = rows[0].per_million
        return [replace(row, relative=row.per_million / stock) for row in rows], timed


def _find_dtype(trainer: Any, setting: Setting) -> torch.dtype | None:
    """In which a step computes: a pre-trainer says it, nnU-Net takes float16 on CUDA alone."""
    settings, device = getattr(trainer, "settings", None), trainer.device.type
    if isinstance(settings, PretrainingSettings):
        name = settings.autocast_dtype(device)
    else:
        name = "float16" if device == "cuda" else None
    return getattr(torch, name) if name is not None and setting.amp else None


def summarise(timed: TimedTrainer, setting: Setting) -> Row:
    """The figures of one trainer's timed steps."""
    trainer, steps = timed.trainer, timed.steps
    wall, processor = (median(getattr(s, name) for s in steps) for name in ("wall", "processor"))
    on_cpu = trainer.device.type == "cpu"
    step, waited, voxels = processor if on_cpu else wall, mean_wait(steps), count_voxels(trainer)
    return Row(
        trainer=type(trainer).__name__,
        **asdict(setting),
        precision=str(_find_dtype(trainer, setting) or torch.float32).removeprefix("torch."),
        voxels=voxels,
        step=step,
        wall=wall,
        processor=processor,
        waited=waited,
        batch=median(timed.batch_seconds),
        shares=find_shares(steps, on_cpu),
        peak_bytes=timed.peak_bytes,
        voxels_per_second=voxels / (wall + waited),
        per_million=step / voxels * 1e6,
    )


def find_shares(steps: Sequence[Step], on_cpu: bool) -> dict[str, float]:
    """Shares of the whole time, see `Row.shares`."""
    waited, wall = sum(s.waited for s in steps), sum(s.wall for s in steps)
    data = waited / (waited + wall)
    inside = sum(s.processor if on_cpu else s.wall for s in steps)
    return {"data": data} | {
        phase: (1 - data) * sum(s.phases[phase] for s in steps) / inside for phase in PHASES
    }


def format_cells(row: Row) -> list[str]:
    """The row of the table under `HEADER`."""
    percents = [f"{100 * row.shares[name]:.0f}" for name in ("data", *PHASES)]
    peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"
    return [
        row.trainer,
        str(row.workers),
        row.precision,
        "on" if row.compiled else "off",
        str(row.voxels),
        *(f"{seconds:.3f}" for seconds in (row.step, row.wall, row.batch)),
        *percents,
        peak,
        f"{row.voxels_per_second / 1e6:.2f}",
        f"{row.per_million:.2f}",
        f"{row.relative:.2f}",
        "-" if row.bare is None else f"{row.step / row.bare:.2f}",
    ]


def list_over_budget(rows: Sequence[Row], budget: float) -> list[str]:
    """A sentence for each trainer whose step per voxel costs more than `budget` times stock's."""
    return [
        f"{row.trainer} ({row.workers} workers): {row.per_million:.3g} s per million voxels is "
        f"{row.relative:.2f} times stock's, the budget is {budget:g}"
        for row in rows[1:]
        if row.relative > budget
    ]


def as_json(rows: Sequence[Row], job: DryRun) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "machine": describe_machine(job.device),
        "job": job.to_dict(),
        "rows": [asdict(row) for row in rows],
    }
