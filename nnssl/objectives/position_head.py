"""A linear head that tells where each voxel lies in its volume, and what its answers cost."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnssl.losses.clustering import cluster_shares, map_cross_entropy
from nnssl.modules import metrics

BINS = 8  # per axis of the volume


class PositionTerms(NamedTuple):
    """What the answers of a head cost.

    Attributes:
        loss: scalar with gradient; equal logits cost 1.
        constant: loss of the best answer that is the same for all voxels.
        error: mean absolute error of the expected position, in shares of the volume.
    """

    loss: Tensor
    constant: Tensor
    error: Tensor


class PositionHead(nn.Module):
    r"""Classifies each voxel's position on the three axes of its volume into K bins per axis.

    .. math:: \frac{-1}{3 |U| \ln K} \sum_{u \in U} \sum_{a=1}^3
        \ln \mathrm{softmax}(h_a(x)_u)_{k_a(u)}, \quad
        k_a(u) = \lfloor K (p_a(u) + 1) / 2 \rfloor

    p from -1 to 1 over the volume, U the voxels inside it, every second per axis: positions of
    neighbours are nearly the same, and the head costs a quarter (3D: an eighth). Bins in the place
    of a regression: while the network does not yet tell a mirrored view from another, both sides
    are likely, and the mean between them, which a regression would answer, tells nothing.

    Reference for positions as a target: Lei, Xu, Gu, Fu, Zhang, Wang, *Contrastive learning of
    relative position regression for one-shot object localization in 3D medical images*, MICCAI
    2021, arXiv:2012.07043.

    Differs from the paper: it regresses the distance of two patches; here every voxel's own
    position is told, through the decoder.

    Args:
        features: F of the map.
        dimension: number of image axes, 2 or 3.
    """

    def __init__(self, features: int, dimension: int) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dimension]
        self.project = convolution(features, 3 * BINS, 1)

    def forward(self, x: Tensor, place: Tensor) -> PositionTerms:
        """Compare what features tell with where voxels are.

        Args:
            x: (B, F, *S).
            place: (B, 3, *S) of `voxel_positions`; voxels beyond -1 to 1 on any axis do not count.
        """
        x, place = metrics.take_every_second(x), metrics.take_every_second(place)
        logits = self.project(x).unflatten(1, (3, BINS))  # (B, 3, K, *S)
        inside = (place.abs() <= 1).all(1, keepdim=True).expand_as(place)
        bins = ((place + 1) / 2 * BINS).floor().clamp(0, BINS - 1).long()
        target = torch.where(inside, bins, -1)  # (B, 3, *S)
        loss = map_cross_entropy(logits.flatten(0, 1), target.flatten(0, 1)) / math.log(BINS)
        return PositionTerms(loss, _constant(target), _error(logits.detach(), place, inside))


@torch.no_grad()
def _constant(target: Tensor) -> Tensor:
    """Entropy of the bins of each axis, the mean of the three, in units of ln K."""
    shares = torch.stack([cluster_shares(axis, BINS) for axis in target.unbind(1)])
    return torch.special.entr(shares).sum(1).mean() / math.log(BINS)


@torch.no_grad()
def _error(logits: Tensor, place: Tensor, inside: Tensor) -> Tensor:
    chances = logits.flatten(0, 1).float().softmax(1)  # (B * 3, K, *S)
    centres = (torch.arange(BINS, device=logits.device) + 0.5) / BINS * 2 - 1
    expected = (chances.movedim(1, -1) @ centres).unflatten(0, (-1, 3))
    return ((expected - place).abs() * inside).sum() / 2 / inside.sum().clamp_min(1)
