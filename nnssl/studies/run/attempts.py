"""One attempt at a cell: the process, its log, its record in `cell.json`."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import Any

from nnssl.common import locks
from nnssl.common.environment import child_environment
from nnssl.common.files import read_json, write_json
from nnssl.common.versions import versions
from nnssl.studies.run import places
from nnssl.studies.run.grid import Cell
from nnssl.studies.run.spec import Study

RECORD = "cell.json"
PACKAGES = ("nnunetv2", "torch", "numpy")
SECONDS_TO_SAVE = 180.0  # between a stop signal and the end by force
TAIL = 5


@dataclass(frozen=True)
class Slot:
    """Where a process may run.

    Attributes:
        variables: environment of the process, CUDA_VISIBLE_DEVICES for instance.
        prefix: put before the command (`taskset -c 0`).
        arguments: put behind it (`-device cpu`).
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class Bench:
    """A study, its folder, and the program that trains.

    Attributes:
        program: takes the arguments of `nnUNetv2_train`. For tests of the scheduling this may be a
            stand-in that writes nnU-Net's files without training.
    """

    study: Study
    folder: Path
    program: tuple[str, ...] = ()

    def fold_folder(self, cell: Cell) -> Path:
        return cell.fold_folder(self.folder, self.study)

    def is_done(self, cell: Cell) -> bool:
        return places.is_done(self.fold_folder(cell), cell.kind)

    def command(self, cell: Cell, slot: Slot) -> list[str]:
        """The command of the next attempt; continues what a former one has left."""
        name, *arguments = cell.command(self.study)
        more = ["--c"] if places.can_continue(self.fold_folder(cell)) else []
        program = self.program or (name,)
        return [*slot.prefix, *program, *arguments, *slot.arguments, *more]

    def variables(self, cell: Cell, slot: Slot) -> dict[str, str]:
        """What the command's environment has beyond the runner's own."""
        return {**slot.variables, **cell.environment(self.folder, self.study)}


class Attempt:
    """A running process of a cell, which holds the cell's lock.

    Args:
        bench: the study.
        cell: what to train.
        slot: where.
        lock: the cell's lock, taken by the caller; `finish` gives it back.
    """

    def __init__(self, bench: Bench, cell: Cell, slot: Slot, lock: locks.Lock) -> None:
        self.bench, self.cell, self.slot, self.lock = bench, cell, slot, lock
        self.folder = cell.folder(bench.folder)
        self.interrupted = False
        self.log = _next_log(self.folder)
        self.started, self._begin = datetime.now(timezone.utc), monotonic()
        self.command = bench.command(cell, slot)
        environment = child_environment(bench.variables(cell, slot))
        environment["PATH"] = os.pathsep.join(filter(None, [_scripts(), environment.get("PATH")]))
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the runner, which asks them to end
                pass_fds=(lock.descriptor,),
            )

    def running(self) -> bool:
        self.lock.renew()
        return self.process.poll() is None

    def stop(self) -> None:
        """Asks it to save and leave; nothing is lost."""
        self.interrupted = True
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Ends it and its workers by force."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def finish(self) -> bool:
        """Writes the record and gives the lock back; says whether the cell is done now."""
        self.end()  # workers that have outlived it
        code = self.process.wait()
        done = self.bench.is_done(self.cell)
        attempt = {
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(monotonic() - self._begin, 1),
            "returncode": code,
            "done": done,
            "log": self.log.name,
            "interrupted": self.interrupted and not done,
            "command": self.command,
            "variables": self.bench.variables(self.cell, self.slot),
        }
        _add(self.folder, self.cell, attempt)
        self.lock.release()
        return done


def attempts(folder: Path) -> list[dict[str, Any]]:
    """The attempts at a cell so far, from its `cell.json`."""
    file = folder / RECORD
    return read_json(file)["attempts"] if file.is_file() else []


def failed(folder: Path) -> bool:
    """Whether the last attempt failed; what was interrupted has not."""
    past = attempts(folder)
    return bool(past) and not past[-1]["done"] and not past[-1]["interrupted"]


def tail(folder: Path, lines: int = TAIL) -> list[str]:
    """The last lines of the newest log."""
    past = attempts(folder)
    file = folder / past[-1]["log"] if past else None
    if file is None or not file.is_file():
        return []
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 4096))
        text = stream.read().decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-lines:]


def machine() -> dict[str, Any]:
    """What the cell ran on."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }


def _add(folder: Path, cell: Cell, attempt: Mapping[str, Any]) -> None:
    past = attempts(folder)
    record = {**cell.to_dict(), "steps": cell.steps(), "attempts": [*past, attempt]}
    write_json(folder / RECORD, {**record, "machine": machine(), "versions": versions(*PACKAGES)})


def _next_log(folder: Path) -> Path:
    number = len(list(folder.glob("train_*.log")))
    return folder / f"train_{number}.log"


def _scripts() -> str:
    """Folder of this environment's commands, whether or not it is activated."""
    return str(Path(sys.executable).parent)
