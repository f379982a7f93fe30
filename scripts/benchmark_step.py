"""Seconds per pre-training step against stock nnU-Net's step, on the same plan, in one process.

usage: python scripts/benchmark_step.py DATASET CONFIGURATION [-p PLANS] [-tr TRAINER ...]
                                        [--steps N]

Both trainers are built as `nnUNetv2_train` builds them. A row states the voxels that the network
sees per step, the seconds of the step itself (views included for ours), the seconds that making a
batch costs a worker, and the step's seconds per million voxels, relative to stock. On the CPU the
seconds are processor seconds of one thread, so that a busy machine does not matter; on CUDA they
are wall seconds after synchronisation. nnU-Net's environment variables must be set.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.training.factory import trainer_class

STOCK = "nnUNetTrainer"
WORKERS = "nnUNet_n_proc_DA"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("-tr", dest="trainers", nargs="+", default=["nnSSLContrastiveTrainer"])
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ[WORKERS] = "0"  # batches are made in this process, to be timed
    rows = [measure(name, arguments) for name in (STOCK, *arguments.trainers)]
    reference = rows[0]["step"] / rows[0]["voxels"]
    print(f"{'trainer':<34}{'voxels':>10}{'step s':>9}{'batch s':>9}{'s / 1e6 voxels':>16}{'x':>6}")
    for row in rows:
        cost = row["step"] / row["voxels"]
        numbers = f"{row['voxels']:>10}{row['step']:>9.3f}{row['batch']:>9.3f}{cost * 1e6:>16.2f}"
        print(f"{row['name']:<34}{numbers}{cost / reference:>6.2f}")


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with redirect_stdout(StringIO()):
        trainer = build(name, arguments, device)
        trainer.disable_checkpointing = True
        trainer.initialize()
        if name == STOCK:
            make = stock_batches(trainer)
            voxels = math.prod(trainer.configuration_manager.patch_size) * trainer.batch_size
        else:
            make, voxels = trainer.batch_maker, trainer.budget.voxels
    trainer.network.train()
    batches = [make(step) for step in range(4)]
    steps = [
        timed(lambda i=i: trainer.train_step(batches[i % 4]), device)
        for i in range(arguments.steps + 3)
    ][3:]
    made = [timed(lambda i=i: make(10 + i), torch.device("cpu")) for i in range(arguments.steps)]
    return {"name": name, "voxels": voxels, "step": median(steps), "batch": median(made)}


def build(name: str, arguments: argparse.Namespace, device: torch.device) -> nnUNetTrainer:
    if name == STOCK:
        return get_trainer_from_args(
            arguments.dataset, arguments.configuration, 0, STOCK, arguments.plans, device=device
        )
    import nnunetv2.run.run_training as stock

    stock.recursive_find_trainer_class_by_name = trainer_class
    return get_trainer_from_args(
        arguments.dataset, arguments.configuration, 0, name, arguments.plans, device=device
    )


def stock_batches(trainer: nnUNetTrainer) -> Callable[[int], dict[str, Any]]:
    train, _ = trainer.get_dataloaders()
    return lambda step: next(train)


def timed(action: Callable[[], Any], device: torch.device) -> float:
    clock = process_time if device.type == "cpu" else perf_counter
    begin = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


if __name__ == "__main__":
    main()
