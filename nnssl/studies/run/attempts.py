"""One attempt at a cell: the process, its log, its record in `cell.json`."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic

from nnssl.common import locks
from nnssl.common.environment import child_environment
from nnssl.common.files import write_json
from nnssl.common.versions import versions
from nnssl.studies.run.devices import Slot
from nnssl.studies.run.folder import RECORD, StudyFolder
from nnssl.studies.run.grid import Cell

PACKAGES = ("nnunetv2", "torch", "numpy")
TRIES = 2  # of a cell, before it counts as failed
SECONDS_TO_SAVE = 180.0  # between a stop signal and the end by force
LAST_LINES = 5


class Attempt:
    """A running process of a cell; `finish` gives back the cell's lock that the caller took."""

    def __init__(self, folder: StudyFolder, cell: Cell, slot: Slot, lock: locks.Lock) -> None:
        self.folder, self.cell, self.slot, self.lock = folder, cell, slot, lock
        self.interrupted = False
        logs = folder.cell_folder(cell)
        self.log = logs / f"train_{len(list(logs.glob('train_*.log')))}.log"
        self.started, self._begin = datetime.now(timezone.utc), monotonic()
        self.command = next_command(folder, cell, slot)
        self.variables = next_variables(folder, cell, slot)
        environment = child_environment(self.variables)
        commands = str(Path(sys.executable).parent)  # whether or not they are on the path
        environment["PATH"] = os.pathsep.join(filter(None, [commands, environment.get("PATH")]))
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the runner, which asks them to end
                pass_fds=(lock.descriptor,) if os.name == "posix" else (),
            )

    def is_running(self) -> bool:
        """Not by `Popen.poll`: a signal handler that asks would wait for its lock forever."""
        self.lock.renew()
        if not hasattr(os, "waitid"):  # macOS before Python 3.13, Windows
            return self.process.poll() is None
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with suppress(ChildProcessError):  # `finish` has waited for it
            return os.waitid(os.P_PID, self.process.pid, flags) is None
        return False

    def stop(self) -> None:
        """Asks it to save and leave; nothing is lost."""
        self.interrupted = True
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Ends it and its workers by force."""
        if not hasattr(os, "killpg"):  # Windows
            return self.process.kill()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def finish(self) -> bool:
        """Writes the record and gives the lock back; says whether the cell is done now."""
        self.end()  # workers that have outlived it
        code = self.process.wait()
        done = self.folder.is_done(self.cell)
        attempt = {
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(monotonic() - self._begin, 1),
            "returncode": code,
            "done": done,
            "log": self.log.name,
            "interrupted": self.interrupted and not done,
            "command": self.command,
            "variables": self.variables,
        }
        record = {
            **self.cell.to_dict(),
            "steps": self.cell.steps,
            "attempts": [*self.folder.attempts(self.cell), attempt],
            "machine": {
                "host": platform.node(),
                "system": platform.platform(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
            },
            "versions": versions(*PACKAGES),
        }
        write_json(self.folder.cell_folder(self.cell) / RECORD, record)
        self.lock.release()
        return done


def next_command(folder: StudyFolder, cell: Cell, slot: Slot) -> list[str]:
    """The command of the next attempt; continues what a former one has left."""
    more = ["--c"] if folder.can_continue(cell) else []
    return [*slot.prefix, *folder.command(cell), *slot.arguments, *more]


def next_variables(folder: StudyFolder, cell: Cell, slot: Slot) -> dict[str, str]:
    """What the environment of the next attempt has beyond the runner's own."""
    return {**slot.variables, **folder.environment(cell)}


def read_log_end(folder: StudyFolder, cell: Cell) -> list[str]:
    """The last lines of the newest log of a cell."""
    past = folder.attempts(cell)
    file = folder.cell_folder(cell) / past[-1]["log"] if past else None
    if file is None or not file.is_file():
        return []
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 4096))
        text = stream.read().decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
