"""Agreement of predicted and embedded views (SimSiam), one value per sample."""

from __future__ import annotations

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
