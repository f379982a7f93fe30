"""The target network of momentum methods (BYOL, MoCo)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class MomentumCopy(nn.Module):
    """A copy whose parameters follow the online module: `t <- momentum * t + (1 - momentum) * o`.

    Buffers (running statistics) are taken over as they are. The copy never requires a gradient.
    The online module is remembered, not registered: state dict and parameters are the copy's own.

    Args:
        online: the module to follow.

    Attributes:
        module: the copy.

    Reference:
        He, Fan, Wu, Xie, Girshick: Momentum contrast for unsupervised visual representation
        learning. CVPR 2020, arXiv:1911.05722.
    """

    def __init__(self, online: nn.Module) -> None:
        super().__init__()
        self._online = (online,)  # in a tuple, so that it does not become a submodule
        self.module = copy.deepcopy(online).requires_grad_(False)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """One step towards the online module; 1 keeps the copy, 0 takes the online weights.

        Raises:
            ValueError: momentum outside 0 to 1.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: found {momentum}, allowed: 0 to 1")
        (online,) = self._online
        for target, source in zip(self.module.parameters(), online.parameters(), strict=True):
            target.lerp_(source, 1 - momentum)
        for kept, current in zip(self.module.buffers(), online.buffers(), strict=True):
            kept.copy_(current)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the copy computes, without gradient."""
        with torch.no_grad():
            return self.module(*arguments, **named)
