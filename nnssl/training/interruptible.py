"""Saving now and then, and stopping when asked: shared by both trainers."""

from __future__ import annotations

import sys
from pathlib import Path
from time import time
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from nnssl.data.stepped_loader import SteppedLoader
from nnssl.nnunet.checkpoint import save_atomically
from nnssl.nnunet.paths import LATEST
from nnssl.training.signals import StopRequest

SECONDS_BETWEEN_SAVES = 600.0


class Interruptible(nnUNetTrainer):
    """A trainer that saves every ten minutes, and after a stop signal saves, says so and exits.

    A subclass gives `step` (steps taken so far) and `compose_checkpoint`, and calls
    `save_or_leave` after every step.
    """

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
        self.stop = StopRequest()
        self._last_save = time()
        self.begin_state()

    def begin_state(self) -> None:
        """Set what a fresh trainer remembers; nothing here depends on the configuration.

        nnU-Net records the constructor's arguments by its signature, so a subclass has none of
        its own.
        """

    def compose_checkpoint(self) -> dict[str, Any]:
        """Everything that a resume needs, as a stock checkpoint."""
        raise TypeError(f"{type(self).__name__} composes no checkpoint")

    @property
    def latest_checkpoint(self) -> str:
        return str(Path(self.output_folder) / LATEST)

    def save_or_leave(self) -> None:
        """After each step; all ranks agree on what is done."""
        due = time() - self._last_save > SECONDS_BETWEEN_SAVES
        stop, save = self._agree_on(self.stop.requested, due)
        if stop:
            self._leave()
        if save:
            self.save_checkpoint(self.latest_checkpoint)

    def _agree_on(self, *wishes: bool) -> list[bool]:
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
