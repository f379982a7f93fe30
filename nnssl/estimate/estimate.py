"""What a whole run will cost, from a few dry steps that leave nothing behind."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch

from nnssl.common.versions import versions
from nnssl.data.budget import Budget
from nnssl.data.case_table import GEOMETRY_FILE
from nnssl.data.copies import SIGNATURE
from nnssl.data.thumbnails import CELLS
from nnssl.data.tissue_share import CACHE
from nnssl.estimate.dry_run import DryRun, dry_folders
from nnssl.estimate.steps import TimedTrainer, mean_wait, open_timed, synchronise
from nnssl.modules.positions import extent3
from nnssl.nnunet.images import image_file, open_image
from nnssl.nnunet.paths import RESULTS, find_root
from nnssl.training.preflight import COPIES

DRY_STEPS = 10
DRY_VALIDATION_STEPS = 3
DATA_BINDS = 0.1  # share of the time spent waiting above which the data bind
TIGHT_MEMORY = 0.9
MOST_LOOKED_AT = 16  # cases, for the read rate
GIBIBYTE = 2**30


@dataclass(frozen=True)
class Estimate:
    """Figures of a run of `trainer`, the final validation not counted."""

    trainer: str
    job: dict[str, str]
    workers: int  # of the loader
    steps: int  # of the whole run
    val_steps: int  # of the whole run, as steps
    seconds_per_step: float  # median wall seconds of a step, and the mean of what it waits for data
    seconds_waited: float  # the latter alone
    seconds_per_val_step: float  # median wall seconds, waiting included
    batch_seconds: float  # processor seconds that a batch costs a worker
    memory_bytes: int | None  # on CUDA what torch allocates at most, else growth of the process
    memory_limit: int | None  # of the CUDA device, or None
    checkpoint_bytes: int  # of all checkpoints that lie side by side while one is written
    cache_bytes: int  # of nnSSL's own files beside the preprocessed data
    free_bytes: int | None  # on the disk of `nnUNet_results`, or None
    read_rate: float  # compressed bytes per second that the loader has to read
    machine: dict[str, Any]  # where and when it was measured

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
        arithmetic = self.seconds_per_step - self.seconds_waited
        return max(1, math.ceil(self.batch_seconds / arithmetic))

    def advise(self) -> list[str]:
        """Sentences on what could be changed."""
        said, cores = [], self.machine["cores"]
        if self.binding == "data":
            needed, share = self.workers_needed, self.seconds_waited / self.seconds_per_step
            waits = f"{100 * share:.0f} % of the time is spent waiting for data"
            lack = f" (this machine has {cores} cores)" if cores and needed >= cores else ""
            if needed > self.workers:
                said.append(f"{waits}: export nnUNet_n_proc_DA={needed}{lack}")
            else:
                cause = "the disk or the load is slow"
                said.append(f"{waits}, though {self.workers} workers should do: {cause}")
        if self.memory_limit and (self.memory_bytes or 0) > TIGHT_MEMORY * self.memory_limit:
            said.append(
                f"the GPU has {self.memory_limit / GIBIBYTE:.1f} GiB: take smaller plans, or for "
                "pre-training nnssl_overrides='training.voxel_budget=0.5'"
            )
        needed_bytes = self.checkpoint_bytes + self.cache_bytes
        if self.free_bytes is not None and self.free_bytes < needed_bytes:
            said.append(
                f"{RESULTS} has {self.free_bytes / GIBIBYTE:.1f} GiB free, "
                f"{needed_bytes / GIBIBYTE:.1f} GiB are needed"
            )
        load = self.machine["load_average"]
        if load is not None and cores and load > cores:
            said.append(
                f"the machine is busy (load {load:.1f} on {cores} cores): hours may be too many"
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        derived = ("hours", "binding", "workers_needed")
        return {**asdict(self), **{k: getattr(self, k) for k in derived}, "advice": self.advise()}


def estimate(trainer: str, job: DryRun, workers: int, steps: int = DRY_STEPS) -> Estimate:
    """Runs dry steps of a trainer with its real loaders, in temporary folders.

    Raises:
        ValueError, RuntimeError: what nnU-Net or the trainer refuses.
    """
    if steps < 1 or workers < 0:
        raise ValueError(f"steps: found {steps}, allowed from 1; workers: {workers}, from 0")
    results = find_root(RESULTS)
    free = shutil.disk_usage(results).free if results and results.is_dir() else None
    with (
        redirect_stdout(StringIO()),  # of what nnU-Net prints
        dry_folders(job) as folder,
        open_timed(trainer, job, workers, steps) as dry,
    ):
        dry.run_block(steps)
        return _figures(trainer, job, dry, folder, free)


def _figures(name: str, job: DryRun, dry: TimedTrainer, folder: Path, free: int | None) -> Estimate:
    trainer, waited = dry.trainer, mean_wait(dry.steps)
    seconds = median(step.wall for step in dry.steps) + waited
    settings = getattr(trainer, "settings", trainer)
    on_cuda = job.device.type == "cuda"
    return Estimate(
        trainer=name,
        job=job.to_dict(),
        workers=dry.workers,
        steps=trainer.num_epochs * int(settings.num_iterations_per_epoch),
        val_steps=trainer.num_epochs * trainer.num_val_iterations_per_epoch,
        seconds_per_step=seconds,
        seconds_waited=waited,
        seconds_per_val_step=_time_validation(dry),
        batch_seconds=median(dry.batch_seconds),
        memory_bytes=dry.peak_bytes,
        memory_limit=torch.cuda.get_device_properties(job.device).total_memory if on_cuda else None,
        checkpoint_bytes=COPIES * _write_checkpoint(trainer, folder),
        cache_bytes=_expect_caches(trainer),
        free_bytes=free,
        read_rate=expect_bytes_per_batch(trainer) / seconds,
        machine=describe_machine(job.device),
    )


def _time_validation(dry: TimedTrainer) -> float:
    """Median wall seconds of a validation step; the first is not counted."""
    trainer, seconds = dry.trainer, []
    if dry.val_loader is None or not trainer.num_val_iterations_per_epoch:
        return 0.0
    trainer.network.eval()
    with torch.no_grad():
        for _ in range(DRY_VALIDATION_STEPS + 1):
            begin = perf_counter()
            trainer.validation_step(next(dry.val_loader))
            synchronise(trainer.device)
            seconds.append(perf_counter() - begin)
    trainer.network.train()
    return median(seconds[1:])


def _write_checkpoint(trainer: Any, folder: Path) -> int:
    """Bytes of a checkpoint as the trainer writes it."""
    file = folder / "checkpoint.pth"
    trainer.disable_checkpointing = False
    if hasattr(trainer, "seen_record"):  # a real run keeps a signature of every image
        signatures = np.zeros((_count_cases(trainer)[1], SIGNATURE), np.int8)
        trainer.seen_record = {"signatures": signatures}
    trainer.save_checkpoint(str(file))
    trainer.disable_checkpointing = True
    return file.stat().st_size


def _expect_caches(trainer: Any) -> int:
    """Bytes of the thumbnails of the training cases, and of the tissue tables of all cases.

    Tables are taken at the mean size of those that are there.
    """
    folders = getattr(trainer, "folders", None)
    if folders is None:
        return 0
    sizes = [file.stat().st_size for file in (folders.own / CACHE).glob("*.npz")]
    train, drawn, held_out = _count_cases(trainer)
    tables = round((drawn + held_out) * sum(sizes) / max(1, len(sizes)))
    thumbnails = train * math.prod(CELLS) * np.float16().nbytes
    return tables + thumbnails + (folders.own / GEOMETRY_FILE).stat().st_size


def _count_cases(trainer: Any) -> tuple[int, int, int]:
    """Training cases, these and images without labels, validation cases of a pre-training."""
    train, held_out = map(len, trainer.do_split())
    return train, train + len(trainer.unlabelled.members), held_out


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Where and when something was measured, for JSON."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch_threads": torch.get_num_threads(),
        "versions": versions("nnunetv2", "torch"),
    }


def expect_bytes_per_batch(trainer: Any) -> float:
    """Expected compressed bytes that one training batch makes the loader read.

    A box of p voxels per axis at a random place touches p + b - 1 voxels of an axis of L voxels
    that is stored in blocks of b (never more than L), and the file's bytes are spread evenly:

    .. math:: N \\sum_{files} size \\prod_a \\min(L_a, p_a + b_a - 1) / L_a

    A supervised batch reads the labels' file beside the image's.
    """
    folder = Path(trainer.preprocessed_dataset_folder)
    cases = sorted(trainer.do_split()[0])
    budget = getattr(trainer, "budget", None)
    if isinstance(budget, Budget):
        raw_patch, samples, endings = budget.raw_patch, budget.samples, [""]
    else:
        raw_patch = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[2]
        samples, endings = trainer.batch_size, ["", "_seg"]
    per_case = []
    for case in cases[:: math.ceil(len(cases) / MOST_LOOKED_AT)]:
        image = image_file(folder, case)
        files = [image.with_name(f"{case}{ending}{image.suffix}") for ending in endings]
        # labels lie in the image's own `.npz` before nnU-Net 2.6
        per_case.append(sum(_touch(file, extent3(raw_patch)) for file in files if file.is_file()))
    return samples * fmean(per_case)


def _touch(file: Path, raw_patch: Sequence[int]) -> float:
    """Expected bytes of a file that a box of this size needs."""
    size = file.stat().st_size
    if file.suffix == ".npz":  # has to be read as a whole
        return size
    array = open_image(file, "fiu")
    shape = np.array(array.shape[1:])
    blocks = np.array(getattr(array, "blocks", (1,) * array.ndim)[1:])
    read = np.minimum(shape, np.array([int(p) for p in raw_patch]) + blocks - 1)
    return float(size * np.prod(read / shape))
