"""`nnssl_study status`: where every cell of a study stands."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nnssl.common import locks
from nnssl.nnunet.paths import FINAL
from nnssl.studies.run.attempts import read_log_end
from nnssl.studies.run.folder import StudyFolder, open_study
from nnssl.studies.run.grid import Cell
from nnssl.studies.run.spec import find_waiting


@dataclass(frozen=True)
class Status:
    """What `nnssl_study status` prints; a row is column -> text."""

    pretraining: list[dict[str, str]]
    finetuning: list[dict[str, str]]  # a column per repetition
    lines: list[str]  # arms that wait, and the end of the log of what has failed
    counts: Counter[str]  # of the states


def read_status(folder: str | Path) -> Status:
    """Where every cell stands of the study that a folder holds."""
    study = open_study(folder)
    states: dict[str, str] = {}
    problems = []
    for cell in study.cells:
        try:
            states[cell.id] = describe_state(study, cell)
        except ValueError as error:  # a damaged file hides no other cell
            states[cell.id] = "DAMAGED"
            problems.append(f"DAMAGED: {cell.id}: {error}")
    for cell in study.cells:
        lost = cell.needs and states[cell.needs] in ("FAILED", "blocked")
        if lost and states[cell.id] == "waiting":
            states[cell.id] = "blocked"
    runs = [states[run] for run in dict.fromkeys(study.runs.values())]
    words = ["done" if text[0].isdigit() else text.split()[0] for text in runs]
    return Status(
        [
            {
                "method": cell.method,
                "trainer": cell.trainer,
                "seed": str(cell.pretraining_seed),
                "fold": str(cell.fold),
                "state": states[cell.id],
            }
            for cell in study.cells
            if cell.kind == "pretrain"
        ],
        _tabulate_finetunings(study, states),
        [*_write_remarks(study, states), *problems],
        Counter(words),
    )


def describe_state(folder: StudyFolder, cell: Cell) -> str:
    """The Dice (`done` for pre-training), or: running, FAILED, stopped, waiting.

    Raises:
        ValueError: a file of the run is damaged.
    """
    try:
        fold = folder.fold_folder(cell)
    except ValueError:  # no dataset of that number is anywhere: nothing can have run
        return "waiting"
    if folder.is_done(cell):
        dice = folder.dice(cell) if cell.kind == "finetune" else None
        return "done" if dice is None else f"{dice:.3f}"
    epoch = folder.epoch(cell)
    phase = "" if epoch is None else f" epoch {epoch}/{cell.epochs}"
    phase = " validation" if (fold / FINAL).is_file() else phase
    if locks.find_holder(folder.cell_folder(cell)) is not None:
        return f"running{phase}"
    if folder.has_failed(cell):
        return "FAILED"
    return f"stopped{phase}" if folder.can_continue(cell) else "waiting"


def _tabulate_finetunings(folder: StudyFolder, states: dict[str, str]) -> list[dict[str, str]]:
    """By fold, schedule and budget; the order of methods stays."""
    rows: dict[tuple, dict[str, str]] = {}
    for cell in folder.cells:
        if cell.budget is not None:
            where = {"method": cell.method, "schedule": cell.schedule}
            where |= {folder.study.unit: f"{cell.budget:g}", "fold": str(cell.fold)}
            repetitions = {f"r{each}": "-" for each in range(folder.study.repetitions)}
            key = (str(cell.fold), cell.schedule, cell.budget, cell.method)
            rows.setdefault(key, where | repetitions)[f"r{cell.repetition}"] = states[cell.id]
    return [rows[key] for key in sorted(rows, key=lambda key: key[:3])]


def _write_remarks(folder: StudyFolder, states: dict[str, str]) -> list[str]:
    waiting = find_waiting(folder.study).items()
    lines = [f"left out: {method} {reason}" for method, reason in waiting]
    for cell in folder.cells:
        if states[cell.id] == "FAILED" and folder.runs[cell.id] == cell.id:
            log = folder.cell_folder(cell) / folder.attempts(cell)[-1]["log"]
            lines.append(f"FAILED: {cell.id}, see {log}")
            lines += [f"    {line}" for line in read_log_end(folder, cell)]
    return lines
