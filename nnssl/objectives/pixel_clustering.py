"""Clustering of voxels: the whole U-Net predicts a map of global clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from nnssl.common.checks import Count
from nnssl.losses.clustering import cluster_shares, linear_cross_entropy
from nnssl.modules import cluster_metrics, metrics, unet
from nnssl.modules.grids import compose, invert, sample
from nnssl.modules.panels import Panel, Row
from nnssl.objectives.base import Batch, Context, DenseTargets, Objective
from nnssl.views import View


class PixelClusteringObjective(Objective):
    r"""Predict the cluster of every voxel: targets are k-means clusters of dense features.

    The clusters are found once for the whole data set (`nnssl_cluster`) and read as dense target
    t; the decoder's output goes through a 1x1 convolution to K logits l:

    .. math:: \mathcal{L} = \frac{1}{P} \sum_{(a, b)} \mathrm{CE}(t^{a \to b}, l^b)

    - `loss: cross_entropy`: a = b, every view against its own map.
    - `loss: swapped`: over the ordered pairs of views a, b; :math:`t^{a \to b}` is the map that
      view a sees, read at b's voxels through the views' matrices; only the overlap counts. The map
      is that of the volume, so in the overlap both losses have the same target; swapping costs the
      voxels outside of it, and half of the patches at an equal number of voxels.

    Voxels without cluster (-1: padding, air) do not count. `balanced` gives every cluster the same
    share of the loss. With fewer decoder levels the map is coarser than the image, and every cell
    is asked for the cluster of the voxel in its middle: a thin network is spared the K logits at
    full resolution.

    Reference: the thesis code radioSSL, task `cluster` (pixel level); targets by k-means as in
    Caron et al., *Deep clustering for unsupervised learning of visual features*, ECCV 2018,
    arXiv:1807.05520; the swap of Caron et al. (SwAV), NeurIPS 2020, arXiv:2006.09882.

    Differs from the paper: the thesis' code applies a sigmoid and then a softmax over an image
    axis, here the softmax is over K; it fits k-means anew on every batch, here once on all
    training cases of the fold; it swaps between crops whose features were computed apart; the
    planned U-Net keeps its skip connections unless `skips` is false (the thesis trains without);
    air is left out. By default the clusters are those of handcrafted features, in which position
    has the weight 2 (the thesis: DINO features of slices); views change in geometry and intensity
    (there crops only); AdamW instead of SGD.

    Shapes: views (B, C, *S) with dense target (B, *S); logits (B, K, *T), T cells per axis, with
    all decoder levels T = S.

    Args:
        maps: name of the cluster maps, as `nnssl_cluster` wrote them.
        clusters: number K of their clusters.
        loss: every view against its own map, or against that of another view where both overlap.
        balanced: every cluster has the same share of the loss, however few voxels it has.
        skips: whether the decoder sees skip connections.
        decoder_levels: levels from the bottleneck upwards whose last gives the map, and which are
            trained; null: all, up to full resolution; one less halves it and costs much less.
    """

    decodes = True
    shares = True
    validated = ("accuracy",)
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {"global": {"count": 1}}

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        maps: str = "clusters",
        clusters: Annotated[int, Ge(2)] = 50,
        loss: Literal["swapped", "cross_entropy"] = "cross_entropy",
        balanced: bool = False,
        skips: bool = True,
        decoder_levels: Count | None = None,
    ) -> None:
        super().__init__(network, context)
        self.dense_targets = (DenseTargets(maps, "clusters", clusters),)
        self.maps, self.count, self.loss, self.skips = maps, clusters, loss, skips
        self.cluster_count = clusters
        self.balanced = balanced
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(context.patch_size)]
        self.levels = decoder_levels
        level = unet.count_levels(network, decoder_levels)
        self.head = convolution(unet.output_channels(network)[-1 - level], clusters, 1)
        self.change = cluster_metrics.ChangeRate()

    @property
    def trained(self) -> unet.Trained:
        return unet.Trained(encoder_stages=None, decoder_levels=self.levels, skips=self.skips)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = list(batch["views"].values())
        maps = self.decode_views(batch, self.levels, use_skips=self.skips)
        parts = maps[-1].chunk(len(views))
        cells = parts[0].shape[2:]
        pairs = [
            (parts[b], cluster_metrics.resize_maps(self._target(views[a], views[b]), cells))
            for a, b in self._pairs(len(views))
        ]
        weight, bias = self.head.weight.flatten(1), self.head.bias
        assert bias is not None
        losses = [
            linear_cross_entropy(part, weight, bias, target, self.balanced)
            for part, target in pairs
        ]
        targets = torch.stack([target for _, target in pairs])
        predicted = [self._predict(metrics.take_every_second(part)) for part, _ in pairs]
        terms = self._metrics(torch.stack(predicted), targets)
        return {"loss": torch.stack(losses).mean(), **terms}

    def after_step(self, batch: Batch, progress: float) -> None:
        self.change.after_step(next(iter(batch["views"].values())).image, self.clusters)

    def clusters(self, image: Tensor) -> Tensor:
        """Most likely cluster of every voxel, (B, *S) int64."""
        with metrics.evaluating(self, self.network):
            stages = unet.encode(self.network, image)
            levels = unet.decode(self.network, stages, self.levels, use_skips=self.skips)
            return cluster_metrics.resize_maps(self._predict(levels[-1]), image.shape[2:])

    def illustrate(self, batch: Batch) -> dict[str, Panel]:
        """`clusters`: three rows per view, image, target and prediction in fixed colours."""
        rows, drawn = [], slice(cluster_metrics.PICTURES)
        for name, view in batch["views"].items():
            image, target = view.image[drawn], view.dense_targets[self.maps][drawn]
            rows += [
                Row(name, cluster_metrics.shade(image)),
                Row("target (black: none)", cluster_metrics.paint(target, self.count)),
                Row("predicted", cluster_metrics.paint(self.clusters(image), self.count)),
            ]
        return {"clusters": Panel(rows, batch["identifier"])}

    @torch.no_grad()
    def _predict(self, features: Tensor) -> Tensor:
        predicted: Tensor = self.head(features).argmax(1)
        return predicted

    def _pairs(self, views: int) -> list[tuple[int, int]]:
        if self.loss == "cross_entropy":
            return [(view, view) for view in range(views)]
        if views < 2:
            raise ValueError("views: found 1 view, loss swapped needs 2 or more; or cross_entropy")
        return list(permutations(range(views), 2))

    @torch.no_grad()
    def _target(self, a: View, b: View) -> Tensor:
        """What view a sees at the voxels of view b, (B, *S) int64; -1 outside of a."""
        target = a.dense_targets[self.maps]
        if a is b:
            return target
        b_to_a = compose(invert(a.matrix), b.matrix)
        shifted = (target + 1).unsqueeze(1).float()  # exact below 2**24 clusters
        return sample(shifted, b_to_a, b.image.shape[2:], "nearest").round().long()[:, 0] - 1

    @torch.no_grad()
    def _metrics(self, predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Of predictions at every second voxel per axis, and of all targets."""
        wanted, known_share = cluster_shares(targets, self.count), (targets >= 0).float().mean()
        targets = metrics.take_every_second(targets)
        known = targets >= 0
        shares = cluster_shares(torch.where(known, predicted, -1), self.count)
        collapse = cluster_metrics.entropy(wanted) * math.log(self.count)
        if self.balanced:
            collapse = (wanted > 0).sum().clamp_min(1).log()
        right = (predicted == targets).float().sum() / known.float().sum().clamp_min(1)
        return {
            "accuracy": right,
            **cluster_metrics.describe_use(shares),
            "target_entropy": cluster_metrics.entropy(wanted),
            "known_share": known_share,
            "cluster_change": right.new_full((), self.change.value),
            "collapse_loss": collapse,  # of the best constant prediction
        }
