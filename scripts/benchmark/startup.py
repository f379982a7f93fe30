"""One start of a trainer: runs `nnUNetv2_train`, and tells when its first steps begin."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from cProfile import Profile
from pathlib import Path
from pstats import Stats
from time import monotonic
from typing import Any

from nnunetv2.run.run_training import run_training_entry

from nnssl.estimate.dry_run import find_trainer_class

MARK = "nnssl_startup_mark_"  # begins the names of files that are asked for, for a trace to show
SHOWN = 25  # functions of a profile


class Watch:
    """Tells, as a line of JSON, what was spent until the first step; then ends the second epoch.

    Args:
        steps: of an epoch.
        profile: running since the start; None: no profile.
    """

    def __init__(self, steps: int, profile: Profile | None) -> None:
        self.steps, self.profile, self.calls = steps, profile, 0
        self.told: dict[str, Any] = {}

    def before_step(self) -> None:
        number, self.calls = self.calls, self.calls + 1
        if number % self.steps:
            return
        mark(number // self.steps)
        if number == 0:
            if self.profile is not None:
                self.profile.disable()
                Stats(self.profile, stream=sys.stderr).sort_stats("cumtime").print_stats(SHOWN)
            times = os.times()
            self.told["first_s"] = monotonic() - find_begin()
            self.told["processor_s"] = sum(times[:4])  # of ended workers too
            self.told["main_bytes"] = read_memory(os.getpid())["Pss"]
        elif number == self.steps:
            children = [read_memory(c.pid) for c in multiprocessing.active_children() if c.pid]
            for kind in ("Pss", "Uss"):
                self.told[f"worker_{kind.lower()}"] = [each[kind] for each in children]
        else:
            print(json.dumps(self.told), flush=True)
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(0)


def mark(number: int) -> None:
    """A file that is not there is asked for."""
    try:
        Path(f"{MARK}{number}").open().close()
    except FileNotFoundError:
        return


def find_begin() -> float:
    """When this process began, on the clock of `monotonic` (Linux)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def read_memory(process: int) -> dict[str, int]:
    """Bytes of a process: its proportional share (`Pss`), and what it has alone (`Uss`)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {"Pss": found["Pss"], "Uss": found["Private_Clean"] + found["Private_Dirty"]}


def main() -> None:
    """Arguments: steps of an epoch, whether to profile (0 or 1), then those of nnUNetv2_train."""
    steps, profiled, *arguments = sys.argv[1:]
    profile = Profile() if int(profiled) else None
    watch = Watch(int(steps), profile)
    kind = find_trainer_class(arguments[arguments.index("-tr") + 1])
    step = kind.train_step

    def watched(trainer: Any, batch: Any) -> Any:
        watch.before_step()
        return step(trainer, batch)

    kind.train_step = watched
    sys.argv = ["nnUNetv2_train", *arguments]
    if profile is not None:
        profile.enable()
    run_training_entry()


if __name__ == "__main__":
    main()
