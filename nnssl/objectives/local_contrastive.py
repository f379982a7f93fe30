"""Local contrast of regions in the decoder's maps, of one image or across volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nnssl.common import distributed
from nnssl.common.checks import Count, Positive
from nnssl.losses.contrastive import find_pairs
from nnssl.losses.local_contrastive import local_contrastive_loss
from nnssl.modules import metrics, unet
from nnssl.modules.grids import compose, invert, read, transform
from nnssl.modules.heads import MLP
from nnssl.modules.regions import (
    find_neighbours,
    find_spread_axes,
    place_anchors,
    place_regions,
)
from nnssl.objectives.base import Batch, Context, Objective
from nnssl.objectives.contrastive import describe_views

LEVELS = 3  # of the decoder, the paper's best


class LocalContrastiveObjective(Objective):
    r"""Contrast of regions on the map after L decoder levels, L^R and L^D.

    A region of one map agrees with the same region of another, and with none of the regions that
    lie around it in either map: `local_contrastive_loss` over pairs of maps. Which maps are pairs:

    - `instances` (L^R): the views of one raw patch.
    - `partitions_across` (L^D): also views of the same part of other volumes.

    Anchors lie on a grid, {0, 2, 4}^d and {1, 3}^d in quarters of the map: 13 in 2D, 35 in 3D. An
    axis that is too short for five different regions counts as one position, in the middle.
    Negatives are the nearest other regions; of equally near ones, those first in reading order.

    Views do not lie on each other: the regions are those of the first view of a raw patch, and
    every other map is read where they lie in it. A region that reaches out of a view does not
    count. Where views lie on each other, as in the paper, padding tells every region its place in
    the patch, and nothing else need be learned: on ACDC such a network was right in 99 % of all
    regions of independent noise. Mirrored and shifted views leave nothing to that. Across volumes
    the first view should be the unmoved patch (`original_first`).

    The encoder is frozen by `training.encoder_lr_scale: 0`, as in the paper.

    Reference: Chaitanya, Erdil, Karani, Konukoglu, *Contrastive learning of global and local
    features for medical image segmentation with limited annotations*, NeurIPS 2020,
    arXiv:2006.10511.

    Differs from the paper: the negatives of a region follow from the rule above. For 9 regions they
    are those of the published table; for 13 the table is made by hand: some of its entries are no
    regions, and of several equally near ones it takes now the one and now the other. Regions
    reach to the last cell (there, 3x3 windows end one cell before). Views move, see above, and
    change by noise, blur, resolution and gamma too. L^D takes all pairs in both directions. The
    encoder's normalisation keeps its statistics. Terms are averaged. AdamW instead of Adam.

    Shapes: views (B, C, *S) each, V of them; map (V * B, F, *T); embeddings (V * B, R, D).

    Args:
        pairs: which maps are pairs, see above.
        levels: decoder levels L from the bottleneck upwards, which are trained; null: 3, or all
            where the plan has fewer.
        interleaved: whether there are anchors between those of the grid {0, 2, 4}^d.
        window: cells of a region per axis, 1 or 3.
        negatives: neighbours of a region that are its negatives, in each of the two maps.
        temperature: divisor of the cosine similarity.
        embedding_features: D, the length of an embedding.
    """

    decodes = True
    shares = True
    validated = ("accuracy",)
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {"accuracy": ("accuracy", "chance")}
    audited = True
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "global": {"count": 2, "shift": 0.2, "flip": 0.5}
    }

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        pairs: Literal["instances", "partitions_across"] = "instances",
        levels: Count | None = None,
        interleaved: bool = True,
        window: Literal[1, 3] = 3,
        negatives: Count = 5,
        temperature: Positive = 0.1,
        embedding_features: Count = 128,
    ) -> None:
        super().__init__(network, context)
        features = unet.output_channels(network)[-2::-1]  # of the levels, from the bottleneck
        self.levels = min(LEVELS, len(features)) if levels is None else levels
        if self.levels > len(features):
            raise ValueError(
                f"levels: found {self.levels}, allowed: 1 to {len(features)} with these plans"
            )
        self.pairs, self.temperature, self.negatives = pairs, temperature, negatives
        self.size = unet.stage_sizes(network, context.patch_size)[-1 - self.levels]
        spread = find_spread_axes(self.size, window)
        if not spread:
            raise ValueError(
                f"levels: found {self.levels}, whose map of {self.size} cells has no room for "
                f"regions of {window}; allowed: more levels, a smaller window or a larger patch"
            )
        anchors = place_anchors(len(spread), interleaved)
        cells = place_regions(self.size, window, anchors)  # (R, K, d)
        self.regions, self.cells = cells.shape[:2]
        self.points: Tensor
        self.neighbours: Tensor
        self.register_buffer("points", cells.flatten(0, 1), persistent=False)
        table = torch.from_numpy(find_neighbours(anchors, negatives))
        self.register_buffer("neighbours", table, persistent=False)
        width = features[self.levels - 1]
        self.projector = MLP(width, width, width)
        self.embed = nn.Linear(self.cells * width, embedding_features, bias=False)

    @property
    def trained(self) -> unet.Trained:
        return unet.Trained(encoder_stages=None, decoder_levels=self.levels)

    def describe(self) -> str:
        size = "x".join(map(str, self.size))
        return (
            f"{self.regions} regions of {self.cells} cells on the map of {size} after "
            f"{self.levels} decoder levels; {2 * self.negatives} negatives each"
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        maps = self.decode_views(batch, self.levels)[-1]  # (V*B, F, *T)
        places = self._places(batch)  # (V*B, R*K, d)
        inside = (places.abs() <= 1).all(2).unflatten(1, (self.regions, -1)).all(2)  # (V*B, R)
        cells = read(maps, places).transpose(1, 2)  # (V*B, R*K, F)
        projected = self.projector(cells.flatten(0, 1)).reshape(len(maps), self.regions, -1)
        embedding = self.embed(projected).float()  # (V*B, R, D)
        z, valid = distributed.all_gather(embedding), distributed.all_gather_no_grad(inside)
        members = distributed.all_gather_no_grad(describe_views(batch, self.context))
        pairs, _ = find_pairs(self.pairs, *members[:, :3].unbind(1))
        rows = distributed.local_rows(len(embedding))
        options = (self.neighbours, self.temperature, valid, rows)
        loss, accuracy = local_contrastive_loss(z, pairs, *options)
        flat = embedding.detach().flatten(0, 1)
        return {
            "loss": loss,
            "accuracy": accuracy,
            "chance": loss.new_tensor(1 / (1 + 2 * self.negatives)),
            "embedding_std": metrics.embedding_std(flat),
            "effective_rank": metrics.effective_rank(flat),
            "collapse_loss": loss.new_tensor(math.log(1 + 2 * self.negatives)),
        }

    def _places(self, batch: Batch) -> Tensor:
        """Where the cells of the first view's regions lie in every view, (V * B, R * K, d)."""
        views = list(batch["views"].values())
        first = views[0].matrix
        found = [transform(compose(invert(v.matrix), first), self.points) for v in views[1:]]
        return torch.cat([self.points.to(first).expand(len(first), -1, -1), *found])
