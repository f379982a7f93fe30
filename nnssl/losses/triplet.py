"""The triplet loss: an anchor lies nearer to its positive than to the negatives, by a margin."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Mining = Literal["all", "semi_hard"]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """`|a_i / |a_i| - b_j / |b_j||^2` of the rows of a (A, D) and b (N, D): (A, N), 0 to 4.

    In float32 (float64 for float64 input), under autocast too.
    """
    with torch.autocast(a.device.type, enabled=False):
        wide = torch.promote_types(a.dtype, torch.float32)
        cosine = functional.normalize(a.to(wide), dim=1) @ functional.normalize(b.to(wide), dim=1).T
        return 2 - 2 * cosine


def triplet_loss(
    distances: Tensor, positive: Tensor, negative: Tensor, margin: float, mining: Mining = "all"
) -> Tensor:
    """Mean of `max(0, d_ap - d_an + margin)` over triplets (a, p, n); `margin` at collapse.

    `all` takes every negative of every anchor; `semi_hard` one per anchor, the nearest of those
    that are farther than the positive, or, where there is none, the farthest.

    Args:
        distances: d, (A, N), from anchors to candidates.
        positive: int64 (A,), the candidate that is the anchor's positive.
        negative: (A, N) bool, which candidates are the anchor's negatives; an anchor without any
            adds nothing.
        margin: by how much negatives shall be farther.
        mining: which negatives count, see above.

    Returns:
        Scalar of the type of the distances.

    Reference:
        Schroff, Kalenichenko, Philbin: FaceNet: a unified embedding for face recognition and
        clustering. CVPR 2015, arXiv:1503.03832.

    Differs from the paper: a mean, not a sum; where no negative is semi-hard, the farthest counts.
    """
    own = distances.gather(1, positive[:, None])  # (A, 1)
    if mining == "semi_hard":
        farther = negative & (distances > own)
        nearest = distances.masked_fill(~farther, torch.inf).argmin(1)
        farthest = distances.masked_fill(~negative, -torch.inf).argmax(1)
        chosen = torch.where(farther.any(1), nearest, farthest)
        negative = negative & functional.one_hot(chosen, distances.shape[1]).bool()
    terms = functional.relu(own - distances + margin) * negative
    return terms.sum() / negative.sum().clamp_min(1)
