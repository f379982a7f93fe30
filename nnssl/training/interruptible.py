"""What both trainers share: a configuration, saving now and then, and stopping when asked."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from time import time
from types import FrameType
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from nnssl.config import Config, Schema, bind, complete, read_config
from nnssl.data.stepped_loader import SteppedLoader
from nnssl.nnunet.checkpoint import save_atomically
from nnssl.nnunet.paths import LATEST
from nnssl.training.config_changes import compare_resume
from nnssl.training.settings import FinetuningSettings, PretrainingSettings

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


class Interruptible(nnUNetTrainer):
    """A configured trainer that saves every ten minutes, and after a stop signal saves and exits.

    A subclass gives `step` (steps taken so far) and `compose_checkpoint`, and calls
    `save_or_leave` after every step.

    Class attributes:
        config_name: stem of the YAML file.
        schema: sections of the configuration.
        given: parameters of the schema's targets that no YAML sets.
        may_change: knobs and whole sections that may differ on a resume.
    """

    config_name: str
    schema: ClassVar[Schema]
    given: ClassVar[Collection[str]] = ()
    may_change: ClassVar[Collection[str]]
    step: int

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        plans.setdefault("continue_training", False)  # for code that builds a trainer by hand
        super().__init__(plans, configuration, fold, dataset_json, device)
        plans.pop("continue_training", None)  # nnU-Net before 2.7.0 leaves it
        self.config: Config | None = None
        self.stop = StopRequest()
        self._last_save = time()
        self.begin_state()

    def begin_state(self) -> None:
        """Set what a fresh trainer remembers; nothing here depends on the configuration.

        nnU-Net records the constructor's arguments by its signature, so a subclass has none of
        its own.
        """

    def apply_schedule(self, settings: PretrainingSettings | FinetuningSettings) -> None:
        """Hand nnU-Net's loop the settings that it knows."""
        self.num_epochs, self.save_every = settings.num_epochs, settings.save_every
        self.num_iterations_per_epoch = settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = settings.num_val_iterations_per_epoch
        self.initial_lr, self.weight_decay = settings.initial_lr, settings.weight_decay

    def bind_config(self) -> Config:
        """Today's configuration: YAML file and overrides, checked."""
        return bind(read_config(self.config_name), self.schema, self.given)

    def read_stored(self, stored: Mapping[str, Any]) -> Config:
        """The configuration in a checkpoint, of this or of an older version."""
        return complete(Config.from_dict(stored), self.schema, self.given)

    def compare_with_today(self, stored: Mapping[str, Any]) -> Config:
        """Today's configuration, for a run that was begun with a stored one.

        Raises:
            ValueError: they differ in more than `may_change`.
        """
        before, today = self.read_stored(stored), self.bind_config()
        for line in compare_resume(before.sections, today.sections, self.may_change):
            self.print_to_log_file(f"Resume: {line}")
        return today

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
