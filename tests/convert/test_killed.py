"""A conversion that is killed, with real signals, and resumed."""

from __future__ import annotations

import os
import shutil
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


KILLED_IN_JSON = """
import os, signal, sys
from pathlib import Path
from tests.kills import convert_all

left, replace = int(sys.argv[3]), os.replace

def strike(source, target):
    global left
    if str(target).endswith(".json"):
        left -= 1
        if left < 0:  # the file is written under its temporary name
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = strike
convert_all(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_while_each_json_file_is_written_nothing_is_left(tree, miniature, tmp_path: Path):
    for home in miniature.root.glob("*/patient*"):
        values = np.zeros((3, 3, 6, 5), np.int16)
        image = sitk.GetImageFromArray(values, isVector=False)
        sitk.WriteImage(image, str(home / f"{home.name}_4d.nii.gz"))
    script = [sys.executable, "-c", KILLED_IN_JSON, str(miniature.root)]

    def convert(root: Path, files: int) -> int:
        command = [*script, str(root), str(files)]
        return subprocess.run(command, env=ENVIRONMENT, capture_output=True).returncode

    assert convert(tmp_path / "whole", 1000) == 0
    whole = tree(tmp_path / "whole")
    strikes = 0
    while convert(tmp_path / "killed", strikes) == -signal.SIGKILL:
        assert any((tmp_path / "killed").rglob(".part_*"))
        assert convert(tmp_path / "killed", 1000) == 0
        assert tree(tmp_path / "killed") == whole
        shutil.rmtree(tmp_path / "killed")
        strikes += 1
    assert strikes >= 6


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
