"""Heads: from feature maps to vectors, from vectors to embeddings, predictions and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnssl.common.distributed import world_size
from nnssl.modules.grids import resize

Normalisation = Literal["none", "batch", "layer"]
Pooling = Literal["average", "moments", "grid", "max"]

_POOL_CELLS = {2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}


class SpatialPooling(nn.Module):
    """Summarises a feature map over space: (B, F, *S) -> (B, out_features).

    After instance normalisation the plain average is nearly the same for every image; `moments`
    and `grid` keep more of what tells images apart.

    Args:
        features: F of the map.
        kind: `average` (F numbers), `max` (F), `moments` (mean and standard deviation, 2 F), or
            `grid` (averages over a grid of cells, F * grid ** dimension, feature by feature).
        dimension: number of image axes, 2 or 3.
        grid: cells per axis of `grid`.

    Attributes:
        out_features: numbers per image.

    Raises:
        ValueError: in `forward`: another shape.
    """

    def __init__(self, features: int, kind: Pooling, dimension: int, grid: int = 2) -> None:
        super().__init__()
        self.features, self.kind, self.dimension, self.grid = features, kind, dimension, grid
        per_feature = {"average": 1, "max": 1, "moments": 2, "grid": grid**dimension}
        self.out_features = features * per_feature[kind]

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, *S) -> (B, out_features), in x's type; sums are taken in float32."""
        if x.ndim != self.dimension + 2 or x.shape[1] != self.features:
            raise ValueError(
                f"feature map: found shape {tuple(x.shape)}, allowed: (B, {self.features}) and "
                f"{self.dimension} image axes"
            )
        with torch.autocast(x.device.type, enabled=False):
            return self._pool(x.float()).to(x.dtype)

    def _pool(self, x: Tensor) -> Tensor:
        if self.kind == "grid":
            return _POOL_CELLS[self.dimension](x, self.grid).flatten(1)
        flat = x.flatten(2)  # (B, F, voxels)
        if self.kind == "max":
            return flat.amax(2)
        if self.kind == "average":
            return flat.mean(2)
        # the small addend keeps the gradient of a flat map finite
        return torch.cat((flat.mean(2), (flat.var(2, correction=0) + 1e-8).sqrt()), dim=1)


class MLP(nn.Sequential):
    """Linear layers with ReLU between them: (B, in_features) -> (B, out_features).

    Under several processes `nn.SyncBatchNorm.convert_sync_batchnorm` reaches the batch
    normalisation.

    Args:
        in_features: F of the input.
        hidden: features of every layer but the last.
        out_features: D of the output.
        layers: number of linear layers; 1 is a single linear map.
        normalisation: what follows each linear layer but the last (and takes its bias' place).

    Raises:
        ValueError: in `forward`: a batch of one image for batch normalisation in training.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        layers: int = 2,
        normalisation: Normalisation = "batch",
    ) -> None:
        norm = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[normalisation]
        parts: list[nn.Module] = []
        for features in [in_features, *[hidden] * (layers - 1)][: layers - 1]:
            parts.append(nn.Linear(features, hidden, bias=norm is None))
            parts += [nn.ReLU(inplace=True)] if norm is None else [norm(hidden), nn.ReLU(True)]
        super().__init__(*parts, nn.Linear(hidden if parts else in_features, out_features))
        self.needs_several = normalisation == "batch" and layers > 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        if self.training and self.needs_several and len(x) * world_size() == 1:
            raise ValueError(
                "batch size: found 1 embedding for batch normalisation, allowed: 2 or more. "
                "Raise the batch size or the number of views, or set normalisation to layer."
            )
        output: Tensor = super().forward(x)
        return output


class Prototypes(nn.Module):
    """K learned directions; scores are cosines: (..., D) -> (..., K), float32, also under autocast.

    Args:
        features: D of an embedding.
        count: number K of prototypes.

    Reference:
        Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised learning of visual features
        by contrasting cluster assignments (SwAV). NeurIPS 2020, arXiv:2006.09882.
    """

    def __init__(self, features: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(functional.normalize(torch.randn(count, features), dim=1))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Cosine of every embedding with every prototype."""
        with torch.autocast(embeddings.device.type, enabled=False):
            directions = functional.normalize(embeddings.float(), dim=-1)
            return directions @ functional.normalize(self.weight.float(), dim=1).T


class LevelHead(nn.Module):
    """What PCRLv2 reads from a decoder level: (B, F, *S) -> embeddings, predictions, an image.

    The embedding is the pooled map, normalised over the batch; the prediction of another view's
    embedding is made from it by two linear layers with twice its width between them.

    Args:
        features: F of the level.
        channels: channels of the image.
        dimension: number of image axes, 2 or 3.
        pooling: how the map is pooled, see `SpatialPooling`.
    """

    def __init__(self, features: int, channels: int, dimension: int, pooling: Pooling) -> None:
        super().__init__()
        self.pool = SpatialPooling(features, pooling, dimension)
        width = self.pool.out_features
        self.normalise = nn.BatchNorm1d(width)
        self.predictor = MLP(width, 2 * width, width)
        self.restorer = (nn.Conv2d if dimension == 2 else nn.Conv3d)(features, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and predictions, (B, D) float32 each."""
        embedding = self.normalise(self.pool(x))
        return embedding.float(), self.predictor(embedding).float()

    def reconstruct(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """A coarse image at full size, (B, C, *size) float32."""
        return resize(self.restorer(x).float(), size)  # `restorer` stands in checkpoints
