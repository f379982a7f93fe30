"""Linear classification of voxels by frozen features: ridge regression, and Dice on other cases."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnssl.probe.features import Block
from nnssl.probe.volumes import Examples

RIDGE = 1e-2  # relative to the unit variance of the features
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

    def score(self, x: Tensor) -> Tensor:
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
        class_weights: (K,) weight v of one example of each class, see `balance`.
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

    def solve(self, alpha: float = RIDGE) -> LinearProbe:
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
        deviation = _find_deviation(covariance.diagonal(), mean)
        correlation = covariance / deviation[:, None] / deviation
        cross = (self._sums / total - prior[:, None] * mean) / deviation  # (K, F)
        system = correlation + alpha * torch.eye(len(mean)).to(correlation)
        weight = torch.linalg.solve(system, cross.T).T / deviation
        bias = prior - weight @ (mean + self._shift)
        bias[self._weights == 0] = -torch.inf
        return LinearProbe(weight, bias)


def _find_deviation(variance: Tensor, mean: Tensor) -> Tensor:
    """Standard deviation; 1 for a constant feature, which then has no influence."""
    constant = variance <= LEAST_VARIANCE * (variance + mean**2)
    return torch.where(constant, torch.ones_like(variance), variance.clamp_min(0).sqrt())


def balance(counts: Tensor) -> Tensor:
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


def weigh_classes(counts: Tensor) -> Tensor:
    """As `balance`, but the background, class 0, counts as much as all structures together."""
    weights = balance(counts)
    weights[0] *= int((counts[1:] > 0).sum())
    return weights


class Fit:
    """One classifier per draw (of cases), from one pass over the cases of all draws."""

    def __init__(
        self, examples: Examples, draws: Sequence[Collection[str]], device: torch.device
    ) -> None:
        self.examples, self.draws = examples, draws
        self._device = torch.device("cpu") if device.type == "mps" else device  # float64
        self._sums: list[RidgeSums] = []

    def add(self, case: str, block: Block) -> None:
        """Takes one block of a case into the draws that hold the case."""
        if not self._sums:
            weights = (weigh_classes(self.examples.count(draw)) for draw in self.draws)
            self._sums = [RidgeSums(block.features, w.to(self._device)) for w in weights]
        x, y = self.examples.read_features(case, block)
        for sums, draw in zip(self._sums, self.draws, strict=True):
            if case in draw:
                sums.add(x, y)

    def solve(self) -> list[LinearProbe]:
        """The classifiers, one per draw."""
        return [sums.solve() for sums in self._sums]


class Scorer:
    """Applies several classifiers of K classes at once."""

    def __init__(self, probes: Sequence[LinearProbe]) -> None:
        self.classes = len(probes[0].bias)
        self._weight = torch.cat([probe.weight for probe in probes])
        self._bias = torch.stack([probe.bias for probe in probes])[:, :, None, None, None]

    def score(self, blocks: Iterable[Block], labels: Tensor) -> Tensor:
        """Dice (D, K - 1) of one volume; labels (Z, Y, X), -1: left out."""
        return compute_dice(torch.stack([self._count(block, labels) for block in blocks]).sum(0))

    def _count(self, block: Block, labels: Tensor) -> Tensor:
        """Voxels per (classifier, label, prediction), (D, K, K), in one block."""
        scores = block.project(self._weight.to(block.stages[0]))  # (D * K, *part)
        scores = scores.unflatten(0, (-1, self.classes)) + self._bias.to(scores)
        found = scores.max(1).indices.cpu().flatten(1)  # (D, voxels); argmax is 7 times slower
        true = labels[block.where].flatten()
        valid = true >= 0
        pairs = true[valid] * self.classes + found[:, valid]
        counts = [torch.bincount(each, minlength=self.classes**2) for each in pairs]
        return torch.stack(counts).unflatten(1, (self.classes, self.classes))


def compute_dice(confusion: Tensor) -> Tensor:
    """Dice of every class but the background: (..., K, K) to (..., K - 1).

    NaN for a structure that neither the labels nor the prediction have.
    """
    both = confusion.diagonal(dim1=-2, dim2=-1).double()
    total = (confusion.sum(-1) + confusion.sum(-2)).double()
    return (2 * both / total)[..., 1:]


@dataclass(frozen=True)
class DiceTable:
    """Dice of several draws (rows) on several cases.

    Attributes:
        structures: names, without the background.
        cases: case -> (D, K - 1), NaN where a structure is neither there nor found.
    """

    structures: tuple[str, ...]
    cases: Mapping[str, Tensor]

    @property
    def per_draw(self) -> list[float]:
        """Mean over structures of the mean over cases, for each draw."""
        return self._means().nanmean(1).tolist()

    @property
    def mean(self) -> float:
        return float(self._means().nanmean(1).mean())

    @property
    def per_structure(self) -> dict[str, float]:
        """Mean over cases and draws."""
        return dict(zip(self.structures, self._means().nanmean(0).tolist(), strict=True))

    @property
    def per_case(self) -> dict[str, dict[str, float]]:
        """Mean over draws."""
        return {
            case: dict(zip(self.structures, values.nanmean(0).tolist(), strict=True))
            for case, values in self.cases.items()
        }

    def _means(self) -> Tensor:
        """(D, K - 1), over cases."""
        return torch.stack(list(self.cases.values())).nanmean(0)
