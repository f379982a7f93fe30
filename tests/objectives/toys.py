"""One tiny objective of each family that is still to come, to prove that the contract fits them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss, normalize

from nnssl.modules import unet
from nnssl.modules.grids import align, overlap
from nnssl.modules.heads import MLP
from nnssl.modules.memory_bank import MemoryBank
from nnssl.modules.momentum import MomentumCopy
from nnssl.objectives.base import Batch, Context, Objective


class Restoration(Objective):
    """Restore a corrupted view through the decoder, with or without skips."""

    decodes = True
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {"global": {"count": 1}}

    def __init__(self, network: nn.Module, context: Context, *, skips: bool = True) -> None:
        super().__init__(network, context)
        self.skips = skips

    @classmethod
    def output_channels(cls, input_channels: int) -> int:
        return input_channels

    @property
    def trained(self) -> unet.Trained:
        return unet.Trained(None, None, skips=self.skips, output=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        image = batch["views"]["global_0"].image
        corrupted = image.flip(-1) * 0.5
        features = unet.encode(self.network, corrupted)
        decoded = unet.decode(self.network, features, use_skips=self.skips)[-1]
        loss = mse_loss(unet.project_out(self.network, decoded).float(), image)
        return {"loss": loss, "identity": mse_loss(corrupted, image).detach()}


class MaskedConvolution(Objective):
    """Mask kept after every encoder stage, as SparK needs it."""

    decodes = True
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {"global": {"count": 1}}

    @classmethod
    def output_channels(cls, input_channels: int) -> int:
        return input_channels

    @property
    def trained(self) -> unet.Trained:
        return unet.Trained(None, None, output=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        image = batch["views"]["global_0"].image
        cells = [
            s // t for s, t in zip(image.shape[2:], unet.total_stride(self.network), strict=True)
        ]
        index = torch.arange(cells[0] * cells[-1], device=image.device)
        visible = (index % 2).reshape(1, 1, cells[0], *[1] * (len(cells) - 2), cells[-1]).float()
        visible = visible.expand(len(image), 1, *cells)

        def keep(stage: int, features: Tensor) -> Tensor:
            return features * interpolate(visible, features.shape[2:])

        mask = interpolate(visible, image.shape[2:])
        features = unet.encode(self.network, image * mask, after_stage=keep)
        restored = unet.project_out(self.network, unet.decode(self.network, features)[-1])
        return {"loss": ((restored.float() - image).square() * (1 - mask)).mean()}


class DenseClustering(Objective):
    """Features of overlapping views agree, and predict a companion map where both see it."""

    companions = ("clusters",)
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {"global": {"count": 2}}

    def __init__(self, network: nn.Module, context: Context, *, clusters: int = 3) -> None:
        super().__init__(network, context)
        convolution = nn.Conv2d if len(context.crop) == 2 else nn.Conv3d
        self.head = convolution(unet.output_channels(network)[1], clusters, 1)

    @property
    def trained(self) -> unet.Trained:
        return unet.Trained(encoder_stages=2, decoder_levels=0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        a, b = batch["views"]["global_0"], batch["views"]["global_1"]
        map_a, map_b = (self.head(unet.encode(self.network, v.image)[1]).float() for v in (a, b))
        seen = overlap(a.matrix, b.matrix, map_b.shape[2:])[:, None].float()
        agreement = ((align(map_a, a.matrix, b.matrix) - map_b).square() * seen).mean()
        target = b.companions["clusters"][:, None].float()
        target = interpolate(target, map_b.shape[2:]).long()[:, 0]
        return {"loss": agreement + cross_entropy(map_b, target, ignore_index=-1)}


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
    "restoration": Restoration,
    "masked_convolution": MaskedConvolution,
    "dense_clustering": DenseClustering,
    "puzzle": Puzzle,
    "momentum_target": MomentumTarget,
}
