"""The bare cost: forward and backward of the same network on the voxels of a trainer's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnssl.data.budget import Budget
from nnssl.modules.unet import decode, encode


def bare_step(trainer: Any, dtype: torch.dtype | None) -> Callable[[], None]:
    """What runs the trainer's own U-Net forward and backward, on noise, with no loss to speak of.

    A pre-trainer whose objective decodes some of the views or none is compared with the encoder on
    all and the decoder on as many; no augmentation, no head, no clipping, no optimiser.

    Args:
        trainer: an initialised trainer; its gradients are gone afterwards.
        dtype: of autocast; None: none.
    """
    objective = getattr(trainer, "objective", None)
    network = trainer.network if objective is None else objective.network
    image = torch.randn(find_input(trainer), device=trainer.device)
    decoded = len(image)
    if objective is not None:
        views = sum(view.count for view in trainer.views.values())
        decoded = len(image) * objective.count_decoded(views) // views
    kept = list(network.parameters())

    def run() -> None:
        with torch.autocast(trainer.device.type, dtype=dtype, enabled=dtype is not None):
            if decoded == len(image):
                found = network(image)
            else:
                found = encode(network, image)
                levels = None if decoded else 0
                found += decode(network, [stage[:decoded] for stage in found], levels)[-1:]
        maps = [found] if isinstance(found, Tensor) else list(found)
        sum(m.float().mean() for m in maps if m.requires_grad).backward()
        for parameter in kept:
            parameter.grad = None

    return run


def find_input(trainer: Any) -> tuple[int, ...]:
    """Samples, channels and voxels that the network sees in a step."""
    budget = getattr(trainer, "budget", None)
    if isinstance(budget, Budget):
        views = round(budget.samples * budget.views)
        return views, trainer.num_input_channels, *budget.patch_size
    manager = trainer.configuration_manager
    return int(trainer.batch_size), trainer.num_input_channels, *manager.patch_size
