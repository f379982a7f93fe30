"""A study's folder: where its runs are, and what their files say; how the study may grow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from nnssl.common.files import read_json
from nnssl.config import OVERRIDES, write_overrides
from nnssl.nnunet import paths
from nnssl.nnunet.paths import CHECKPOINTS, FINAL, RESULTS, SUMMARY, WEIGHTS, find_training_logs
from nnssl.studies.run.grid import Cell, list_cells
from nnssl.studies.run.spec import Study, read_study, write_study

STUDY_FILE = "study.yaml"
RECORD = "cell.json"
PROGRAM = "nnUNetv2_train"
EPOCH = re.compile(r": Epoch (\d+)(?: of \d+: .*)?\s*$", re.M)  # begun by nnU-Net, or ended
MOST_LINES = 10
State = Literal["done", "unfinished", "failed", "missing"]


class _Attempt(TypedDict):
    done: bool
    interrupted: bool
    log: str


class _Record(TypedDict, total=False):
    attempts: list[_Attempt]


class _Mean(TypedDict):
    Dice: float | None


class _Summary(TypedDict):
    foreground_mean: _Mean


@dataclass(frozen=True)
class StudyFolder:
    """A study and the folder of its runs.

    Attributes:
        program: takes the arguments of `nnUNetv2_train`. Tests of the scheduling give a stand-in
            that writes nnU-Net's files without training.
    """

    study: Study
    path: Path  # absolute
    program: tuple[str, ...] = (PROGRAM,)

    @cached_property
    def cells(self) -> list[Cell]:
        """Every run of the study; see `list_cells`."""
        return list_cells(self.study)

    @cached_property
    def runs(self) -> dict[str, str]:
        """Cell -> the cell whose run is its own too, by ids: what would run twice alike runs once.

        A cell that has a folder keeps its run; older versions ran each of them.
        """
        there = {cell.id: self._own_folder(cell.id).is_dir() for cell in self.cells}
        first: dict[tuple[Any, ...], str] = {}
        for cell in sorted(self.cells, key=lambda cell: not there[cell.id]):
            first.setdefault(cell.settings, cell.id)
        return {cell.id: cell.id if there[cell.id] else first[cell.settings] for cell in self.cells}

    def write(self) -> None:
        """Writes `study.yaml`."""
        write_study(self.path / STUDY_FILE, self.study)

    def cell_folder(self, cell: Cell) -> Path:
        """Folder of the cell's run: its `nnUNet_results`."""
        return self._own_folder(self.runs.get(cell.id, cell.id))

    def fold_folder(self, cell: Cell) -> Path:
        """Folder in which nnU-Net writes the run; ValueError where the dataset has no name."""
        results = self.cell_folder(cell)
        dataset = results / _find_dataset(cell.dataset, results)
        configuration = self.study.configuration
        return paths.fold_folder(dataset, cell.trainer, cell.plans, configuration, cell.fold)

    def command(self, cell: Cell) -> list[str]:
        """The command without `--c` and `-device`."""
        where = [str(cell.dataset), self.study.configuration, str(cell.fold)]
        return [*self.program, *where, "-p", cell.plans, "-tr", cell.trainer]

    def environment(self, cell: Cell) -> dict[str, str]:
        """Variables of the command; an empty one counts as not set."""
        weights, overrides = "", cell.overrides
        if cell.needs is not None:
            source = next(each for each in self.cells if each.id == cell.needs)
            weights = str(self.fold_folder(source) / FINAL)
        elif cell.starts_from is not None:
            weights = self.study.pretraining[cell.starts_from].weights or ""
        if weights and cell.kind == "pretrain":
            weights, overrides = "", {**overrides, "training.initial_weights": weights}
        return {
            RESULTS: str(self.cell_folder(cell)),
            OVERRIDES: write_overrides(overrides),
            WEIGHTS: weights,
        }

    def is_done(self, cell: Cell) -> bool:
        """Whether the run has ended, fine-tuning with its validation; read from nnU-Net's files."""
        fold = self.fold_folder(cell)
        validated = cell.kind == "pretrain" or _is_whole(fold / SUMMARY)
        return validated and (fold / FINAL).is_file()

    def can_continue(self, cell: Cell) -> bool:
        """Whether `--c` has something to continue: a stopped training, or a stopped validation."""
        fold = self.fold_folder(cell)
        return any((fold / name).is_file() for name in CHECKPOINTS)

    def has_failed(self, cell: Cell) -> bool:
        """Whether the last attempt failed; what was interrupted has not."""
        past = self.attempts(cell)
        return bool(past) and not past[-1]["done"] and not past[-1]["interrupted"]

    def state(self, cell: Cell) -> State:
        """How far a cell is, judged by nnU-Net's files; only a failure is read from `cell.json`."""
        try:
            fold = self.fold_folder(cell)
        except ValueError:  # no dataset of that number is anywhere: nothing can have run
            return "missing"
        if self.is_done(cell):
            return "done"
        if self.has_failed(cell):
            return "failed"
        return "unfinished" if fold.is_dir() and any(fold.iterdir()) else "missing"

    def record(self, cell: Cell) -> dict[str, Any]:
        """The content of `cell.json`; empty before the first attempt has ended."""
        file = self.cell_folder(cell) / RECORD
        return read_json(file, _Record) if file.is_file() else {}

    def attempts(self, cell: Cell) -> list[dict[str, Any]]:
        """The attempts at a cell so far."""
        return self.record(cell).get("attempts", [])

    def dice(self, cell: Cell) -> float | None:
        """Mean foreground Dice of nnU-Net's own validation, if there is one."""
        file = self.fold_folder(cell) / SUMMARY
        return read_json(file, _Summary)["foreground_mean"]["Dice"] if _is_whole(file) else None

    def epoch(self, cell: Cell) -> int | None:
        """The epoch that the newest training log is in, if it is in one."""
        logs = find_training_logs(self.fold_folder(cell))
        found = EPOCH.findall(logs[-1].read_text(errors="replace")) if logs else []
        return int(found[-1]) if found else None

    def _own_folder(self, cell_id: str) -> Path:
        return self.path / "cells" / cell_id


def open_study(folder: str | Path) -> StudyFolder:
    """The study that a folder holds; ValueError where it holds none."""
    path = Path(folder).expanduser().absolute()
    file = path / STUDY_FILE
    if not file.is_file():
        raise ValueError(f"{path} holds no study ({STUDY_FILE}); start one with nnssl_study run")
    return StudyFolder(read_study(file), path)


def grow_study(folder: Path, study: Study) -> Study:
    """What the folder holds together with `study`; ValueError if that would change its cells."""
    if not (folder / STUDY_FILE).is_file():
        return study
    stored = open_study(folder).study
    study = _keep_weights(stored, study)
    both = replace(
        study,
        name=stored.name,
        folds=join_values(stored.folds, study.folds),
        budgets=join_values(stored.budgets, study.budgets),
        repetitions=max(stored.repetitions, study.repetitions),
        pretraining={**stored.pretraining, **study.pretraining},
        schedules={**stored.schedules, **study.schedules},
        scratch_schedules={**stored.scratch_schedules, **study.scratch_schedules},
        scratch_added_steps=stored.scratch_added_steps or study.scratch_added_steps,
    )
    if lines := _find_changes(stored, both):
        rest = len(lines) - MOST_LINES
        raise ValueError(
            f"{folder} holds a study with other cells:\n"
            + "\n".join(f"  {line}" for line in lines[:MOST_LINES])
            + (f"\n  and {rest} more" if rest > 0 else "")
            + "\nA study may grow (repetitions, budgets, folds, methods, schedules) and not change."
            " Take another folder (-o), or give what changed another name."
        )
    return both


def _keep_weights(stored: Study, study: Study) -> Study:
    """The study with the files and the hashes that its arms had when the folder was begun."""
    arms = dict(study.pretraining)
    for name, old in stored.pretraining.items():
        if name in arms and arms[name].is_file and old.weights is not None:
            named = arms[name].weights or old.weights
            arms[name] = replace(arms[name], weights=named, sha256=arms[name].sha256 or old.sha256)
    return replace(study, pretraining=arms)


def join_values(first: Sequence, second: Sequence) -> tuple:
    """The first, and what of the second is not in it."""
    return (*first, *(value for value in second if value not in first))


def _find_changes(stored: Study, both: Study) -> list[str]:
    lines = [
        f"{knob}: {getattr(stored, knob)!r}, now {getattr(both, knob)!r}"
        for knob in ("dataset", "configuration", "plans", "unit")
        if getattr(stored, knob) != getattr(both, knob)
    ]
    new = {cell.id: cell.to_dict() for cell in list_cells(both)}
    for cell in [] if lines else list_cells(stored):
        if cell.id not in new:
            lines.append(f"{cell.id}: is there, and not a cell any more")
            continue
        pairs = [(knob, old, new[cell.id][knob]) for knob, old in cell.to_dict().items()]
        lines += [f"{cell.id}: {k}: {old!r}, now {now!r}" for k, old, now in pairs if old != now]
    return lines


def _find_dataset(dataset: int | str, results: Path) -> str:
    """nnU-Net's name of a dataset, from the results or nnU-Net's own folders."""
    if isinstance(dataset, str) and not dataset.isdigit():
        return dataset
    if found := paths.find_dataset_names(dataset, results):
        return found[0]
    roots = (paths.find_root(paths.PREPROCESSED), paths.find_root(paths.RAW))
    return paths.dataset_name(dataset, *filter(None, roots))


def _is_whole(file: Path) -> bool:
    """Whether a JSON file was written to its end; nnU-Net's are cut off by a kill."""
    with suppress(OSError, ValueError):
        read_json(file)
        return True
    return False
