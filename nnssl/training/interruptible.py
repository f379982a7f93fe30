"""What both trainers share beside a configuration: saving now and then, stopping when asked."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import time
from types import FrameType
from typing import Any

import torch
from torch import distributed as dist

from nnssl.data.stepped_loader import SteppedLoader
from nnssl.nnunet.checkpoint import save_atomically
from nnssl.nnunet.paths import LATEST
from nnssl.training.configured import ConfiguredTrainer

SECONDS_BETWEEN_SAVES = 600.0
SECONDS_FOR_LAST_BATCH = (
    5.0  # after a stop signal; all ranks should take the step and leave together
)
HANDLED = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopRequest:
    """Remembers the first stop signal of the process that installed it.

    A second SIGINT takes the usual way (KeyboardInterrupt), for the impatient.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._process = -1
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Install the handlers; outside the main thread there is nothing to install."""
        self._process = os.getpid()
        for name in HANDLED:
            number = getattr(signal, name, None)
            if number is None:
                continue
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                return

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if os.getpid() != self._process:
            signal.signal(number, signal.SIG_DFL)
            if received is not signal.SIGINT:
                os.kill(os.getpid(), number)
            return
        if self.signal is signal.SIGINT and received is signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or received


class Interruptible(ConfiguredTrainer):
    """A configured trainer that saves every ten minutes, and after a stop signal saves and exits.

    A subclass gives `step` (steps taken so far) and `compose_checkpoint`, and calls
    `save_or_leave` after every step.
    """

    step: int

    def autocast(self) -> AbstractContextManager[Any]:
        """The type of `training.precision`, for what networks compute inside."""
        dtype = self.settings.autocast_dtype(self.device.type)
        if dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, dtype))

    def begin_state(self) -> None:
        super().begin_state()
        self.stop = StopRequest()
        self._last_save = time()

    def compose_checkpoint(self) -> dict[str, Any]:
        """Everything that a resume needs, as a stock checkpoint."""
        raise TypeError(f"{type(self).__name__} composes no checkpoint")

    @property
    def latest_checkpoint(self) -> str:
        return str(Path(self.output_folder) / LATEST)

    def save_or_leave(self) -> None:
        """After each step; all ranks agree on what is done."""
        due = time() - self._last_save > SECONDS_BETWEEN_SAVES
        stop, save = self.agree_on(self.stop.signal is not None, due)
        if stop:
            self._leave()
        if save:
            self.save_checkpoint(self.latest_checkpoint)

    def leave_while_waiting(self, seconds: float) -> None:
        """After a stop signal, leave where a batch has been awaited in vain for so many seconds."""
        if self.stop.signal is not None and seconds > SECONDS_FOR_LAST_BATCH:
            self._leave()

    def agree_on(self, *wishes: bool) -> list[bool]:
        """For each wish, whether any rank has it."""
        if not self.is_ddp:
            return list(wishes)
        flags = torch.tensor([float(wish) for wish in wishes], device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return [flag > 0 for flag in flags.tolist()]

    def _leave(self) -> None:
        self.save_checkpoint(self.latest_checkpoint)
        name = self.stop.signal.name if self.stop.signal else "a stop signal on another rank"
        self.print_to_log_file(
            f"Stopped by {name} after step {self.step} (epoch {self.current_epoch}). Continue with "
            "the same command and --c"
        )
        number = int(self.stop.signal) if self.stop.signal else 0
        self.close()
        sys.exit(128 + number)

    def close(self) -> None:
        """End the workers and give the signals back."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if isinstance(loader, SteppedLoader):
                loader.close()
        self.stop.restore()

    def save_checkpoint(self, filename: str) -> None:
        """Write the checkpoint as a whole or not at all (rank 0 only)."""
        self._last_save = time()
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        save_atomically(self.compose_checkpoint(), filename)


def limit_threads(device: torch.device) -> None:
    """Give a process on the CPU no more torch threads than cores that it may run on.

    nnU-Net starts one per core of the machine, also where the process is bound to fewer (`taskset`,
    a scheduler's share, a study's share); these then wait for each other.
    """
    if device.type == "cpu" and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))
