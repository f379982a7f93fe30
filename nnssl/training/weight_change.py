"""Whether pre-training moves anything: change of the encoder's weights since initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnssl.modules import unet


class WeightChange:
    """Remembers the encoder's first weights and measures the relative change, stage by stage.

    .. math:: c_s = \\|w_s - w_s^0\\|_2 / \\|w_s^0\\|_2
    """

    def __init__(self, network: nn.Module) -> None:
        self._first = self._stages(network)

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """`weight_change_stage_<s>` -> c_s."""
        now = self._stages(network)
        return {
            f"weight_change_stage_{s}": float((new - old).norm() / old.norm().clamp_min(1e-12))
            for s, (new, old) in enumerate(zip(now, self._first, strict=True))
        }

    @staticmethod
    def _stages(network: nn.Module) -> list[Tensor]:
        return [
            torch.cat([p.detach().float().cpu().flatten() for p in stage])
            for stage in unet.encoder_stage_parameters(network)
        ]
