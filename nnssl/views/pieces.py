"""Pieces of an image: where they lie in a grid, how they are cut out, and their own contrast."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnssl.views.randomness import generator

FAINT = 1e-4  # of the mean variance of an image's pieces: below it a piece is not made louder
FLAT = 1e-10  # of its mean square: the variance of a piece that is rounding and nothing else


@dataclass(frozen=True)
class PieceGrid:
    """A grid of windows over an image, and a piece that moves inside each window.

    Windows are numbered with the last axis fastest; all fields but `size` in voxels per array axis.

    Attributes:
        size: of the image.
        counts: windows per array axis.
        step: from the begin of one window to that of the next.
        window: in which a piece moves.
        side: of a piece.
    """

    size: tuple[int, ...]
    counts: tuple[int, ...]
    step: tuple[int, ...]
    window: tuple[int, ...]
    side: tuple[int, ...]

    @property
    def pieces(self) -> int:
        """Number N of pieces."""
        return math.prod(self.counts)

    def draw_begins(self, keys: Tensor, salt: str) -> Tensor:
        """First voxel of every piece, anywhere in its window: (B, N, d) int64 on the CPU."""
        inside = np.array(self.window) - np.array(self.side)
        shape = (self.pieces, len(self.size))
        drawn = [generator(key, salt, "pieces").integers(inside + 1, size=shape) for key in keys]
        return torch.from_numpy(self._first_voxels() + np.stack(drawn))

    def _first_voxels(self) -> np.ndarray:
        """Of each window, (N, d)."""
        size, counts, step = np.array(self.size), np.array(self.counts), np.array(self.step)
        margin = (size - (counts - 1) * step - self.window) // 2
        places = np.stack(np.unravel_index(np.arange(self.pieces), self.counts), 1)
        return np.asarray(margin + places * step)

    def __str__(self) -> str:
        side, counts = ("x".join(map(str, numbers)) for numbers in (self.side, self.counts))
        return f"{self.pieces} pieces ({counts}) of {side} voxels"


def plan_pieces(
    size: Sequence[int],
    counts: Collection[int],
    least: Sequence[int],
    *,
    overlap: float = 0.0,
    jitter: float = 0.0,
) -> PieceGrid:
    """The grid with most pieces per axis whose pieces are not too small.

    Args:
        size: voxels of the image per array axis (d,).
        counts: allowed numbers of pieces per axis, 1 among them.
        least: voxels that a piece must have per array axis (d,).
        overlap: what neighbouring windows share, as a share of a window; below 0 a gap.
        jitter: share of a window by which a piece is smaller than it, and in which it moves.

    Raises:
        ValueError: no axis is long enough for more than one piece.
    """
    axes = [_divide(*axis, counts, overlap, jitter) for axis in zip(size, least, strict=True)]
    grid = PieceGrid(tuple(size), *zip(*axes, strict=True))
    if grid.pieces == 1:
        raise ValueError(
            f"pieces: found a patch of {list(size)} voxels for pieces of at least {list(least)}, "
            "allowed are patches from which several can be cut. Choose a larger one "
            "(training.patch_size)."
        )
    return grid


def _divide(
    length: int, least: int, counts: Collection[int], overlap: float, jitter: float
) -> tuple[int, int, int, int]:
    """Count, step, window and side on one axis."""
    for count in sorted(counts, reverse=True):
        window = int(length / (count - (count - 1) * overlap))
        side = window - round(jitter * window)
        if side >= least or count == 1:
            break
    step = (length - window) // (count - 1) if count > 1 else 0
    return count, step, window, side


def cut_pieces(image: Tensor, begins: Tensor, side: Sequence[int]) -> Tensor:
    """Copies pieces out of images, voxel by voxel.

    Args:
        image: (B, C, *S).
        begins: first voxel of each piece, (B, N, d) int64; pieces lie inside the image.
        side: voxels of a piece per array axis (d,).

    Returns:
        (B, N, C, *side).
    """
    samples, pieces, dimension = begins.shape
    begins = begins.to(image.device, non_blocking=True)
    index = torch.zeros(samples, pieces, *[1] * dimension, dtype=torch.int64, device=image.device)
    for axis, length in enumerate(side):
        own = torch.arange(length, device=image.device).view(-1, *[1] * (dimension - 1 - axis))
        first = begins[:, :, axis].reshape(samples, pieces, *[1] * dimension)
        index = index * image.shape[2 + axis] + first + own
    voxels = image.flatten(2)
    channels = voxels.shape[1]
    cut = voxels.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1))
    return cut.view(samples, channels, pieces, *side).transpose(1, 2)


def standardise(pieces: Tensor) -> Tensor:
    """Every piece and channel with mean 0 and deviation 1, and flat ones 0: (B, N, C, *S).

    The smallest deviation is measured by all pieces of the sample, so that noise in an empty piece
    is not made as loud as anatomy; rounding, which InstanceNorm would make loud, is taken away.
    """
    with torch.autocast(pieces.device.type, enabled=False):
        pieces, axes = pieces.float(), tuple(range(3, pieces.ndim))
        centred = pieces - pieces.mean(axes, keepdim=True)
        variance = centred.square().mean(axes, keepdim=True)
        least = FAINT * variance.mean(1, keepdim=True)
        flat = variance <= FLAT * pieces.square().mean(axes, keepdim=True)
        scale = (variance + least).clamp_min(1e-30).rsqrt()
        return (centred * scale).masked_fill(flat, 0)
