"""Errors that end a command of nnU-Net: expected ones are told alone, tracebacks go to the log.

nnU-Net's commands are not ours to change, so what Python calls for an uncaught error is: only in a
process that asked for a trainer of ours, only for errors that come out of such a command, and only
where they speak to the user. Whoever calls the same code from Python gets exceptions as ever. With
several GPUs nnU-Net's first process, which runs no code of ours, prints what its children died of.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from nnssl.common.checks import suggest
from nnssl.common.errors import HINT, is_expected, wants_traceback
from nnssl.config import find_configs
from nnssl.nnunet.paths import plans_file


class Teller(NamedTuple):
    """Tells an uncaught error that speaks to the user; all others go to the former hook."""

    former: Any

    def tell(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """What Python calls as `sys.excepthook`."""
        told = None
        with suppress(Exception):  # the error counts, not what telling it meets
            told = _tell(error, trace)
        if told is None:
            self.former(kind, error, trace)
            return
        sys.stdout.flush()
        print(told, file=sys.stderr)


def tell_alone() -> None:
    """From now on; twice is as good as once."""
    if not isinstance(getattr(sys.excepthook, "__self__", None), Teller):
        sys.excepthook = Teller(sys.excepthook).tell


def _tell(error: BaseException, trace: TracebackType | None) -> str | None:
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    if wants_traceback() or not any(map(_is_command, frames)):
        return None
    text = str(error) if is_expected(error) else _explain(error, frames)
    return None if text is None else f"\nnnSSL: {text}\n({_keep(error, frames)})"


def _is_command(frame: FrameType) -> bool:
    """Whether it is the function of a command of nnU-Net (`run_training_entry`)."""
    of_nnunet = str(frame.f_globals.get("__package__")).split(".")[0] == "nnunetv2"
    return of_nnunet and "entry" in frame.f_code.co_name


def _explain(error: BaseException, frames: Sequence[FrameType]) -> str | None:
    """What stock's bare errors mean while it looks for the trainer and for the plans."""
    asked = [f.f_locals for f in frames if f.f_code.co_name == "get_trainer_from_args"]
    if not asked or not isinstance(error, RuntimeError | OSError):
        return None
    names = asked[0]
    if names.get("nnunet_trainer") is None:
        name = names["trainer_name"]
        hint, stock = suggest(name, find_configs()), f"\nnnU-Net: {error}"
        told = f"there is no trainer {name!r}{hint}; nnssl_trainers prints ours"
        return told + stock * ("ssl" not in name.casefold()) if hint else None
    try:
        plans_file(names["dataset_name_or_id"], names["plans_identifier"])
    except ValueError as found:
        return str(found)
    return None


def _keep(error: BaseException, frames: Sequence[FrameType]) -> str:
    """Writes the traceback into the log of the run that the error ended; says where it is."""
    for frame in reversed(frames):
        trainer: Any = frame.f_locals.get("self")
        if getattr(trainer, "log_file", None) and hasattr(trainer, "print_to_log_file"):
            text = "".join(traceback.format_exception(error))
            trainer.print_to_log_file(text, also_print_to_console=False)
            return f"traceback: {trainer.log_file}"
    return HINT
