"""The cells of a study: each is one run of a trainer with overrides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from math import ceil, prod
from typing import Any, Literal

from nnssl.common.checks import plain
from nnssl.common.environment import read_variable
from nnssl.config import CONFIG_FOLDERS, read_config, write_overrides
from nnssl.studies.run.spec import SCRATCH, PretrainingArm, Study, find_waiting, slug
from nnssl.training.settings import FinetuningSettings, PretrainingSettings

Kind = Literal["pretrain", "finetune"]
Role = Literal["main", "own_schedule", "added_steps"]
UNITS = {"patients": "p", "volumes": "v", "slices": "s", "percentage": "pc"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run.

    Attributes:
        id: unique, a folder name; the same whatever else the study holds.
        kind: scratch is a finetune cell with method `scratch`.
        method: arm of the study file, or `scratch`.
        schedule: name of the fine-tuning schedule; empty for pre-training.
        budget: number of labels, in `unit`; None for pre-training.
        repetition: seed of labelled cases and fine-tuning; None for pre-training.
        pretraining_seed: seed of the pre-training it is, or starts from; None for scratch.
        overrides: what goes into `nnssl_overrides`.
        needs: id of the pre-training cell whose `checkpoint_final.pth` it starts from; a
            pre-training can need another.
        starts_from: arm whose file it starts from.
        weights: SHA-256 of that file.
        role: `main`: equal schedules; `own_schedule`: scratch tried with a schedule of its own;
            `added_steps`: scratch with the pre-training's steps added.
    """

    id: str
    kind: Kind
    method: str
    trainer: str
    schedule: str = ""
    budget: float | None = None
    unit: str
    fold: int | str
    repetition: int | None = None
    pretraining_seed: int | None = None
    overrides: Mapping[str, Any]
    needs: str | None = None
    starts_from: str | None = None
    weights: str | None = None
    role: Role = "main"
    dataset: int | str
    plans: str

    @property
    def epochs(self) -> int:
        return read_schedule(self.trainer, self.kind, self.overrides)[0]

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return prod(read_schedule(self.trainer, self.kind, self.overrides))

    @property
    def settings(self) -> tuple[Any, ...]:
        """What command and variables depend on; cells that have it in common are one run."""
        overrides = write_overrides(dict(sorted(self.overrides.items())))
        return (
            *(self.trainer, self.dataset, self.plans, self.fold),
            *(self.needs, self.weights, overrides),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain record for `cell.json`."""
        return plain(asdict(self))


def list_cells(study: Study) -> list[Cell]:
    """Every run of the study, a cell always behind the one it needs.

    Repetition by repetition, fold by fold: the pre-trainings that are needed now, then per budget
    and schedule scratch and every method; so every beginning of the list is a useful study. The
    further trials of scratch come last.
    """
    waits = find_waiting(study)
    arms = {method: arm for method, arm in study.pretraining.items() if method not in waits}
    names = _name_pretrainings(arms)
    grid: dict[str, Cell] = {}
    for repetition, fold in product(range(study.repetitions), study.folds):
        sources: dict[str, Cell | None] = {}  # None: a file
        for method, arm in arms.items():
            sources[method] = None
            if not arm.is_file:
                made = _make_pretraining(study, method, names[method], fold, repetition)
                sources[method] = replace(made, **_start_from(arms, arm.after, sources))
        tuned = _make_finetunings(study, arms, sources, fold, repetition)
        for cell in (*filter(None, sources.values()), *tuned):
            grid.setdefault(cell.id, cell)
    grid |= {cell.id: cell for cell in _make_trials_of_scratch(study, arms)}
    return list(grid.values())


def find_stages(cell: Cell, cells: Mapping[str, Cell]) -> list[str]:
    """Ids of the pre-trainings that a cell starts from, the last stage first.

    Args:
        cell: any.
        cells: id -> cell, of the study.
    """
    found: list[str] = []
    while cell.needs is not None and cell.needs in cells:
        cell = cells[cell.needs]
        found.append(cell.id)
    return found


def read_schedule(trainer: str, kind: Kind, overrides: Mapping[str, Any]) -> tuple[int, int]:
    """Epochs, and optimiser steps per epoch, of a trainer with overrides."""
    defaults = PretrainingSettings() if kind == "pretrain" else FinetuningSettings()
    knobs = ("num_epochs", "num_iterations_per_epoch")
    values = {knob: getattr(defaults, knob) for knob in knobs}
    section = _read_training_section(trainer, read_variable(CONFIG_FOLDERS))
    for knob, value in [*section.items(), *overrides.items()]:
        if knob.removeprefix("training.") in values:
            values[knob.removeprefix("training.")] = value
    return values["num_epochs"], values["num_iterations_per_epoch"]


@cache
def _read_training_section(trainer: str, _folders: str | None) -> dict[str, Any]:
    """`training` of a trainer's file; the folders that are searched are a part of the key."""
    return dict(read_config(trainer).sections.get("training") or {})


def _name_pretrainings(arms: Mapping[str, PretrainingArm]) -> dict[str, str]:
    """Method -> name of its pre-training; methods that pre-train alike share it."""
    names: dict[str, str] = {}
    known: dict[str, tuple[Any, ...]] = {}
    for method, arm in arms.items():
        if arm.trainer is None:
            names[method] = f"file {arm.sha256 or arm.weights}"
            continue
        before = names.get(arm.after or "")
        overrides = write_overrides(arm.overrides)
        alike = (arm.trainer, overrides, arm.dataset, arm.plans, arm.fold, before)
        name = arm.trainer if known.get(arm.trainer, alike) == alike else ""
        name = name or next((n for n, other in known.items() if other == alike), "")
        name = name or f"{arm.trainer}-{slug(method)}"
        known[name] = alike
        names[method] = name
    return names


def _make_pretraining(study: Study, method: str, name: str, fold: int, repetition: int) -> Cell:
    arm = study.pretraining[method]
    assert arm.trainer is not None
    seed = arm.seeds[repetition % len(arm.seeds)]
    of_fold = fold if arm.fold is None else arm.fold
    return Cell(
        id=f"pretrain-{name}-s{seed}-f{of_fold}",
        kind="pretrain",
        method=method,
        trainer=arm.trainer,
        unit=study.unit,
        fold=of_fold,
        pretraining_seed=seed,
        overrides={**arm.overrides, "training.seed": seed},
        dataset=study.dataset if arm.dataset is None else arm.dataset,
        plans=study.plans if arm.plans is None else arm.plans,
    )


def _start_from(
    arms: Mapping[str, PretrainingArm], method: str | None, sources: Mapping[str, Cell | None]
) -> dict[str, Any]:
    """What a cell needs to start from the weights of an arm; None: from random ones."""
    if method is None:
        return {}
    if (source := sources[method]) is not None:
        return {"needs": source.id}
    return {"starts_from": method, "weights": arms[method].sha256}


def _make_finetunings(
    study: Study,
    arms: Mapping[str, PretrainingArm],
    sources: Mapping[str, Cell | None],
    fold: int,
    repetition: int,
) -> Iterator[Cell]:
    """Per budget and schedule scratch, then every method from its pre-training."""
    for budget, (name, schedule) in product(study.budgets, study.schedules.items()):
        at = (budget, fold, repetition, name)
        trainer, overrides = schedule.scratch_trainer, schedule.overrides
        yield _make_finetuning(study, SCRATCH, trainer, overrides, at)
        for method, source in sources.items():
            if arms[method].measured:
                overrides = {**schedule.overrides, **arms[method].finetuning}
                made = _make_finetuning(study, method, schedule.trainer, overrides, at)
                seed = source.pretraining_seed if source else None
                started = _start_from(arms, method, sources)
                yield replace(made, pretraining_seed=seed, **started)


def _make_finetuning(
    study: Study,
    method: str,
    trainer: str,
    overrides: Mapping[str, Any],
    at: tuple[float, int, int, str],
    role: Role = "main",
) -> Cell:
    budget, fold, repetition, schedule = at
    name = f"{UNITS[study.unit]}{budget:g}-r{repetition}-f{fold}-{slug(schedule)}"
    chosen = {f"labels.{study.unit}": budget, "labels.seed": repetition}
    return Cell(
        id=f"{slug(method)}-{name}",
        kind="finetune",
        method=method,
        trainer=trainer,
        schedule=schedule,
        budget=budget,
        unit=study.unit,
        fold=fold,
        repetition=repetition,
        overrides={**overrides, "training.seed": repetition, **chosen},
        role=role,
        dataset=study.dataset,
        plans=study.plans,
    )


def _make_trials_of_scratch(study: Study, arms: Mapping[str, PretrainingArm]) -> Iterator[Cell]:
    """Scratch with schedules of its own, then with the steps of the pre-trainings added."""
    trials: list[tuple[str, str, Mapping[str, Any], Role]] = [
        (name, arm.trainer, arm.overrides, "own_schedule")
        for name, arm in study.scratch_schedules.items()
    ]
    added: set[int] = set()
    if study.scratch_added_steps:
        of_chain: dict[str, int] = {}
        for method, arm in arms.items():
            own = prod(read_schedule(arm.trainer, "pretrain", arm.overrides)) if arm.trainer else 0
            of_chain[method] = own + of_chain.get(arm.after or "", 0)
        added = {of_chain[method] for method, arm in arms.items() if arm.measured} - {0}
    for (name, schedule), steps in product(study.schedules.items(), sorted(added)):
        trainer = schedule.scratch_trainer
        epochs, iterations = read_schedule(trainer, "finetune", schedule.overrides)
        overrides = {k: v for k, v in schedule.overrides.items() if k != "training.num_epochs"}
        overrides["num_epochs"] = epochs + ceil(steps / iterations)
        trials.append((f"{name}_and_{steps}_steps", trainer, overrides, "added_steps"))
    for (name, trainer, changed, role), repetition, fold, budget in product(
        trials, range(study.repetitions), study.folds, study.budgets
    ):
        at = (budget, fold, repetition, name)
        yield _make_finetuning(study, SCRATCH, trainer, changed, at, role=role)
