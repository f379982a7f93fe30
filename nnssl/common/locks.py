"""One lock file per folder (a cell of a study, dense targets): one living process works in it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import sleep, time
from typing import Any

LOCK = "cell.lock"
SECONDS_ALIVE = 300.0  # a lock of another machine counts while it was renewed within this time
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass
class Lock:
    """A held lock; hand `descriptor` to the training process, which then holds it too.

    The file says who holds it (host and process). What counts is the kernel's lock on it, which
    ends with the last process that has it open: a runner that is killed leaves its training process
    alone with the lock, and the lock of dead processes is free without anybody's doing.
    """

    path: Path
    descriptor: int

    def renew(self) -> None:
        """Say that the holder is alive, for machines that do not see each other's kernel locks."""
        with suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        """Give it back; a process that was handed the descriptor still holds it."""
        with suppress(OSError):
            os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


def acquire(folder: Path) -> Lock | None:
    """Takes the lock of a folder, also from dead processes; None where a living one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if not _kernel_lock(descriptor, path, exclusive=True) or _held_elsewhere(path):
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    owner = {"host": socket.gethostname(), "pid": os.getpid()}
    os.write(descriptor, json.dumps(owner).encode())
    return Lock(path, descriptor)


@contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Waits for the lock of a folder, holds it while the context lasts, and renews it.

    Yields:
        Whether somebody else held it before.
    """
    waited = False
    while (lock := acquire(folder)) is None:
        waited = True
        sleep(SECONDS_BETWEEN_LOOKS)
    done = Event()

    def renew() -> None:
        while not done.wait(SECONDS_ALIVE / 10):
            lock.renew()

    renewing = Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield waited
    finally:
        done.set()
        renewing.join()
        lock.release()


def find_holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the lock of a folder: host and process, or None."""
    path = folder / LOCK
    if not path.is_file():
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        free = _kernel_lock(descriptor, path, exclusive=False) and not _held_elsewhere(path)
    finally:
        os.close(descriptor)
    return None if free else _owner(path) or {"host": "?", "pid": -1}


def _kernel_lock(descriptor: int, path: Path, exclusive: bool) -> bool:
    """Takes the kernel's lock; where there is none, the process named in the file decides."""
    try:
        import fcntl

        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        owner = _owner(path)
        return owner.get("host") != socket.gethostname() or not _alive(owner["pid"], path)
    return True


def _held_elsewhere(path: Path) -> bool:
    other = _owner(path).get("host", socket.gethostname()) != socket.gethostname()
    return other and time() - path.stat().st_mtime < SECONDS_ALIVE


def _owner(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _alive(process: int, path: Path) -> bool:
    if os.name == "nt":  # there `os.kill` ends the process
        return time() - path.stat().st_mtime < SECONDS_ALIVE
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
