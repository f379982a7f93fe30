"""What is logged per epoch: terms, and the change of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nnssl.modules import unet


class History:
    """One number per key and epoch; a key may begin late (missing epochs are None)."""

    def __init__(self, values: Mapping[str, list[float | None]] | None = None) -> None:
        self.values: dict[str, list[float | None]] = {k: list(v) for k, v in (values or {}).items()}

    def log(self, epoch: int, terms: Mapping[str, float | None]) -> None:
        """Set the numbers of one epoch; what stood there or later is dropped."""
        for key in set(self.values) | set(terms):
            column = self.values.setdefault(key, [])[:epoch]
            column += [None] * (epoch - len(column))
            value = terms.get(key)
            self.values[key] = [*column, None if value is None else float(value)]

    def add(self, epoch: int, terms: Mapping[str, float | None]) -> None:
        """Further numbers of an epoch that is logged already."""
        known = {key: column[epoch] for key, column in self.values.items() if len(column) > epoch}
        self.log(epoch, {**known, **terms})

    def last(self, key: str) -> float | None:
        column = self.values.get(key, [])
        return column[-1] if column else None


class WeightChange:
    """Remembers the encoder's first weights and measures the relative change, stage by stage.

    .. math:: c_s = \\|w_s - w_s^0\\|_2 / \\|w_s^0\\|_2
    """

    def __init__(self, network: nn.Module) -> None:
        self._first = self._read_stages(network)

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """`weight_change_stage_<s>` -> c_s."""
        now = self._read_stages(network)
        return {
            f"weight_change_stage_{s}": float((new - old).norm() / old.norm().clamp_min(1e-12))
            for s, (new, old) in enumerate(zip(now, self._first, strict=True))
        }

    @staticmethod
    def _read_stages(network: nn.Module) -> list[Tensor]:
        return [
            torch.cat([p.detach().float().cpu().flatten() for p in stage])
            for stage in unet.encoder_stage_parameters(network)
        ]
