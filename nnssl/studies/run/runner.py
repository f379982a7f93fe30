"""`nnssl_study run`: checks a study, writes its folder, hands its cells to an executor."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from nnssl.config import read_config, write_overrides
from nnssl.studies.run.attempts import next_command, next_variables
from nnssl.studies.run.devices import Slot, make_slots
from nnssl.studies.run.folder import PROGRAM, StudyFolder, grow_study, join_values
from nnssl.studies.run.grid import Cell, Kind, find_stages
from nnssl.studies.run.local import CellOutcome, LocalRunner
from nnssl.studies.run.slurm import JobLimits, submit
from nnssl.studies.run.spec import SCRATCH, Study, find_waiting, read_study

SECONDS_PER_STEP = 0.15  # assumed; small plans on one core, or default plans on a GPU


@dataclass(frozen=True)
class Selection:
    """Which part of a study to run (None: all); numbers beyond the file's extend the study."""

    folds: Sequence[int] | None = None
    repetitions: int | None = None  # the first n
    budgets: Sequence[float] | None = None
    only: Sequence[str] | None = None  # methods, and `scratch`

    def extend(self, study: Study) -> Study:
        """The study with what the selection asks for beyond it."""
        return replace(
            study,
            folds=join_values(study.folds, self.folds or ()),
            budgets=join_values(study.budgets, self.budgets or ()),
            repetitions=max(study.repetitions, self.repetitions or 1),
        )

    def choose(self, folder: StudyFolder) -> list[Cell]:
        """The runs of the selected cells, and the pre-trainings that they need."""
        known = (SCRATCH, *folder.study.pretraining)
        for method in self.only or ():
            if method not in known:
                raise ValueError(f"--only: found {method!r}; this study has: {', '.join(known)}")
        cells = {cell.id: cell for cell in folder.cells}
        chosen = [cell for cell in folder.cells if self._has(cell)]
        ids = {
            name for cell in chosen for name in (folder.runs[cell.id], *find_stages(cell, cells))
        }
        return [cell for cell in folder.cells if cell.id in ids]

    def _has(self, cell: Cell) -> bool:
        return cell.repetition is not None and (
            (self.folds is None or cell.fold in self.folds)
            and (self.repetitions is None or cell.repetition < self.repetitions)
            and (self.budgets is None or cell.budget in self.budgets)
            and (self.only is None or cell.method in self.only)
        )


def run_study(
    name_or_path: str | Path,
    folder: str | Path,
    selection: Selection,
    processes: int | None = None,
    devices: Sequence[str] | None = None,
    jobs: JobLimits | None = None,
    dry_run: bool = False,
    weights: Mapping[str, str] | None = None,
    program: tuple[str, ...] = (PROGRAM,),
) -> int:
    """Runs a study, or the rest of it; returns the exit code.

    Args:
        name_or_path: of the study.
        folder: of the results; running again continues what is there.
        selection: which part of the study.
        processes: side by side on this machine.
        devices: numbers of GPUs or `cpu`, on this machine; None: what is there.
        jobs: runs the study through Slurm; None: on this machine.
        dry_run: prints the commands and an estimate only.
        weights: arm -> file that it starts from, for arms of the study that take one.
        program: see `StudyFolder`.

    Raises:
        ValueError: the study is wrong, or the folder holds another one.
        FileNotFoundError: weights that an arm starts from are not there.
    """
    from nnssl.studies.run.weight_arms import give_weights, identify_weights  # loads torch

    path = Path(folder).expanduser().absolute()
    asked = give_weights(selection.extend(read_study(name_or_path)), weights or {})
    study = identify_weights(grow_study(path, asked))
    runs = StudyFolder(study, path, program)
    chosen = selection.choose(runs)
    for cell in chosen:
        runs.fold_folder(cell)  # a dataset that is not there is told before anything runs
    for method, reason in find_waiting(study).items():
        print(f"left out: {method} {reason}")
    if problems := list(dict.fromkeys(_find_problems(study, chosen))):
        raise ValueError("The study's runs would stop at once:\n" + "\n".join(problems))
    if dry_run:
        slots = [Slot()] if jobs else make_slots(devices, processes)
        _print_commands(runs, chosen, slots)
        print(_estimate(runs, chosen, processes or len(slots)))
        return 0
    runs.write()
    if jobs is not None:
        return submit(runs, chosen, jobs)
    outcome = LocalRunner(runs, chosen, make_slots(devices, processes)).run()
    _print_outcome(outcome, len(chosen))
    return outcome.exit_code


def _find_problems(study: Study, cells: Sequence[Cell]) -> Iterator[str]:
    """Checks the settings of every run as the run itself would; then the data."""
    from nnssl.studies.run.data_checks import find_data_problems  # loads torch and nnU-Net
    from nnssl.studies.run.weight_arms import find_weight_problems
    from nnssl.training.factory import check_trainer

    for cell in cells:
        raw = read_config(cell.trainer)
        if (raw.kind == "pretrain") != (cell.kind == "pretrain"):
            yield f"{cell.method}: {cell.trainer} is a trainer of kind {raw.kind}, not {cell.kind}"
            continue
        try:
            check_trainer(cell.trainer, write_overrides(cell.overrides))
        except ValueError as error:
            yield f"{cell.method}: {error}"
    problems = list(find_data_problems(cells, study.configuration))
    yield from problems or find_weight_problems(study, cells)


def _print_commands(folder: StudyFolder, chosen: Sequence[Cell], slots: Sequence[Slot]) -> None:
    """Every cell's command with its environment, to be copied into a shell."""
    for number, cell in enumerate(chosen):
        slot = slots[number % len(slots)]
        remarks = [f"after {cell.needs}"] if cell.needs else []
        remarks = ["done already"] if folder.is_done(cell) else remarks
        shared = [each for each, run in folder.runs.items() if run == cell.id != each]
        remarks += [f"also {', '.join(shared)}"] if shared else []
        remark = f"  ({'; '.join(remarks)})" if remarks else ""
        variables = next_variables(folder, cell, slot)
        unset = [part for name, value in variables.items() if not value for part in ("-u", name)]
        pairs = [f"{name}={shlex.quote(value)}" for name, value in variables.items() if value]
        command = ["env", *unset, *pairs, shlex.join(next_command(folder, cell, slot))]
        print(f"# {cell.id}{remark}\n{' '.join(command)}")


def _estimate(folder: StudyFolder, cells: Sequence[Cell], processes: int) -> str:
    """Hours of what is not done yet, and where the figure comes from; one or more lines."""
    rest = [cell for cell in cells if not folder.is_done(cell)]
    hours, sources = 0.0, []
    for kind in ("pretrain", "finetune"):
        steps = sum(cell.steps for cell in rest if cell.kind == kind)
        rate = _measure_rate(folder, cells, kind)
        hours += steps * (rate or SECONDS_PER_STEP) / 3600
        source = f"{SECONDS_PER_STEP} s per step ASSUMED, no cell has finished here yet"
        if rate:
            source = f"{rate:.3f} s per step, median of this study's finished cells"
        sources += [f"{kind}: {source}"] if steps else []
    head = (
        f"{len(rest)} of {len(cells)} cells to do, {sum(cell.steps for cell in rest)} steps: about "
        f"{hours:.1f} hours of one process, {hours / processes:.1f} with {processes} side by side"
    )
    return "\n".join([head, *sources])


def _measure_rate(folder: StudyFolder, cells: Sequence[Cell], kind: Kind) -> float | None:
    """Median seconds per step over the finished cells of a kind, validation included."""
    finished = [cell for cell in cells if cell.kind == kind and folder.is_done(cell)]
    rates = [
        sum(attempt["seconds"] for attempt in past) / cell.steps
        for cell in finished
        if (past := folder.attempts(cell))
    ]
    return median(rates) if rates else None


def _print_outcome(outcome: CellOutcome, number: int) -> None:
    for cell, lines in outcome.failed.items():
        print(f"FAILED: {cell}")
        print("\n".join(f"    {line}" for line in lines))
    for cell, needed in outcome.blocked.items():
        print(f"blocked: {cell} needs {needed}")
    print(f"{len(outcome.done)} of {number} cells are done.")
    if outcome.signal is not None:
        print("Stopped; nothing is lost. Run the same command again to continue.")
