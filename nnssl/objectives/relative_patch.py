"""Relative patch location: tell on which side of the central piece another piece lies."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.common.checks import Fraction
from nnssl.objectives.base import Batch, Context
from nnssl.objectives.pieces import PuzzleObjective


class RelativePatchObjective(PuzzleObjective):
    r"""Classify the place of a query piece about the central one: 8 classes in 2D, 26 in 3D.

    .. math:: L = -\frac{1}{B K} \sum_b \sum_{k=1}^K \ln \mathrm{softmax}(h(c_{b0}, c_{bk}))_k

    c_0 is the embedding of the central piece of a 3 x 3 (x 3) grid, c_k that of its k-th neighbour.
    Where the patch is too flat for three pieces along an axis, the grid has one there.

    Reference: Doersch, Gupta, Efros, *Unsupervised visual representation learning by context
    prediction*, ICCV 2015, arXiv:1505.05192; in 3D Taleb et al., *3D self-supervised methods for
    medical imaging*, NeurIPS 2020, arXiv:2006.03829.

    Differs from the paper: all neighbours of a centre are asked for at once, which needs nine (27)
    passes for eight (26) questions instead of two for each; any patch; a gap, and the contrast of
    each piece; places are drawn from the step in validation; AdamW in the place of Adam.

    Shapes: view (B, C, *S).
    """

    def __init__(
        self, network: nn.Module, context: Context, *, gap: Fraction = 0.1, jitter: Fraction = 0.1
    ) -> None:
        grid = self.plan(network, context.patch_size, {"gap": gap, "jitter": jitter})
        super().__init__(network, context, classes=grid.pieces - 1, joined=2)
        self.grid = grid

    @classmethod
    def list_counts(cls, knobs: Mapping[str, Any]) -> Collection[int]:
        return 1, 3

    def describe(self) -> str:
        return f"{self.grid}; {self.classes} places about the central one"

    def answer(self, codes: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        centre = self.classes // 2
        others = torch.cat([codes[:, :centre], codes[:, centre + 1 :]], 1)  # (B, K, D)
        pairs = torch.cat([codes[:, centre : centre + 1].expand_as(others), others], 2)
        places = torch.arange(self.classes, device=codes.device).repeat(len(codes))
        return self.head(pairs.flatten(0, 1)), places
