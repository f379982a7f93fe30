"""Models Genesis: restore what four deformations did to the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from nnssl.objectives.base import Batch, Context
from nnssl.objectives.mae import CLEAN
from nnssl.objectives.reconstruction import Corrupted, ReconstructionObjective
from nnssl.views.deformations import deform


class ModelsGenesisObjective(ReconstructionObjective):
    r"""Restore an image after local shuffling, a non-linear intensity curve, and a painting.

    .. math:: L = \frac{1}{|x|} \sum_v (f(g(x))_v - x_v)^2

    g draws for each image which of its deformations happen (`nnssl.views.deformations`).

    Reference: Zhou, Sodha, Pang, Gotway, Liang, *Models Genesis*, Medical Image Analysis 2021,
    arXiv:2004.07882.

    Differs from the paper: deformations act within each image's robust range instead of [0, 1], and
    the loss is taken on the image as nnU-Net normalised it, with a linear output in the place of a
    sigmoid; local shuffling is computed for all voxels at once, with as many windows per voxel as
    the paper has in a cube of 64 x 64 x 32 (`nnssl.views.deformations.local_shuffle` tells what that changes);
    each channel has its own intensity curve; views are rotated and scaled a little before.

    Shapes: view (B, C, *S).

    Args:
        shuffle: probability of local shuffling.
        nonlinear: probability of a non-linear intensity curve, per channel.
        paint: probability of a painting.
        outpaint: share of out-painting among the paintings; the rest is in-painting.
        skips: whether the decoder sees skip connections.
        position: weight of the voxels' positions, see `ReconstructionObjective`.
    """

    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "global": {"count": 1, "rotation": 10.0, "scale": (0.9, 1.1), "shift": 0.0, **CLEAN}
    }

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        shuffle: float = 0.5,
        nonlinear: float = 0.9,
        paint: float = 0.9,
        outpaint: float = 0.8,
        skips: bool = True,
        position: float = 0.0,
    ) -> None:
        super().__init__(network, context, skips=skips, position=position)
        self.shuffle, self.nonlinear, self.paint, self.outpaint = (
            shuffle,
            nonlinear,
            paint,
            outpaint,
        )

    def corrupt(self, batch: Batch) -> Corrupted:
        image = batch["views"]["global_0"].image
        deformed = deform(
            image,
            batch["key"],
            "global_0",
            shuffle=self.shuffle,
            nonlinear=self.nonlinear,
            paint=self.paint,
            outpaint=self.outpaint,
        )
        return Corrupted(deformed, image)
