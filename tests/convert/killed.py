"""Converts a folder in a child process that is killed at random moments until it gets through.

A program of its own: ``python killed.py SOURCE RAW SEED KILLS``.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from nnssl.convert.cine import check_cines, write_cines
from nnssl.convert.engine import ConversionTarget, convert
from nnssl.convert.planning import Conversion
from nnssl.convert.spec import find_specs, read_spec


def convert_all(source: Path, root: Path) -> None:
    spec = read_spec(find_specs()["ACDC"])
    target = ConversionTarget.of(root / "raw", root / "preprocessed", 27, "ACDC")
    convert(Conversion(spec, source), target)
    conversion = Conversion(spec, source)
    write_cines(conversion, target.raw, check_cines(conversion))


def attempt(source: Path, root: Path, seconds: float | None) -> bool:
    """Whether a child got through before it was killed."""
    child = os.fork()
    if child == 0:
        convert_all(source, root)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def main(source: Path, root: Path, seed: int, kills: int) -> None:
    """Prints how many kills struck, and how many of them in half-written folders."""
    begin = time.monotonic()
    assert attempt(source, root / "whole", None)
    whole = time.monotonic() - begin
    random.seed(seed)
    struck = halfway = 0
    for _ in range(kills):
        if attempt(source, root / "killed", random.uniform(0.2, 1.0) * whole):
            shutil.rmtree(root / "killed")  # it got through: once more from the start
            continue
        struck += 1
        halfway += any((root / "killed" / "raw").rglob("*.partial"))
    assert attempt(source, root / "killed", None)
    print(struck, halfway)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
