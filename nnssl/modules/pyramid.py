"""Heads on one level of a decoder: embedding, prediction and a coarse restoration."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from nnssl.modules.heads import MLP
from nnssl.modules.pooling import Kind, SpatialPooling


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

    def __init__(self, features: int, channels: int, dimension: int, pooling: Kind) -> None:
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

    def restore(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """A coarse image at full size, (B, C, *size) float32."""
        coarse: Tensor = self.restorer(x).float()
        mode = "bilinear" if coarse.ndim == 4 else "trilinear"
        return functional.interpolate(coarse, tuple(size), mode=mode, align_corners=False)
