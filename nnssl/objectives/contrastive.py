"""Global contrast of whole views, with positives and negatives from position in the body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnssl.common import distributed
from nnssl.common.checks import Count, Positive, Whole
from nnssl.losses.contrastive import Pairs, contrastive_loss, find_pairs
from nnssl.modules import metrics, unet
from nnssl.modules.heads import MLP, Normalisation, Pooling, SpatialPooling
from nnssl.modules.positions import find_parts
from nnssl.objectives.base import Batch, Context, Objective


class ContrastiveObjective(Objective):
    r"""Contrast of views, G^R, G^D- and G^D, in one vectorised loss.

    .. math:: \ell(a, p) = -\log \frac{e^{s(a,p)}}{e^{s(a,p)} + \sum_{n \in N(a)} e^{s(a,n)}},
        \quad s(a, b) = \cos(z_a, z_b) / \tau

    averaged over all positive pairs (a, p). Which views are positive and which negative:

    - `instances` (G^R): positive are the views of one raw patch, negative those of all others.
    - `partitions` (G^D-): positive are the views of one raw patch, negative those of other parts.
    - `partitions_across` (G^D): positive are also views of the same part of other volumes.

    Reference: Chaitanya et al., *Contrastive learning of global and local features for medical
    image segmentation with limited annotations*, NeurIPS 2020, arXiv:2006.10511; for `instances`
    Chen et al., *A simple framework for contrastive learning*, ICML 2020, arXiv:2002.05709.

    Differs from the paper: every group of the batch is used, no image is zero, any number of
    partitions works, a part is a quantile of reachable positions, all pairs that qualify count; the
    projector normalises (InstanceNorm leaves next to nothing for plain pooling to tell). Views are
    rotated, zoomed, shifted and mirrored instead of cropped (in 3D along the position axis too: the
    part of a view is that of its centre), and besides brightness and contrast they change by noise,
    blur, resolution and gamma. G^D- has no unaugmented image beside the views, as the published
    code has, unless the views say `original_first`. AdamW instead of Adam.

    Shapes: views (B, C, *S) each, V of them; embeddings (V * B, D).

    Args:
        pairs: which pairs are positive and which negative, see above.
        temperature: divisor of the cosine similarity; a larger one looks less at the hardest pairs.
        pooling: from the feature map to a vector: mean, mean and deviation, means over a grid of
            cells, or maximum.
        grid: cells per axis of the pooling `grid`; more keep more of where things lie.
        hidden_features: width of the projector's hidden layers.
        embedding_features: D, the length of an embedding.
        projector_layers: linear layers of the projector; 1 is a single linear map.
        normalisation: what follows the projector's hidden layers.
        stage: encoder stage that is contrasted, 0 the finest, and the last that is trained; null:
            the bottleneck.
        dataset_similar: the datasets show the same anatomy, so that the same part of another one is
            no negative.
        within_dataset: negatives come from the anchor's own dataset only.
    """

    sampling = "partitioned"
    least_samples = 12
    shares = True
    validated = ("accuracy",)
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "alignment and uniformity": ("alignment", "uniformity"),
        "pairs per anchor": ("positives", "negatives"),
    }
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {"global": {"count": 2}}

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        pairs: Pairs = "partitions_across",
        temperature: Positive = 0.1,
        pooling: Pooling = "grid",
        grid: Count = 3,
        hidden_features: Count = 1024,
        embedding_features: Count = 128,
        projector_layers: Count = 2,
        normalisation: Normalisation = "batch",
        stage: Whole | None = None,
        dataset_similar: bool = True,
        within_dataset: bool = False,
    ) -> None:
        super().__init__(network, context)
        if stage is not None:
            unet.check_stage(network, stage)
        self.pairs, self.temperature, self.stage = pairs, temperature, stage
        self.dataset_similar, self.within_dataset = dataset_similar, within_dataset
        width = unet.output_channels(network)[-1 if stage is None else stage]
        self.pool = SpatialPooling(width, pooling, dimension=len(context.patch_size), grid=grid)
        self.projector = MLP(
            self.pool.out_features,
            hidden_features,
            embedding_features,
            layers=projector_layers,
            normalisation=normalisation,
        )

    @property
    def trained(self) -> unet.Trained:
        stages = None if self.stage is None else self.stage + 1
        return unet.Trained(encoder_stages=stages, decoder_levels=0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        stages = self.encode_views(batch)  # (V*B, F, *S) each
        representation = stages[-1 if self.stage is None else self.stage]
        embedding = self.projector(self.pool(representation))  # (V*B, D)
        positive, negative = self._masks(batch)
        embeddings = distributed.all_gather(embedding.float())
        rows = distributed.local_rows(len(embedding))
        loss = contrastive_loss(embeddings, positive, negative, self.temperature, rows)
        return {"loss": loss, **self._metrics(embeddings.detach(), positive, negative)}

    def _masks(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Positive weights and negatives (N, N) over the views of all ranks."""
        views = list(batch["views"].values())
        device, samples = views[0].image.device, len(views[0].image)
        instance = torch.arange(samples, device=device) + distributed.rank() * samples
        context = self.context
        parts = [find_parts(batch, v.matrix, context.patch_size, context.partitions) for v in views]
        dataset = batch["dataset"].to(device)
        members = torch.stack(
            [instance.repeat(len(views)), torch.cat(parts), dataset.repeat(len(views))], 1
        )
        members = distributed.all_gather_no_grad(members)
        return find_pairs(
            self.pairs,
            *members.unbind(1),
            dataset_similar=self.dataset_similar,
            within_dataset=self.within_dataset,
        )

    @torch.no_grad()
    def _metrics(self, z: Tensor, positive: Tensor, negative: Tensor) -> dict[str, Tensor]:
        per_anchor = positive.gt(0).sum(1).float()
        negatives = negative.sum(1).float()
        collapse = (per_anchor * torch.log1p(negatives)).sum() / per_anchor.sum().clamp_min(1)
        return {
            "accuracy": metrics.contrastive_accuracy(z, positive, negative),
            "alignment": metrics.alignment(z, positive > 0),
            "uniformity": metrics.uniformity(z),
            "embedding_std": metrics.embedding_std(z),
            "effective_rank": metrics.effective_rank(z),
            "positives": per_anchor.mean(),
            "negatives": negatives.mean(),
            "collapse_loss": collapse,
        }
