"""Numbers that show whether embeddings are useful or collapsed; no gradient, scalars (0-d).

Those of embeddings, but for the effective rank, look at directions: rows are divided by their
length first. `take_every_second` is for maps, where neighbours tell nearly the same; `evaluating`
lets one look at a network that is being trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@torch.no_grad()
def alignment(z: Tensor, positive: Tensor) -> Tensor:
    """Mean squared distance of positive pairs, 0 (equal) to 4 (opposite), weighted by `positive`.

    Args:
        z: embeddings, (N, D).
        positive: (N, N) weights of the pairs; none positive gives NaN.

    Reference:
        Wang, Isola: Understanding contrastive representation learning through alignment and
        uniformity on the hypersphere. ICML 2020, arXiv:2005.10242 (exponent 2).
    """
    weights = positive.float()
    return (weights * _squared_distances(z)).sum() / weights.sum()


@torch.no_grad()
def uniformity(z: Tensor) -> Tensor:
    """`ln mean_{i<j} e^(-2 |z_i - z_j|^2)`: 0 at collapse, at best near -4; NaN for N = 1.

    Args:
        z: embeddings, (N, D).

    Reference:
        Wang, Isola 2020, arXiv:2005.10242 (t = 2).
    """
    pairs = torch.ones(len(z), len(z), device=z.device).triu(1)
    return ((-2 * _squared_distances(z)).exp() * pairs).sum().div(pairs.sum()).log()


@torch.no_grad()
def embedding_std(z: Tensor) -> Tensor:
    """`sqrt(D) * mean_d std(z_d)` over the batch: 0 at collapse, at most 1 (all directions alike).

    Args:
        z: embeddings, (N, D).

    Reference:
        Chen, He: Exploring simple Siamese representation learning. CVPR 2021, arXiv:2011.10566
        (there without the factor, so that a healthy value is 1 / sqrt(D)).
    """
    return _directions(z).std(0, correction=0).mean() * z.shape[1] ** 0.5


@torch.no_grad()
def effective_rank(z: Tensor) -> Tensor:
    """`exp(-sum_k p_k ln p_k)`, p the singular values over their sum: 1 to min(N, D).

    Args:
        z: any matrix, (N, D), taken as it is; NaN where an entry is not finite or all are zero.

    Reference:
        Roy, Vetterli: The effective rank: a measure of effective dimensionality. EUSIPCO 2007.
    """
    if not z.isfinite().all() or not z.any():
        return z.new_full((), torch.nan, dtype=torch.float32)
    with torch.autocast(z.device.type, enabled=False):
        values = torch.linalg.svdvals(z.float())
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp()


@torch.no_grad()
def contrastive_accuracy(z: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Share of positive pairs (a, p) whose p is nearer to a than every negative of a; 0 to 1.

    Anchors without negatives do not count; ties are wrong; NaN where no pair counts.

    Args:
        z: embeddings, (N, D).
        positive: (N, N), positive where (a, p) is a pair.
        negative: (N, N) bool.
    """
    similarity = _similarity(z)
    hardest = similarity.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    counted = (positive > 0) & negative.any(1, keepdim=True)
    return ((similarity > hardest) & counted).sum() / counted.sum()


@torch.no_grad()
def count_distinct(chosen: Tensor, marks: Tensor) -> Tensor:
    """How many different marks the chosen ones of each row have, (M,) float32.

    Args:
        chosen: (M, N) bool.
        marks: (N, D); two are the same if all D numbers are.
    """
    same = (marks[:, None] == marks[None, :]).all(-1).float()  # (N, N)
    with torch.autocast(marks.device.type, enabled=False):
        copies = chosen.float() @ same  # of each mark among the chosen ones
    return (chosen / copies.clamp_min(1)).sum(1)


def _directions(z: Tensor) -> Tensor:
    return functional.normalize(z.float(), dim=1)


def _similarity(z: Tensor) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        directions = _directions(z)
        return directions @ directions.T


def _squared_distances(z: Tensor) -> Tensor:
    return (2 - 2 * _similarity(z)).clamp_min(0)


def take_every_second(maps: Tensor) -> Tensor:
    """Every second voxel per image axis of (., ., *S)."""
    index: Any = (..., *[slice(None, None, 2)] * (maps.ndim - 2))
    thin: Tensor = maps[index]
    return thin


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradient; afterwards every part of the modules is in the mode it had."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
