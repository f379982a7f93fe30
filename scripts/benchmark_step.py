"""What a training step costs: any trainers beside stock nnU-Net, on the same plans in one run.

usage: python scripts/benchmark_step.py DATASET CONFIGURATION [-p PLANS] [-tr TRAINER ...]

All trainers are built as `nnUNetv2_train` builds them, with real workers, and run in alternating
blocks of steps; their files go to a temporary folder. A row states the voxels that the network sees
per step (in pre-training those of all views), the seconds of the step itself (views included), its
wall seconds, the processor seconds that making a batch costs a worker, the shares of waiting for
data and of each phase, the peak memory (on the CPU: growth of the process), and the step's seconds
per million voxels, relative to stock. On the CPU a step is told in processor seconds of one thread,
so that a busy machine does not matter; on CUDA in wall seconds after synchronisation. With `--bare`
the last column is the step over forward and backward of the same network on as many voxels.
nnU-Net's environment variables must be set.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from benchmark.rows import (
    HEADER,
    Row,
    as_json,
    compare,
    format_cells,
    list_over_budget,
    list_settings,
)

from nnssl.cli.command import table
from nnssl.common.files import write_json
from nnssl.estimate.dry_run import DryRun

SWITCH = {"on": True, "off": False}


def main() -> int:
    options = parser().parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)  # as nnU-Net does on CUDA; on the CPU processor seconds need it
    torch.backends.cudnn.benchmark = True  # as nnU-Net does
    job = DryRun(options.dataset, options.configuration, options.fold, options.plans, device)
    amp, compiled = ([SWITCH[word] for word in words] for words in (options.amp, options.compile))
    rows: list[Row] = []
    problems: list[str] = []
    for setting in list_settings(device, options.workers, amp, compiled):
        found, _ = compare(
            options.trainers, job, setting, options.rounds, options.steps, options.bare
        )
        rows += found
        problems += list_over_budget(found, options.budget) if options.budget is not None else []
    print(table(HEADER, [format_cells(row) for row in rows], width=200))
    if options.json:
        write_json(options.json, as_json(rows, job))
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = made.add_argument
    add("dataset")
    add("configuration")
    add("-p", dest="plans", default="nnUNetPlans")
    add("-f", dest="fold", default="0")
    add("-tr", dest="trainers", nargs="+", default=["nnSSLContrastiveTrainer"])
    add("-device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    add("--rounds", type=int, default=4, help="alternating blocks (%(default)s)")
    add("--steps", type=int, default=5, help="timed steps of a block (%(default)s)")
    add("--workers", type=int, nargs="+", default=[2], help="each number is measured")
    add("--amp", nargs="+", choices=SWITCH, default=["on"], help="mixed precision (CUDA only)")
    add("--compile", nargs="+", choices=SWITCH, default=["on"], help="torch.compile (CUDA only)")
    add("--bare", action="store_true", help="also the same network's bare forward and backward")
    add("--json", type=Path, metavar="FILE", help="everything measured, with machine and versions")
    add("--budget", type=float, metavar="X", help="fail above X times stock's seconds per voxel")
    return made


if __name__ == "__main__":
    sys.exit(main())
