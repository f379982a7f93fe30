"""A trainer as `nnUNetv2_train` builds it, every file of which goes to a temporary folder."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nnunetv2
import torch
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnssl.common.environment import set_variables
from nnssl.config import TRAINER_PREFIX
from nnssl.data.case_table import Case
from nnssl.nnunet.paths import (
    OWN,
    PREPROCESSED,
    RESULTS,
    check_preprocessed,
    plans_file,
    root_folder,
)
from nnssl.nnunet.plans import read_description, read_plans
from nnssl.training.factory import trainer_class
from nnssl.training.pretraining_setup import PretrainingSetup

WORKERS, WANDB = "nnUNet_n_proc_DA", "nnUNet_wandb_enabled"
FEW = 16  # cases of which maps are made where a training would make those of all


@dataclass(frozen=True)
class DryRun:
    """What `nnUNetv2_train` is told beside the trainer's name."""

    dataset: str  # number or name of the dataset
    configuration: str
    fold: str = "0"  # number of the fold, or `all`
    plans: str = "nnUNetPlans"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def find_source(self) -> Path:
        """The preprocessed dataset; ValueError or RuntimeError where dataset, plans or fold are not
        there.
        """
        file = plans_file(self.dataset, self.plans, root_folder(PREPROCESSED).resolve())
        if self.fold != "all" and not self.fold.isdigit():
            raise ValueError(f"fold: found {self.fold!r}, allowed are a number from 0, and all")
        return file.parent

    def to_dict(self) -> dict[str, str]:
        return {**vars(self), "device": str(self.device)}


@contextmanager
def dry_folders(job: DryRun) -> Iterator[Path]:
    """Lets nnU-Net see an empty folder of results, and a copy of the dataset made of links.

    Whatever a trainer writes (log, splits, caches, checkpoints) is gone afterwards.
    """
    source = job.find_source()
    with _terminated_tidily(), TemporaryDirectory(prefix="nnssl_dry_") as name:
        folder = Path(name)
        _link(source, folder / "preprocessed" / source.name)
        (folder / "results").mkdir()
        places = {PREPROCESSED: folder / "preprocessed", RESULTS: folder / "results"}
        with _point_nnunet_to(places), set_variables({WANDB: "0"}):
            yield folder


@contextmanager
def _terminated_tidily() -> Iterator[None]:
    """Lets a scheduler's SIGTERM leave through every `finally`, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _link(source: Path, target: Path) -> None:
    """Links to everything in a folder; our own folders are made anew, for caches to be added."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.is_dir() and (entry.name == OWN or OWN in target.parts):
            _link(entry, target / entry.name)
        else:
            (target / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())


@contextmanager
def _point_nnunet_to(places: dict[str, Path]) -> Iterator[None]:
    """Points nnU-Net's variables elsewhere; before 2.8 its modules have read them at import."""
    texts = {name: str(path) for name, path in places.items()}
    changed = [
        (module, name, getattr(module, name))
        for module in [m for key, m in sys.modules.items() if key.startswith("nnunetv2")]
        for name in texts
        if isinstance(vars(module).get(name, 0), str | None)
    ]
    with set_variables(texts):
        for module, name, _ in changed:
            setattr(module, name, texts[name])
        try:
            yield
        finally:
            for module, name, value in changed:
                setattr(module, name, value)


def build_trainer(name: str, job: DryRun) -> Any:
    """An initialised trainer that writes no checkpoint by itself; call it inside `dry_folders`.

    Raises:
        ValueError, RuntimeError: what nnU-Net or the trainer refuses.
    """
    source = job.find_source()
    plans = {**read_plans(source / f"{job.plans}.json"), "continue_training": False}
    fold = "all" if job.fold == "all" else int(job.fold)
    kind = find_trainer_class(name)
    with redirect_stdout(StringIO()):
        trainer = kind(
            plans=plans,
            configuration=job.configuration,
            fold=fold,
            dataset_json=read_description(source),
            device=job.device,
        )
        folder = source / Path(trainer.preprocessed_dataset_folder).name
        check_preprocessed(folder, job.plans, job.configuration)
        trainer.disable_checkpointing, trainer.takes_weights = True, False
        trainer.initialize()
        if isinstance(trainer, PretrainingSetup):
            _provide_dense_targets(trainer)
    return trainer


def _provide_dense_targets(trainer: PretrainingSetup) -> None:
    """Has maps made that a training would make, of a few cases; the dry steps draw these alone."""
    try:
        trainer.check_dense_targets()
    except ValueError as problem:
        trainer.train_cases, trainer.val_cases = map(
            _choose_few, (trainer.train_cases, trainer.val_cases)
        )
        trainer.drawn_cases = trainer.train_cases
        trainer.make_dense_targets()
        try:
            trainer.check_dense_targets()
        except ValueError:  # what a training would not make either
            raise problem from None


def _choose_few(cases: list[Case]) -> list[Case]:
    return cases[:: math.ceil(len(cases) / FEW)] if cases else []


def find_trainer_class(name: str) -> Any:
    """The trainer class of a name, whether or not nnSSL is registered with nnU-Net."""
    if name.startswith(TRAINER_PREFIX):
        return trainer_class(name)
    folder = Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"
    found = recursive_find_python_class(str(folder), name, "nnunetv2.training.nnUNetTrainer")
    if found is None:
        raise ValueError(f"-tr {name}: no such trainer in {folder}; nnssl_trainers lists ours")
    return found


@contextmanager
def open_loaders(trainer: Any, workers: int) -> Iterator[tuple[Any, Any]]:
    """The trainer's own training and validation loader (None without validation cases)."""
    with set_variables({WORKERS: str(workers)}), redirect_stdout(StringIO()):
        train, val = trainer.get_dataloaders()
    try:
        yield train, val
    finally:
        for loader in (train, val):
            end = getattr(loader, "close", None) or getattr(loader, "_finish", None)
            if end is not None:
                end()
