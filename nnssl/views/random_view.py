"""Random views of a raw patch: geometry, then intensity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from nnssl.common.checks import Count, Fraction, checked
from nnssl.views.geometry import Geometry, place
from nnssl.views.intensity import (
    RISING,
    Change,
    Exponent,
    Offset,
    Resolution,
    UpTo10,
    UpTo100,
    make_intensities,
)

Zoom = Annotated[float, Interval(ge=0.01, le=100)]
Axis = Annotated[int, Interval(ge=0, le=2)]


@dataclass
class View:
    """One augmented version of each raw patch, and where it lies in the raw patch.

    Attributes:
        image: (B, C, *S) float32.
        matrix: (B, d, d+1) float32, maps normalised coordinates of the view to those of the raw
            patch (`align_corners=False`, component order of `affine_grid`: last array axis first).
        dense_targets: integer maps (B, *S) int64 on the same grid, -1 where nothing is known.
    """

    image: Tensor
    matrix: Tensor
    dense_targets: dict[str, Tensor] = field(default_factory=dict)


@checked
class RandomView:
    """A group of independently drawn views of every raw patch of a batch.

    Intensity operations are given as [probability, lowest, highest strength], or null for none;
    strengths are uniform, per channel, relative to the image's own statistics, in nnU-Net's order:
    noise, blur, brightness, contrast, low resolution, gamma.

    Args:
        count: views per raw patch.
        size_fraction: size of a view relative to the patch; small ones are local views.
        rotation: largest angle in degrees. In 3D about an axis of any direction; where one spacing
            is more than three times the finest, within the fine plane.
        scale: smallest and largest field of view, relative to the view's own size; log-uniform,
            equal on all axes.
        stretch: every axis is scaled by a further log-uniform factor in [1 / stretch, stretch].
        shift: largest offset of the centre along each axis, as fraction of the patch.
        flip: probability of mirroring each axis, or a list of the array axes that are mirrored with
            probability 0.5.
        rotate_coarse: rotate out of the fine plane in spite of a coarse axis.
        noise: standard deviation of Gaussian noise, in standard deviations of the image.
        blur: sigma of a Gaussian blur, in voxels of the finest axis.
        brightness: what is added, in standard deviations of the image.
        contrast: factor about the mean.
        low_resolution: simulated resolution, as fraction of the real one.
        gamma: exponent on the image's robust range; above 1 darkens.
        gamma_inverted: the same for the negative image; above 1 brightens.
        original_first: the first view is the centred patch, without any augmentation.

    Raises:
        ValueError: a parameter is outside its range.
    """

    def __init__(
        self,
        *,
        count: Count = 2,
        size_fraction: Annotated[float, Interval(ge=0.01, le=10)] = 1.0,
        rotation: Annotated[float, Interval(ge=0, le=180)] = 15.0,
        scale: Annotated[tuple[Zoom, Zoom], RISING] = (0.8, 1.25),
        stretch: Annotated[float, Interval(ge=1, le=10)] = 1.1,
        shift: UpTo10 = 0.1,
        flip: Fraction | Sequence[Axis] = 0.5,
        rotate_coarse: bool = False,
        noise: Change[UpTo10] | None = (0.2, 0.0, 0.2),
        blur: Change[UpTo100] | None = (0.2, 0.5, 1.0),
        brightness: Change[Offset] | None = (0.5, -0.3, 0.3),
        contrast: Change[UpTo10] | None = (0.5, 0.7, 1.3),
        low_resolution: Change[Resolution] | None = (0.2, 0.5, 1.0),
        gamma: Change[Exponent] | None = (0.3, 0.7, 1.5),
        gamma_inverted: Change[Exponent] | None = (0.1, 0.7, 1.5),
        original_first: bool = False,
    ) -> None:
        self.count, self.size_fraction, self.original_first = count, size_fraction, original_first
        self.geometry = Geometry(rotation, scale, stretch, shift, flip, rotate_coarse)
        self.intensities = make_intensities(
            noise=noise,
            blur=blur,
            brightness=brightness,
            contrast=contrast,
            low_resolution=low_resolution,
            gamma=gamma,
            gamma_inverted=gamma_inverted,
        )

    def size(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Voxels of a view per array axis: `patch_size * size_fraction`, rounded, at least 1."""
        return tuple(max(1, round(length * self.size_fraction)) for length in patch_size)

    def raw_patch_size(
        self, patch_size: Sequence[int], spacing: Sequence[float]
    ) -> tuple[int, ...]:
        """Smallest raw patch that no view reaches out of, whatever is drawn.

        Args:
            patch_size: voxels per array axis (d,).
            spacing: millimetres per voxel and array axis (d,).

        Returns:
            Voxels per array axis (d,).

        Raises:
            ValueError: patch, spacing and the axes to flip do not fit each other.
        """
        self.geometry.check(patch_size, spacing, len(patch_size))
        size = self.size(patch_size)
        needed = 2 * self.geometry.reach(size, patch_size, spacing)
        if self.original_first:
            needed = np.maximum(needed, size)
        return tuple(_same_parity(n, s) for n, s in zip(needed.tolist(), size, strict=True))

    @torch.no_grad()
    def __call__(
        self,
        batch: Mapping[str, Any],
        name: str,
        patch_size: Sequence[int],
        spacing: Sequence[float],
    ) -> dict[str, View]:
        """Makes the views on the batch's device; raw patches below `raw_patch_size` are allowed.

        Args:
            batch: with `image` (B, C, *P), `key` (B, 4), optional `dense_targets`; not changed.
            name: name of the group; view number i is `name_i`.
            patch_size: voxels per array axis (d,).
            spacing: millimetres per voxel and array axis (d,).

        Returns:
            Views of size `size(patch_size)`, by name.

        Raises:
            ValueError: patch, spacing and the axes to flip do not fit the image.
        """
        self.geometry.check(patch_size, spacing, batch["image"].ndim - 2)
        raw_patch, keys, views = batch["image"].float(), batch["key"], {}
        size, maps = self.size(patch_size), batch.get("dense_targets", {}).items()
        with torch.autocast(raw_patch.device.type, enabled=False):
            for index in range(self.count):
                view, original = f"{name}_{index}", self.original_first and index == 0
                geometry = None if original else self.geometry
                sizes = (size, raw_patch.shape[2:], patch_size)
                placement = place(geometry, keys, view, *sizes, spacing)
                image = placement.image(raw_patch)
                for intensity in [] if original else self.intensities:
                    image = intensity(image, keys, view, spacing)
                targets = {each: placement.dense_target(values) for each, values in maps}
                views[view] = View(image, placement.matrix(raw_patch.device), targets)
        return views


def _same_parity(needed: float, size: int) -> int:
    """Smallest raw patch that is large enough and has the view's centre in its own centre."""
    raw_patch = math.ceil(needed - 1e-6)
    return raw_patch + (raw_patch - size) % 2
