"""`nnssl_study status`: where every cell of a study stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl.common import locks
from nnssl.nnunet.paths import FINAL
from nnssl.studies.run import attempts, places
from nnssl.studies.run.attempts import Bench
from nnssl.studies.run.folder import open_study
from nnssl.studies.run.grid import Cell, cells
from nnssl.studies.run.spec import Study, waiting


@dataclass(frozen=True)
class StatusTable:
    """A heading and rows of equally many texts."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Status:
    """What `nnssl_study status` prints.

    Attributes:
        pretraining: a row per pre-training.
        finetuning: a row per method, schedule, budget and fold; a column per repetition.
        lines: arms that wait, and the end of the log of what has failed.
        counts: state -> number of cells.
    """

    pretraining: StatusTable
    finetuning: StatusTable
    lines: list[str]
    counts: dict[str, int]


def status(folder: str | Path) -> Status:
    """Reads a study's folder.

    Raises:
        ValueError: it holds no study.
    """
    folder = Path(folder).expanduser().absolute()
    study = open_study(folder)
    bench, grid = Bench(study, folder), cells(study)
    states = {cell.id: state(bench, cell) for cell in grid}
    for cell in grid:
        if cell.needs and states[cell.needs] == "FAILED" and states[cell.id] == "waiting":
            states[cell.id] = "blocked"
    counts: dict[str, int] = {}
    for cell in grid:
        word = "done" if states[cell.id][0].isdigit() else states[cell.id].split()[0]
        counts[word] = counts.get(word, 0) + 1
    return Status(
        _pretraining(grid, states),
        _finetuning(study, grid, states),
        _lines(bench, grid, states),
        counts,
    )


def state(bench: Bench, cell: Cell) -> str:
    """The Dice (`done` for pre-training), or: running, FAILED, stopped, waiting."""
    folder = cell.folder(bench.folder)
    try:
        runs = bench.fold_folder(cell)
    except ValueError:  # no dataset of that number anywhere: nothing can have run
        return "waiting"
    if places.is_done(runs, cell.kind):
        found = places.dice(runs) if cell.kind == "finetune" else None
        return "done" if found is None else f"{found:.3f}"
    if locks.holder(folder) is not None:
        return f"running {_phase(runs, cell)}".strip()
    if attempts.failed(folder):
        return "FAILED"
    if places.can_continue(runs):
        return f"stopped {_phase(runs, cell)}".strip()
    return "waiting"


def _phase(runs: Path, cell: Cell) -> str:
    if (runs / FINAL).is_file():
        return "validation"
    at = places.epoch(runs)
    return "" if at is None else f"epoch {at}/{cell.steps() // cell.steps_per_epoch()}"


def _pretraining(grid: Sequence[Cell], states: dict[str, str]) -> StatusTable:
    rows = [
        (cell.method, cell.trainer, str(cell.pretraining_seed), str(cell.fold), states[cell.id])
        for cell in grid
        if cell.kind == "pretrain"
    ]
    return StatusTable(("method", "trainer", "seed", "fold", "state"), rows)


def _finetuning(study: Study, grid: Sequence[Cell], states: dict[str, str]) -> StatusTable:
    rows: dict[tuple[str, ...], list[str]] = {}
    for cell in grid:
        if cell.kind == "finetune":
            assert cell.repetition is not None
            row = (cell.method, cell.schedule, f"{cell.budget:g}", str(cell.fold))
            rows.setdefault(row, ["-"] * study.repetitions)[cell.repetition] = states[cell.id]
    repetitions = tuple(f"r{number}" for number in range(study.repetitions))
    header = ("method", "schedule", study.unit, "fold", *repetitions)
    return StatusTable(
        header, [(*row, *columns) for row, columns in sorted(rows.items(), key=_order)]
    )


def _order(row: tuple[tuple[str, ...], list[str]]) -> tuple[str, str, float]:
    """By fold, schedule and budget; the order of methods stays."""
    _, schedule, budget, fold = row[0]
    return fold, schedule, float(budget)


def _lines(bench: Bench, grid: Sequence[Cell], states: dict[str, str]) -> list[str]:
    lines = [f"left out: {method} {reason}" for method, reason in waiting(bench.study).items()]
    for cell in grid:
        if states[cell.id] == "FAILED":
            folder = cell.folder(bench.folder)
            lines.append(f"FAILED: {cell.id}, see {folder / attempts.attempts(folder)[-1]['log']}")
            lines += [f"    {line}" for line in attempts.tail(folder)]
    return lines
