"""Random geometry of views: one composed affine per sample, one interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nnssl.modules.grids import sample
from nnssl.views.randomness import generator

ANISOTROPY = 3.0  # nnU-Net's own threshold: beyond it an axis is coarse


def find_fine_axes(spacing: Sequence[float]) -> list[int]:
    """Axes along which a voxel is not more than three times as long as along the finest."""
    return [axis for axis, length in enumerate(spacing) if length <= ANISOTROPY * min(spacing)]


class Geometry:
    """Zoom, stretch, rotation, shift and flip, drawn per sample and composed into one affine.

    Voxel offsets from the centre of the view become voxel offsets from the centre of the raw patch:
    `x_raw = diag(1/spacing) R diag(spacing) diag(scale * stretch * flip) x_view + shift * size`
    with the size of the patch; a view of scale 1 sees as many voxels as it has. The rotation R acts
    in millimetres.

    The arguments are those of `RandomView`.
    """

    def __init__(
        self,
        rotation: float,
        scale: Sequence[float],
        stretch: float,
        shift: float,
        flip: float | Sequence[int],
        rotate_coarse: bool,
    ) -> None:
        self.rotation, self.scale = math.radians(rotation), tuple(scale)
        self.stretch, self.shift, self.rotate_coarse = stretch, shift, rotate_coarse
        self.flip = tuple(flip) if isinstance(flip, Sequence) else float(flip)

    def draw(
        self,
        random: np.random.Generator,
        patch_size: Sequence[int],
        spacing: Sequence[float],
    ) -> np.ndarray:
        """Draws one affine.

        Args:
            random: generator of the sample.
            patch_size: voxels per array axis (d,), to which the shift is relative.
            spacing: millimetres per voxel and array axis (d,).

        Returns:
            (d, d+1) float64: voxel offsets from the view's to the raw patch's centre, array order.
        """
        dimension = len(patch_size)
        zoom = np.exp(random.uniform(*np.log(self.scale)))
        stretch = np.exp(random.uniform(-1, 1, dimension) * np.log(self.stretch))
        listed = not isinstance(self.flip, float)
        chance = np.isin(np.arange(dimension), self.flip) * 0.5 if listed else self.flip
        flip = np.where(random.random(dimension) < chance, -1, 1)
        shift = random.uniform(-1, 1, dimension) * self.shift * np.array(patch_size)
        angle = random.uniform(-1, 1) * self.rotation
        turn = _rotation(random, self._rotating_axes(spacing), dimension, angle)
        ratio = np.array(spacing) / np.array(spacing)[:, None]  # row a, column b: s_b / s_a
        return np.column_stack([turn * ratio * (zoom * stretch * flip), shift])

    def reach(
        self, size: Sequence[int], patch_size: Sequence[int], spacing: Sequence[float]
    ) -> np.ndarray:
        """Farthest distance of any view's corner from the raw patch's centre, in voxels per axis.

        A rotation by an angle of at most r turns a corner at distance |h| from the centre towards
        an axis by r at most: the farthest it gets along the axis is |h| cos(max(0, angle - r)).
        """
        extent = np.array(size) / 2 * self.scale[1] * self.stretch * np.array(spacing)  # mm
        farthest = extent.copy()
        axes = self._rotating_axes(spacing)
        length = np.linalg.norm(extent[axes])
        if length > 0:
            angle = np.arccos(np.clip(extent[axes] / length, 0, 1))
            farthest[axes] = length * np.cos(np.maximum(0, angle - self.rotation))
        return np.asarray(farthest / np.array(spacing) + self.shift * np.array(patch_size))

    def check(self, patch_size: Sequence[int], spacing: Sequence[float], dimension: int) -> None:
        """Refuses a patch, spacing or axis to flip that an image of this dimension cannot have.

        Raises:
            ValueError: naming the parameter.
        """
        for name, value in (("patch_size", patch_size), ("spacing", spacing)):
            if len(value) != dimension or not all(item > 0 for item in value):
                raise ValueError(
                    f"{name} is {list(value)}; allowed are {dimension} numbers above 0, one per "
                    "image axis"
                )
        if not isinstance(self.flip, float) and max(self.flip, default=0) >= dimension:
            raise ValueError(
                f"flip is {list(self.flip)}; allowed are the image's axes 0 to {dimension - 1}"
            )

    def _rotating_axes(self, spacing: Sequence[float]) -> list[int]:
        if len(spacing) == 2 or self.rotate_coarse:
            return list(range(len(spacing)))
        return find_fine_axes(spacing)


class Placement:
    """Drawn affines of a batch, ready to cut images and dense targets out of raw patches.

    Args:
        affines: (B, d, d+1) float64 of `Geometry.draw`.
        size: the view's voxels per array axis (d,).
        raw_patch: the raw patch's voxels per array axis (d,).
    """

    def __init__(self, affines: np.ndarray, size: Sequence[int], raw_patch: Sequence[int]) -> None:
        self.size = tuple(size)
        self.before = [(p - s) // 2 for p, s in zip(raw_patch, size, strict=True)]
        lattice = self.before + (np.array(size) - np.array(raw_patch)) / 2  # 0 or -0.5 voxels
        self.still = np.all(affines == np.eye(*affines.shape[1:]), axis=(1, 2))  # (B,)
        voxels = affines + np.pad(lattice[:, None], ((0, 0), (len(size), 0)))
        columns = np.append(np.array(size) / 2, 1)
        normalised = voxels * columns * 2 / np.array(raw_patch)[:, None]
        reverse = np.append(np.arange(len(size))[::-1], len(size))
        self._matrix = torch.from_numpy(normalised[:, ::-1][:, :, reverse].copy())

    def matrix(self, device: torch.device) -> Tensor:
        """(B, d, d+1) float32, the view's normalised coordinates to the raw patch's."""
        return self._matrix.float().to(device, non_blocking=True)

    def image(self, raw_patch: Tensor) -> Tensor:
        """Cuts the view out of raw patches (B, C, *P): linear, zeros outside; (B, C, *S)."""
        return self._cut(raw_patch, self.matrix(raw_patch.device), "bilinear")

    def dense_target(self, raw_patch: Tensor) -> Tensor:
        """Cuts the view out of integer maps (B, *P): nearest, -1 outside; (B, *S) int64."""
        shifted = (raw_patch + 1).unsqueeze(1).double()  # float64 holds every integer below 2**53
        matrix = self._matrix.to(raw_patch.device, non_blocking=True)
        cut = self._cut(shifted, matrix, "nearest")
        return cut.squeeze(1).round().long() - 1

    def _cut(self, raw_patch: Tensor, matrix: Tensor, mode: str) -> Tensor:
        if self.still.all():
            return self._cut_centre(raw_patch)
        cut = sample(raw_patch, matrix, self.size, mode)
        if self.still.any():  # the patch itself, without the rounding of an interpolation
            rows = torch.from_numpy(self.still.nonzero()[0])
            rows = rows.to(raw_patch.device, non_blocking=True)
            cut = cut.index_copy(0, rows, self._cut_centre(raw_patch[rows]))
        return cut

    def _cut_centre(self, raw_patch: Tensor) -> Tensor:
        pads: list[int] = []
        for before, length, full in zip(self.before, self.size, raw_patch.shape[2:], strict=True):
            pads = [-before, before + length - full, *pads]  # negative: cut away
        return functional.pad(raw_patch, pads)


def place(
    geometry: Geometry | None,
    keys: Tensor,
    salt: str,
    size: Sequence[int],
    raw_patch: Sequence[int],
    patch_size: Sequence[int],
    spacing: Sequence[float],
) -> Placement:
    """Draws the geometry of one view for every sample of a batch.

    Args:
        geometry: what to draw from; None for the centre of the raw patch as it is.
        keys: int64 (B, 4).
        salt: name of the view.
        size: the view's voxels per array axis (d,).
        raw_patch: the raw patch's voxels per array axis (d,).
        patch_size: voxels per array axis (d,), to which shifts are relative.
        spacing: millimetres per voxel and array axis (d,).
    """
    if geometry is None:
        affines = [np.eye(len(size), len(size) + 1) for _ in keys]
    else:
        affines = [
            geometry.draw(generator(key, salt, "geometry"), patch_size, spacing) for key in keys
        ]
    return Placement(np.stack(affines), size, raw_patch)


def _rotation(
    random: np.random.Generator, axes: Sequence[int], dimension: int, angle: float
) -> np.ndarray:
    """Rotation within the given array axes: one plane, or any plane of three axes (Rodrigues)."""
    skew = np.zeros((dimension, dimension))
    for a, b in combinations(axes, 2):
        skew[a, b] = random.normal()
        skew[b, a] = -skew[a, b]
    skew *= math.sqrt(2) / max(float(np.linalg.norm(skew)), 1e-12)
    return np.asarray(
        np.eye(dimension) + math.sin(angle) * skew + (1 - math.cos(angle)) * skew @ skew
    )
