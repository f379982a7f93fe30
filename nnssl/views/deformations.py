"""The deformations of Models Genesis, on whole batches and on the batch's own device.

They are defined on [0, 1]. Here every image and channel brings its own robust range (0.5 and 99.5
percent quantiles), which takes the place of [0, 1]: z-scored MR and CT behave alike, what lies
beyond the range stays beyond it, and what is not deformed stays as it is, bit for bit.

Which samples are deformed and how is drawn per sample on the CPU; random fields are drawn per
sample on the device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nnssl.common.checks import number
from nnssl.views.intensity import robust_range
from nnssl.views.local_shuffle import WINDOWS_PER_VOXEL, local_shuffle
from nnssl.views.painting import paint
from nnssl.views.randomness import generator

CURVE_POINTS = 1024  # of the table of an intensity curve


class Deformations:
    """Local shuffling, non-linear intensity, and in- or out-painting, in this order.

    Args:
        shuffle: probability of local shuffling.
        nonlinear: probability of a non-linear intensity curve, per channel.
        paint: probability of a painting.
        outpaint: share of out-painting among the paintings; the rest is in-painting.
        windows: windows of local shuffling per voxel.

    Raises:
        ValueError: a parameter is outside its range.
    """

    def __init__(
        self,
        *,
        shuffle: float = 0.5,
        nonlinear: float = 0.9,
        paint: float = 0.9,
        outpaint: float = 0.8,
        windows: float = WINDOWS_PER_VOXEL,
    ) -> None:
        self.shuffle = number("shuffle", shuffle, 0, 1)
        self.nonlinear = number("nonlinear", nonlinear, 0, 1)
        self.paint = number("paint", paint, 0, 1)
        self.outpaint = number("outpaint", outpaint, 0, 1)
        self.windows = number("windows", windows, 0, 10)

    @torch.no_grad()
    def __call__(self, image: Tensor, keys: Tensor, salt: str) -> Tensor:
        """Deforms each image in its own way.

        Args:
            image: (B, C, *S), is not changed.
            keys: int64 (B, 4) on the CPU.
            salt: name of the view.

        Returns:
            (B, C, *S) float32.
        """
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            low, high = robust_range(image)
            deformed = self._shuffled(image, keys, salt)
            deformed = self._curved(deformed, low, high, keys, salt)
            return self._painted(deformed, low, high, keys, salt)

    def _shuffled(self, image: Tensor, keys: Tensor, salt: str) -> Tensor:
        chosen = _chosen(self.shuffle, keys, salt, "shuffle")
        return _changed(
            image, chosen, lambda some: local_shuffle(some, keys[chosen], salt, self.windows)
        )

    def _curved(self, image: Tensor, low: Tensor, high: Tensor, keys: Tensor, salt: str) -> Tensor:
        channels = image.shape[1]
        points = [self._control_points(generator(key, salt, "curve"), channels) for key in keys]
        return nonlinear_intensity(image, low, high, np.stack(points))

    def _control_points(self, random: np.random.Generator, channels: int) -> np.ndarray:
        """Control points, direction and whether to curve at all, per channel: (C, 6)."""
        points = random.random((channels, 4))
        falling = random.random((channels, 1)) < 0.5
        curved = random.random((channels, 1)) < self.nonlinear
        return np.concatenate([points, falling, curved], 1)

    def _painted(self, image: Tensor, low: Tensor, high: Tensor, keys: Tensor, salt: str) -> Tensor:
        chosen = _chosen(self.paint, keys, salt, "paint")
        return _changed(
            image,
            chosen,
            lambda some: paint(some, low[chosen], high[chosen], keys[chosen], salt, self.outpaint),
        )


def nonlinear_intensity(image: Tensor, low: Tensor, high: Tensor, curves: np.ndarray) -> Tensor:
    """Cubic Bezier curves of the intensities within the robust range, slope 1 or -1 beyond it.

    `x(t), y(t) = 3 (1-t)^2 t P1 + 3 (1-t) t^2 P2 + t^3` with P1, P2 in the unit square:
    both never fall, so that a curve rises from (0, 0) to (1, 1), or falls from (0, 1) to (1, 0)
    where y is read backwards (the original sorts x alone, which comes to the same).

    Args:
        image: (B, C, *S).
        low: (B, C, 1, ...).
        high: (B, C, 1, ...).
        curves: (B, C, 6): x and y of P1, x and y of P2, 1 for falling, 1 for curved.

    Returns:
        (B, C, *S).
    """
    tables = np.array([[_table(curve) for curve in channels] for channels in curves])
    table = torch.from_numpy(tables).to(image).flatten(0, 1)  # (B C, points + 1)
    axes = (*low.shape[:2], *[1] * (image.ndim - 2))
    falling, curved = torch.from_numpy(curves[..., 4:]).to(image).unbind(-1)
    span = (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    inside = image.clamp(low, high)
    position = (inside - low) / span * (CURVE_POINTS - 1)
    cell = position.long()
    rows = cell.flatten(2).flatten(0, 1)  # (B C, voxels)
    left = table.gather(1, rows).view_as(image)
    right = table.gather(1, rows + 1).view_as(image)
    mapped = low + (high - low) * torch.lerp(left, right, position - cell)
    mapped = mapped + (image - inside) * (1 - 2 * falling).reshape(axes)
    return torch.where(curved.reshape(axes) > 0, mapped, image)


def _chosen(probability: float, keys: Tensor, salt: str, name: str) -> list[int]:
    return [r for r, key in enumerate(keys) if generator(key, salt, name).random() < probability]


def _changed(image: Tensor, rows: list[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    if not rows:
        return image
    index = torch.tensor(rows, device=image.device)
    return image.index_copy(0, index, change(image[index]))


def _table(curve: np.ndarray) -> np.ndarray:
    """y at equidistant x in [0, 1], the last point twice (its right neighbour)."""
    t = np.linspace(0, 1, CURVE_POINTS)
    weights = np.stack([3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2])  # (2, points)
    x, y = curve[:4].reshape(2, 2).T @ weights + t**3
    values = np.interp(t, x, y[::-1] if curve[4] else y)
    return np.append(values, values[-1])
