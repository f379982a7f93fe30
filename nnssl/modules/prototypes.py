"""Prototypes: learned directions that embeddings are compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Prototypes(nn.Module):
    """K directions; scores are cosines: (..., D) -> (..., K), float32, also under autocast.

    Args:
        features: D of an embedding.
        count: number K of prototypes.

    Raises:
        ValueError: features or count out of range.

    Reference:
        Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised learning of visual features
        by contrasting cluster assignments (SwAV). NeurIPS 2020, arXiv:2006.09882.
    """

    def __init__(self, features: int, count: int) -> None:
        super().__init__()
        for name, value, least in (("features", features, 1), ("prototypes", count, 2)):
            if value < least:
                raise ValueError(f"{name}: found {value}, allowed: {least} or more")
        self.weight = nn.Parameter(functional.normalize(torch.randn(count, features), dim=1))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Cosine of every embedding with every prototype."""
        with torch.autocast(embeddings.device.type, enabled=False):
            directions = functional.normalize(embeddings.float(), dim=-1)
            return directions @ functional.normalize(self.weight.float(), dim=1).T

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.weight.shape[1]} features, {self.weight.shape[0]} prototypes"
