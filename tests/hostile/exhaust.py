"""Opens files in a process of little memory: `python exhaust.py MEGABYTES KIND=FILE ...`."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from time import process_time

from nnssl.common.files import read_json
from nnssl.config.files import read_yaml
from nnssl.finetuning.weights import Source, fit
from nnssl.nnunet.checkpoint import find_plans, read_checkpoint, speaking_of
from nnssl.nnunet.images import CaseError, read_properties
from nnssl.nnunet.planned_network import build_planned_network


def read_and_build(file: Path) -> None:
    """What a command does with a checkpoint: reads it, builds its network, takes its weights."""
    content = read_checkpoint(file)
    found = find_plans(content)
    assert found is not None
    with speaking_of(file):
        network = build_planned_network(*found, {"channel_names": {"0": "a"}, "labels": {"a": 0}})
    fit(Source(content["network_weights"]), network, [next(iter(network.state_dict()))])


DOORS = {"pth": read_and_build, "yaml": read_yaml, "pkl": read_properties, "json": read_json}


def use_memory() -> int:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main(megabytes: str, *files: str) -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + int(megabytes) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for file in map(Path, files):
        before, start = use_memory(), process_time()
        try:
            DOORS[file.suffix[1:]](file)
            found = "accepted"
        except (ValueError, CaseError) as error:
            found = f"refused: {error}"
        except Exception as error:  # MemoryError for one
            found = f"{type(error).__name__}: {error}"
        row = {"file": file.name, "found": found, "seconds": process_time() - start}
        print(json.dumps({**row, "megabytes": use_memory() - before}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
