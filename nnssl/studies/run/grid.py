"""The cells of a study: each is one ordinary `nnUNetv2_train` command with a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

from nnssl.common.checks import plain
from nnssl.config.overrides import OVERRIDES
from nnssl.nnunet.paths import FINAL, fold_folder
from nnssl.studies.run.knobs import overrides_text, schedule_of
from nnssl.studies.run.places import dataset_name
from nnssl.studies.run.spec import SCRATCH, PretrainingArm, Study, slug, waiting

WEIGHTS = "nnssl_pretrained_weights"  # as in nnssl.nnunet.weight_search, which loads torch
Role = Literal["main", "own_schedule", "added_steps"]
UNITS = {"patients": "p", "volumes": "v", "slices": "s", "percentage": "pc"}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        id: unique, a folder name; the same whatever else the study holds.
        kind: scratch is a finetune cell with method `scratch`.
        method: arm of the study file, or `scratch`.
        trainer: name for `-tr`.
        schedule: name of the fine-tuning schedule; empty for pre-training.
        budget: number of labels, in `unit`; None for pre-training.
        unit: patients, volumes, slices, percentage.
        fold: fold of the run.
        repetition: seed of labelled cases and fine-tuning; None for pre-training.
        pretraining_seed: seed of the pre-training it is, or starts from; None for scratch.
        overrides: what goes into `nnssl_overrides`.
        needs: id of the pre-training cell whose `checkpoint_final.pth` it starts from.
        role: `main`: equal schedules; `own_schedule`: scratch tried with a schedule of its own;
            `added_steps`: scratch with the pre-training's steps added.
        dataset: id or name of the dataset it trains on.
        plans: name of the plans.
    """

    id: str
    kind: Literal["pretrain", "finetune"]
    method: str
    trainer: str
    schedule: str
    budget: float | None
    unit: str
    fold: int | str
    repetition: int | None
    pretraining_seed: int | None
    overrides: Mapping[str, Any]
    needs: str | None
    role: Role
    dataset: int | str
    plans: str

    def folder(self, study_folder: str | Path) -> Path:
        """Folder of the cell: its `nnUNet_results`."""
        return Path(study_folder) / "cells" / self.id

    def fold_folder(self, study_folder: str | Path, study: Study) -> Path:
        """Folder in which nnU-Net writes the run.

        Raises:
            ValueError: the dataset's name is not to be found.
        """
        dataset = dataset_name(self.dataset, self.folder(study_folder))
        results = self.folder(study_folder) / dataset
        return fold_folder(results, self.trainer, self.plans, study.configuration, self.fold)

    def environment(self, study_folder: str | Path, study: Study) -> dict[str, str]:
        """Variables of the command; an empty one counts as not set."""
        weights = ""
        if self.needs is not None:
            source = next(cell for cell in cells(study) if cell.id == self.needs)
            weights = str(source.fold_folder(study_folder, study).absolute() / FINAL)
        return {
            "nnUNet_results": str(self.folder(study_folder).absolute()),
            OVERRIDES: overrides_text(self.overrides),
            WEIGHTS: weights,
        }

    def command(self, study: Study) -> list[str]:
        """The command without `--c` and `-device`."""
        place = [str(self.dataset), study.configuration, str(self.fold)]
        return ["nnUNetv2_train", *place, "-p", self.plans, "-tr", self.trainer]

    def steps(self) -> int:
        """Optimiser steps of the run."""
        epochs, iterations = schedule_of(self.trainer, self.kind, self.overrides)
        return epochs * iterations

    def steps_per_epoch(self) -> int:
        return schedule_of(self.trainer, self.kind, self.overrides)[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain record for `cell.json`."""
        return plain(asdict(self))


def cells(study: Study) -> list[Cell]:
    """Every run of the study, a cell always behind the one it needs.

    Repetition by repetition, fold by fold: the pre-trainings that are needed now, then per budget
    and schedule scratch and every method; so every beginning of the list is a useful study. The
    further trials of scratch come last.
    """
    waits = waiting(study)
    arms = {method: arm for method, arm in study.pretraining.items() if method not in waits}
    names = _pretraining_names(arms)
    grid: dict[str, Cell] = {}
    for repetition in range(study.repetitions):
        for fold in study.folds:
            pretraining = {
                m: _pretrain(study, m, arms[m], names[m], fold, repetition) for m in arms
            }
            for cell in pretraining.values():
                grid.setdefault(cell.id, cell)
            for cell in _finetuning(study, arms, pretraining, fold, repetition):
                grid[cell.id] = cell
    for cell in _trials_of_scratch(study, arms):
        grid[cell.id] = cell
    return list(grid.values())


def _pretraining_names(arms: Mapping[str, PretrainingArm]) -> dict[str, str]:
    """Method -> name of its pre-training; methods that pre-train alike share it."""
    names: dict[str, str] = {}
    known: dict[str, tuple[Any, ...]] = {}
    for method, arm in arms.items():
        alike = (arm.trainer, overrides_text(arm.overrides), arm.dataset, arm.plans, arm.fold)
        name = arm.trainer if known.get(arm.trainer, alike) == alike else ""
        name = name or next((n for n, other in known.items() if other == alike), "")
        name = name or f"{arm.trainer}-{slug(method)}"
        known[name] = alike
        names[method] = name
    return names


def _pretrain(
    study: Study, method: str, arm: PretrainingArm, name: str, fold: int, repetition: int
) -> Cell:
    seed = arm.seeds[repetition % len(arm.seeds)]
    own_fold = fold if arm.fold is None else arm.fold
    return Cell(
        id=f"pretrain-{name}-s{seed}-f{own_fold}",
        kind="pretrain",
        method=method,
        trainer=arm.trainer,
        schedule="",
        budget=None,
        unit=study.unit,
        fold=own_fold,
        repetition=None,
        pretraining_seed=seed,
        overrides={**arm.overrides, "training.seed": seed},
        needs=None,
        role="main",
        dataset=study.dataset if arm.dataset is None else arm.dataset,
        plans=study.plans if arm.plans is None else arm.plans,
    )


def _finetuning(
    study: Study,
    arms: Mapping[str, PretrainingArm],
    pretraining: Mapping[str, Cell],
    fold: int,
    repetition: int,
) -> Iterator[Cell]:
    for budget in study.budgets:
        for name, schedule in study.schedules.items():
            place = (budget, fold, repetition, name)
            yield _finetune(study, SCRATCH, schedule.scratch_trainer, schedule.overrides, place)
            for method, source in pretraining.items():
                overrides = {**schedule.overrides, **arms[method].finetuning}
                yield _finetune(study, method, schedule.trainer, overrides, place, source)


def _finetune(
    study: Study,
    method: str,
    trainer: str,
    overrides: Mapping[str, Any],
    place: tuple[float, int, int, str],
    source: Cell | None = None,
    role: Role = "main",
) -> Cell:
    budget, fold, repetition, schedule = place
    where = f"{UNITS[study.unit]}{budget:g}-r{repetition}-f{fold}-{slug(schedule)}"
    chosen = {f"labels.{study.unit}": budget, "labels.seed": repetition}
    return Cell(
        id=f"{slug(method)}-{where}",
        kind="finetune",
        method=method,
        trainer=trainer,
        schedule=schedule,
        budget=budget,
        unit=study.unit,
        fold=fold,
        repetition=repetition,
        pretraining_seed=source.pretraining_seed if source else None,
        overrides={**overrides, "training.seed": repetition, **chosen},
        needs=source.id if source else None,
        role=role,
        dataset=study.dataset,
        plans=study.plans,
    )


def _trials_of_scratch(study: Study, arms: Mapping[str, PretrainingArm]) -> Iterator[Cell]:
    """Scratch with schedules of its own, then with the steps of the pre-trainings added."""
    trials: list[tuple[str, str, Mapping[str, Any], Role]] = [
        (name, arm.trainer, arm.overrides, "own_schedule")
        for name, arm in study.scratch_schedules.items()
    ]
    trials += [(*trial, "added_steps") for trial in _added_steps(study, arms)]
    for name, trainer, overrides, role in trials:
        for repetition in range(study.repetitions):
            for fold in study.folds:
                for budget in study.budgets:
                    place = (budget, fold, repetition, name)
                    yield _finetune(study, SCRATCH, trainer, overrides, place, role=role)


def _added_steps(
    study: Study, arms: Mapping[str, PretrainingArm]
) -> list[tuple[str, str, dict[str, Any]]]:
    """One trial per schedule and number of pre-training steps."""
    if not study.scratch_added_steps:
        return []
    runs = {schedule_of(arm.trainer, "pretrain", arm.overrides) for arm in arms.values()}
    trials = []
    for name, schedule in study.schedules.items():
        trainer = schedule.scratch_trainer
        epochs, iterations = schedule_of(trainer, "finetune", schedule.overrides)
        for steps in sorted({a * b for a, b in runs}):
            overrides = {k: v for k, v in schedule.overrides.items() if k != "training.num_epochs"}
            overrides["num_epochs"] = epochs + ceil(steps / iterations)
            trials.append((f"{name}_and_{steps}_steps", trainer, overrides))
    return trials
