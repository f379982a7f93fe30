"""Agreement of predicted and embedded views (SimSiam), one value per sample."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def negative_cosine(prediction: Tensor, embedding: Tensor) -> Tensor:
    """`-cos(p, sg(z))`: -1 where directions agree, 1 where they are opposite.

    The gradient reaches the prediction only. Broadcasts; computed in float32.

    Args:
        prediction: p, (..., D).
        embedding: z, (..., D).

    Returns:
        (...) float32.

    Reference:
        Chen, He: Exploring simple Siamese representation learning. CVPR 2021, arXiv:2011.10566.

    Differs from the paper: nothing.
    """
    return -functional.cosine_similarity(prediction.float(), embedding.detach().float(), dim=-1)


def symmetric_loss(
    prediction_a: Tensor, embedding_a: Tensor, prediction_b: Tensor, embedding_b: Tensor
) -> Tensor:
    """`-1/2 [cos(p_a, sg(z_b)) + cos(p_b, sg(z_a))]` of two views of the same samples.

    Args:
        prediction_a: (..., D).
        embedding_a: (..., D).
        prediction_b: (..., D), broadcastable to those of a.
        embedding_b: (..., D).

    Returns:
        (...) float32, -1 to 1.

    Reference:
        Chen, He: Exploring simple Siamese representation learning. CVPR 2021, arXiv:2011.10566.

    Differs from the paper: not averaged over the samples.
    """
    there = negative_cosine(prediction_a, embedding_b)
    back = negative_cosine(prediction_b, embedding_a)
    return (there + back) / 2
