"""``nnssl_phantom``: a synthetic cardiac dataset in ACDC's native layout."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnssl.cli.command import WORKERS, command


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--patients", type=int, default=30, help="how many (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="another one draws others (%(default)s)"
    )
    text = "of a slice: about 128 or 256 pixels (%(default)s)"
    parser.add_argument("--size", choices=("small", "full"), default="small", help=text)
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes (%(default)s)")


@command("nnssl_phantom", __doc__, _add_options, example="/data/phantom --patients 10")
def main(options: Namespace) -> None:
    from nnssl.convert.phantom import write_phantom

    write_phantom(options.out, options.patients, options.seed, options.size, options.workers)
    print(f"{options.out}: {options.patients} SYNTHETIC patients; next:")
    print(f"nnssl_convert ACDC {shlex.quote(str(options.out))} -d 27")
