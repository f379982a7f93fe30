"""Models Genesis: undo what four deformations did to the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from nnssl.common.checks import Fraction, NotNegative
from nnssl.objectives.base import Batch, Context
from nnssl.objectives.mae import CLEAN
from nnssl.objectives.reconstruction import Corrupted, ReconstructionObjective
from nnssl.views.deformations import deform


class ModelsGenesisObjective(ReconstructionObjective):
    r"""Reconstruct an image after local shuffling, a non-linear intensity curve, and a painting.

    .. math:: L = \frac{1}{|x|} \sum_v (f(g(x))_v - x_v)^2

    g draws for each image which of its deformations happen (`nnssl.views.deformations`).

    Reference: Zhou, Sodha, Pang, Gotway, Liang, *Models Genesis*, Medical Image Analysis 2021,
    arXiv:2004.07882.

    Differs from the paper: deformations act within each image's robust range instead of [0, 1], and
    the loss is taken on the image as nnU-Net normalised it, with a linear output in the place of a
    sigmoid; local shuffling is computed for all voxels at once (`local_shuffle` in
    `nnssl.views.deformations` tells what that changes); each channel has its own intensity curve;
    views are rotated and scaled a little before, and mirrored along each axis with probability 0.5
    (there along a random axis with 0.4, up to three times); AdamW instead of SGD.

    Shapes: view (B, C, *S).

    Args:
        shuffle: probability of local shuffling.
        nonlinear: probability of a non-linear intensity curve, per channel.
        paint: probability of a painting.
        outpaint: share of out-painting among the paintings; the rest is in-painting.
    """

    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "global": {"count": 1, "rotation": 10.0, "scale": (0.9, 1.1), "shift": 0.0, **CLEAN}
    }

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        shuffle: Fraction = 0.5,
        nonlinear: Fraction = 0.9,
        paint: Fraction = 0.9,
        outpaint: Fraction = 0.8,
        skips: bool = True,
        position: NotNegative = 0.0,
    ) -> None:
        super().__init__(network, context, skips=skips, position=position)
        self.chances = {
            "shuffle": shuffle,
            "nonlinear": nonlinear,
            "paint": paint,
            "outpaint": outpaint,
        }

    def corrupt(self, batch: Batch) -> Corrupted:
        image = batch["views"]["global_0"].image
        return Corrupted(deform(image, batch["key"], "global_0", **self.chances), image)
