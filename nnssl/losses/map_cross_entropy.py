"""Cross entropy with integer maps; places without a target do not count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.common.distributed import all_reduce_mean


def map_cross_entropy(logits: Tensor, target: Tensor, balanced: bool = False) -> Tensor:
    r"""Mean cross entropy over the voxels that have a target.

    .. math:: \frac{-\sum_i w_{t_i} \ln \mathrm{softmax}(l_i)_{t_i}}{\sum_i w_{t_i}}

    with `w = 1`, or, balanced, `w_k = 1 / (voxels of cluster k)`: every cluster that occurs then
    has the same share of the loss. Counts and sums run over all ranks: the mean over ranks is the
    loss of one process. Equal logits cost ln K.

    Args:
        logits: l, (B, K, *S).
        target: t, (B, *S) int64, 0 to K-1, or -1 where nothing is known.
        balanced: equal partition of the loss among clusters.

    Returns:
        Scalar, float32, also under autocast; 0 where no voxel has a target.

    Reference:
        The equal partition is that of Caron et al. (SwAV), NeurIPS 2020, arXiv:2006.09882, here
        for targets that are fixed.

    Differs from the paper:
        Weights in the place of codes: a fixed target is not moved to another cluster.
    """
    with torch.autocast(logits.device.type, enabled=False):
        terms = functional.cross_entropy(logits.float(), target, ignore_index=-1, reduction="none")
        known = (target >= 0).float()
        weights = known * _weights(target, logits.shape[1]) if balanced else known
        total = all_reduce_mean(weights.sum()).clamp_min(torch.finfo(torch.float32).tiny)
        return (weights * terms).sum() / total


def cluster_shares(target: Tensor, clusters: int) -> Tensor:
    """Share of each cluster among the known voxels of all ranks, (K,); no gradient."""
    counts = all_reduce_mean(_counts(target, clusters))
    return counts / counts.sum().clamp_min(torch.finfo(torch.float32).tiny)


def _weights(target: Tensor, clusters: int) -> Tensor:
    counts = all_reduce_mean(_counts(target, clusters))
    shares = torch.where(counts > 0, counts.sum() / counts.clamp_min(1e-6), 0)
    return shares[target.clamp_min(0)]


def _counts(target: Tensor, clusters: int) -> Tensor:
    """(K,) float32; what is -1 goes into a bin of its own, which is dropped."""
    return torch.bincount(target.flatten() + 1, minlength=clusters + 1)[1:].float()
