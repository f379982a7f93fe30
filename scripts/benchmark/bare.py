"""The bare cost: forward and backward of the same network on the voxels of a trainer's step."""

from __future__ import annotations

import math
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor

from nnssl.data.budget import Budget
from nnssl.estimate.steps import synchronise
from nnssl.modules.unet import decode, encode


class BareNetwork:
    """A trainer's own U-Net on noise, with no loss to speak of.

    A pre-trainer whose objective decodes some of the views or none is compared with the encoder on
    all and the decoder on as many; no augmentation, no head, no clipping, no optimiser. Gradients
    are gone afterwards.

    Args:
        trainer: an initialised trainer.
        dtype: of autocast; None: none.
    """

    def __init__(self, trainer: Any, dtype: torch.dtype | None) -> None:
        objective = getattr(trainer, "objective", None)
        self.network = trainer.network if objective is None else objective.network
        self.device, self.dtype = trainer.device, dtype
        self.clock = perf_counter if self.device.type == "cuda" else thread_time
        size = find_input(trainer)
        self.decoded = size[0]
        if objective is not None:
            views = sum(view.count for view in trainer.views.values())
            self.decoded = size[0] * objective.count_decoded(views) // views
        self.image = torch.randn(size, device=trainer.device)
        # views of a fraction of a patch are counted as such
        self.share = count_voxels(trainer) / (size[0] * math.prod(size[2:]))
        self.taken: list[float] = []

    @property
    def seconds(self) -> float:
        """Median of the timed runs, for the voxels of a step."""
        return self.share * median(self.taken)

    def run(self) -> None:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            if self.decoded == len(self.image):
                found = self.network(self.image)
            else:
                found = encode(self.network, self.image)
                seen = [stage[: self.decoded] for stage in found]
                found += decode(self.network, seen, None if self.decoded else 0)[-1:]
        maps = [found] if isinstance(found, Tensor) else list(found)
        sum(m.float().mean() for m in maps if m.requires_grad).backward()
        for parameter in self.network.parameters():
            parameter.grad = None

    def run_block(self, steps: int) -> None:
        """One run untimed, then `steps` timed ones; on the CPU in processor seconds."""
        self.run()
        synchronise(self.device)
        for _ in range(steps):
            begin = self.clock()
            self.run()
            synchronise(self.device)
            self.taken.append(self.clock() - begin)


def find_input(trainer: Any) -> tuple[int, ...]:
    """Samples, channels and voxels that the network sees in a step, in whole patches."""
    budget = getattr(trainer, "budget", None)
    if isinstance(budget, Budget):
        views = round(budget.samples * budget.views)
        return views, trainer.num_input_channels, *budget.patch_size
    manager = trainer.configuration_manager
    return int(trainer.batch_size), trainer.num_input_channels, *manager.patch_size


def count_voxels(trainer: Any) -> int:
    """Voxels that the network sees per step; in pre-training those of all views."""
    budget = getattr(trainer, "budget", None)
    if isinstance(budget, Budget):
        return budget.voxels
    return math.prod(trainer.configuration_manager.patch_size) * int(trainer.batch_size)
