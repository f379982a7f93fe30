"""A study's folder: the study it holds, and how it may grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnssl.studies.run.files import write_yaml
from nnssl.studies.run.grid import Cell, cells
from nnssl.studies.run.spec import SCRATCH, Study, read_study, to_raw

STUDY_FILE = "study.yaml"
MOST_LINES = 10


@dataclass(frozen=True)
class Selection:
    """Which part of a study to run; numbers beyond the file's extend the study.

    Attributes:
        folds: None: all of the study's.
        repetitions: the first n; None: all.
        budgets: None: all.
        only: methods (and `scratch`); None: all.
    """

    folds: Sequence[int] | None = None
    repetitions: int | None = None
    budgets: Sequence[float] | None = None
    only: Sequence[str] | None = None

    def extend(self, study: Study) -> Study:
        """The study with what the selection asks for beyond it."""
        return replace(
            study,
            folds=_union(study.folds, self.folds or ()),
            budgets=_union(study.budgets, self.budgets or ()),
            repetitions=max(study.repetitions, self.repetitions or 1),
        )

    def choose(self, study: Study) -> list[Cell]:
        """The selected cells and the pre-trainings that they need.

        Raises:
            ValueError: a method that the study does not have.
        """
        known = (SCRATCH, *study.pretraining)
        for method in self.only or ():
            if method not in known:
                raise ValueError(f"--only: found {method!r}; this study has: {', '.join(known)}")
        grid = cells(study)
        chosen = {cell.id for cell in grid if cell.kind == "finetune" and self._has(cell)}
        needed = {cell.needs for cell in grid if cell.id in chosen}
        return [cell for cell in grid if cell.id in chosen or cell.id in needed]

    def _has(self, cell: Cell) -> bool:
        assert cell.repetition is not None
        return (
            (self.folds is None or cell.fold in self.folds)
            and (self.repetitions is None or cell.repetition < self.repetitions)
            and (self.budgets is None or cell.budget in self.budgets)
            and (self.only is None or cell.method in self.only)
        )


def open_study(folder: Path) -> Study:
    """The study that a folder holds.

    Raises:
        ValueError: the folder holds none.
    """
    file = folder / STUDY_FILE
    if not file.is_file():
        raise ValueError(f"{folder} holds no study ({STUDY_FILE}); start one with nnssl_study run")
    return read_study(file)


def grown(folder: Path, study: Study) -> Study:
    """What the folder holds together with `study`.

    Raises:
        ValueError: that would change cells which the folder has already; with the differences.
    """
    if not (folder / STUDY_FILE).is_file():
        return study
    stored = open_study(folder)
    both = replace(
        study,
        name=stored.name,
        folds=_union(stored.folds, study.folds),
        budgets=_union(stored.budgets, study.budgets),
        repetitions=max(stored.repetitions, study.repetitions),
        pretraining={**stored.pretraining, **study.pretraining},
        schedules={**stored.schedules, **study.schedules},
        scratch_schedules={**stored.scratch_schedules, **study.scratch_schedules},
        scratch_added_steps=stored.scratch_added_steps or study.scratch_added_steps,
    )
    if lines := _changed(stored, both):
        rest = len(lines) - MOST_LINES
        raise ValueError(
            f"{folder} holds a study with other cells:\n"
            + "\n".join(f"  {line}" for line in lines[:MOST_LINES])
            + (f"\n  and {rest} more" if rest > 0 else "")
            + "\nA study may grow (repetitions, budgets, folds, methods, schedules) and not change."
            " Take another folder (-o), or give what changed another name."
        )
    return both


def write_study(folder: Path, study: Study) -> None:
    """Writes `study.yaml`, which `read_study` reads."""
    write_yaml(folder / STUDY_FILE, to_raw(study))


def _changed(stored: Study, both: Study) -> list[str]:
    lines = [
        f"{knob}: {getattr(stored, knob)!r}, now {getattr(both, knob)!r}"
        for knob in ("dataset", "configuration", "plans", "unit")
        if getattr(stored, knob) != getattr(both, knob)
    ]
    new = {cell.id: cell.to_dict() for cell in cells(both)}
    for cell in [] if lines else cells(stored):
        old, now = cell.to_dict(), new.get(cell.id)
        if now is None:
            lines.append(f"{cell.id}: is there, and not a cell any more")
        else:
            lines += [
                f"{cell.id}: {k}: {old[k]!r}, now {now[k]!r}" for k in old if old[k] != now[k]
            ]
    return lines


def _union(first: Sequence, second: Sequence) -> tuple:
    return (*first, *(value for value in second if value not in first))
