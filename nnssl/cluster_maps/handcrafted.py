"""Features of every voxel that need no weights: intensity, edges and position at several scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

Window = tuple[slice, slice, slice]
SLAB = 8  # slices that are filtered at once
REACH = 4.0  # sigmas at which scipy cuts a Gaussian off


class HandcraftedFeatures:
    """Smoothed intensity, gradient magnitude and Laplacian per channel and scale, and position.

    Args:
        scales: sigmas in voxels of the finest axis; in 2D within the slice.
        spacing: millimetres per voxel on the image's own axes (2 or 3).
        position: weight of the three coordinates, each from -1 to 1 over the volume.
    """

    def __init__(self, scales: Sequence[float], spacing: Sequence[float], position: float) -> None:
        finest = min(spacing)
        per_axis = [finest / s for s in spacing]
        flat = [0.0] * (3 - len(per_axis))
        self.sigmas = [[*flat, *(scale * ratio for ratio in per_axis)] for scale in scales]
        self.position = position

    def weights(self, features: int) -> np.ndarray:
        """Weight of each of the F features after standardisation, (F,)."""
        return np.array([1.0] * (features - 3) + [self.position] * 3)

    def windows(self, image: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
        """Slabs of the volume with their features.

        Args:
            image: (C, Z, Y, X) float32.

        Yields:
            the slab's place and features (F, z, Y, X).
        """
        depth = image.shape[1]
        halo = int(np.ceil(REACH * max(sigma[0] for sigma in self.sigmas)))
        for begin in range(0, depth, SLAB):
            end = min(begin + SLAB, depth)
            low, high = max(0, begin - halo), min(depth, end + halo)
            inner = slice(begin - low, end - low)
            maps = [m[inner] for channel in image[:, low:high] for m in self._filter(channel)]
            place = (slice(begin, end), slice(None), slice(None))
            yield place, np.stack([*maps, *_compute_position(image.shape[1:], begin, end)])

    def _filter(self, channel: np.ndarray) -> Iterator[np.ndarray]:
        axes = [axis for axis in range(3) if self.sigmas[0][axis] > 0]
        for sigma in self.sigmas:
            smooth = ndimage.gaussian_filter(channel, sigma)
            orders = {a: [np.eye(3, dtype=int)[a] * n for n in (1, 2)] for a in axes}
            first = [ndimage.gaussian_filter(channel, sigma, orders[a][0]) for a in axes]
            second = [ndimage.gaussian_filter(channel, sigma, orders[a][1]) for a in axes]
            yield smooth
            yield np.sqrt(sum((sigma[a] * d) ** 2 for a, d in zip(axes, first, strict=True)))
            yield sum(sigma[a] ** 2 * d for a, d in zip(axes, second, strict=True))


def _compute_position(shape: Sequence[int], begin: int, end: int) -> list[np.ndarray]:
    axes = [(2 * np.arange(n, dtype=np.float32) + 1) / n - 1 for n in shape]
    axes[0] = axes[0][begin:end]
    return list(np.broadcast_arrays(*np.meshgrid(*axes, indexing="ij", copy=False)))
