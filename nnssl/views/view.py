"""A view: one augmented version of each raw patch of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class View:
    """One augmented version of each raw patch, and where it lies in the raw patch.

    Attributes:
        image: (B, C, *S) float32.
        matrix: (B, d, d+1) float32, maps normalised coordinates of the view to those of the raw
            patch (`align_corners=False`, component order of `affine_grid`: last array axis first).
        dense_targets: integer maps (B, *S) int64 on the same grid, -1 where nothing is known.
    """

    image: Tensor
    matrix: Tensor
    dense_targets: dict[str, Tensor] = field(default_factory=dict)
