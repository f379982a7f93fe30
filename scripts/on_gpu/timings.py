"""What a step costs at real sizes: beside stock nnU-Net and beside the bare network, and waiting.

usage: python -m on_gpu.timings FOLDER CONFIGURATION DEVICE SIZE SECONDS PART TRAINER [TRAINER ...]

PART is `steps` or `waiting`. A line of JSON per row; the trainers named first are measured first.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from benchmark.bare import bare_step
from benchmark.phases import time_phases
from benchmark.rows import count_voxels

from nnssl.config import read_config
from nnssl.estimate.dry_run import find_trainer_class, open_loaders
from nnssl.estimate.steps import synchronise
from on_gpu.data import NAMES, PLANS

STOCK = "nnUNetTrainer"
ROUNDS, STEPS, WORKERS = 3, 3, (0, 2, 8)


def main() -> int:
    folder, configuration, device, size, seconds, part, *names = sys.argv[1:]
    table = Timings(Path(folder), configuration, torch.device(device), size)
    end = perf_counter() + float(seconds)
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # as nnU-Net does
    {"steps": table.time_steps, "waiting": table.time_waiting}[part](names, end)
    return 0


class Timings:
    """Rows for one configuration; a trainer that fails leaves its traceback in its row."""

    def __init__(self, root: Path, configuration: str, device: torch.device, size: str) -> None:
        self.root, self.configuration, self.device, self.size = root, configuration, device, size
        self.preprocessed = root / "preprocessed" / NAMES[size]
        self.out = sys.stdout

    def time_steps(self, names: list[str], end: float) -> None:
        """Each trainer beside stock and beside its bare network, in alternating blocks."""
        with redirect_stdout(sys.stderr):
            stock, batch = self._build(STOCK)
        for name in names:
            if perf_counter() > end:
                self._tell({"part": "steps", "trainer": name, "skipped": "no time left"})
                continue
            self._guard("steps", name, lambda n=name: self._compare(n, stock, batch))

    def time_waiting(self, names: list[str], end: float) -> None:
        """The share of the time in which a trainer waits for data, by worker processes."""
        for name in names:
            for workers in WORKERS:
                if perf_counter() > end:
                    self._tell({"part": "waiting", "trainer": name, "skipped": "no time left"})
                    continue
                self._guard("waiting", name, lambda n=name, w=workers: self._wait(n, w))

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
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _tell(self, record: dict[str, Any]) -> None:
        print(json.dumps(record), file=self.out, flush=True)

    # ------------------------------------------------------------------ one measurement

    def _compare(self, name: str, stock: Any, stock_batch: Any) -> dict[str, Any]:
        trainer, batch = (stock, stock_batch) if name == STOCK else self._build(name)
        dtype = torch.float16 if self.device.type == "cuda" else None
        bare = bare_step(trainer, dtype)
        runs = {
            "stock": lambda: stock.train_step(stock_batch),
            "bare": bare,
            "step": lambda: trainer.train_step(batch),
        }
        taken: dict[str, list[float]] = {key: [] for key in runs}
        with ExitStack() as stack:
            take = stack.enter_context(time_phases(trainer))
            peak = self._measure_peak(runs["step"])
            bare_peak = self._measure_peak(runs["bare"])
            phases: dict[str, float] = {}
            for _ in range(ROUNDS):
                for key, run in runs.items():
                    run()  # untimed: the allocator and the caches follow the change
                    synchronise(self.device)
                    take()
                    for _ in range(STEPS):
                        begin = perf_counter()
                        run()
                        synchronise(self.device)
                        taken[key].append(perf_counter() - begin)
                    if key == "step":
                        for phase, value in take().items():
                            phases[phase] = phases.get(phase, 0.0) + value
        seconds = {key: median(values) for key, values in taken.items()}
        voxels, stock_voxels = count_voxels(trainer), count_voxels(stock)
        total = sum(taken["step"])
        return {
            "voxels": voxels,
            "step_s": seconds["step"],
            "bare_s": seconds["bare"],
            "stock_s": seconds["stock"],
            "x_bare": seconds["step"] / seconds["bare"],
            "x_stock_per_voxel": seconds["step"] / voxels / (seconds["stock"] / stock_voxels),
            "phases": {key: value / total for key, value in phases.items()},
            "peak_mib": peak,
            "bare_peak_mib": bare_peak,
            "skipped_steps": getattr(trainer, "skipped_steps", None),
        }

    def _measure_peak(self, run: Any) -> int | None:
        """Runs two steps; MiB that the second had allocated at its peak."""
        run()
        synchronise(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run()
        synchronise(self.device)
        if self.device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_allocated() / 2**20)

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
        more = ""
        if name != STOCK and read_config(name).kind == "semi_supervised":
            more = "labels.patients=1"
        os.environ |= {
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(results),
            "nnssl_configs": "",
            "nnssl_overrides": more,
        }
        plans, description = (
            json.loads((self.preprocessed / f"{each}.json").read_text())
            for each in (PLANS, "dataset")
        )
        plans["continue_training"] = False
        kind = find_trainer_class(name)
        trainer = kind(plans, self.configuration, 0, description, self.device)
        trainer.disable_checkpointing = True
        trainer.initialize()
        if hasattr(trainer, "make_dense_targets"):
            trainer.make_dense_targets()
        if hasattr(trainer, "_begin_average"):
            trainer._begin_average()
        trainer.network.train()
        with open_loaders(trainer, 0) as (train, _):
            batch = next(train)
        trainer.train_step(batch)
        return trainer, batch


if __name__ == "__main__":
    sys.exit(main())
