"""Blocks of voxels: a coarse grid of cells that tiles an image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def count_cells(size: Sequence[int], block: Sequence[int]) -> list[int]:
    """Blocks per array axis of an image.

    Args:
        size: voxels per array axis (d,).
        block: voxels of a block per array axis (d,).

    Raises:
        ValueError: the blocks do not tile the image.
    """
    fits = len(size) == len(block) and all(
        step > 0 and length % step == 0 for length, step in zip(size, block, strict=True)
    )
    if not fits:
        raise ValueError(
            f"block: found {list(block)} for images of {list(size)} voxels, allowed are divisors "
            "of the image's size, one per image axis"
        )
    return [length // step for length, step in zip(size, block, strict=True)]


def enlarge(cells: Tensor, size: Sequence[int]) -> Tensor:
    """Repeats every cell over its block: (B, F, *cells) to (B, F, *size) of the same type.

    Raises:
        ValueError: the size is not a multiple of the cells.
    """
    counts = cells.shape[2:]
    if any(length % count for length, count in zip(size, counts, strict=True)):
        raise ValueError(
            f"blocks: found {list(counts)} cells for a map of {list(size)}, allowed are cells that "
            "divide it. Choose multiples of the bottleneck's stride as blocks."
        )
    for axis, (count, length) in enumerate(zip(counts, size, strict=True)):
        cells = cells.repeat_interleave(length // count, dim=axis + 2)
    return cells
