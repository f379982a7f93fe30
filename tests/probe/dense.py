"""Features of all encoder stages at every voxel, upsampled one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnssl.modules.metrics import evaluating
from nnssl.probe.features import Block, encode_blocks


def dense(block: Block) -> Tensor:
    """(F, *shape) of one part."""
    return torch.cat([block._upsampled(stage) for stage in block.stages])


def dense_features(network: nn.Module, image: Tensor, **limits: Any) -> Tensor:
    """(C, Z, Y, X) to (F, Z, Y, X)."""
    with evaluating(network):
        parts = [(block.where, dense(block)) for block in encode_blocks(network, image, **limits)]
    whole = parts[0][1].new_empty((len(parts[0][1]), *image.shape[1:]))
    for where, part in parts:
        whole[(slice(None), *where)] = part
    return whole
