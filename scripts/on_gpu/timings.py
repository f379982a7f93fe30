"""What a step costs at real sizes: beside stock nnU-Net and beside the bare network, and waiting.

usage: python -m on_gpu.timings FOLDER DEVICE SIZE SECONDS GO PART CONFIGURATION[,...] TRAINER ...

PART is `steps` or `waiting`; SIZE is that of the data, which are written where they are missing.
With `steps`, everything is built first, and measured as soon as the file GO is there. A line of
JSON per row; a row that comes again is better known.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import torch
from benchmark.bare import BareNetwork, count_voxels
from benchmark.phases import time_phases

from nnssl.config import read_config
from nnssl.estimate.dry_run import find_trainer_class, open_loaders
from nnssl.estimate.steps import synchronise
from nnssl.training.pretraining_setup import PretrainingSetup
from on_gpu.data import NAMES, PLANS, write_random

STOCK = "nnUNetTrainer"
ROUNDS, STEPS, WORKERS = 3, 2, (0, 2, 8)


def main() -> int:
    folder, device, size, seconds, go, part, configurations, *names = sys.argv[1:]
    end = perf_counter() + float(seconds)
    root = Path(folder)
    if not (root / "preprocessed" / NAMES[size]).is_dir():
        write_random(root, size, os.cpu_count() or 1)
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # as nnU-Net does
    tables = [Timings(root, c, torch.device(device), size) for c in configurations.split(",")]
    if part == "waiting":
        for table in tables:
            table.time_waiting(names, end)
        return 0
    built = [table.build_contestants(names) for table in tables]
    while not Path(go).exists() and perf_counter() < end - 5:
        sleep(0.05)
    for table, contestants in zip(tables, built, strict=True):
        table.time_steps(contestants, end)
    return 0


@dataclass
class Contestant:
    """A trainer whose steps are timed, beside its own network's bare ones."""

    name: str
    trainer: Any
    batch: Any
    bare: BareNetwork
    take_phases: Callable[[], Mapping[str, float]]
    steps: list[float] = field(default_factory=list)
    phases: Counter[str] = field(default_factory=Counter)
    peaks: list[int] = field(default_factory=list)  # MiB: of a step, of a bare one


class Timings:
    """Rows for one configuration; a trainer that fails leaves its traceback in its row."""

    def __init__(self, root: Path, configuration: str, device: torch.device, size: str) -> None:
        self.root, self.configuration, self.device, self.size = root, configuration, device, size
        self.preprocessed = root / "preprocessed" / NAMES[size]
        self.out, self.clocks = sys.stdout, ExitStack()

    def build_contestants(self, names: Sequence[str]) -> list[Contestant]:
        """Trainers after their first steps, in which cuDNN chooses its kernels."""
        built: list[Contestant] = []

        def build(name: str) -> dict[str, Any]:
            trainer, batch = self._build(name)
            dtype = torch.float16 if self.device.type == "cuda" else None
            bare = BareNetwork(trainer, dtype)
            take = self.clocks.enter_context(time_phases(trainer))
            one = Contestant(name, trainer, batch, bare, take)
            for run in (partial(trainer.train_step, batch), bare.run):
                one.peaks += self._measure_peak(run)
            built.append(one)
            return {"peak_mib": one.peaks}

        for name in names:
            self._guard("build", name, partial(build, name))
        return built

    def time_steps(self, contestants: Sequence[Contestant], end: float) -> None:
        """All in turn, several rounds: a change of the machine meets all of them alike."""
        for _ in range(ROUNDS):
            for one in contestants:
                if perf_counter() > end:
                    return
                self._guard("steps", one.name, partial(self._run_block, one, contestants[0]))

    def _run_block(self, one: Contestant, stock: Contestant) -> dict[str, Any]:
        """Steps of a trainer and its bare network; what is known of them by now."""
        one.steps += self._time_steps(one)
        one.bare.run_block(STEPS)
        step, stock_step, bare = median(one.steps), median(stock.steps), one.bare.seconds
        voxels, stock_voxels = count_voxels(one.trainer), count_voxels(stock.trainer)
        found = {
            "step_s": step,
            "bare_s": bare,
            "x_bare": step / bare,
            "x_stock_per_voxel": step / voxels / (stock_step / stock_voxels),
            "voxels": voxels,
            "phases": {key: value / sum(one.steps) for key, value in one.phases.items()},
            "peak_mib": one.peaks[0] if one.peaks else None,
            "bare_peak_mib": one.peaks[-1] if one.peaks else None,
            "skipped_steps": getattr(one.trainer, "skipped_steps", None),
        }
        if self.device.type == "cuda" and len(one.steps) == STEPS:
            found["waits"] = list_waits(partial(one.trainer.train_step, one.batch))
            one.take_phases()
        return found

    def _time_steps(self, one: Contestant) -> list[float]:
        one.trainer.train_step(one.batch)  # untimed: the allocator and the caches follow the change
        synchronise(self.device)
        one.take_phases()
        taken = []
        for _ in range(STEPS):
            begin = one.bare.clock()
            one.trainer.train_step(one.batch)
            synchronise(self.device)
            taken.append(one.bare.clock() - begin)
        one.phases.update(one.take_phases())
        return taken

    def time_waiting(self, names: Sequence[str], end: float) -> None:
        """The share of the time in which a trainer waits for data, by worker processes."""
        for workers in WORKERS:
            for name in names:
                if perf_counter() < end:
                    self._guard("waiting", name, partial(self._wait, name, workers))

    def _guard(self, part: str, name: str, measure: Any) -> None:
        record: dict[str, Any] = {
            "part": part,
            "trainer": name,
            "configuration": self.configuration,
        }
        begin = perf_counter()
        try:
            with redirect_stdout(sys.stderr):
                record |= {"ok": True, **measure()}
        except Exception as error:
            record |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
            record |= {"traceback": traceback.format_exc()}
        self._tell(record | {"seconds": round(perf_counter() - begin, 1)})

    def _tell(self, record: dict[str, Any]) -> None:
        print(json.dumps(record), file=self.out, flush=True)

    def _measure_peak(self, run: Callable[[], Any]) -> list[int]:
        """Runs a step; MiB that it added at its peak to what was allocated before."""
        if self.device.type != "cuda":
            run()
            return []
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return [int((torch.cuda.max_memory_allocated() - before) / 2**20)]

    def _wait(self, name: str, workers: int) -> dict[str, Any]:
        trainer, _ = self._build(name)
        waited, wall = [], []
        with open_loaders(trainer, workers) as (train, _):
            for step in range(4 + 2 * workers if self.device.type == "cuda" else 2):
                begin = perf_counter()
                batch = next(train)
                there = perf_counter()
                trainer.train_step(batch)
                synchronise(self.device)
                if step >= min(2 + workers, 4):
                    waited.append(there - begin)
                    wall.append(perf_counter() - begin)
        waiting, whole = sum(waited), sum(wall) or 1.0
        return {"workers": workers, "waiting": waiting / whole, "wall_s": whole / max(1, len(wall))}

    def _build(self, name: str) -> tuple[Any, Any]:
        """An initialised trainer after its first step, and the batch of that step."""
        results = self.root / "results" / f"timings_{name}_{self.configuration}"
        results.mkdir(parents=True, exist_ok=True)
        kind = "stock" if name == STOCK else read_config(name).kind
        more = {
            "pretrain": "initial_weights=null encoder_lr_scale=1",
            "semi_supervised": "labels.patients=1",
        }
        os.environ |= {
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(results),
            "nnssl_configs": "",
            "nnssl_overrides": more.get(kind, ""),
        }
        plans, description = (
            json.loads((self.preprocessed / f"{each}.json").read_text())
            for each in (PLANS, "dataset")
        )
        plans["continue_training"] = False
        trainer = find_trainer_class(name)(plans, self.configuration, 0, description, self.device)
        trainer.disable_checkpointing = True
        trainer.initialize()
        if hasattr(trainer, "_begin_average"):
            trainer._begin_average()
        trainer.network.train()
        batch = self._make_batch(trainer)
        trainer.train_step(batch)
        return trainer, batch

    def _make_batch(self, trainer: Any) -> dict[str, Any]:
        """A batch as the loader gives it; of noise where only nnU-Net's augmentation takes time."""
        pin = self.device.type == "cuda"
        if isinstance(trainer, PretrainingSetup):
            trainer.objective.dense_targets, wanted = (), trainer.objective.dense_targets
            batch = trainer.batch_maker(0)
            size = (len(batch["image"]), *batch["image"].shape[2:])
            targets = {w.name: torch.randint(-1, w.classes, size) for w in wanted}
            batch["dense_targets"] = targets
            if pin:
                batch["image"] = batch["image"].pin_memory()
                batch["dense_targets"] = {n: t.pin_memory() for n, t in targets.items()}
            return batch
        size = (int(trainer.batch_size), 1, *trainer.configuration_manager.patch_size)
        image = torch.randn(size)
        target = (image > 1).to(torch.int16) + (image > 2)
        scales = trainer._get_deep_supervision_scales() or [[1.0]]
        targets = [
            target[(..., *(slice(None, None, round(1 / s)) for s in scale))] for scale in scales
        ]
        targets = [each.contiguous().pin_memory() if pin else each for each in targets]
        batch = {"data": image.pin_memory() if pin else image, "target": targets}
        if hasattr(trainer, "semi"):
            half = len(image) // 2
            batch = {"data": image[:half], "target": [t[:half] for t in targets]}
            batch["unlabelled"] = image[half:]
        return batch


def list_waits(run: Callable[[], Any]) -> dict[str, int]:
    """Where the host waits for the device in a step: file, line and how often."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    told = [w for w in caught if "synchroniz" in str(w.message)]
    places = ("/".join(Path(w.filename).parts[-2:]) + f":{w.lineno}" for w in told)
    return dict(Counter(places).most_common())


if __name__ == "__main__":
    sys.exit(main())
