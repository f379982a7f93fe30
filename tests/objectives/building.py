"""Small objectives, made the same way in every test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nnssl.modules import unet
from nnssl.objectives import Context, Objective

PATCH_SIZES = {2: (16, 16), 3: (8, 16, 16)}


def make_objective(
    kind: type[Objective],
    make_unet: Callable[..., nn.Module],
    dimension: int = 2,
    channels: int = 1,
    patch_size: tuple[int, ...] | None = None,
    partitions: int = 2,
    datasets: int = 1,
    **knobs: Any,
) -> Any:
    """An objective on a small U-Net, with what it does not train frozen."""
    output = {"classes": kind.output_channels(channels)} if kind.output_channels(channels) else {}
    size = patch_size or PATCH_SIZES[dimension]
    context = Context(channels, size, (1.0,) * dimension, partitions, datasets)
    torch.manual_seed(0)
    made = kind(make_unet(dimension, channels=channels, **output), context, **knobs)
    unet.freeze_untrained(made.network, made.trained)
    return made
