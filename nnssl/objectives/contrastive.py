"""Global contrast of whole views, with positives and negatives from position in the body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn

from nnssl.common import distributed
from nnssl.common.checks import Count, Fraction, Positive, Whole
from nnssl.losses.contrastive import (
    NEAR,
    Near,
    Pairs,
    collapse_value,
    contrastive_loss,
    find_pairs,
)
from nnssl.modules import metrics, unet
from nnssl.modules.heads import MLP, Normalisation, Pooling, SpatialPooling
from nnssl.modules.memory import MemoryBank, MomentumCopy, rise_to_one
from nnssl.modules.positions import find_parts, find_positions
from nnssl.objectives.base import Batch, Context, Objective

PATCH = 4  # numbers that tell a raw patch: case, and first voxel


def describe_views(batch: Batch, context: Context, every_axis: bool = False) -> Tensor:
    """Instance, part, dataset, place and raw patch of every view, (V * B, M) float32."""
    views = list(batch["views"].values())
    device, samples = views[0].image.device, len(views[0].image)
    instance = torch.arange(samples, device=device) + distributed.rank() * samples
    patch = torch.cat([batch["case"].to(device)[:, None], batch["box"].to(device)[..., 0]], 1)
    members = []
    for view in views:
        place = batch, view.matrix, context.patch_size
        part = find_parts(*place, context.partitions)
        numbers = torch.stack([instance, part, batch["dataset"].to(device)], 1)
        members.append(torch.cat([numbers, find_positions(*place, every_axis), patch], 1))
    return torch.cat(members).float()


class ContrastiveObjective(Objective):
    r"""Contrast of views, G^R, G^D-, G^D and PCL, in one vectorised loss.

    .. math:: \ell(a, p) = -\log \frac{e^{s(a,p)}}{e^{s(a,p)} + \sum_{n \in N(a)} e^{s(a,n)}},
        \quad s(a, b) = \cos(z_a, z_b) / \tau

    averaged over all positive pairs (a, p). Which views are positive and which negative:

    - `instances` (G^R): positive are the views of one raw patch, negative those of all others.
    - `partitions` (G^D-): positive are the views of one raw patch, negative those of other parts.
    - `partitions_across` (G^D): positive are also views of the same part of other volumes.
    - `positions` (PCL): the same with places less than `near` apart instead of parts; every anchor
      counts equally.

    With a memory bank, embeddings of earlier steps are negatives too (never positives); with a
    target network, anchors are compared with its embeddings, and these are remembered (MoCo).

    Reference: Chaitanya et al., *Contrastive learning of global and local features for medical
    image segmentation with limited annotations*, NeurIPS 2020, arXiv:2006.10511; for `instances`
    Chen et al., *A simple framework for contrastive learning*, ICML 2020, arXiv:2002.05709; for
    `positions` Zeng et al., *Positional contrastive learning for volumetric medical image
    segmentation*, MICCAI 2021, arXiv:2106.09157; for bank and target network He et al., *Momentum
    contrast for unsupervised visual representation learning*, CVPR 2020, arXiv:1911.05722.

    Differs from the paper: every group of the batch is used, no image is zero, any number of
    partitions works, a part is a quantile of reachable positions, all pairs that qualify count; the
    projector normalises (InstanceNorm leaves next to nothing for plain pooling to tell). Views are
    rotated, zoomed, shifted and mirrored instead of cropped (in 3D along the position axis too: the
    part of a view is that of its centre), and besides brightness and contrast they change by noise,
    blur, resolution and gamma. G^D- has no unaugmented image beside the views, as the published
    code has, unless the views say `original_first`. AdamW instead of Adam. PCL's denominator also
    holds the anchor's other positives. MoCo's momentum is constant, here it rises to 1.

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
        near: distance below which two places are the same for `positions`, as share of the
            reachable ones (the paper's code: 0.1 for CT of 160 slices, 0.35 for ACDC).
        soft: for `positions`: weights of positives fall linearly to 0 at that distance.
        every_axis: for `positions`: places are compared on all three axes, not on the position axis
            only.
        memory_bank: embeddings of earlier steps that are negatives too; 0: none.
        momentum: of a target network, 1 at the end of the training; null: there is none.
    """

    sampling = "partitioned"
    least_samples = 12
    shares = True
    validated = ("accuracy",)
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "alignment and uniformity": ("alignment", "uniformity"),
        "pairs per anchor": ("positives", "negatives"),
        "different raw patches among them": ("distinct_positives", "distinct_negatives"),
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
        near: Annotated[float, Interval(gt=0, le=1)] = NEAR.distance,
        soft: bool = False,
        every_axis: bool = False,
        memory_bank: Whole = 0,
        momentum: Fraction | None = None,
    ) -> None:
        super().__init__(network, context)
        if stage is not None:
            unet.check_stage(network, stage)
        self.near, self.every_axis, self.momentum = Near(near, soft), every_axis, momentum
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
        self.target: Any = None
        if momentum is not None:
            self.target = nn.ModuleList(MomentumCopy(m) for m in (self.network, self.projector))
        member = 3 + (3 if every_axis else 1) + PATCH  # instance, part, dataset, place, patch
        self.bank = MemoryBank(memory_bank, embedding_features + member) if memory_bank else None

    @property
    def trained(self) -> unet.Trained:
        stages = None if self.stage is None else self.stage + 1
        return unet.Trained(encoder_stages=stages, decoder_levels=0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        embedding = self._embed(self.projector, self.encode_views(batch))  # (V*B, D)
        own = describe_views(batch, self.context, self.every_axis)  # (V*B, M)
        embeddings = distributed.all_gather(embedding)  # (N, D), of all ranks
        candidates, members = embeddings, distributed.all_gather_no_grad(own)
        key = embedding.detach()
        if self.target is not None:
            network, projector = (copy.module for copy in self.target)
            images = torch.cat([view.image for view in batch["views"].values()])  # (V*B, C, *S)
            with torch.no_grad():
                key = self._embed(projector, unet.encode(network, images))
            candidates = distributed.all_gather_no_grad(key)
        anchors = len(embeddings)
        if self.bank is not None:
            self._newest = torch.cat([key, own], 1)
            kept, kept_members = self.bank.values.clone().split([key.shape[1], own.shape[1]], 1)
            candidates, members = torch.cat([candidates, kept]), torch.cat([members, kept_members])
        positive, negative = self._find_pairs(members, anchors)
        if self.bank is not None:
            negative[:, anchors:] &= self.bank.is_filled()
        rows = distributed.local_rows(len(embedding))
        loss = contrastive_loss(embeddings, positive, negative, self.temperature, rows, candidates)
        patches = members[:anchors, -PATCH:]
        return {"loss": loss, **self._metrics(embeddings.detach(), positive, negative, patches)}

    def after_step(self, batch: Batch, progress: float) -> None:
        if self.momentum is not None:
            for copy in self.target:
                copy.update(rise_to_one(self.momentum, progress))
        if self.bank is not None:
            self.bank.enqueue(self._newest)

    def _embed(self, projector: nn.Module, stages: list[Tensor]) -> Tensor:
        representation = stages[-1 if self.stage is None else self.stage]
        embedding: Tensor = projector(self.pool(representation))
        return embedding.float()

    def _find_pairs(self, members: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
        """Positive weights and negatives of the anchors among all members, (N, M) each."""
        instance, part, dataset = members[:, :3].unbind(1)
        return find_pairs(
            self.pairs,
            instance,
            part,
            dataset,
            dataset_similar=self.dataset_similar,
            within_dataset=self.within_dataset,
            position=members[:, 3:-PATCH],
            near=self.near,
            anchors=anchors,
        )

    @torch.no_grad()
    def _metrics(
        self, z: Tensor, positive: Tensor, negative: Tensor, patches: Tensor
    ) -> dict[str, Tensor]:
        negatives, collapse = negative.sum(1).float(), collapse_value(positive, negative)
        positive, among = positive[:, : len(z)], negative[:, : len(z)]  # without the bank
        return {
            "accuracy": metrics.contrastive_accuracy(z, positive, among),
            "alignment": metrics.alignment(z, positive > 0),
            "uniformity": metrics.uniformity(z),
            "embedding_std": metrics.embedding_std(z),
            "effective_rank": metrics.effective_rank(z),
            "positives": positive.gt(0).sum(1).float().mean(),
            "negatives": negatives.mean(),
            "distinct_positives": metrics.count_distinct(positive > 0, patches).mean(),
            "distinct_negatives": metrics.count_distinct(among, patches).mean(),
            "collapse_loss": collapse,
        }
