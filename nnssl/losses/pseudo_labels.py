"""Pseudo-labels: hard answers of a teacher, which of them count, and how far a student is off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_CLASSES = 256  # of which each has a threshold of its own, whether it occurs or not
BINS = 1000  # of the confidence, to find the share of a class that counts


@dataclass(frozen=True)
class PseudoLabels:
    """What a teacher says of images (n).

    Attributes:
        labels: softmax: int64 (n, 1, *S); regions: bool (n, R, *S).
        counted: bool (n, 1, *S), the voxels that are confident enough.
        probabilities: float32 (n, K, *S).
        classes: int64 (n, 1, *S), the class, or the number of the combination of regions.
    """

    labels: Tensor
    counted: Tensor
    probabilities: Tensor
    classes: Tensor


@torch.no_grad()
def make_pseudo_labels(
    logits: Tensor, regions: bool, confidence: float, least_share: float
) -> PseudoLabels:
    """Hard labels; a voxel counts if the teacher is sure enough of it.

    A voxel counts from `confidence` on, and of every class that the teacher sees in this batch at
    least the surest `least_share` does (to 1/1000 in confidence), so that small structures, of
    which a young teacher is never sure, do not starve.

    Args:
        logits: (n, K, *S).
        regions: sigmoid per region in the place of softmax; the confidence is then that of the
            least sure region.
        confidence: 0 to 1; 0 counts all voxels.
        least_share: 0 to 1.

    Reference:
        Sohn et al.: FixMatch. NeurIPS 2020, arXiv:2001.07685.

    Differs from the paper: the share of every class that counts in any case.
    """
    logits = logits.float()
    if regions:
        probabilities = logits.sigmoid()
        labels = probabilities > 0.5
        sure = torch.maximum(probabilities, 1 - probabilities).amin(1)
        classes = number_combinations(labels)[:, 0]
    else:
        probabilities = logits.softmax(1)
        sure, classes = probabilities.max(1)
        labels = classes[:, None]
    numbers, count = classes, 2 ** logits.shape[1] if regions else logits.shape[1]
    if count > MOST_CLASSES:
        found, numbers = classes.unique(return_inverse=True)  # a GPU is waited for
        count = len(found)
    threshold = _find_thresholds(sure, numbers, count, confidence, least_share)
    counted = sure >= threshold[numbers]
    return PseudoLabels(labels, counted[:, None], probabilities, classes[:, None])


def number_combinations(regions: Tensor) -> Tensor:
    """Number of the combination of regions at every voxel: bool (n, R, *S) to int64 (n, 1, *S)."""
    codes = 2 ** torch.arange(regions.shape[1], device=regions.device)
    return torch.tensordot(regions.movedim(1, -1).long(), codes, dims=1)[:, None]


def _find_thresholds(
    sure: Tensor, classes: Tensor, count: int, confidence: float, share: float
) -> Tensor:
    """Per class: the confidence, or the lower bin edge that lets the surest `share` through."""
    bins = (sure * BINS).long().clamp(0, BINS - 1)
    histogram = count_values(classes * BINS + bins, count * BINS).reshape(count, BINS)
    above = histogram.flip(1).cumsum(1).flip(1)  # voxels at least as sure as the bin
    enough = above >= share * histogram.sum(1, keepdim=True)
    edges = (enough.sum(1) - 1).clamp_min(0) / BINS  # the highest bin with enough above it
    return edges.clamp_max(confidence)


def count_values(values: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """How often each of 0 to `count - 1` occurs, or the sum of its weights (integers): int64.

    As `torch.bincount`, which waits for a GPU.
    """
    ones = torch.ones_like(values) if weights is None else weights.long()
    sums = torch.zeros(count, dtype=torch.int64, device=values.device)
    return sums.scatter_add_(0, values.flatten(), ones.flatten())


def squared_difference(logits: Tensor, teacher: Tensor, mask: Tensor, regions: bool) -> Tensor:
    r"""Mean squared difference of probabilities over the voxels of a mask; 0 where it is empty.

    .. math:: \frac{1}{K |M|} \sum_{v \in M} \| p_v - q_v \|^2

    Args:
        logits: of the student (n, K, *S).
        teacher: probabilities (n, K, *S), without gradient.
        mask: bool (n, 1, *S).
        regions: sigmoid in the place of softmax.

    Reference:
        Tarvainen, Valpola: Mean teachers are better role models. NeurIPS 2017, arXiv:1703.01780.
    """
    logits = logits.float()
    student = logits.sigmoid() if regions else logits.softmax(1)
    difference = ((student - teacher) ** 2).mean(1, keepdim=True)
    return (difference * mask).sum() / mask.sum().clamp_min(1)
