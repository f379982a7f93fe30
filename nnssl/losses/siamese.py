"""Agreement of predicted and embedded views (SimSiam, BYOL), one value per sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def symmetric_loss(
    prediction_a: Tensor, embedding_a: Tensor, prediction_b: Tensor, embedding_b: Tensor
) -> Tensor:
    """`-1/2 [cos(p_a, sg(z_b)) + cos(p_b, sg(z_a))]` of two views of the same samples.

    -1 where directions agree, 1 where they are opposite. The gradient reaches the predictions only.

    Args:
        prediction_a: (..., D).
        embedding_a: (..., D).
        prediction_b: (..., D), broadcastable to those of a.
        embedding_b: (..., D).

    Returns:
        (...) float32.

    Reference:
        Chen, He: Exploring simple Siamese representation learning. CVPR 2021, arXiv:2011.10566.

    Differs from the paper: not averaged over the samples.
    """
    there = -cosine_similarity(prediction_a.float(), embedding_b.detach().float(), dim=-1)
    back = -cosine_similarity(prediction_b.float(), embedding_a.detach().float(), dim=-1)
    return (there + back) / 2


def byol_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """`2 - 2 cos(q, sg(z))`, the squared distance of the directions, as mean over the places.

    0 where directions agree, 4 where they are opposite, 2 where they have nothing in common.

    Args:
        prediction: q, (B, D, *T), one vector per place of the map, or (B, D).
        target: z of the same places, of the target network; it receives no gradient.
        weights: of the places, (B, *T) >= 0; a sample without any has the loss 0. None: equal.

    Returns:
        (B,) float32.

    Reference:
        Grill et al.: Bootstrap your own latent. NeurIPS 2020, arXiv:2006.07733.

    Differs from the paper: one direction, not averaged over the samples.
    """
    distance = 2 - 2 * cosine_similarity(prediction.float(), target.detach().float(), dim=1)
    if weights is None:
        return distance.flatten(1).mean(1) if distance.ndim > 1 else distance
    total = weights.flatten(1).sum(1).clamp_min(torch.finfo(weights.dtype).tiny)
    return (distance * weights).flatten(1).sum(1) / total
