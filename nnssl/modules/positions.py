"""Where a view lies in its volume, and to which part of the volume it belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nnssl.modules.grids import coordinates, volume_centre


def extent3(patch_size: Sequence[int]) -> tuple[int, int, int]:
    """Extent of a patch on the three axes of a volume; a 2D patch is one slice thick."""
    return (1, *patch_size) if len(patch_size) == 2 else tuple(patch_size)  # type: ignore[return-value]


def find_parts(
    batch: Mapping[str, Any], matrix: Tensor, patch_size: Sequence[int], parts: int
) -> Tensor:
    """Part (0 to parts-1, counted towards the head) of each view's centre.

    The range of reachable first voxels, `L - e + 1` of them for volume length L and patch extent e,
    is divided into `parts` equal quantiles.

    Args:
        batch: a loader's batch (`box`, `shape`, `axis`, `sign`).
        matrix: (B, d, d+1) of the view.
        patch_size: nominal size of a view, length d.
        parts: number of parts S.

    Returns:
        (B,) int64 on the device of `matrix`.
    """
    axis, sign = (batch[key].to(matrix.device) for key in ("axis", "sign"))
    first, places = (
        x.gather(1, axis[:, None])[:, 0] for x in _find_places(batch, matrix, patch_size)
    )
    part = ((first + 0.5) * parts / places).floor().clamp(0, parts - 1).long()
    return torch.where(sign > 0, part, parts - 1 - part)


def find_positions(
    batch: Mapping[str, Any], matrix: Tensor, patch_size: Sequence[int], every_axis: bool = False
) -> Tensor:
    """Where each view's centre lies among the reachable ones, 0 to 1; 1 is the head.

    Args:
        batch: a loader's batch (`box`, `shape`, `axis`, `sign`).
        matrix: (B, d, d+1) of the view.
        patch_size: nominal size of a view, length d.
        every_axis: on all axes, of which only the position axis knows a direction of the body.

    Returns:
        (B, 1), with `every_axis` (B, 3) in the order of the array axes.
    """
    axis, sign = (batch[key].to(matrix.device) for key in ("axis", "sign"))
    first, places = _find_places(batch, matrix, patch_size)
    position = ((first + 0.5) / places).clamp(0, 1)  # (B, 3)
    along = torch.arange(3, device=matrix.device) == axis[:, None]
    position = torch.where(along & (sign < 0)[:, None], 1 - position, position)
    return position if every_axis else position.gather(1, axis[:, None])


def _find_places(
    batch: Mapping[str, Any], matrix: Tensor, patch_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """First voxel of each view, and how many there are to choose from: (B, 3) each."""
    device = matrix.device
    extent = torch.tensor(extent3(patch_size)).to(device, non_blocking=True)
    first = volume_centre(matrix, batch["box"].to(device)) - extent / 2
    length = batch["shape"].to(device)
    return first, (length - extent.to(length) + 1).clamp_min(1)


def voxel_positions(batch: Mapping[str, Any], matrix: Tensor, size: Sequence[int]) -> Tensor:
    """Where every voxel of a view lies in its volume.

    Args:
        batch: a loader's batch (`box`, `shape`).
        matrix: (B, d, d+1) of the view.
        size: voxels of the view per array axis (d,).

    Returns:
        (B, 3, *size): -1 to 1 between the outer edges of the volume's array axes, beyond in the
        padding; a 2D view has its slice's position on axis 0.
    """
    box, shape = batch["box"].to(matrix), batch["shape"].to(matrix)  # (B, 3, 2), (B, 3)
    in_raw_patch = coordinates(matrix, size).flip(-1).movedim(-1, 1)  # (B, d, *size), array axes
    if len(size) == 2:  # the middle of the raw patch's only slice
        in_raw_patch = torch.cat([torch.zeros_like(in_raw_patch[:, :1]), in_raw_patch], dim=1)
    axes = (len(matrix), 3, *[1] * len(size))
    begin, end = (edge.reshape(axes) for edge in box.unbind(-1))
    voxel = begin + (in_raw_patch + 1) / 2 * (end - begin)
    return 2 * voxel / shape.reshape(axes) - 1
