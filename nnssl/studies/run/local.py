"""Runs the cells of a study on this machine, several side by side."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep
from types import FrameType
from typing import Any

from tqdm import tqdm

from nnssl.common import locks
from nnssl.studies.run import attempts
from nnssl.studies.run.attempts import TRIES, Attempt, read_log_end
from nnssl.studies.run.devices import Slot
from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.grid import Cell

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_PROGRESS = 5.0


@dataclass
class CellOutcome:
    """What became of the cells, by their ids."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, list[str]] = field(default_factory=dict)  # last lines of its log
    blocked: dict[str, str] = field(default_factory=dict)  # the failed cell that it needs
    signal: int | None = None  # that stopped the runner

    @property
    def exit_code(self) -> int:
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.failed or self.blocked else 0


class LocalRunner:
    """Starts cells in their order as slots get free, a cell after the one it needs.

    Args:
        cells: what to run, with everything that it needs.
        slots: one per process.
    """

    def __init__(self, folder: StudyFolder, cells: Sequence[Cell], slots: Sequence[Slot]) -> None:
        self.folder = folder
        self.cells = {cell.id: cell for cell in cells}
        self.pending = list(cells)
        self.free = list(slots)
        self.running: list[Attempt] = []
        self.tries: Counter[str] = Counter()
        self.outcome = CellOutcome()
        total = sum(cell.steps for cell in cells)
        self.bar = tqdm(total=total, unit="step", disable=None, smoothing=0.0)
        self._progress_at = 0.0

    def run(self) -> CellOutcome:
        """Returns when everything is done, failed or blocked, or after a stop signal."""
        with _catch_stop_signals(self.outcome):
            try:
                self._skip_done()
                while (self.pending or self.running) and self.outcome.signal is None:
                    self._start_what_can_start()
                    self._look()
                    sleep(SECONDS_BETWEEN_LOOKS)
                self._stop_all()
            finally:
                for attempt in self.running:
                    attempt.end()
                    attempt.finish()
                self.bar.close()
        return self.outcome

    def _skip_done(self) -> None:
        for cell in [cell for cell in self.pending if self.folder.is_done(cell)]:
            self.pending.remove(cell)
            self.outcome.done.append(cell.id)
        self.bar.initial = self._count_done_steps()
        self._show_progress()

    def _start_what_can_start(self) -> None:
        for cell in list(self.pending):
            lost = {name: name for name in self.outcome.failed} | self.outcome.blocked
            if cell.needs is not None and cell.needs in lost:
                self.pending.remove(cell)
                self.outcome.blocked[cell.id] = lost[cell.needs]
                self._say(f"blocked  {cell.id}: {lost[cell.needs]} failed")
            elif self.free and (cell.needs is None or cell.needs in self.outcome.done):
                self._start(cell)

    def _start(self, cell: Cell) -> None:
        lock = locks.acquire(self.folder.cell_folder(cell))
        if lock is None:
            return  # another run trains it; it is looked at again
        self.pending.remove(cell)
        if self.folder.is_done(cell):
            lock.release()
            self._mark_done(cell, "by another run")
        else:
            self.running.append(Attempt(self.folder, cell, self.free.pop(0), lock))

    def _look(self) -> None:
        for attempt in [attempt for attempt in self.running if not attempt.is_running()]:
            self._finish(attempt)
        if monotonic() - self._progress_at > SECONDS_BETWEEN_PROGRESS:
            self._progress_at = monotonic()
            self._show_progress()

    def _finish(self, attempt: Attempt) -> None:
        cell = attempt.cell
        done = attempt.finish()
        self.running.remove(attempt)
        self.free.append(attempt.slot)
        if done:
            seconds = sum(past["seconds"] for past in self.folder.attempts(cell))
            self._mark_done(cell, f"{seconds / 60:.1f} min")
        elif not attempt.interrupted:
            self.tries[cell.id] += 1
            if self.tries[cell.id] < TRIES:
                self._say(f"retried  {cell.id} (see {attempt.log})")
                self.pending.insert(0, cell)
            else:
                self.outcome.failed[cell.id] = read_log_end(self.folder, cell)
                self._say(f"FAILED   {cell.id} (see {attempt.log})")

    def _mark_done(self, cell: Cell, remark: str) -> None:
        self.outcome.done.append(cell.id)
        dice = self.folder.dice(cell) if cell.kind == "finetune" else None
        self._say(f"done     {cell.id}{f'  Dice {dice:.3f}' if dice else ''}  {remark}")

    def _show_progress(self) -> None:
        """Finished cells count as a whole, running ones by their epoch."""
        if not self.bar.disable:
            cells = [attempt.cell for attempt in self.running]
            steps = sum((self.folder.epoch(c) or 0) * c.steps // c.epochs for c in cells)
            self.bar.n = self._count_done_steps() + steps
            self.bar.refresh()

    def _count_done_steps(self) -> int:
        return sum(self.cells[done].steps for done in self.outcome.done)

    def _stop_all(self) -> None:
        """Children save and leave; after `SECONDS_TO_SAVE` they are ended."""
        if self.running:
            self._say(f"stopping {len(self.running)} processes, which save what they have")
        for attempt in self.running:
            attempt.stop()
        until = monotonic() + attempts.SECONDS_TO_SAVE
        while self.running and monotonic() < until:
            self._look()
            sleep(SECONDS_BETWEEN_LOOKS)

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


@contextmanager
def _catch_stop_signals(outcome: CellOutcome) -> Iterator[None]:
    """SIGINT and SIGTERM end the loop; a second SIGINT ends everything at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if outcome.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        outcome.signal = outcome.signal or number

    before: dict[int, Any] = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
