"""From command to first step: seconds, opened files and memory of a start with many cases.

usage: python scripts/benchmark_startup.py [--cases 100 2000 10000] [-tr TRAINER ...]

Cases of noise (6 x 32 x 32 voxels) are written as nnU-Net would preprocess them. A cold start finds
none of nnSSL's caches, a warm one all of them; every start has an empty folder of results, and the
operating system has the files in memory. Columns: wall seconds from the start of the process to the
first step, the processor seconds of all its processes until then (which a busy machine changes
little), and the proportional memory of the main process then; the memory of a worker after
an epoch of 20 steps, proportional (PSS) and its own (USS); with `--opens`, in runs of their own
under strace, the opened files of the dataset until the first step and in the second epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmark.startup import MARK
from on_gpu.data import FRAMES, NAMES, write_random

from nnssl.cli.command import table

HERE = Path(__file__).resolve().parent
SIZE, STEPS = "many", 20
HEADER = ("trainer", "cases", "start", "first step s", "processor s", "main MiB", "worker PSS MiB",
          "worker USS MiB", "opens before", "opens in an epoch")  # fmt: skip
OVERRIDES = (
    f"training.num_iterations_per_epoch={STEPS} training.num_val_iterations_per_epoch=1 "
    "training.num_epochs=3"
)
PARTS = "sampling.partitions=2"  # tiny volumes have few slices


def main() -> int:
    options = parser().parse_args()
    rows = []
    with TemporaryDirectory(prefix="nnssl_startup_") as temporary:
        for cases in options.cases:
            root = (options.folder or Path(temporary)) / str(cases)
            if not root.is_dir():
                write_random(root, SIZE, os.cpu_count() or 1, cases // FRAMES)
            for trainer in options.trainers:
                for start in ("cold", "warm"):
                    found = measure(root, trainer, start == "cold", options)
                    rows.append([trainer, str(cases), start, *format_cells(found)])
                    print(rows[-1], json.dumps(found), file=sys.stderr, flush=True)
    print(table(HEADER, rows, width=200))
    return 0


def measure(root: Path, trainer: str, cold: bool, options: argparse.Namespace) -> dict[str, Any]:
    """One start, and where opened files are counted another one."""
    found = run(root, trainer, cold, options, None)
    if options.opens:
        found |= run(root, trainer, cold, options, root / "trace")
    return found


def run(
    root: Path, trainer: str, cold: bool, options: argparse.Namespace, trace: Path | None
) -> dict[str, Any]:
    preprocessed = root / "preprocessed" / NAMES[SIZE]
    shutil.rmtree(root / "results")
    (root / "results").mkdir()
    if cold:
        for folder in (preprocessed / "nnssl").glob("*/"):
            shutil.rmtree(folder)
    structured = "Contrastive" in trainer or "PCRL" in trainer
    environment = {
        **os.environ,
        **{f"nnUNet_{kind}": str(root / kind) for kind in ("raw", "preprocessed", "results")},
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
        "nnUNet_extTrainer": str(HERE.parent / "nnssl" / "external_trainers"),
        "nnUNet_n_proc_DA": str(options.workers),
        "nnUNet_compile": "0",
        "nnssl_configs": "",
        "nnssl_overrides": f"{OVERRIDES} {PARTS}" if structured else OVERRIDES,
    }
    number = NAMES[SIZE].removeprefix("Dataset").split("_")[0]
    told = ["-m", "benchmark.startup", str(STEPS), str(int(options.profile)), number, "2d", "0"]
    command = [sys.executable, *told, "-tr", trainer, "-device", "cpu"]
    if trace is not None:
        command = ["strace", "-f", "-qq", "-e", "trace=open,openat", "-o", str(trace), *command]
    log = root / "log.txt"
    with log.open("w") as errors:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=errors)
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{trainer} did not start; see {log}\n{log.read_text()[-2000:]}")
    if options.profile:
        print(log.read_text()[-6000:], file=sys.stderr)
    return count_opens(trace, preprocessed) if trace is not None else dict(json.loads(lines[-1]))


def count_opens(trace: Path, folder: Path) -> dict[str, int]:
    """Files of a folder that were opened before the first step, and in the second epoch."""
    counts: Counter[int] = Counter()
    epoch = -1
    with trace.open(errors="replace") as lines:
        for line in lines:
            if found := re.search(rf"{MARK}(\d+)", line):
                epoch = int(found[1])
            elif str(folder) in line and " = -1 " not in line:
                counts[epoch] += 1
    return {"opens_before": counts[-1], "opens_epoch": counts[1]}


def format_cells(found: dict[str, Any]) -> list[str]:
    memory = [median(found[f"worker_{kind}"] or [0]) for kind in ("pss", "uss")]
    opens = [found.get(f"opens_{when}") for when in ("before", "epoch")]
    return [
        *(f"{found[name]:.1f}" for name in ("first_s", "processor_s")),
        *(f"{size / 2**20:.0f}" for size in (found["main_bytes"], *memory)),
        *("-" if number is None else str(number) for number in opens),
    ]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = made.add_argument
    add("--cases", type=int, nargs="+", default=[100, 2000, 10000])
    add("-tr", dest="trainers", nargs="+", default=["nnSSLContrastiveTrainer"])
    add("--workers", type=int, default=2)
    add("--folder", type=Path, help="keeps the cases there for another run")
    add("--opens", action="store_true", help="also count opened files (needs strace)")
    add("--profile", action="store_true", help="print where the seconds go")
    return made


if __name__ == "__main__":
    sys.exit(main())
