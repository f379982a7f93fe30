"""Runs the cells of a study as Slurm jobs through `submitit` (an optional dependency)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

from nnssl.common import locks
from nnssl.common.checks import ONE_LINE, Count, Line, Positive, Whole, checked
from nnssl.common.environment import set_default
from nnssl.studies.run import attempts
from nnssl.studies.run.attempts import TRIES, Attempt, read_log_end
from nnssl.studies.run.devices import Slot, count_workers
from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.grid import Cell

SECONDS_BETWEEN_LOOKS = 1.0
PREEMPT_SIGNAL = "USR1"  # our trainers save and leave on it, should Slurm send it to them directly
MOST_TIMEOUTS = 1000


class CellJob:
    """What one Slurm job does: trains a cell; when its time is over, saves, and is queued again."""

    def __init__(self, folder: StudyFolder, cell: Cell, slot: Slot) -> None:
        self.folder, self.cell, self.slot = folder, cell, slot
        self.attempt: Attempt | None = None

    def __call__(self) -> str:
        """Returns the cell's id.

        Raises:
            RuntimeError: it has failed twice, or what it needs is not done; with the log's end.
        """
        needs = [cell for cell in self.folder.cells if cell.id == self.cell.needs]
        if not all(map(self.folder.is_done, needs)):
            raise RuntimeError(f"{self.cell.id} needs {self.cell.needs}, which is not done")
        for _ in range(TRIES):
            if self._try():
                return self.cell.id
        lines = "\n".join(read_log_end(self.folder, self.cell))
        raise RuntimeError(f"{self.cell.id} failed {TRIES} times; the end of its log:\n{lines}")

    def checkpoint(self) -> Any:
        """Called by submitit before the time is over: the training saves, the job is requeued."""
        import submitit

        if self.attempt is not None:
            self.attempt.stop()
            until = monotonic() + attempts.SECONDS_TO_SAVE
            while self.attempt.is_running() and monotonic() < until:
                sleep(SECONDS_BETWEEN_LOOKS)
            self.attempt.finish()
        return submitit.helpers.DelayedSubmission(CellJob(self.folder, self.cell, self.slot))

    def _try(self) -> bool:
        lock = None
        while lock is None and not self.folder.is_done(self.cell):
            lock = locks.acquire(self.folder.cell_folder(self.cell))
            sleep(0 if lock else SECONDS_BETWEEN_LOOKS)  # another run trains it
        if lock is None:
            return True
        self.attempt = attempt = Attempt(self.folder, self.cell, self.slot, lock)
        while attempt.is_running():
            sleep(SECONDS_BETWEEN_LOOKS)
        self.attempt = None  # what has ended is finished here, not by `checkpoint`
        return attempt.finish()


@checked
@dataclass(frozen=True)
class JobLimits:
    """What Slurm is asked for; a text becomes a line of the job's script."""

    partition: Line | None = None
    hours: Positive = 24.0  # limit of a job; it is queued again when that is over
    memory: Count = 32  # GB of a job
    gpus_per_task: Whole = 1  # 0 trains on the CPU
    cpus_per_task: Count = 12
    processes: Count | None = None  # jobs at once; None: Slurm's own limit

    def parameters(self) -> dict[str, Any]:
        """As submitit names them."""
        limits = {
            "name": "nnssl_study",
            "timeout_min": max(1, round(60 * self.hours)),
            "mem_gb": self.memory,
            "gpus_per_node": self.gpus_per_task,
            "cpus_per_task": self.cpus_per_task,
            "slurm_partition": self.partition,
            "slurm_array_parallelism": self.processes,
            "slurm_signal_delay_s": round(attempts.SECONDS_TO_SAVE) + 60,
            "slurm_setup": [f"export SUBMITIT_PREEMPT_SIGNAL={PREEMPT_SIGNAL}"],
        }
        return {name: value for name, value in limits.items() if value is not None}


def submit(
    folder: StudyFolder, cells: Sequence[Cell], limits: JobLimits, cluster: str = "slurm"
) -> int:
    """Submits what is not done as job arrays and prints their ids; returns the exit code.

    Args:
        cells: what to run, with everything that it needs.
        limits: of every job.
        cluster: `slurm`; `local` and `debug` run on this machine, to try it out.
    """
    set_default("SUBMITIT_PREEMPT_SIGNAL", PREEMPT_SIGNAL)  # read at submitit's import
    try:
        import submitit
    except ImportError:
        raise ValueError(
            "--executor slurm needs the package submitit: pip install submitit (or run on this "
            "machine: --executor local)"
        ) from None
    if not str(folder.path).isprintable():
        raise ValueError(f"the study's folder is {str(folder.path)!r}; its path must be {ONE_LINE}")
    timeouts = {"slurm_max_num_timeout": MOST_TIMEOUTS} if cluster == "slurm" else {}
    executor = submitit.AutoExecutor(folder.path / "slurm", cluster=cluster, **timeouts)
    executor.update_parameters(**limits.parameters())
    device = () if limits.gpus_per_task else ("-device", "cpu")
    slot = Slot(count_workers(limits.cpus_per_task), arguments=device)
    jobs: dict[str, Any] = {}
    for needs, group in _group_by_need(folder, cells):
        _start_after(executor, jobs.get(needs or ""), cluster)
        with executor.batch():
            submitted = [executor.submit(CellJob(folder, cell, slot)) for cell in group]
        jobs |= {cell.id: job for cell, job in zip(group, submitted, strict=True)}
    for cell_id, job in jobs.items():
        print(f"{job.job_id}  {cell_id}")
    print(
        f"{len(jobs)} jobs are submitted; see them with: nnssl_study status "
        + shlex.quote(str(folder.path))
    )
    return 0


def _group_by_need(
    folder: StudyFolder, cells: Sequence[Cell]
) -> Iterator[tuple[str | None, list[Cell]]]:
    """One job array for what can start at once, one behind each pre-training that is not done."""
    rest = [cell for cell in cells if not folder.is_done(cell)]
    open_ids = {cell.id for cell in rest}
    groups: dict[str | None, list[Cell]] = {}
    for cell in rest:
        needs = cell.needs if cell.needs in open_ids else None
        groups.setdefault(needs, []).append(cell)
    yield from groups.items()  # a cell stands behind the one it needs, and so does its array


def _start_after(executor: Any, job: Any, cluster: str) -> None:
    """The next array starts after `job`; executors of this machine know no dependencies."""
    if cluster == "slurm":
        dependency = {}
        if job is not None:
            dependency = {"dependency": f"afterok:{job.job_id}", "kill-on-invalid-dep": "yes"}
        executor.update_parameters(slurm_additional_parameters=dependency)
    elif job is not None:
        job.wait()
