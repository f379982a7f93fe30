"""Local pixel shuffling of Models Genesis, for all voxels at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnssl.views.randomness import torch_generator

WINDOWS_PER_VOXEL = 10_000 / (64 * 64 * 32)  # of the original, for cubes of 64 x 64 x 32
LARGEST_WINDOW = 10  # windows are at most 1/10 of each axis
RANDOM_BITS = 12  # resolution of the draws, per axis


def local_shuffle(image: Tensor, keys: Tensor, salt: str, windows: float) -> Tensor:
    """Every voxel takes the value of a random voxel of a small window that holds both.

    The original writes shuffled windows one after the other, each read from the undeformed image,
    so that of the windows over a voxel the last one counts. Here every voxel draws, by itself, what
    that leads to: whether any window covers it (their number is Poisson), the sides of the last
    one, a place in it and the place of the source. Whether and how far a voxel's value travels has
    the same distribution. It differs in that neighbours draw apart (values may repeat, which in
    the original only overlapping windows bring about), and in that at the border windows are
    mirrored rather than kept inside. Channels move together.

    Args:
        image: (n, C, *S).
        keys: int64 (n, 4) on the CPU.
        salt: name of the view.
        windows: windows per voxel.

    Returns:
        (n, C, *S), each value one of the image's own.
    """
    size = image.shape[2:]
    bits = torch.stack([_random_bits(key, image.device, salt, size) for key in keys])  # (n, *S)
    sides = [max(1, length // LARGEST_WINDOW) for length in size]
    levels = 2**RANDOM_BITS
    volume = float(np.prod([(side + 1) / 2 for side in sides]))  # of a mean window
    moved = _draw(bits, len(size)) < (1 - np.exp(-windows * volume)) * levels
    source = torch.zeros_like(bits)
    for axis, length in enumerate(size):
        table = torch.from_numpy(_displacements(sides[axis], levels)).to(image.device)
        own = torch.arange(length, device=image.device).reshape(-1, *[1] * (len(size) - 1 - axis))
        step = torch.where(moved, table[_draw(bits, axis)], 0)
        source = source * length + _mirrored(own + step, length)
    voxels = image.flatten(2)
    return voxels.gather(2, source.flatten(1)[:, None].expand_as(voxels)).view_as(image)


def _random_bits(key: Tensor, device: torch.device, salt: str, size: Sequence[int]) -> Tensor:
    random = torch_generator(key, device, salt, "shuffle field")
    return torch.randint(2 ** (RANDOM_BITS * 4), tuple(size), generator=random, device=device)


def _draw(bits: Tensor, number: int) -> Tensor:
    """One of the independent uniform integers below 2 ** RANDOM_BITS that a field holds."""
    return (bits >> (RANDOM_BITS * number)) & (2**RANDOM_BITS - 1)


def _displacements(side: int, levels: int) -> np.ndarray:
    """Inverse distribution of the way from a voxel to its source along one axis.

    A window that covers a voxel has side s with a probability proportional to s; voxel and source
    have independent uniform places in it: `P(k) = sum_s s / sum(1..side) * (s - |k|)+ / s^2`.
    """
    steps = np.arange(1 - side, side)
    s = np.arange(1, side + 1)[:, None]
    probability = (np.maximum(s - np.abs(steps), 0) / s).sum(0) / s.sum()
    centres = (np.arange(levels) + 0.5) / levels
    return steps[np.searchsorted(probability.cumsum(), centres).clip(max=len(steps) - 1)]


def _mirrored(index: Tensor, length: int) -> Tensor:
    """Indices beyond an edge, mirrored at it (the edge's own voxel is its own image)."""
    index = torch.where(index < 0, -index - 1, index)
    return torch.where(index >= length, 2 * length - 1 - index, index)
