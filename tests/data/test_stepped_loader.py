"""Same batches in the same order for any number of workers; errors arrive, nothing hangs."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nnssl.data import stepped_loader
from nnssl.data.stepped_loader import SteppedLoader


def numbered(step):
    time.sleep(0.002 * (step % 3))
    target = [torch.tensor(step)]
    return {"data": torch.full((2,), step), "target": target, "keys": [f"case_{step}"]}


def broken_at_five(step):
    if step == 5:
        raise OSError("disk trouble in case_007")
    return numbered(step)


def reported_at_five(step):
    if step == 5:
        return {"error": {"case": "case_007", "file": "case_007.b2nd", "cause": "checksum"}}
    return numbered(step)


def killed_at_five(step):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return numbered(step)


def threads(step):
    return {"threads": torch.get_num_threads()}


def own_process(step):
    return {"process": os.getpid()}


def take(count, make_batch=numbered, first_step=3, workers=0):
    loader = SteppedLoader(make_batch, first_step, workers, pin_memory=False)
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_steps_in_order_from_the_first_step(workers):
    batches = take(10, workers=workers)
    assert [int(b["data"][0]) for b in batches] == list(range(3, 13))
    assert [b["keys"] for b in batches] == [[f"case_{t}"] for t in range(3, 13)]
    assert [int(b["target"][0]) for b in batches] == list(range(3, 13))


@pytest.mark.parametrize("workers", [0, 2])
def test_exception_arrives_with_its_cause(workers):
    with pytest.raises(RuntimeError, match=r"step 5.*OSError: disk trouble in case_007"):
        take(5, broken_at_five, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_item_is_raised_with_case_and_file(workers):
    with pytest.raises(RuntimeError, match=r"case case_007, file case_007\.b2nd.*checksum"):
        take(5, reported_at_five, workers=workers)


def test_killed_worker_gives_an_error():
    with pytest.raises(RuntimeError, match=r"[Ww]orker"):
        take(8, killed_at_five, workers=2)


def without_open_files(step):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return numbered(step)


def test_a_worker_that_cannot_send_its_batch_gives_an_error_with_the_cause():
    with pytest.raises(RuntimeError, match=r"step 3.*\n.*could not send.*[\s\S]*ulimit -n"):
        take(1, without_open_files, workers=1)


def hangs_at_five(step):
    if step == 5:
        time.sleep(1000)
    return numbered(step)


def test_a_batch_that_does_not_come_ends_in_an_error_and_nothing_is_left(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(stepped_loader, "SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(stepped_loader, "MOST_SECONDS", 0.5)
    looks = []
    loader = SteppedLoader(hangs_at_five, 4, 1, False, while_waiting=looks.append)
    next(loader)
    with pytest.raises(RuntimeError, match=r"step 5.*TimeoutError: no worker process sent it"):
        next(loader)
    assert len(looks) > 2
    assert looks == sorted(looks)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("make_batch", [numbered, broken_at_five])
def test_workers_end_though_something_holds_their_iterator(make_batch):
    """As a traceback does."""
    loader = SteppedLoader(make_batch, 4, 2, pin_memory=False)
    assert iter(loader) is loader
    held = loader._batches
    next(loader)
    assert multiprocessing.active_children()
    if make_batch is broken_at_five:
        with pytest.raises(RuntimeError, match="disk trouble"):
            next(loader)
    else:
        loader.close()
    assert not multiprocessing.active_children()
    del held


def test_workers_end_with_a_killed_main_process():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import os\n"
        "from test_stepped_loader import own_process\n"
        "from nnssl.data.stepped_loader import SteppedLoader\n"
        "loader = SteppedLoader(own_process, 0, 3, False)\n"
        "print(*(next(loader)['process'] for _ in range(6)), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = {Path(f"/proc/{process}") for process in killed.stdout.split()}
    assert len(workers) == 3
    end = time.monotonic() + 2  # torch's own look at the parent comes every five seconds
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_workers_use_one_thread_and_other_processes():
    assert take(1, threads, workers=1)[0]["threads"] == 1
    assert take(1, own_process, workers=0)[0]["process"] == os.getpid()
    assert take(1, own_process, workers=1)[0]["process"] != os.getpid()


def test_workers_survive_the_signals_that_the_main_process_handles():
    loader = SteppedLoader(own_process, 0, 1, pin_memory=False)
    worker = next(loader)["process"]
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker, name)
    assert [next(loader)["process"] for _ in range(6)] == [worker] * 6
    loader.close()


def test_waiting_is_counted():
    loader = SteppedLoader(slow, 0, 0, pin_memory=False)
    next(loader)
    next(loader)
    assert 0.1 <= loader.seconds_waited < 0.5


def slow(step):
    time.sleep(0.05)
    return {"step": step}


def test_closed_loader_and_bad_number_of_workers():
    loader = SteppedLoader(numbered, 0, 1, pin_memory=False)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)
    with pytest.raises(ValueError, match="workers: found -1"):
        SteppedLoader(numbered, 0, -1, pin_memory=False)


def test_a_crash_of_the_main_process_ends_at_once():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_stepped_loader import numbered\n"
        "from nnssl.data.stepped_loader import SteppedLoader\n"
        "loader = SteppedLoader(numbered, 0, 2, False)\n"
        "next(loader)\n"
        "raise ValueError('crash')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "ValueError: crash" in ended.stderr
