"""Coordinates of views: the only place of coordinate arithmetic.

A matrix (B, d, d+1) maps homogeneous normalised coordinates of a view to those of the raw patch it
was cut from. -1 and 1 are the outer edges of the outer voxels (`align_corners=False`), components
are in the order of `torch.nn.functional.affine_grid`: last array axis first. All arithmetic is
elementwise, hence float32 under autocast as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def coordinates(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """Where the centres of a view's cells lie in the raw patch.

    Args:
        matrix: (B, d, d+1), view to raw patch.
        size: cells of the view per array axis (d,).

    Returns:
        (B, *size, d) normalised coordinates, last array axis first, as `grid_sample` wants them.
    """
    dimension = _dimension(matrix)
    if len(size) != dimension:
        raise ValueError(f"size is {list(size)}; allowed are {dimension} numbers, one per axis")
    vector = [1] * dimension + [dimension]
    total = matrix[:, :, -1].reshape(-1, *vector)
    for axis in range(dimension - 1, -1, -1):  # last array axis first: only one large sum
        cells = torch.arange(size[axis], device=matrix.device, dtype=matrix.dtype)
        steps = (2 * cells + 1) / size[axis] - 1
        column = matrix[:, :, dimension - 1 - axis].reshape(-1, *vector)
        total = total + steps.reshape(-1, *[1] * (dimension - axis)) * column
    return total


def sample(
    image: Tensor,
    matrix: Tensor,
    size: Sequence[int],
    mode: str = "bilinear",
    padding: str = "zeros",
) -> Tensor:
    """Reads an image at the cells of a view; differentiable in the image.

    Args:
        image: (B, C, *P).
        matrix: (B, d, d+1), view to image.
        size: cells of the view per array axis (d,).
        mode: "bilinear" (linear in 3D as well) or "nearest".
        padding: outside the image "zeros" or "border".

    Returns:
        (B, C, *size), at least float32.
    """
    image = image.to(torch.promote_types(image.dtype, matrix.dtype))
    grid = coordinates(matrix, size).to(image.dtype)
    return functional.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=False)


def transform(matrix: Tensor, points: Tensor) -> Tensor:
    """Where points of a view lie in its raw patch.

    Args:
        matrix: (B, d, d+1), view to raw patch.
        points: (N, d) normalised coordinates, last array axis first.

    Returns:
        (B, N, d).
    """
    moved = (matrix[:, None, :, :-1] * points.to(matrix)[None, :, None]).sum(-1)
    return moved + matrix[:, None, :, -1]


def read(image: Tensor, points: Tensor) -> Tensor:
    """Linear interpolation at points; outside, the value at the edge. Differentiable in the image.

    Args:
        image: (B, C, *P).
        points: (B, N, d) normalised coordinates, last array axis first.

    Returns:
        (B, C, N), at least float32.
    """
    image = image.to(torch.promote_types(image.dtype, points.dtype))
    grid = points.to(image.dtype).reshape(*points.shape[:2], *[1] * (image.ndim - 3), -1)
    found = functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
    return found.flatten(2)


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, *P) at another size, linearly: (B, C, *size)."""
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    return functional.interpolate(image, tuple(size), mode=mode, align_corners=False)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The map that applies `inner` first and `outer` to the result, (B, d, d+1) each."""
    linear = (outer[:, :, :-1, None] * inner[:, None]).sum(2)  # (B, d, d+1)
    offset = functional.pad(outer[:, :, -1:], (_dimension(outer), 0))
    return linear + offset


def invert(matrix: Tensor) -> Tensor:
    """The inverse map: view to raw patch becomes raw patch to view, (B, d, d+1) each."""
    linear = torch.linalg.inv_ex(matrix[:, :, :-1]).inverse  # (B, d, d), without waiting for a GPU
    offset = -(linear * matrix[:, None, :, -1]).sum(-1, keepdim=True)
    return torch.cat([linear, offset], dim=-1)


def align(
    map_a: Tensor, matrix_a: Tensor, matrix_b: Tensor, size: Sequence[int] | None = None
) -> Tensor:
    """Features of view a, read at the cells of view b of the same raw patch.

    Outside of a the value at its edge is repeated; `overlap` tells which cells are valid.

    Args:
        map_a: (B, F, *S) features of view a.
        matrix_a: (B, d, d+1), view a to raw patch.
        matrix_b: (B, d, d+1), view b to raw patch.
        size: cells of b per array axis; those of `map_a` if not given.

    Returns:
        (B, F, *size).
    """
    b_to_a = compose(invert(matrix_a), matrix_b)
    return sample(map_a, b_to_a, size or map_a.shape[2:], padding="border")


def overlap(matrix_a: Tensor, matrix_b: Tensor, size: Sequence[int]) -> Tensor:
    """Which cells of view b have their centre inside view a.

    Args:
        matrix_a: (B, d, d+1), view a to raw patch.
        matrix_b: (B, d, d+1), view b to raw patch.
        size: cells of b per array axis (d,).

    Returns:
        (B, *size) bool.
    """
    return (coordinates(compose(invert(matrix_a), matrix_b), size).abs() <= 1).all(-1)


def find_shared(matrix_a: Tensor, matrix_b: Tensor, size: Sequence[int], least: float) -> Tensor:
    """Cells of b inside a, as weights; none of a pair of which either view sees too little.

    Args:
        matrix_a: (B, d, d+1), view a to raw patch.
        matrix_b: (B, d, d+1), view b to raw patch.
        size: cells of either view per array axis (d,).
        least: share of each other that both views must see.

    Returns:
        (B, *size) float32.
    """
    b_in_a = overlap(matrix_a, matrix_b, size).float()
    a_in_b = overlap(matrix_b, matrix_a, size).float()
    shared = torch.minimum(b_in_a.flatten(1).mean(1), a_in_b.flatten(1).mean(1))
    return b_in_a * (shared >= least).float().reshape(-1, *[1] * len(size))


def volume_centre(matrix: Tensor, box: Tensor) -> Tensor:
    """Centre of a view in the whole volume; a 2D view lies in its raw patch's slice.

    Args:
        matrix: (B, d, d+1), view to raw patch.
        box: (B, 3, 2), begin and end (exclusive) of the raw patch in its volume, voxels.

    Returns:
        (B, 3) voxels from the outer edge of the first voxel, in the order of the array axes.
    """
    begin, end = box.to(matrix).unbind(-1)
    centre = matrix[:, :, -1].flip(-1)  # of the view in the raw patch, array order
    relative = functional.pad(centre, (3 - _dimension(matrix), 0))  # 0: the middle
    return begin + (relative + 1) / 2 * (end - begin)


def _dimension(matrix: Tensor) -> int:
    if matrix.ndim != 3 or matrix.shape[1:] not in ((2, 3), (3, 4)):
        raise ValueError(
            f"matrix has shape {tuple(matrix.shape)}; allowed are (B, 2, 3) and (B, 3, 4)"
        )
    return matrix.shape[1]
