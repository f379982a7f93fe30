"""One process per cell; what dead processes leave behind is free."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import time

import pytest

from nnssl.common import locks

HOLD = """
import subprocess, sys, time
from pathlib import Path
from nnssl.common.locks import acquire
lock = acquire(Path(sys.argv[1]))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                         pass_fds=(lock.descriptor,), stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""


def hold(folder: Path) -> tuple[subprocess.Popen, int]:
    """A runner that holds the lock, and its training process."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return runner, int(runner.stdout.readline())


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def wait_until_free(folder: Path) -> locks.Lock | None:
    for _ in range(100):
        if (lock := locks.acquire(folder)) is not None:
            return lock
        subprocess.run(["sleep", "0.05"], check=True)
    return None


def test_held_until_released(tmp_path):
    lock = locks.acquire(tmp_path / "cell")
    assert locks.acquire(tmp_path / "cell") is None
    assert locks.find_holder(tmp_path / "cell") == {
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    lock.release()
    assert locks.find_holder(tmp_path / "cell") is None
    again = locks.acquire(tmp_path / "cell")
    assert again is not None
    again.release()


def test_another_process_holds_it_and_its_training_process_after_it(tmp_path):
    runner, training = hold(tmp_path)
    assert locks.acquire(tmp_path) is None
    assert locks.find_holder(tmp_path)["pid"] == runner.pid
    runner.kill()
    runner.wait()
    assert locks.acquire(tmp_path) is None, "the training process still writes there"
    kill(training)
    lock = wait_until_free(tmp_path)
    assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    lock.release()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    owner = {"host": socket.gethostname(), "pid": dead.pid}
    (tmp_path / locks.LOCK).write_text(json.dumps(owner))
    lock = locks.acquire(tmp_path)
    assert lock is not None
    lock.release()


def test_another_machine_holds_it_while_it_renews_it(tmp_path):
    file = tmp_path / locks.LOCK
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert locks.acquire(tmp_path) is None
    assert locks.find_holder(tmp_path)["host"] == "elsewhere"
    old = file.stat().st_mtime - locks.SECONDS_ALIVE - 1
    os.utime(file, (old, old))
    lock = locks.acquire(tmp_path)
    assert lock is not None
    os.utime(file, (old, old))
    lock.renew()
    assert file.stat().st_mtime > old
    lock.release()


def test_without_locks_of_the_kernel_the_process_in_the_file_decides(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert locks.acquire(tmp_path) is not None
    assert locks.acquire(tmp_path) is None
    owner = {"host": socket.gethostname(), "pid": 2**22 + 1}
    (tmp_path / locks.LOCK).write_text(json.dumps(owner))
    assert locks.acquire(tmp_path) is not None


FORKED = """
import os, sys, time
from pathlib import Path
from nnssl.common.locks import hold_with_process
lock = hold_with_process(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)  # it has come as far as to let go
time.sleep(60)
"""


def test_a_run_shares_its_lock_within_the_process_and_its_workers_do_not_keep_it(tmp_path):
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    worker = int(run.stdout.readline())
    with pytest.raises(locks.FolderInUseError, match=f"in use: process {run.pid} on"):
        locks.hold_with_process(tmp_path)
    kill(run.pid)
    run.wait()
    first = locks.hold_with_process(tmp_path)
    os.kill(worker, 0)  # it lives on, without the lock
    kill(worker)
    assert locks.hold_with_process(tmp_path) is first
    assert locks.acquire(tmp_path) is None
    del first
    gc.collect()
    assert locks.acquire(tmp_path) is not None


def test_a_holder_on_another_machine_is_watched_for_a_sign_of_life(tmp_path, monkeypatch):
    """Its kernel lock may not be seen here."""
    file, told = tmp_path / locks.LOCK, []
    monkeypatch.setattr(locks, "SECONDS_BETWEEN_LOOKS", 0.05)
    file.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    with monkeypatch.context() as lives:
        lives.setattr(locks, "sleep", lambda _: os.utime(file, (time() + 1, time() + 1)))
        with pytest.raises(locks.FolderInUseError, match="process 7 on elsewhere"):
            locks.hold_with_process(tmp_path, told.append)
    os.utime(file)
    monkeypatch.setattr(locks, "SECONDS_ALIVE", 0.3)
    lock = locks.hold_with_process(tmp_path, told.append)
    assert json.loads(file.read_text())["pid"] == os.getpid()
    assert len(told) == 2
    assert "sign of life" in told[0]
    del lock
