"""One lock file per folder (a run, a cell of a study, dense targets): one process works in it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import sleep, time
from typing import Any
from weakref import WeakValueDictionary, finalize

LOCK = "cell.lock"
SECONDS_ALIVE = 300.0  # a lock of another machine counts while it was renewed within this time
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_RENEWALS = SECONDS_ALIVE / 10


class FolderInUseError(RuntimeError):
    """Another process works in the folder."""


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


_OWN: WeakValueDictionary[Path, Lock] = WeakValueDictionary()  # of this process, by their folders


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
    done = _keep_renewing(lock.path)
    try:
        yield waited
    finally:
        done.set()
        lock.release()


def hold_with_process(folder: Path, say: Callable[[str], object] = print) -> Lock:
    """The lock of a folder for as long as the caller keeps it; it ends with the process, however.

    All of a process share it, and its forked children do not hold it. Where the holder is of
    another machine, whose kernel locks may not be seen here, its next sign of life is awaited.

    Args:
        folder: is made where it is missing.
        say: takes a line when there is something to wait for.

    Raises:
        FolderInUseError: a living process holds it.
    """
    key = folder.resolve()
    if (held := _OWN.get(key)) is not None:
        return held
    lock = _acquire_from_dead(key, say)
    finalize(lock, _end, os.getpid(), _keep_renewing(lock.path), lock.descriptor)
    _OWN[key] = lock
    return lock


def _acquire_from_dead(folder: Path, say: Callable[[str], object]) -> Lock:
    first: float | None = None
    while (lock := acquire(folder)) is None:
        if (holder := find_holder(folder)) is None:
            continue
        sign = (folder / LOCK).stat().st_mtime
        if holder["host"] == socket.gethostname() or sign != (first or sign):
            raise FolderInUseError(
                f"{folder} is in use: process {holder['pid']} on {holder['host']} trains or "
                "validates in it. Nothing is written. Wait for it, end it, or set another "
                "nnUNet_results."
            )
        if first is None:
            first = sign
            say(f"{folder}: waiting for a sign of life of {holder}, {SECONDS_ALIVE:.0f} s at most")
        sleep(SECONDS_BETWEEN_LOOKS)
    return lock


def _keep_renewing(path: Path) -> Event:
    """Renews a lock until the event that is returned is set."""
    done = Event()

    def renew() -> None:
        while not done.wait(SECONDS_BETWEEN_RENEWALS):
            with suppress(OSError):
                os.utime(path)

    Thread(target=renew, daemon=True).start()
    return done


def _end(process: int, done: Event, descriptor: int) -> None:
    if os.getpid() == process:
        done.set()
        Lock(Path(), descriptor).release()


def _let_go_in_child() -> None:
    """A worker that outlives its parent holds nothing."""
    for lock in list(_OWN.values()):
        os.close(lock.descriptor)
    _OWN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


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
