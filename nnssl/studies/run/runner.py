"""`nnssl_study run`: checks a study, writes its folder, hands its cells to an executor."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nnssl.studies.run.attempts import Bench, Slot
from nnssl.studies.run.estimate import estimate
from nnssl.studies.run.folder import Selection, grown, write_study
from nnssl.studies.run.grid import Cell
from nnssl.studies.run.knobs import check_overrides
from nnssl.studies.run.local import CellOutcome, LocalRunner
from nnssl.studies.run.slots import slots
from nnssl.studies.run.spec import Study, read_study, waiting


@dataclass(frozen=True)
class Options:
    """How to run a study.

    Attributes:
        executor: `local`, or `slurm` (needs `submitit`).
        processes: side by side; on Slurm, jobs at once.
        devices: numbers of GPUs or `cpu`, for `local`; None: what is there.
        selection: which part of the study.
        dry_run: prints the commands and an estimate only.
        program: stand-in for `nnUNetv2_train`, for tests of the scheduling; it gets the same
            arguments and environment.
        slurm: partition, hours, memory, gpus_per_task, cpus_per_task and cluster, for `slurm`.
    """

    executor: Literal["local", "slurm"] = "local"
    processes: int | None = None
    devices: Sequence[str] | None = None
    selection: Selection = field(default_factory=Selection)
    dry_run: bool = False
    program: tuple[str, ...] = ()
    slurm: dict[str, Any] = field(default_factory=dict)


def run_study(name_or_path: str | Path, folder: str | Path, options: Options) -> int:
    """Runs a study, or the rest of it; returns the exit code.

    Args:
        name_or_path: name or file of the study.
        folder: of the results; running again continues what is there.
        options: how.

    Raises:
        ValueError: the study is wrong, or the folder holds another one.
    """
    folder = Path(folder).expanduser().absolute()
    study = grown(folder, options.selection.extend(read_study(name_or_path)))
    chosen = options.selection.choose(study)
    check_overrides(chosen)
    bench = Bench(study, folder, options.program)
    for cell in chosen:
        bench.fold_folder(cell)  # a dataset that is not there is told before anything runs
    _tell_waiting(study)
    if options.dry_run:
        _print_commands(bench, chosen, options)
        return 0
    write_study(folder, study)
    if options.executor == "slurm":
        from nnssl.studies.run.slurm import submit

        return submit(bench, chosen, options.processes, **options.slurm)
    outcome = LocalRunner(bench, chosen, slots(options.devices, options.processes)).run()
    _tell(outcome, len(chosen))
    return outcome.exit_code


def command_line(bench: Bench, cell: Cell, slot: Slot) -> str:
    """A cell's command with its environment, to be copied into a shell."""
    variables = bench.variables(cell, slot)
    pairs = [f"{name}={shlex.quote(value)}" for name, value in variables.items() if value]
    unset = [part for name, value in variables.items() if not value for part in ("-u", name)]
    return " ".join(["env", *unset, *pairs, shlex.join(bench.command(cell, slot))])


def _print_commands(bench: Bench, chosen: Sequence[Cell], options: Options) -> None:
    places = slots(options.devices, options.processes) if options.executor == "local" else [Slot()]
    for number, cell in enumerate(chosen):
        state = "done already" if bench.is_done(cell) else f"after {cell.needs}"
        remark = f"  ({state})" if state != "after None" else ""
        print(f"# {cell.id}{remark}\n{command_line(bench, cell, places[number % len(places)])}")
    print(estimate(bench, chosen, options.processes or len(places)))


def _tell_waiting(study: Study) -> None:
    for method, reason in waiting(study).items():
        print(f"left out: {method} {reason}")


def _tell(outcome: CellOutcome, number: int) -> None:
    for cell, lines in outcome.failed.items():
        print(f"FAILED: {cell}")
        print("\n".join(f"    {line}" for line in lines))
    for cell, needed in outcome.blocked.items():
        print(f"blocked: {cell} needs {needed}")
    print(f"{len(outcome.done)} of {number} cells are done.")
    if outcome.signal is not None:
        print("Stopped; nothing is lost. Run the same command again to continue.")
