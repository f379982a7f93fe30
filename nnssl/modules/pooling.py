"""From a feature map to one vector per image."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["average", "moments", "grid", "max"]

_CELLS = {2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}


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
        ValueError: an unknown kind, another dimension, no cell; in `forward`: another shape.
    """

    def __init__(self, features: int, kind: Kind, dimension: int, grid: int = 2) -> None:
        super().__init__()
        _check(kind, dimension, grid)
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
            return _CELLS[self.dimension](x, self.grid).flatten(1)
        flat = x.flatten(2)  # (B, F, voxels)
        if self.kind == "max":
            return flat.amax(2)
        if self.kind == "average":
            return flat.mean(2)
        return torch.cat((flat.mean(2), _standard_deviation(flat)), dim=1)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.features} -> {self.out_features}, kind={self.kind}"


def _standard_deviation(flat: Tensor) -> Tensor:
    """Of the population, (B, F); the small addend keeps the gradient of a flat map finite."""
    return (flat.var(2, correction=0) + 1e-8).sqrt()


def _check(kind: str, dimension: int, grid: int) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind: found {kind!r}, allowed: {', '.join(get_args(Kind))}")
    if dimension not in (2, 3):
        raise ValueError(f"dimension: found {dimension}, allowed: 2, 3")
    if grid < 1:
        raise ValueError(f"grid: found {grid}, allowed: 1 or more")
