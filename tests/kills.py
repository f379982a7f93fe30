"""Runs a command in child processes that are killed at random moments, until it gets through.

A program of its own: ``python kills.py ROAD ROOT SEED KILLS``. ``ROOT/begin`` holds what the road
starts from. Whenever it got through, what it made is compared with what an undisturbed run made,
bit by bit. Prints how many kills struck, how often the road got through, and for how many seconds
processes outlived a kill at most.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

SHORT = (
    "num_epochs=3 num_iterations_per_epoch=4 num_val_iterations_per_epoch=1 training.save_every=1"
)
PROBE = " probe.probe_patients=1 probe.probe_draws=1 probe.probe_volumes=1"
MEASURED = {
    *("images_per_second", "seconds_per_step", "seconds_waited", "epoch_seconds", "probe_seconds"),
    *("epoch_start_timestamps", "epoch_end_timestamps", "seconds"),
    "recalled",  # whether a run before the kill had probed the random encoder already
}
VOLATILE = (  # records.json holds the times of files that it makes quicker to read
    "training_log_",
    "progress.png",
    "report.html",  # says how long the run took
    "debug.json",
    "cell.lock",
    "output.txt",
    "records.json",
)
UNFINISHED = ".part_"  # a conversion leaves none
MOST_SECONDS_OUTLIVED = 30.0

Content = dict[str, Any]


# ------------------------------------------------------------------ the roads


def convert_all(source: Path, root: Path) -> None:
    """Convert a miniature of ACDC, with its cines."""
    from nnssl.convert.cine import check_cines, write_cines
    from nnssl.convert.engine import ConversionTarget, convert
    from nnssl.convert.planning import Conversion
    from nnssl.convert.spec import find_specs, read_spec

    conversion = Conversion(read_spec(find_specs()["ACDC"]), source)
    target = ConversionTarget.of(root / "raw", root / "preprocessed", 27, "ACDC")
    convert(conversion, target)
    write_cines(conversion, target.raw, check_cines(conversion))


def train(trainer: str, overrides: str = SHORT) -> Callable[[Path], None]:
    def walk(_: Path) -> None:
        from nnunetv2.run.run_training import run_training_entry

        os.environ["nnssl_overrides"] = overrides  # noqa: SIM112
        options = ["999", "2d", "0", "-tr", trainer, "-device", "cpu", "--c"]
        sys.argv = ["nnUNetv2_train", *options]
        run_training_entry()

    return walk


def preprocess_unlabelled(root: Path) -> None:
    from nnssl.cli.preprocess_unlabelled import main

    options = ["-i", str(root / "more"), "-np", "2", "--patient", r"(more\d)_"]
    assert main(["-d", "999", "-c", "2d", *options]) == 0


def cluster(_: Path) -> None:
    from nnssl.cli.cluster import main

    assert main(["-d", "999", "-c", "2d", "-f", "0", "-k", "4", "--workers", "2"]) == 0


def cluster_anew(root: Path) -> None:
    """Maps of another recipe take the place of those that are there, once they are whole."""
    from nnssl.cli.cluster import main

    recipe = ["-k", "3", "--overwrite"]
    assert main(["-d", "999", "-c", "2d", "-f", "0", *recipe, "--workers", "1"]) == 0


ROADS: dict[str, Callable[[Path], None]] = {
    "convert": lambda root: convert_all(root / "source", root),
    "pretrain": train("nnSSLContrastiveTrainer", SHORT + PROBE),
    "finetune": train("nnSSLScratchTrainer"),
    "preprocess_unlabelled": preprocess_unlabelled,
    "cluster": cluster,
    "cluster_anew": cluster_anew,
}


# ------------------------------------------------------------------ what they made


def read_content(folder: Path, road: str) -> Content:
    """All that must be equal below a folder: name -> hash, or what a checkpoint or JSON holds."""
    content: Content = {}
    for path in sorted(folder.rglob("*")):
        ignored = VOLATILE if road == "convert" else (*VOLATILE, UNFINISHED)
        if path.is_file() and not path.name.startswith(ignored):
            name = path.relative_to(folder).as_posix()
            content.update((f"{name}{key}", value) for key, value in _read(path))
    return content


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".pth":
        import torch

        yield from _flatten(torch.load(path, weights_only=True))
    elif path.name == "history.csv":
        with path.open(newline="") as file:
            yield from _flatten(list(csv.DictReader(file)))
    elif path.suffix == ".json":
        yield from _flatten(json.loads(path.read_text()))
    elif path.suffix == ".b2nd":  # several threads write the blocks of a chunk in any order
        import blosc2

        yield "", hashlib.sha256(blosc2.open(str(path), mode="r")[:].tobytes()).hexdigest()
    else:
        yield "", hashlib.sha256(path.read_bytes()).hexdigest()


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in value.keys() - MEASURED:
            yield from _flatten(value[key], f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _flatten(each, f"{name}/{number}")
    elif hasattr(value, "numpy"):
        yield name, hashlib.sha256(value.numpy().tobytes()).hexdigest()
    else:
        yield name, repr(value)


# ------------------------------------------------------------------ the kills


def attempt(walk: Callable[[Path], None], root: Path, seconds: float | None) -> float | None:
    """Lets a child do it; kills it after so many seconds.

    Returns:
        None where it got through; else for how many seconds processes that it had started lived on.
    """
    child = os.fork()
    if child == 0:
        _run(walk, root)
    if seconds is not None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and os.waitid(os.P_PID, child, _LOOK) is None:
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
    status, begin = os.waitpid(child, 0)[1], time.monotonic()
    seen = begin
    if status == 0:
        return None
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (root / "output.txt").read_text()
    while _find_session(child):
        seen = time.monotonic()
        assert seen - begin < MOST_SECONDS_OUTLIVED, _find_session(child)
        time.sleep(0.02)
    return seen - begin


_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


def _run(walk: Callable[[Path], None], root: Path) -> NoReturn:
    os.setsid()
    with (root / "output.txt").open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        walk(root)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _find_session(leader: int) -> list[int]:
    """Living processes of the session that a process has begun."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = file.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(file.parent.name))
    return found


def main(road: str, root: Path, seed: int, kills: int) -> None:
    walk, now = ROADS[road], root / "now"
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(now / name)
    preload()

    def reset() -> None:
        shutil.rmtree(now, ignore_errors=True)
        shutil.copytree(root / "begin", now)

    reset()
    begin = time.monotonic()
    assert attempt(walk, now, None) is None
    whole = time.monotonic() - begin
    expected = read_content(now, road)
    reset()
    moments = random.Random(seed)
    struck, through, longest = 0, 0, 0.0
    while True:
        seconds = moments.uniform(0, whole) if struck < kills else None
        outlived = attempt(walk, now, seconds)
        if outlived is not None:
            struck, longest = struck + 1, max(longest, outlived)
            continue
        found, through = read_content(now, road), through + 1
        differing = [k for k in {**expected, **found} if expected.get(k) != found.get(k)]
        assert not differing, (struck, differing)
        if seconds is None:
            break
        reset()
    print(json.dumps({"struck": struck, "through": through, "outlived": round(longest, 2)}))


def preload() -> None:
    """Children are forked: none of them imports for seconds."""
    import nnunetv2.run.run_training  # noqa: F401
    import torch

    import nnssl.cli.cluster
    import nnssl.cli.preprocess_unlabelled
    import nnssl.training.factory  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
