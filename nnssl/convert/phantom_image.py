"""Look of a synthetic short-axis cine image: tissues, surroundings and the scanner.

Reference of the scanner's noise: Gudbjartsson and Patz, The Rician distribution of noisy MRI data,
1995, doi:10.1002/mrm.1910340618.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnssl.convert.phantom_anatomy import Anatomy, Field, Shape

BLOOD, MUSCLE, FAT, LUNG, LIVER = 0.74, 0.22, 0.90, 0.06, 0.30  # relative signal


@dataclass(frozen=True)
class Grid:
    """Positions (mm) of a stack of slices, and its voxel size; 0 is the heart's centre."""

    z: Field  # (Z, 1, 1)
    y: Field  # (1, Y, 1)
    x: Field  # (1, 1, X)
    spacing: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        return self.z.shape[0], self.y.shape[1], self.x.shape[2]


def smooth_noise(rng: np.random.Generator, grid: Grid, length: float) -> Field:
    """Gaussian noise of mean 0 and variance 1 per slice, smooth over ``length`` mm in the plane."""
    white = rng.standard_normal(grid.shape, np.float32)
    smooth = np.fft.irfft2(np.fft.rfft2(white) * _gaussian(grid, length), grid.shape[1:])
    smooth = smooth - smooth.mean((1, 2), keepdims=True)
    return (smooth / (smooth.std((1, 2), keepdims=True) + 1e-6)).astype(np.float32)


def along_stack(field: Field, share: float = 0.6) -> Field:
    """Let each slice keep a share of the one before: anatomy changes slowly through the stack."""
    out = field.copy()
    for index in range(1, len(out)):
        out[index] = share * out[index - 1] + np.sqrt(1 - share**2) * out[index]
    return out


def _gaussian(grid: Grid, length: float) -> NDArray[np.float64]:
    """Transfer function of a Gaussian of standard deviation ``length`` mm, (Y, X // 2 + 1)."""
    fy = np.fft.fftfreq(grid.shape[1], grid.spacing)[:, None]
    fx = np.fft.rfftfreq(grid.shape[2], grid.spacing)[None]
    return np.exp(-2 * (np.pi * length) ** 2 * (fy**2 + fx**2))


def soft(distance: Field, width: float = 1.5) -> Field:
    """Share of a tissue in a voxel, from the signed distance to its border (mm)."""
    return np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)


def paint(image: Field, share: Field, value: Field | float) -> None:
    """Put a tissue over what is there."""
    image += share * (value - image)


def surroundings(rng: np.random.Generator, grid: Grid) -> Field:
    """Chest wall, lungs with vessels, liver, stomach and aorta: everything but the heart."""
    coarse, fine = (along_stack(smooth_noise(rng, grid, mm)) for mm in (22, 2.5))
    medium = along_stack(smooth_noise(rng, grid, 6))
    image = np.zeros(grid.shape, np.float32)
    tilt = np.float32(rng.normal(0, 0.15)) * grid.y
    wide, tall = rng.uniform(100, 125), rng.uniform(155, 190)
    across = (grid.x - rng.uniform(8, 24) + tilt) / wide
    along = (grid.y - 12) / tall
    body = (1 - (np.abs(across) ** 2.6 + np.abs(along) ** 2.6) ** (1 / 2.6)) * wide
    body = body + 5 * coarse
    paint(image, soft(body, 3), FAT + 0.06 * medium)
    inside = body - rng.uniform(8, 18) - 4 * np.clip(coarse, -1, 2) + 0.6 * medium
    paint(image, soft(inside), MUSCLE - 0.03 + 0.07 * medium)
    _lungs(rng, image, grid, inside - rng.uniform(8, 14) - 1.5 * coarse, medium, fine)
    _abdomen(rng, image, grid, inside - 6, coarse, medium, fine)
    return image


def _lungs(
    rng: np.random.Generator, image: Field, grid: Grid, inside: Field, medium: Field, fine: Field
) -> None:
    vessels = np.clip(fine - 2.0, 0, 1) * np.exp(-np.hypot(grid.x, grid.y + 25) / 55) * 1.6
    paint(image, soft(inside), LUNG + vessels + 0.012 * medium)
    at = rng.normal([62, 40], 8)
    aorta = rng.uniform(10, 13) - np.hypot(grid.x - at[0], grid.y - at[1])
    paint(image, soft(aorta + 2), MUSCLE)
    paint(image, soft(aorta), BLOOD)


def _abdomen(
    rng: np.random.Generator,
    image: Field,
    grid: Grid,
    inside: Field,
    coarse: Field,
    medium: Field,
    fine: Field,
) -> None:
    dome = rng.uniform(25, 42) - 0.25 * (grid.z - 40) + 0.0035 * (grid.x + 10) ** 2
    below = np.minimum(grid.y - dome - 3 * coarse, inside)
    border = rng.uniform(-5, 35) + 10 * coarse + 0.3 * (grid.z - 40)
    liver = LIVER + 0.02 * medium + 0.35 * np.clip(fine - 1.9, 0, 1)
    bowel = 0.32 + 0.2 * medium + 0.08 * fine
    organs = np.where(grid.x < border, liver, np.clip(bowel, 0.03, 0.9))
    paint(image, soft(below), organs.astype(np.float32))
    paint(image, soft(2.0 - np.abs(below - 1)) * soft(medium, 1), FAT * 0.8)


def heart(rng: np.random.Generator, image: Field, grid: Grid, anatomy: Anatomy, s: Shape) -> None:
    """Paint the heart over its surroundings.

    Args:
        rng: Source of texture; the same for both phases of a patient.
        image: Surroundings (Z, Y, X), changed in place.
        grid: Positions.
        anatomy: The patient.
        s: Shape of the phase.
    """
    medium, fine = (along_stack(smooth_noise(rng, grid, mm)) for mm in (7, 2.2))
    reached = soft(1.04 - s.depth, 0.12)
    sac = np.maximum(s.outer, s.rv + 4)
    septal = 0.5 + 0.5 * np.cos(s.angle - np.float32(anatomy.septum))
    fat = 8 * septal * np.clip(0.4 + 0.5 * medium, -0.2, 1.2) - 1.5
    paint(image, soft(sac + fat + 1.5) * reached, MUSCLE * 0.6)
    paint(image, soft(sac + fat) * reached, FAT * (0.8 + 0.08 * fine))
    paint(image, soft(s.rv + 1.8) * reached, MUSCLE)
    trabeculae = soft(fine - 0.9, 1) * soft(7 - s.rv, 6) * np.clip(s.depth + 0.4, 0, 1)
    blood = BLOOD * (0.93 + 0.05 * medium + 0.035 * fine)
    paint(image, soft(s.rv) * reached, blood + 0.8 * trabeculae * (MUSCLE - blood))
    paint(image, soft(s.outer) * reached, MUSCLE * (1 + 0.06 * medium + 0.05 * fine))
    rough = soft(fine - 0.5, 1) * soft(6 - s.cavity, 6) * np.clip(0.1 + s.depth * 1.6, 0, 0.95)
    blood = BLOOD * (1.07 + 0.05 * medium + 0.05 * fine)
    paint(image, soft(s.cavity) * reached, blood + rough * (MUSCLE - blood))
    _papillary_muscles(image, anatomy, s)


def _papillary_muscles(image: Field, anatomy: Anatomy, s: Shape) -> None:
    cavity = s.cavity + s.radius
    present = soft(0.32 - np.abs(s.depth - 0.5), 0.1)
    for angle, place, size in anatomy.papillary.astype(np.float32):
        direction = np.float32(anatomy.septum + np.pi) + angle
        away = np.abs((s.angle - direction + np.pi) % (2 * np.pi) - np.pi)
        distance = np.hypot(away * s.radius, s.radius - place * cavity)
        paint(image, soft(size * cavity - distance) * present * soft(s.cavity), MUSCLE * 1.1)


def acquire(
    rng: np.random.Generator, coil: np.random.Generator, image: Field, grid: Grid
) -> NDArray[np.int16]:
    """What a scanner makes of it: bias field, limited resolution, Rician noise, its own scale.

    Args:
        rng: Source of the noise; its own for each image.
        coil: Source of bias field and scale; the same for both phases of a patient.
        image: Signal (Z, Y, X), about 0 to 1.
        grid: Positions.
    """
    direction = coil.uniform(np.pi, np.pi * 1.4)
    towards = np.cos(direction) * grid.x + np.sin(direction) * grid.y
    bias = np.exp(0.0028 * towards + 0.12 * smooth_noise(coil, grid, 70)[:1])
    sharpness = _gaussian(grid, 0.42 * grid.spacing)
    blurred = np.fft.irfft2(np.fft.rfft2(image * bias) * sharpness, grid.shape[1:])
    sigma = coil.uniform(0.012, 0.03)
    real, imaginary = rng.normal(0, sigma, (2, *grid.shape))
    magnitude = np.hypot(blurred + real, imaginary)
    return np.clip(magnitude * coil.uniform(180, 900), 0, 32767).astype(np.int16)
