"""A linear classifier on frozen features in closed form: ridge regression to one-hot classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_VARIANCE = 1e-10  # below this share of the mean square, a feature is constant


@dataclass(frozen=True)
class LinearProbe:
    """Scores `weight @ x + bias`; the class of the highest score is predicted.

    Attributes:
        weight: (K, F); standardisation is folded into it.
        bias: (K,); -inf for a class without an example.
    """

    weight: Tensor
    bias: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """(N, F) to (N, K)."""
        return x.to(self.weight.dtype) @ self.weight.T + self.bias


class RidgeSums:
    """Sums over a stream of labelled features, from which the classifier follows.

    With weights w_i = v[class of i] / sum of all, standardised features z and one-hot y:

    .. math:: \\min_{B, b} \\sum_i w_i |y_i - B z_i - b|^2 + \\alpha |B|^2

    which equals scikit-learn's `Ridge` of standardised features with `alpha * sum(weights)`; that
    one wants all voxels at once. Here memory is F x F, whatever their number, and all is float64 on
    the device of `class_weights`.

    Args:
        features: F.
        class_weights: (K,) weight v of one example of each class, see `balanced`.
    """

    def __init__(self, features: int, class_weights: Tensor) -> None:
        self.class_weights = class_weights.double()
        self._square = self.class_weights.new_zeros(features, features)
        self._sums = self.class_weights.new_zeros(len(class_weights), features)  # per class
        self._weights = torch.zeros_like(self.class_weights)
        self._shift: Tensor | None = None  # near the mean, so that large offsets cost no digits

    def add(self, x: Tensor, y: Tensor) -> None:
        """Takes features x (N, F) of classes y (N,), integers from 0 to K - 1, into the sums."""
        if not len(x):
            return
        x, y = x.detach().to(self._square), y.to(self._square.device)
        if self._shift is None:
            self._shift = x.mean(0)
        x = x - self._shift
        weights = self.class_weights[y]
        weighted = x * weights[:, None]
        self._square += weighted.T @ x
        self._sums.index_add_(0, y, weighted)
        self._weights.index_add_(0, y, weights)

    def solve(self, alpha: float = 1e-2) -> LinearProbe:
        """The classifier.

        Args:
            alpha: strength of the ridge relative to the features' unit variance; above 0.

        Raises:
            ValueError: alpha not above 0, or no example was added.
        """
        if not alpha > 0:
            raise ValueError(f"alpha: found {alpha}, allowed above 0")
        if self._shift is None:
            raise ValueError("linear probe: found no labelled voxel, allowed from one")
        total = self._weights.sum()
        prior = self._weights / total  # (K,) mean of the one-hot classes
        mean = self._sums.sum(0) / total  # (F,)
        covariance = self._square / total - mean[:, None] * mean
        deviation = _deviation(covariance.diagonal(), mean)
        correlation = covariance / deviation[:, None] / deviation
        cross = (self._sums / total - prior[:, None] * mean) / deviation  # (K, F)
        system = correlation + alpha * torch.eye(len(mean)).to(correlation)
        weight = torch.linalg.solve(system, cross.T).T / deviation
        bias = prior - weight @ (mean + self._shift)
        bias[self._weights == 0] = -torch.inf
        return LinearProbe(weight, bias)


def balanced(counts: Tensor) -> Tensor:
    """Weight of one example per class so that every class counts the same; sums to all examples.

    Args:
        counts: (K,) examples per class; a class without any gets weight 0.

    Returns:
        float64 (K,), `counts.sum() / (classes present * counts)`.
    """
    counts = counts.double()
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.clamp_min(1))
    return torch.where(present, weights, torch.zeros_like(weights))


def _deviation(variance: Tensor, mean: Tensor) -> Tensor:
    """Standard deviation; 1 for a constant feature, which then has no influence."""
    constant = variance <= LEAST_VARIANCE * (variance + mean**2)
    return torch.where(constant, torch.ones_like(variance), variance.clamp_min(0).sqrt())
