"""One process per cell; what dead processes leave behind is free."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

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
