"""nnU-Net's augmentation of labelled images: whole batches at once, on the batch's own device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.spatial import (
    create_affine_matrix_2d,
    create_affine_matrix_3d,
)
from torch import Tensor

from nnssl.views.geometry import Placement
from nnssl.views.intensity import (
    apply_along_axes,
    find_mean,
    find_std,
    make_gaussians,
    make_resamplings,
)
from nnssl.views.randomness import generator

ROTATED, SCALED = 0.2, 0.2  # shares of the samples
SCALE = (0.7, 1.4)
OUTSIDE = -1  # nnU-Net's label of voxels outside an image
TINY = 1e-7


def _noise(image: Tensor, sigma: Tensor) -> Tensor:
    """Drawn from torch's own generator, which a step seeds."""
    return image + _spread(sigma, image) * torch.randn_like(image)


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    lengths = enumerate(image.shape[2:])
    return apply_along_axes(
        image, {a: make_gaussians(sigma[:, a, None, None], length) for a, length in lengths}
    )


def _multiply(image: Tensor, factor: Tensor) -> Tensor:
    return image * _spread(factor, image)


def _change_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """About the mean, within the image's own range."""
    low, high = _find_range(image)
    changed = torch.lerp(find_mean(image), image, _spread(factor, image))
    return torch.minimum(torch.maximum(changed, low), high)


def _lower_resolution(image: Tensor, share: Tensor) -> Tensor:
    """Axes with a share of 1 stay as they are."""
    lengths = enumerate(image.shape[2:])
    return apply_along_axes(
        image, {a: make_resamplings(share[:, a, None, None], length) for a, length in lengths}
    )


def _change_gamma(image: Tensor, exponent: Tensor) -> Tensor:
    """A power of the image scaled to 0 to 1; mean and standard deviation stay."""
    low, high = _find_range(image)
    span = high - low
    changed = ((image - low) / span.clamp_min(TINY)) ** _spread(exponent, image) * span + low
    ratio = find_std(image) / find_std(changed).clamp_min(TINY)
    return (changed - find_mean(changed)) * ratio + find_mean(image)


def _change_gamma_of_negative(image: Tensor, exponent: Tensor) -> Tensor:
    return -_change_gamma(-image, exponent)


def _spread(values: Tensor, image: Tensor) -> Tensor:
    """The first of each row, over an image: (n, k) to (n, 1, 1, ...)."""
    return values[:, 0].reshape(-1, *[1] * (image.ndim - 1))


def _find_range(image: Tensor) -> tuple[Tensor, Tensor]:
    axes = tuple(range(2, image.ndim))
    return image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)


@dataclass(frozen=True)
class _Change:
    """A change of intensities and how it is drawn.

    Attributes:
        apply: of images (n, 1, *S) and strengths (n, d), one per axis.
        probability: that a sample is changed.
        low: smallest strength.
        high: largest strength.
        channels: probability of each channel of such a sample.
        two_sided: below and above 1 equally often.
        per_axis: a strength for every axis, else one for all.
        shared: one strength for all channels.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    probability: float
    low: float
    high: float
    channels: float = 1.0
    two_sided: bool = False
    per_axis: bool = False
    shared: bool = False

    def draw(self, random: np.random.Generator, channels: int, axes: int) -> np.ndarray | None:
        """Strengths (channels, axes), NaN for a channel that stays; None: all stay."""
        if random.random() >= self.probability:
            return None
        size = (1 if self.shared else channels, axes if self.per_axis else 1)
        strengths = random.uniform(self.low, self.high, size)
        if self.two_sided:
            below = random.uniform(self.low, 1, size)
            above = random.uniform(1, self.high, size)
            strengths = np.where(random.random(size) < 0.5, below, above)
        drawn = np.broadcast_to(strengths, (channels, axes)).copy()
        drawn[random.random(channels) >= self.channels] = np.nan
        return drawn


CHANGES = (  # in nnU-Net's order, with its numbers
    _Change(_noise, 0.1, 0.0, 0.1, shared=True),
    _Change(_blur, 0.2, 0.5, 1.0, channels=0.5, per_axis=True),
    _Change(_multiply, 0.15, 0.75, 1.25, two_sided=True),
    _Change(_change_contrast, 0.15, 0.75, 1.25, two_sided=True),
    _Change(_lower_resolution, 0.25, 0.5, 1.0, channels=0.5),
    _Change(_change_gamma_of_negative, 0.1, 0.7, 1.5, two_sided=True),
    _Change(_change_gamma, 0.3, 0.7, 1.5, two_sided=True),
)


@dataclass(frozen=True)
class StockAugmentation:
    """Rotation, scaling, intensities, mirroring and mask as nnU-Net's transforms draw them.

    The same probabilities and ranges; a sample depends on its key only, noise aside.

    Attributes:
        patch_size: voxels of a finished sample per array axis (d,).
        rotation: smallest and largest angle in radians, about each axis.
        mirror_axes: image axes that are mirrored with probability 0.5 each.
        flat: axis 0 is neither rotated nor scaled nor lowered in resolution (nnU-Net's dummy 2D
            augmentation).
        masked: channels that are 0 where the label is `OUTSIDE`.
        labels: values that labels may have.

    Differs from nnU-Net: a blur near the border weighs what is inside, where nnU-Net mirrors.
    """

    patch_size: tuple[int, ...]
    rotation: tuple[float, float]
    mirror_axes: tuple[int, ...]
    flat: bool
    masked: tuple[int, ...]
    labels: tuple[int, ...]

    @torch.no_grad()
    def __call__(
        self, images: Tensor, labels: Tensor | None, keys: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Makes samples of raw patches.

        Args:
            images: float32 (n, C, *P).
            labels: integers (n, 1, *P), or None.
            keys: int64 (n, 4) on the CPU.

        Returns:
            Images (n, C, *S) and labels (n, 1, *S), 0 outside the image.
        """
        generators = [generator(key, "augmentation") for key in keys]
        affines = np.stack([self._draw_affine(random) for random in generators])
        placement = Placement(affines, self.patch_size, images.shape[2:])
        with torch.autocast(images.device.type, enabled=False):
            images = self._change_intensities(placement.image(images.float()), generators)
            found = None if labels is None else self._cut_labels(labels, placement)
        mirrored = [random.random(len(self.mirror_axes)) < 0.5 for random in generators]
        images = self._mirror(images, mirrored)
        if found is None:
            return images, None
        found = self._mirror(found, mirrored)
        for channel in self.masked:
            images[:, channel].masked_fill_(found[:, 0] == OUTSIDE, 0)
        return images, found.masked_fill(found == OUTSIDE, 0)

    def _draw_affine(self, random: np.random.Generator) -> np.ndarray:
        """(d, d+1): voxel offsets from the centre of the sample to those of the raw patch."""
        dimension = len(self.patch_size)
        turned, scaled = random.random() < ROTATED, random.random() < SCALED
        angles = random.uniform(*self.rotation, 3) if turned else np.zeros(3)
        scale = random.uniform(*SCALE) if scaled else 1.0
        if dimension == 3 and not self.flat:
            linear = create_affine_matrix_3d(angles, [scale] * 3)
        else:
            linear = create_affine_matrix_2d(angles[-1], [scale] * 2)
        affine = np.eye(dimension, dimension + 1)
        affine[-len(linear) :, dimension - len(linear) : dimension] = linear
        return affine

    def _change_intensities(
        self, images: Tensor, generators: Sequence[np.random.Generator]
    ) -> Tensor:
        channels, axes = images.shape[1], images.ndim - 2
        single = images.flatten(0, 1)[:, None]  # (n C, 1, *S)
        nothing = np.full((channels, axes), np.nan)
        for change in CHANGES:
            drawn = [change.draw(random, channels, axes) for random in generators]
            strengths = np.concatenate([nothing if d is None else d for d in drawn])
            if change.apply is _lower_resolution and self.flat:
                strengths[:, 0] = np.where(np.isnan(strengths[:, 0]), np.nan, 1.0)
            chosen = np.flatnonzero(~np.isnan(strengths[:, 0]))
            if len(chosen):
                rows = torch.from_numpy(chosen).to(images.device, non_blocking=True)
                values = torch.from_numpy(strengths[chosen]).to(single)
                single = single.index_copy(0, rows, change.apply(single[rows], values))
        return single[:, 0].reshape(images.shape)

    def _cut_labels(self, labels: Tensor, placement: Placement) -> Tensor:
        """The label with the largest interpolated share at every voxel, (n, 1, *S)."""
        if placement.still.all():
            return placement.dense_target(labels[:, 0].long())[:, None].to(labels.dtype)
        best = labels.new_full((len(labels), 1, *self.patch_size), OUTSIDE)
        share = 1 - placement.image((labels != OUTSIDE).float())  # of what is outside
        for value in self.labels:
            found = placement.image((labels == value).float())
            best = torch.where(found > share, value, best)
            share = torch.maximum(found, share)
        return best

    def _mirror(self, values: Tensor, mirrored: Sequence[np.ndarray]) -> Tensor:
        for number, axis in enumerate(self.mirror_axes):
            chosen = [row for row, axes in enumerate(mirrored) if axes[number]]
            if chosen:
                rows = torch.tensor(chosen, device=values.device)
                values = values.index_copy(0, rows, values[rows].flip(axis + 2))
        return values
