"""`nnssl_register`: tells nnU-Net of every nnSSL trainer, once per environment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nnssl.cli.command import command
from nnssl.nnunet import registration


@command("nnssl_register")
def main(arguments: Sequence[str] | None = None) -> int:
    """Registers (default), undoes it, or reports; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.path:
        print(registration.EXTERNAL_FOLDER)
        return 0
    if options.status:
        return _status()
    return _undo() if options.undo else _register()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_register",
        description="Lets nnUNetv2_train and nnUNetv2_predict find every nnSSL trainer. Writes one "
        "small module into nnU-Net's trainer folder; nothing of nnU-Net itself is changed.",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--undo", action="store_true", help="remove the module again")
    action.add_argument(
        "--path",
        action="store_true",
        help="print the folder for nnUNet_extTrainer (nnU-Net >= 2.8), for read-only installations",
    )
    action.add_argument(
        "--status", action="store_true", help="say whether it is there; exit code 1 if not"
    )
    return parser


def _register() -> int:
    module = registration.register(registration.trainer_folder())
    print(f"registered: {module}\nnnssl_trainers lists what -tr now accepts")
    return 0


def _undo() -> int:
    folder = registration.trainer_folder()
    removed = registration.undo(folder)
    print(f"removed from {folder}" if removed else f"nothing to remove in {folder}")
    return 0


def _status() -> int:
    folder = registration.trainer_folder()
    found = registration.find_state(folder)
    external = registration.is_registered_externally()
    print(f"{found}: {folder}")
    if external:
        print(f"registered: {registration.EXTERNAL_VARIABLE} names {registration.EXTERNAL_FOLDER}")
    elif found != "registered":
        print("run nnssl_register")
    return 0 if external or found == "registered" else 1


if __name__ == "__main__":
    sys.exit(main())
