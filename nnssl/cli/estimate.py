"""`nnssl_estimate`: hours, memory, disk and read rate of a run, from ten dry steps."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace

from nnssl.cli.command import add_device, command, find_device, table

MEBIBYTE, GIBIBYTE = 2**20, 2**30


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", help="number or name of the dataset")
    add("configuration", help="for instance 2d or 3d_fullres")
    add("fold", help="number of the fold, or all")
    add("-tr", default="nnUNetTrainer", dest="trainer", help="trainer (%(default)s)")
    add("-p", default="nnUNetPlans", dest="plans", help="plans (%(default)s)")
    add_device(parser)
    add("--workers", type=int, help="background processes; default: as nnUNetv2_train takes")
    add("--steps", type=int, default=10, help="dry steps (%(default)s)")
    add("--json", action="store_true", help="print JSON")


@command(
    "nnssl_estimate",
    "Estimates a run of nnUNetv2_train (pre-training, fine-tuning or stock) from a few dry steps "
    "with its real loaders. Nothing is written into nnU-Net's folders; cluster maps that a "
    "training would make are made of a few cases. Not counted: making all of these maps, and "
    "the validation of whole volumes after a supervised training.",
    _add_options,
    example="27 2d 0 -tr nnSSLMAETrainer",
    errors=(RuntimeError, AssertionError),
)
def main(options: Namespace) -> None:
    import torch
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    from nnssl.estimate.dry_run import DryRun
    from nnssl.estimate.estimate import estimate

    device = find_device(options)
    # the threads that nnUNetv2_train gives torch
    torch.set_num_threads((os.cpu_count() or 1) if device.type == "cpu" else 1)
    torch.backends.cudnn.benchmark = True
    workers = get_allowed_n_proc_DA() if options.workers is None else options.workers
    job = DryRun(options.dataset, options.configuration, options.fold, options.plans, device)
    values = estimate(options.trainer, job, workers, options.steps).to_dict()
    print(json.dumps(values, indent=2) if options.json else _text(values))


def _text(values: dict) -> str:
    seconds = f"{values['steps']} steps of {values['seconds_per_step']:.3f} s"
    validation = f"{values['val_steps']} validation steps of {values['seconds_per_val_step']:.3f} s"
    waited = f"{values['seconds_waited']:.3f} s of a step are waiting, {values['workers']} workers"
    name, limit = "memory", "growth of this process, workers not counted"
    if values["memory_limit"] is not None:
        name, limit = "GPU memory", f"of {_size(values['memory_limit'])}"
    rows = [
        ("hours", f"{values['hours']:.2f}", f"{seconds}, {validation}"),
        ("binding", values["binding"], waited),
        (name, _size(values["memory_bytes"]), limit),
        ("checkpoints", _size(values["checkpoint_bytes"]), f"{_size(values['free_bytes'])} free"),
        ("caches", _size(values["cache_bytes"]), "beside the preprocessed data"),
        ("reading", f"{values['read_rate'] / 1e6:.2f} MB/s", "compressed, if nothing is cached"),
    ]
    head = f"{values['trainer']} on {' '.join(values['job'].values())}"
    return "\n".join([head, table(("", "estimate", ""), rows), *values["advice"]])


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / MEBIBYTE:.1f} MiB" if count < GIBIBYTE else f"{count / GIBIBYTE:.1f} GiB"
