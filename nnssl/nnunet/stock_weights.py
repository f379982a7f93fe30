"""nnU-Net's option -pretrained_weights: nnU-Net unpickles its file, so it is looked at before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from nnssl.nnunet.checkpoint import read_checkpoint

OPTION = "-pretrained_weights"


def find_stock_weights(arguments: Sequence[str] | None = None) -> Path | None:
    """The file that `-pretrained_weights` names in the command line; None where it names none.

    Args:
        arguments: of the command; None: those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for argument, following in pairwise([*given, ""]):
        option, equals, value = argument.partition("=")
        if option == OPTION:  # argparse takes no beginning of it, because of -p
            return Path(value if equals else following)
    return None


def check_stock_weights() -> None:
    """Refuse a file that could run code, before nnU-Net unpickles it.

    nnU-Net initialises a trainer and then loads the file without any check.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or holds more than plain values.
    """
    file = find_stock_weights()
    if file is not None:
        read_checkpoint(file)


def refuse_stock_weights() -> None:
    """Refuse the option for a trainer whose network is no U-Net.

    Raises:
        ValueError: the option is given.
    """
    file = find_stock_weights()
    if file is not None:
        raise ValueError(
            f"{OPTION} cannot be used with a pre-training trainer. Start from these weights by the "
            f"setting training: {{initial_weights: {file}}}, or for one run by "
            f"nnssl_overrides='training.initial_weights={file}'."
        )
