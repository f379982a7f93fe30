"""Codes of equal partition by the Sinkhorn-Knopp iteration, in the log domain."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnssl.common.distributed import all_gather_no_grad


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
        epsilon: smoothness; towards 0 the codes become hard.
        iterations: rounds of the two normalisations, at least 1.
        weights: (N,) how much each token counts in the balance, >= 0 (default: all alike). A token
            of weight 0 has a code too.
        shared_scores: (M, K) of tokens that every rank holds alike (a memory bank); they take part
            in the balance, and get no code.
        shared_weights: (M,) of those.

    Returns:
        (N, K) codes, rows sum to 1; the weighted columns of all ranks sum to about 1 / K each.

    Raises:
        ValueError: shapes that do not fit, epsilon or iterations out of range.

    Reference:
        Caron et al.: Unsupervised learning of visual features by contrasting cluster assignments
        (SwAV). NeurIPS 2020, arXiv:2006.09882, appendix A.
        Cuturi: Sinkhorn distances. NeurIPS 2013, arXiv:1306.0895.

    Differs from the paper:
        The log domain, and the weights.
    """
    _check(scores, epsilon, iterations, weights)
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


def _check(scores: Tensor, epsilon: float, iterations: int, weights: Tensor | None) -> None:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores: found shape {tuple(scores.shape)}, allowed: (N, K), K above 1")
    if not epsilon > 0:
        raise ValueError(f"epsilon: found {epsilon}, allowed: a number above 0")
    if iterations < 1:
        raise ValueError(f"iterations: found {iterations}, allowed: 1 or more")
    if weights is not None and weights.shape != scores.shape[:1]:
        raise ValueError(
            f"weights: found shape {tuple(weights.shape)}, allowed: ({len(scores)},), one per token"
        )
