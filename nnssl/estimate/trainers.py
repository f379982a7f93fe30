"""Trainers beside stock nnU-Net, on the same plans in the same run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from nnssl.estimate.steps import Subject, alternate, subject
from nnssl.estimate.summary import Row, summarise
from nnssl.training.dry_trainer import COMPILE, STOCK, DryRun, dry_folders, environment


@dataclass(frozen=True)
class Setting:
    """One way of running a trainer.

    Attributes:
        workers: background processes of each loader.
        amp: mixed precision (CUDA only).
        compiled: `torch.compile` (CUDA only).
    """

    workers: int
    amp: bool
    compiled: bool


def settings(
    device: torch.device, workers: Sequence[int], amp: Sequence[bool], compiled: Sequence[bool]
) -> list[Setting]:
    """All combinations; on the CPU nnU-Net uses neither mixed precision nor compilation."""
    if device.type != "cuda":
        amp = compiled = [False]
    return [Setting(*values) for values in product(workers, amp, compiled)]


def compare(
    names: Sequence[str], job: DryRun, setting: Setting, rounds: int, steps: int
) -> tuple[list[Row], list[Subject]]:
    """Stock nnU-Net first, then each trainer, in alternating blocks of steps.

    Args:
        names: trainers; stock is added.
        job: what they train on.
        setting: how.
        rounds: blocks per trainer.
        steps: timed steps of a block.

    Returns:
        A row and the timed steps of each trainer, stock first.
    """
    names = [STOCK, *(name for name in dict.fromkeys(names) if name != STOCK)]
    compiled = {COMPILE: str(int(setting.compiled))}
    with ExitStack() as stack:
        stack.enter_context(dry_folders(job))
        stack.enter_context(environment(compiled))
        subjects = [
            stack.enter_context(subject(name, job, setting.workers, rounds * steps, setting.amp))
            for name in names
        ]
        alternate(subjects, rounds, steps)
        return list(_relative(subjects, setting)), subjects


def _relative(subjects: Sequence[Subject], setting: Setting) -> Iterator[Row]:
    stock = 0.0
    for one in subjects:
        row = _row(one, setting)
        stock = stock or row.per_million
        yield replace(row, relative=row.per_million / stock)


def _row(one: Subject, setting: Setting) -> Row:
    values: dict[str, Any] = vars(setting)
    return summarise(one.trainer, one.taken, one.batch, one.peak, **values)
