"""`nnssl_register`: tells nnU-Net of every nnSSL trainer, once per environment."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnssl.cli.command import command
from nnssl.nnunet import registration


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_mutually_exclusive_group().add_argument
    add("--undo", action="store_true", help="remove the module again")
    text = "print the folder for nnUNet_extTrainer (nnU-Net >= 2.8), for read-only installations"
    add("--path", action="store_true", help=text)
    add("--status", action="store_true", help="say whether it is there; exit code 1 if not")


@command(
    "nnssl_register",
    "Lets nnUNetv2_train and nnUNetv2_predict find every nnSSL trainer. Writes one small module "
    "into nnU-Net's trainer folder; nothing of nnU-Net itself is changed.",
    _add_options,
    example="--status",
)
def main(options: Namespace) -> int:
    if options.path:
        print(registration.EXTERNAL_FOLDER)
        return 0
    folder = registration.trainer_folder()
    if options.status:
        return _print_status(folder)
    if options.undo:
        removed = registration.undo(folder)
        print(f"removed from {folder}" if removed else f"nothing to remove in {folder}")
    else:
        module = registration.register(folder)
        print(f"registered: {module}\nnnssl_trainers lists what -tr now accepts")
    return 0


def _print_status(folder: Path) -> int:
    found = registration.find_state(folder)
    external = registration.is_registered_externally()
    print(f"{found}: {folder}")
    if external:
        print(f"registered: {registration.EXTERNAL_VARIABLE} names {registration.EXTERNAL_FOLDER}")
    elif found != "registered":
        print("run nnssl_register")
    return 0 if external or found == "registered" else 1
