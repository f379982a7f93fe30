"""Random views of a raw patch: geometry, then intensity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnssl.common.checks import flag, number, whole
from nnssl.views.geometry import Geometry, Placement, place
from nnssl.views.intensity import OPERATIONS, Intensity
from nnssl.views.view import View


class RandomView:
    """A group of independently drawn views of every raw patch of a batch.

    Intensity operations are given as [probability, lowest, highest strength], or null for none;
    strengths are uniform, per channel, relative to the image's own statistics, in nnU-Net's order:
    noise, blur, brightness, contrast, low resolution, gamma.

    Args:
        count: views per raw patch, at least 1.
        size_fraction: size of a view relative to the patch, above 0; small ones are local views.
        rotation: largest angle in degrees, 0 to 180. In 3D about an axis of any direction; where
            one spacing is more than three times the finest, within the fine plane.
        scale: smallest and largest field of view, relative to the view's own size.
        stretch: at least 1; every axis is scaled by a further factor in [1 / stretch, stretch].
        shift: largest offset of the centre along each axis, as fraction of the patch.
        flip: probability of mirroring each axis, or a list of the array axes that are mirrored with
            probability 0.5.
        rotate_coarse: rotate out of the fine plane in spite of a coarse axis.
        noise: standard deviation, in standard deviations of the image.
        blur: sigma in voxels of the finest axis.
        brightness: added, in standard deviations of the image.
        contrast: factor about the mean.
        low_resolution: simulated resolution, as fraction of the real one.
        gamma: exponent on the image's robust range.
        gamma_inverted: the same for the negative image.
        original_first: the first view is the centred patch, without any augmentation.

    Raises:
        ValueError: a parameter is outside its range.
    """

    def __init__(
        self,
        *,
        count: int = 2,
        size_fraction: float = 1.0,
        rotation: float = 15.0,
        scale: Sequence[float] = (0.8, 1.25),
        stretch: float = 1.1,
        shift: float = 0.1,
        flip: float | Sequence[int] = 0.5,
        rotate_coarse: bool = False,
        noise: Sequence[float] | None = (0.2, 0.0, 0.2),
        blur: Sequence[float] | None = (0.2, 0.5, 1.0),
        brightness: Sequence[float] | None = (0.5, -0.3, 0.3),
        contrast: Sequence[float] | None = (0.5, 0.7, 1.3),
        low_resolution: Sequence[float] | None = (0.2, 0.5, 1.0),
        gamma: Sequence[float] | None = (0.3, 0.7, 1.5),
        gamma_inverted: Sequence[float] | None = (0.1, 0.7, 1.5),
        original_first: bool = False,
    ) -> None:
        self.count = whole("count", count, 1)
        self.size_fraction = number("size_fraction", size_fraction, 0.01, 10)
        self.geometry = Geometry(rotation, scale, stretch, shift, flip, rotate_coarse)
        chosen = {
            "noise": noise,
            "blur": blur,
            "brightness": brightness,
            "contrast": contrast,
            "low_resolution": low_resolution,
            "gamma": gamma,
            "gamma_inverted": gamma_inverted,
        }
        self.intensities = [
            _intensity(name, chosen[name]) for name in OPERATIONS if chosen[name] is not None
        ]
        self.original_first = flag("original_first", original_first)

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
        originals = {f"{name}_0"} if self.original_first else set()
        names = [f"{name}_{index}" for index in range(self.count)]
        with torch.autocast(batch["image"].device.type, enabled=False):
            return {
                view: self._view(batch, view, view in originals, patch_size, spacing)
                for view in names
            }

    def _view(
        self,
        batch: Mapping[str, Any],
        name: str,
        original: bool,
        patch_size: Sequence[int],
        spacing: Sequence[float],
    ) -> View:
        raw_patch, keys = batch["image"].float(), batch["key"]
        placement = place(
            None if original else self.geometry,
            keys,
            name,
            self.size(patch_size),
            raw_patch.shape[2:],
            patch_size,
            spacing,
        )
        image = placement.image(raw_patch)
        if not original:
            image = self._change(image, keys, name, spacing)
        return View(image, placement.matrix(raw_patch.device), _dense_targets(batch, placement))

    def _change(self, image: Tensor, keys: Tensor, name: str, spacing: Sequence[float]) -> Tensor:
        for intensity in self.intensities:
            image = intensity(image, keys, name, spacing)
        return image


def _dense_targets(batch: Mapping[str, Any], placement: Placement) -> dict[str, Tensor]:
    dense_targets = batch.get("dense_targets", {})
    return {
        name: placement.dense_target(dense_target) for name, dense_target in dense_targets.items()
    }


def _intensity(name: str, triple: Sequence[float] | None) -> Intensity:
    if not isinstance(triple, Sequence) or len(triple) != 3:
        raise ValueError(
            f"{name} is {triple!r}; allowed are [probability, lowest, highest strength] or null"
        )
    return Intensity(name, *triple)


def _same_parity(needed: float, size: int) -> int:
    """Smallest raw patch that is large enough and has the view's centre in its own centre."""
    raw_patch = math.ceil(needed - 1e-6)
    return raw_patch + (raw_patch - size) % 2
