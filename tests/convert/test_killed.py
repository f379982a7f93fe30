"""A conversion that is killed, with real signals, and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
SLEEPERS = """
import os, sys, time
from pathlib import Path
from nnssl.common.parallel import for_each

def work(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(1)

if __name__ == "__main__":
    for_each(work, [sys.argv[1]] * 99, 2, "sleep")
"""


def test_killed_at_random_moments_and_resumed(tree, miniature, tmp_path: Path):
    for home in miniature.root.glob("*/patient*"):
        values = np.random.default_rng(3).integers(0, 99, (13, 3, 6, 5)).astype(np.int16)
        image = sitk.GetImageFromArray(values, isVector=False)
        sitk.WriteImage(image, str(home / f"{home.name}_4d.nii.gz"))
    script = [sys.executable, str(HERE / "killed.py"), str(miniature.root), str(tmp_path)]
    run = subprocess.run(
        [*script, "0", "8"], env=ENVIRONMENT, check=True, capture_output=True, text=True
    )
    struck, halfway = map(int, run.stdout.split())
    assert struck >= 1
    assert halfway >= 1
    whole, killed = tree(tmp_path / "whole"), tree(tmp_path / "killed")
    assert len(whole) > 100
    assert killed == whole


def test_workers_end_with_a_killed_parent(tmp_path: Path):
    script, folder = tmp_path / "sleepers.py", tmp_path / "pids"
    script.write_text(SLEEPERS)
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script), str(folder)], env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: len(os.listdir(folder)) == 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    pids = [int(name) for name in os.listdir(folder)]
    wait_until(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    """Whether a process runs; on Linux one that has ended, but nobody has asked, does not."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat").read_text()
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
