"""Slice embeddings of many volumes, and what nearest neighbours among them know of the body."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.data.case_table import Case
from nnssl.modules.metrics import effective_rank
from nnssl.probe.features import Block

NEIGHBOURS = 5


@dataclass
class Slices:
    """Embeddings of the planes across each volume's position axis.

    Attributes:
        cases: the volumes, in the order in which they were added.
        embeddings: per volume (planes, D).
    """

    cases: list[Case] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)

    def watch(self, case: Case, blocks: Iterable[Block]) -> Iterator[Block]:
        """The blocks of a volume; its embeddings are added when the last one has been taken."""
        parts = []
        for block in blocks:
            first, cells = block.cells()
            parts.append((first, cells.float().cpu()))
            yield block
        self.cases.append(case)
        self.embeddings.append(embed_planes(_join_cells(parts), case.axis))

    @property
    def matrix(self) -> Tensor:
        """(N, D), planes of all volumes."""
        return torch.cat(self.embeddings)

    @property
    def positions(self) -> Tensor:
        """(N,) share of the volume, 0 to 1 (the head)."""
        shares = [(torch.arange(len(each)) + 0.5) / len(each) for each in self.embeddings]
        pairs = zip(self.cases, shares, strict=True)
        return torch.cat([share if case.sign > 0 else 1 - share for case, share in pairs])

    @property
    def volumes(self) -> Tensor:
        """(N,) number of the volume of each plane."""
        counts = torch.tensor([len(each) for each in self.embeddings])
        return torch.arange(len(self.cases)).repeat_interleave(counts)

    def get_numbers(self, name: str) -> Tensor:
        """(N,) `patient` or `dataset` of each plane."""
        return torch.tensor([getattr(case, name) for case in self.cases])[self.volumes]

    def find_rows(self, identifiers: Collection[str]) -> Tensor:
        """Planes of these volumes."""
        chosen = torch.tensor([case.identifier in identifiers for case in self.cases])
        return chosen[self.volumes].nonzero()[:, 0]

    def find_voxel(self, row: int) -> tuple[Case, int]:
        """Volume of a plane, and the index of its middle slice along the position axis."""
        volume = int(self.volumes[row])
        case, planes = self.cases[volume], len(self.embeddings[volume])
        number = row - int((self.volumes < volume).sum())
        return case, int((number + 0.5) * case.shape[case.axis] / planes)

    def measure(self, queries: Sequence[str]) -> dict[str, float]:
        """Label-free metrics of the planes of some volumes.

        Returns:
            `effective_rank` of their centred embeddings; `position_error` and its
            `position_chance`, where there are slices of two patients.
        """
        rows, matrix = self.find_rows(queries), self.matrix
        centred = matrix[rows] - matrix[rows].mean(0)
        found = {"effective_rank": float(effective_rank(centred))}
        patients = self.get_numbers("patient")
        if patients.unique().numel() < 2:
            return found
        error, chance = measure_position_error(matrix, self.positions, patients, rows)
        return {**found, "position_error": error, "position_chance": chance}

    def find_nearest(self, rows: Tensor) -> Tensor:
        """(len(rows), k) planes of other patients, nearest first."""
        return find_neighbours(self.matrix, self.get_numbers("patient"), rows)[0]


def _join_cells(parts: Sequence[tuple[tuple[int, ...], Tensor]]) -> Tensor:
    """Bottleneck map (F, *cells) of a volume from (first cell, (F, *cells)) of its parts."""
    ends = torch.tensor([first + tuple(part.shape[1:]) for first, part in parts])
    size = (ends[:, :3] + ends[:, 3:]).amax(0).tolist()
    whole = parts[0][1].new_zeros([len(parts[0][1]), *size])
    for first, part in parts:
        where = [slice(f, f + n) for f, n in zip(first, part.shape[1:], strict=True)]
        index = (slice(None), *where)
        whole[index] = part
    return whole


class PositionError(NamedTuple):
    """Mean absolute error of the retrieved position, in shares of the volume (0 to 1).

    Attributes:
        error: of the nearest neighbours.
        chance: of as many slices drawn at random from the same candidates.
    """

    error: float
    chance: float


def embed_planes(cells: Tensor, axis: int, grid: int = 3) -> Tensor:
    """One vector per plane across an axis (0 to 2) of a bottleneck map.

    It is averaged over grid x grid cells in the plane: (F, Z, Y, X) to (planes, F * grid ** 2).
    """
    planes = cells.movedim(axis + 1, 0)  # (planes, F, H, W)
    return functional.adaptive_avg_pool2d(planes.float(), grid).flatten(1)


def find_neighbours(
    embeddings: Tensor, groups: Tensor, queries: Tensor, count: int = NEIGHBOURS
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
    count: int = NEIGHBOURS,
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
