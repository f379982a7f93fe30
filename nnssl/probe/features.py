"""Frozen features: outputs of all encoder stages at every voxel of a volume, in bounded memory.

A 2D network sees slices along array axis 0, in batches; a 3D network sees the volume, or tiles of
it where it is large. Tiles begin at multiples of the network's stride and overlap, so that a voxel
away from a tile's edge sees its whole neighbourhood. They still differ a little from the whole
volume: instance normalisation takes its statistics from the tile (as from a patch in training).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnssl.modules import grids, unet

MOST_VOXELS = 2**20  # of the images that are encoded at a time
MARGIN = 2  # bottleneck cells by which a tile overlaps its neighbours
_UPSAMPLING = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Block:
    """Encoder outputs of one part of a volume; for a 2D network axis 0 of the part is the batch.

    Attributes:
        begin: first voxel of the part in the volume (3,), array order.
        shape: voxels of the part (3,).
        inner: first voxel of the part in the image that was encoded (d,).
        size: size of that image (d,), a multiple of the stride.
        stages: outputs (B, F_s, *S_s), highest resolution first; B slices, or 1 volume.
    """

    begin: tuple[int, ...]
    shape: tuple[int, ...]
    inner: tuple[int, ...]
    size: tuple[int, ...]
    stages: tuple[Tensor, ...]

    @property
    def where(self) -> tuple[slice, ...]:
        """Index of the part in the volume."""
        return tuple(slice(b, b + n) for b, n in zip(self.begin, self.shape, strict=True))

    def project(self, weight: Tensor) -> Tensor:
        """`weight @ features` at every voxel: channels are mixed before upsampling, which is cheap.

        Args:
            weight: (K, F), F the features of all stages.

        Returns:
            (K, *shape).
        """
        parts = weight.split([stage.shape[1] for stage in self.stages], dim=1)
        mixed = (
            torch.einsum("kf,bf...->bk...", part, stage)
            for part, stage in zip(parts, self.stages, strict=True)
        )
        return sum((self._upsampled(stage) for stage in mixed), start=weight.new_zeros(()))

    def at(self, voxels: Tensor) -> Tensor:
        """Features at some voxels only.

        Args:
            voxels: (N, 3) integers in the part, array order.

        Returns:
            (N, F), linear between the cells of each stage.
        """
        dimension = len(self.size)
        identity = torch.eye(dimension, dimension + 1, device=voxels.device)[None]
        centres = grids.coordinates(identity, self.size)[0]  # (*size, d)
        flat = (1, *[1] * (dimension - 1), -1, dimension)
        features = voxels.new_zeros((len(voxels), self.features), dtype=self.stages[0].dtype)
        image = voxels[:, 0] if dimension == 2 else torch.zeros_like(voxels[:, 0])
        inside = voxels[:, 3 - dimension :] + torch.tensor(self.inner, device=voxels.device)
        for number in image.unique().tolist():
            chosen = image == number
            grid = centres[tuple(inside[chosen].T)].reshape(flat)
            read = [_read(stage[number : number + 1], grid) for stage in self.stages]
            features[chosen] = torch.cat(read, dim=1)
        return features

    @property
    def features(self) -> int:
        """Features F of all stages together."""
        return sum(stage.shape[1] for stage in self.stages)

    def cells(self) -> tuple[tuple[int, ...], Tensor]:
        """First cell in the volume's bottleneck map, and the part's cells of it, (F, *cells)."""
        last = self.stages[-1]
        stride = [n // cells for n, cells in zip(self.size, last.shape[2:], strict=True)]
        where = [
            slice(i // s, -(-(i + n) // s))
            for i, n, s in zip(self.inner, self.shape[-len(stride) :], stride, strict=True)
        ]
        steps = [1] * (3 - len(stride)) + stride
        first = tuple(b // s for b, s in zip(self.begin, steps, strict=True))
        return first, _as_volume(last[_spatial(where)])

    def _upsampled(self, stage: Tensor) -> Tensor:
        """(B, K, *S_s) to (K, *shape)."""
        mode = _UPSAMPLING[len(self.size)]
        full = functional.interpolate(stage, self.size, mode=mode, align_corners=False)
        extent = self.shape[-len(self.size) :]
        where = tuple(slice(i, i + n) for i, n in zip(self.inner, extent, strict=True))
        return _as_volume(full[_spatial(where)])


def encode_blocks(
    network: nn.Module, image: Tensor, most_voxels: int = MOST_VOXELS, margin: int = MARGIN
) -> Iterator[Block]:
    """Encodes a volume part by part; call it inside `evaluating(network)`.

    Args:
        network: the U-Net, 2D or 3D.
        image: (C, Z, Y, X) on the network's device; padded with zeros to multiples of the stride.
        most_voxels: of an image that is encoded at a time (at least one slice, or one bottleneck
            cell with its margin).
        margin: bottleneck cells by which tiles overlap.

    Raises:
        ValueError: an image without four axes.
    """
    if image.ndim != 4:
        raise ValueError(f"image: found shape {tuple(image.shape)}, allowed: (C, Z, Y, X)")
    stride = unet.total_stride(network)
    if len(stride) == 2:
        yield from _slice_blocks(network, image, stride, most_voxels)
    else:
        yield from _tile_blocks(network, image, stride, most_voxels, margin)


def _slice_blocks(
    network: nn.Module, image: Tensor, stride: Sequence[int], most_voxels: int
) -> Iterator[Block]:
    padded = _padded(image, stride)
    size = tuple(padded.shape[2:])
    count = max(1, most_voxels // prod(size))
    for begin in range(0, image.shape[1], count):
        slices = padded[:, begin : begin + count].transpose(0, 1)  # (B, C, Y, X)
        shape = (len(slices), *image.shape[2:])
        yield Block((begin, 0, 0), shape, (0, 0), size, tuple(unet.encode(network, slices)))


def _tile_blocks(
    network: nn.Module, image: Tensor, stride: Sequence[int], most_voxels: int, margin: int
) -> Iterator[Block]:
    padded = _padded(image, stride)
    cells = [n // s for n, s in zip(padded.shape[1:], stride, strict=True)]
    core = _core(cells, stride, most_voxels, margin)
    for first in product(*(range(0, n, c) for n, c in zip(cells, core, strict=True))):
        low = [max(0, f - margin) for f in first]
        high = [min(n, f + c + margin) for n, f, c in zip(cells, first, core, strict=True)]
        cut = [slice(a * s, b * s) for a, b, s in zip(low, high, stride, strict=True)]
        tile = padded[_spatial(cut)]
        begin = tuple(f * s for f, s in zip(first, stride, strict=True))
        shape = tuple(
            min(c * s, n - b)
            for c, s, n, b in zip(core, stride, image.shape[1:], begin, strict=True)
        )
        if min(shape) < 1:  # only padding
            continue
        inner = tuple(b - a * s for b, a, s in zip(begin, low, stride, strict=True))
        stages = tuple(unet.encode(network, tile[None]))
        yield Block(begin, shape, inner, tuple(tile.shape[1:]), stages)


def _core(
    cells: Sequence[int], stride: Sequence[int], most_voxels: int, margin: int
) -> tuple[int, ...]:
    """Bottleneck cells of a tile without its margin: the longest axis is halved until it fits."""
    core = list(cells)

    def voxels(axis: int) -> int:
        return min(cells[axis], core[axis] + 2 * margin) * stride[axis]

    while prod(voxels(axis) for axis in range(3)) > most_voxels and max(core) > 1:
        longest = max((axis for axis in range(3) if core[axis] > 1), key=voxels)
        core[longest] = -(-core[longest] // 2)
    return tuple(core)


def _padded(image: Tensor, stride: Sequence[int]) -> Tensor:
    """Zeros at the end of the encoded axes; never a single bottleneck cell, which InstanceNorm
    refuses."""
    extent = image.shape[-len(stride) :]
    cells = [-(-n // s) for n, s in zip(extent, stride, strict=True)]
    cells[-1] += prod(cells) == 1
    missing = [c * s - n for c, s, n in zip(cells, stride, extent, strict=True)]
    return functional.pad(image, [n for m in reversed(missing) for n in (0, m)])


def _spatial(where: Iterable[slice]) -> tuple[Any, ...]:
    """Index of the last axes."""
    return (..., *where)


def _as_volume(x: Tensor) -> Tensor:
    """(B, K, Y, X) to (K, B, Y, X); (1, K, Z, Y, X) to (K, Z, Y, X)."""
    return x.transpose(0, 1) if x.ndim == 4 else x[0]


def _read(stage: Tensor, grid: Tensor) -> Tensor:
    """(1, F, *S) at the points of a grid (1, ..., N, d): (N, F)."""
    values = functional.grid_sample(
        stage, grid.to(stage.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )
    return values.flatten(2)[0].T
