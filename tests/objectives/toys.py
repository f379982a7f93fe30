"""One tiny objective of each family that is still to come, to prove that the contract fits them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from nnssl.modules import unet
from nnssl.modules.heads import MLP
from nnssl.modules.memory import MemoryBank, MomentumCopy
from nnssl.objectives.base import Batch, Context, Objective


class Puzzle(Objective):
    """Which of four small pieces is which: pieces are small views of the one patch."""

    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "piece": {"count": 4, "size_fraction": 0.5}
    }

    def __init__(self, network: nn.Module, context: Context) -> None:
        super().__init__(network, context)
        self.head = nn.Linear(2 * unet.output_channels(network)[-1], 4)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pieces = [view.image for view in batch["views"].values()]
        features = unet.encode(self.network, torch.cat(pieces))[-1].flatten(2)
        logits = self.head(torch.cat([features.mean(2), features.amax(2)], 1))
        number = torch.arange(4, device=logits.device).repeat_interleave(len(pieces[0]))
        return {"loss": cross_entropy(logits.float(), number)}


class MomentumTarget(Objective):
    """A momentum copy of the encoder and a memory bank, both moved in `after_step` only."""

    best = None
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {"global": {"count": 2}}

    def __init__(self, network: nn.Module, context: Context) -> None:
        super().__init__(network, context)
        width = unet.output_channels(network)[-1]
        self.predictor = MLP(2 * width, 16, 8, normalisation="layer")
        self.target = MomentumCopy(self.network)
        self.target_head = MomentumCopy(self.predictor)
        self.bank = MemoryBank(12, 8)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        a, b = (view.image for view in batch["views"].values())
        online = normalize(self.predictor(self._represent(self.network, a)).float(), dim=1)
        similarity = (online * self._target(b)).sum(1)
        negatives = torch.logsumexp(online @ self.bank.read().T, 1) if len(self.bank.read()) else 0
        return {"loss": (2 - 2 * similarity + 0.1 * negatives).mean()}

    def after_step(self, batch: Batch, progress: float) -> None:
        momentum = 0.9 + 0.1 * progress
        self.target.update(momentum)
        self.target_head.update(momentum)
        self.bank.enqueue(self._target(batch["views"]["global_1"].image))

    @torch.no_grad()
    def _target(self, image: Tensor) -> Tensor:
        features = self._represent(self.target.module, image)
        return normalize(self.target_head.module(features).float(), dim=1)

    @staticmethod
    def _represent(network: nn.Module, image: Tensor) -> Tensor:
        features = unet.encode(network, image)[-1].flatten(2)
        return torch.cat([features.mean(2), features.amax(2)], 1)


TOYS: dict[str, type[Objective]] = {
    "puzzle": Puzzle,
    "momentum_target": MomentumTarget,
}
