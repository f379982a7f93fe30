"""Nearest neighbours among slices: do embeddings know where in the body a slice lies?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class PositionError(NamedTuple):
    """Mean absolute error of the retrieved position, in shares of the volume (0 to 1).

    Attributes:
        error: of the nearest neighbours.
        chance: of as many slices drawn at random from the same candidates.
    """

    error: float
    chance: float


def embed_planes(cells: Tensor, axis: int, grid: int = 3) -> Tensor:
    """One vector per plane of a bottleneck map, averaged over a grid of cells in the plane.

    Args:
        cells: (F, Z, Y, X).
        axis: 0 to 2, the axis across which planes are taken.
        grid: cells of the grid per axis.

    Returns:
        (planes, F * grid ** 2).
    """
    planes = cells.movedim(axis + 1, 0)  # (planes, F, H, W)
    return functional.adaptive_avg_pool2d(planes.float(), grid).flatten(1)


def find_neighbours(
    embeddings: Tensor, groups: Tensor, queries: Tensor, count: int = 5
) -> tuple[Tensor, Tensor]:
    """The most similar slices of other patients, by cosine of the standardised embeddings.

    Args:
        embeddings: (N, D).
        groups: (N,) patient of each slice.
        queries: (Q,) indices of slices.
        count: neighbours k; fewer where fewer slices of other patients exist.

    Returns:
        Indices (Q, k), nearest first, and bool (Q, N), the candidates of each query.

    Raises:
        ValueError: a query without a slice of another patient.
    """
    allowed = groups[queries][:, None] != groups[None]  # (Q, N)
    fewest = int(allowed.sum(1).min())
    if not fewest:
        raise ValueError("neighbours: found slices of one patient only, allowed from two patients")
    z = embeddings.double()
    z = functional.normalize((z - z.mean(0)) / z.std(0, correction=0).clamp_min(1e-12), dim=1)
    similarity = (z[queries] @ z.T).masked_fill(~allowed, -torch.inf)
    return similarity.topk(min(count, fewest), dim=1).indices, allowed


def measure_position_error(
    embeddings: Tensor,
    positions: Tensor,
    groups: Tensor,
    queries: Tensor,
    count: int = 5,
    seed: int = 0,
) -> PositionError:
    """Error of the mean position of the k nearest slices of other patients, beside chance.

    Args:
        embeddings: (N, D).
        positions: (N,) position of each slice in its volume, 0 to 1.
        groups: (N,) patient of each slice.
        queries: (Q,) indices of the slices whose position is asked for.
        count: neighbours k.
        seed: of the random slices.
    """
    nearest, allowed = find_neighbours(embeddings, groups, queries, count)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(allowed.double(), nearest.shape[1], generator=generator)
    true = positions[queries].double()
    found, random = (positions[index].double().mean(1) for index in (nearest, drawn))
    return PositionError(float((found - true).abs().mean()), float((random - true).abs().mean()))
