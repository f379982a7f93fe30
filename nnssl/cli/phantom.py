"""``nnssl_phantom``: a synthetic cardiac dataset in ACDC's native layout."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from nnssl.cli.command import command
from nnssl.convert.phantom import SIZES, write_phantom


@command("nnssl_phantom")
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="nnssl_phantom", description=__doc__)
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--patients", type=int, default=30, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--size", choices=SIZES, default="small", help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    write_phantom(options.out, options.patients, options.seed, options.size, options.workers)
    print(f"{options.out}: {options.patients} SYNTHETIC patients; next:")
    print(f"nnssl_convert ACDC {options.out} -d 27")


if __name__ == "__main__":
    main()
