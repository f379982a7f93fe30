"""Losses of clustering: codes of equal partition, and cross entropies with codes or fixed clusters.

Sums over tokens or voxels run over all ranks: the mean over ranks of a loss is that of one process,
and so is the gradient that DistributedDataParallel averages.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nnssl.common.distributed import all_gather_no_grad, all_reduce_mean

# of `linear_cross_entropy`: logits that stay in a cache, and few kernels
VOXELS_AT_ONCE = {"cpu": 2**12, "cuda": 2**20}


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    weights: Tensor | None = None,
    shared_scores: Tensor | None = None,
    shared_weights: Tensor | None = None,
) -> Tensor:
    r"""Soft codes of the tokens of all ranks that use every prototype equally; no gradient.

    `Q = diag(u) exp(scores / epsilon) diag(v)`: in turn every prototype is given the total weight
    1 / K, and every token its own weight; at last each token's code is divided by its sum:

    .. math:: q_n = \mathrm{softmax}_k(s_{nk} / \epsilon + \ln v_k)

    Everything is a sum of logarithms in float32 (float64 for float64 scores), so that half
    precision, small epsilon and single tokens neither overflow nor divide by zero. Ranks exchange
    K numbers per iteration; the codes are those of one process with the tokens of all.

    Args:
        scores: s, (N, K), similarities of this rank's tokens and the prototypes.
        epsilon: smoothness, above 0; towards 0 the codes become hard.
        iterations: rounds of the two normalisations, at least 1.
        weights: (N,) how much each token counts in the balance, >= 0 (default: all alike). A token
            of weight 0 has a code too.
        shared_scores: (M, K) of tokens that every rank holds alike (a memory bank); they take part
            in the balance, and get no code.
        shared_weights: (M,) of those.

    Returns:
        (N, K) codes, rows sum to 1; the weighted columns of all ranks sum to about 1 / K each.

    Raises:
        ValueError: shapes that do not fit.

    Reference:
        Caron et al.: Unsupervised learning of visual features by contrasting cluster assignments
        (SwAV). NeurIPS 2020, arXiv:2006.09882, appendix A.
        Cuturi: Sinkhorn distances. NeurIPS 2013, arXiv:1306.0895.

    Differs from the paper: the log domain, and the weights.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores: found shape {tuple(scores.shape)}, allowed: (N, K), K above 1")
    if weights is not None and weights.shape != scores.shape[:1]:
        raise ValueError(
            f"weights: found shape {tuple(weights.shape)}, allowed: ({len(scores)},), one per token"
        )
    parts = [_Tokens(scores, weights, epsilon)]
    if shared_scores is not None and len(shared_scores):
        parts.append(_Tokens(shared_scores, shared_weights, epsilon))
    for _ in range(iterations):
        column = all_gather_no_grad(parts[0].column()[None])  # (ranks, K)
        column = torch.cat([column, *(part.column()[None] for part in parts[1:])]).logsumexp(0)
        balance = (-math.log(scores.shape[1]) - column).nan_to_num(neginf=0, posinf=0)
        for part in parts:
            part.balance(balance)
    return (parts[0].scaled + balance).softmax(1)


class _Tokens:
    """Scores over epsilon, and the logarithm of each token's factor u."""

    def __init__(self, scores: Tensor, weights: Tensor | None, epsilon: float) -> None:
        self.scaled = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
        ones = self.scaled.new_ones(len(scores))
        self.weights = (ones if weights is None else weights.to(ones)).log()
        self.factor = self.weights

    def column(self) -> Tensor:
        """Logarithm of the columns' sums without the factors v, (K,)."""
        return (self.scaled + self.factor[:, None]).logsumexp(0)

    def balance(self, balance: Tensor) -> None:
        """Give every token its own weight, under the prototypes' factors ln v (K,)."""
        self.factor = self.weights - (self.scaled + balance).logsumexp(1)


def swapped_prediction(logits: Tensor, codes: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Cross entropy of one view's predictions with the codes of the other.

    .. math:: \frac{-\sum_n w_n \sum_k q_{nk} \ln \mathrm{softmax}_k(l_n)}{\sum_n w_n}

    Equal logits cost ln K.

    Args:
        logits: l, (N, K) of this rank's tokens, already divided by the temperature.
        codes: q, (N, K), rows sum to 1; no gradient flows into them.
        weights: (N,) >= 0, default all 1; with no weight at all the loss is 0.

    Returns:
        Scalar, float32 (float64 for float64 logits), also under autocast.

    Raises:
        ValueError: shapes that do not fit.

    Reference:
        Caron et al.: Unsupervised learning of visual features by contrasting cluster assignments
        (SwAV). NeurIPS 2020, arXiv:2006.09882, equation 2.

    Differs from the paper: the weights. (The thesis' code divides by K besides: its loss is K times
        smaller.)
    """
    if logits.shape != codes.shape or logits.ndim != 2:
        raise ValueError(
            f"codes: found shape {tuple(codes.shape)}, allowed: that of the logits, (N, K), here "
            f"{tuple(logits.shape)}"
        )
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        terms = -(codes.detach().to(wide) * wide.log_softmax(1)).sum(1)  # (N,)
        counted = torch.ones_like(terms) if weights is None else weights.detach().to(terms)
        return (counted * terms).sum() / _or_one(all_reduce_mean(counted.sum()))


def map_cross_entropy(logits: Tensor, target: Tensor, balanced: bool = False) -> Tensor:
    r"""Mean cross entropy with integer maps, over the voxels that have a target.

    .. math:: \frac{-\sum_i w_{t_i} \ln \mathrm{softmax}(l_i)_{t_i}}{\sum_i w_{t_i}}

    with `w = 1`, or, balanced, `w_k = 1 / (voxels of cluster k)`: every cluster that occurs then
    has the same share of the loss. Equal logits cost ln K.

    Args:
        logits: l, (B, K, *S).
        target: t, (B, *S) int64, 0 to K-1, or -1 where nothing is known.
        balanced: equal partition of the loss among clusters.

    Returns:
        Scalar, float32, also under autocast; 0 where no voxel has a target.

    Reference:
        The equal partition is that of Caron et al. (SwAV), NeurIPS 2020, arXiv:2006.09882, here
        for targets that are fixed.

    Differs from the paper: weights in the place of codes: a fixed target is not moved to another
        cluster.
    """
    with torch.autocast(logits.device.type, enabled=False):
        terms = functional.cross_entropy(logits.float(), target, ignore_index=-1, reduction="none")
        weights, total = _weigh(target, logits.shape[1], balanced)
        return (weights * terms).sum() / total


def linear_cross_entropy(
    features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, balanced: bool = False
) -> Tensor:
    """`map_cross_entropy` of the logits `weight @ features + bias`, which are never held.

    K logits per voxel cost more than a thin network. So the gradient is made together with the
    loss, part by part, while the logits of a part lie in the cache.

    Args:
        features: (B, F, *S).
        weight: (K, F).
        bias: (K,).
        target: (B, *S) int64, 0 to K-1, or -1 where nothing is known.
        balanced: equal partition of the loss among clusters.

    Returns:
        Scalar, at least float32, also under autocast; 0 where no voxel has a target.
    """
    with torch.autocast(features.device.type, enabled=False):
        weights, total = _weigh(target, len(weight), balanced)
        loss: Tensor = _LinearCrossEntropy.apply(features, weight, bias, target, weights / total)
        return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of weighted cross entropies; forward makes the gradients, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, weights: Tensor
    ) -> Tensor:
        wide = torch.promote_types(features.dtype, torch.float32)
        maps = features.flatten(2)  # (B, F, N)
        loss = torch.zeros((), dtype=wide, device=features.device)
        gradients = [torch.zeros_like(each, dtype=wide) for each in (maps, weight, bias)]
        step = VOXELS_AT_ONCE["cpu" if features.device.type == "cpu" else "cuda"]
        for sample, wanted, counted, back in zip(
            maps, target.flatten(1), weights.flatten(1), gradients[0], strict=True
        ):
            for begin in range(0, maps.shape[2], step):
                part = slice(begin, begin + step)
                x, t, w = sample[:, part].to(wide), wanted[None, part].clamp_min(0), counted[part]
                logits = torch.addmm(bias.to(wide)[:, None], weight.to(wide), x)  # (K, n)
                logits -= logits.amax(0)
                own = logits.gather(0, t)[0]
                total = logits.exp_().sum(0)
                loss += (w * (total.log() - own)).sum()
                logits *= w / total  # from here on the gradient of the logits
                logits.scatter_add_(0, t, -w.to(wide)[None])
                back[:, part] = weight.to(wide).T @ logits
                gradients[1].addmm_(logits, x.T)
                gradients[2] += logits.sum(1)
        ctx.save_for_backward(*gradients)
        ctx.shape = features.shape
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias = ctx.saved_tensors  # autograd casts them to the inputs' types
        return (features * scale).view(ctx.shape), weight * scale, bias * scale, None, None


@torch.no_grad()
def cluster_shares(clusters: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Share of each of K clusters among the tokens or voxels of all ranks, (K,); no gradient.

    Args:
        clusters: int64 of any shape, 0 to K-1; -1 does not count.
        count: K.
        weights: of the same shape, how much each counts; default 1 each.
    """
    counts = _counts(clusters, count, weights)
    return counts / counts.sum().clamp_min(torch.finfo(torch.float32).tiny)


def _or_one(total: Tensor) -> Tensor:
    """A divisor that keeps the gradient of nothing at 0, at any loss scale."""
    return torch.where(total > 0, total, 1)


@torch.no_grad()
def _weigh(target: Tensor, count: int, balanced: bool) -> tuple[Tensor, Tensor]:
    """Weight of each voxel, 0 where nothing is known, and their sum (its mean over ranks)."""
    known = (target >= 0).float()
    weights = known * _balance(target, count) if balanced else known
    return weights, _or_one(all_reduce_mean(weights.sum()))


def _balance(target: Tensor, count: int) -> Tensor:
    """Weight of each voxel that gives every cluster that occurs the same total."""
    counts = _counts(target, count)
    shares = torch.where(counts > 0, counts.sum() / counts.clamp_min(1e-6), 0)
    return shares[target.clamp_min(0)]


def _counts(clusters: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """(K,) float32, the mean over ranks; -1 goes into a bin of its own, which is dropped."""
    bins, weights = clusters.flatten() + 1, None if weights is None else weights.float().flatten()
    return all_reduce_mean(torch.bincount(bins, weights, count + 1)[1:].float())
