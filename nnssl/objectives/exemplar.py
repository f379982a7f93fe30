"""Exemplar: a strongly changed image is nearer to its original than to other images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnssl.common import distributed
from nnssl.common.checks import Count, Positive, Whole
from nnssl.losses.contrastive import NoSignalError
from nnssl.losses.triplet import Mining, squared_distances, triplet_loss
from nnssl.modules import metrics, unet
from nnssl.modules.heads import MLP, Normalisation, Pooling, SpatialPooling
from nnssl.modules.memory import MemoryBank
from nnssl.objectives.base import Batch, Context, Objective


class ExemplarObjective(Objective):
    r"""Triplets of a changed image (anchor), its original (positive) and others (negatives).

    .. math:: \mathcal{L} = \frac{1}{|T|} \sum_{(a, p, n) \in T}
        \max(0, |z_a - z_p|^2 - |z_a - z_n|^2 + m)

    z are embeddings of length 1. The first view of a raw patch is the positive of its other views,
    and a negative of the views of all other raw patches of the step, over all ranks. At collapse
    the loss is the margin m.

    Reference: Taleb et al., *3D self-supervised methods for medical imaging*, NeurIPS 2020,
    arXiv:2006.03829; Dosovitskiy et al., *Discriminative unsupervised feature learning with
    exemplar convolutional neural networks*, IEEE TPAMI 2016, arXiv:1406.6909.

    Differs from the paper's code: anchor, positive and negative share one head (there each has its
    own, so that distances between them mean little); distances of directions instead of means over
    sigmoids, whose margin of 1 can never be met; every other image of the step is a negative, not
    one drawn at random; rotation, zoom and flip are one interpolation; noise, blur, resolution and
    gamma change too; AdamW instead of Adam.

    Shapes: views (B, C, *S) each, V of them; embeddings (V * B, D).

    Args:
        margin: by how much other images shall be farther (squared distance, 0 to 4).
        mining: which negatives count: all of them, or per anchor the nearest that is farther than
            the positive.
        memory_bank: embeddings of earlier steps that are negatives too; 0: none.
        pooling: from the feature map to a vector: mean, mean and deviation, means over a grid of
            cells, or maximum.
        grid: cells per axis of the pooling `grid`.
        hidden_features: width of the projector's hidden layers.
        embedding_features: D, the length of an embedding.
        projector_layers: linear layers of the projector; 1 is a single linear map.
        normalisation: what follows the projector's hidden layers.
    """

    least_samples = 12
    shares = True
    validated = ("accuracy",)
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "nearer to its original than to every other image": ("accuracy", "chance"),
        "squared distance": ("positive_distance", "negative_distance"),
    }
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "global": {
            "count": 2,
            "original_first": True,
            "rotation": 180.0,
            "stretch": 1.2,
            "brightness": (0.5, -0.5, 0.5),
            "contrast": (0.5, 0.5, 1.5),
        }
    }

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        margin: Positive = 1.0,
        mining: Mining = "all",
        memory_bank: Whole = 0,
        pooling: Pooling = "grid",
        grid: Count = 3,
        hidden_features: Count = 1024,
        embedding_features: Count = 128,
        projector_layers: Count = 2,
        normalisation: Normalisation = "batch",
    ) -> None:
        super().__init__(network, context)
        self.margin, self.mining = margin, mining
        width = unet.output_channels(network)[-1]
        self.pool = SpatialPooling(width, pooling, dimension=len(context.patch_size), grid=grid)
        self.projector = MLP(
            self.pool.out_features,
            hidden_features,
            embedding_features,
            layers=projector_layers,
            normalisation=normalisation,
        )
        self.bank = MemoryBank(memory_bank, embedding_features) if memory_bank else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        embedding = self.projector(self.pool(self.encode_views(batch)[-1])).float()  # (V*B, D)
        samples, device = len(batch["key"]), embedding.device
        anchors = embedding[samples:]  # (A, D), A = (V - 1) * B
        originals = distributed.all_gather(embedding[:samples])
        if len(originals) == 1 or not len(anchors):
            raise NoSignalError(
                f"exemplar: found {len(originals)} images and {len(anchors)} changed ones, allowed "
                "are two or more of each. Raise the batch size or views.global.count."
            )
        own = distributed.rank() * samples + torch.arange(samples, device=device)
        own = own.repeat(len(anchors) // samples)  # (A,)
        negative = own[:, None] != torch.arange(len(originals), device=device)
        if self.bank is not None:
            self._newest = embedding[:samples].detach()
            kept = self.bank.is_filled().expand(len(anchors), -1)
            originals = torch.cat([originals, self.bank.values.clone()])
            negative = torch.cat([negative, kept], 1)
        distances = squared_distances(anchors, originals)
        loss = triplet_loss(distances, own, negative, self.margin, self.mining)
        return {"loss": loss, **self._metrics(embedding, distances.detach(), own, negative)}

    def after_step(self, batch: Batch, progress: float) -> None:
        if self.bank is not None:
            self.bank.enqueue(self._newest)

    @torch.no_grad()
    def _metrics(
        self, embedding: Tensor, distances: Tensor, own: Tensor, negative: Tensor
    ) -> dict[str, Tensor]:
        nearest = distances.masked_fill(~negative, torch.inf).amin(1)
        positive = distances.gather(1, own[:, None])[:, 0]
        return {
            "accuracy": (positive < nearest).float().mean(),
            "chance": (1 / (1 + negative.sum(1))).mean(),
            "positive_distance": positive.mean(),
            "negative_distance": (distances * negative).sum() / negative.sum(),
            "embedding_std": metrics.embedding_std(embedding),
            "effective_rank": metrics.effective_rank(embedding),
            "collapse_loss": distances.new_full((), self.margin),
        }
