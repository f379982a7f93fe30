"""Random intensity changes, relative to each image's own statistics: they suit MR and CT alike.

An operation is a function of images (n, C, *S), strengths (n, C) and what else it may need; which
samples it changes and how strongly is drawn apart from it, per sample, by `Intensity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from nnssl.common.checks import Fraction, Rule
from nnssl.views.geometry import find_fine_axes
from nnssl.views.randomness import draw_fields, generator

S = TypeVar("S")
RISING = Rule(lambda given: given[-2] <= given[-1], "the smaller first")
Change = Annotated[tuple[Fraction, S, S], RISING]  # [probability, lowest, highest strength]
UpTo10 = Annotated[float, Interval(ge=0, le=10)]
UpTo100 = Annotated[float, Interval(ge=0, le=100)]
Offset = Annotated[float, Interval(ge=-10, le=10)]
Resolution = Annotated[float, Interval(ge=0.01, le=1)]
Exponent = Annotated[float, Interval(ge=0.1, le=10)]

QUANTILES = (0.005, 0.995)  # robust range of an image, for gamma
QUANTILE_VOXELS = 4096  # voxels that suffice to estimate it


@dataclass(frozen=True)
class IntensityContext:
    """What an operation may need beside images and strengths.

    Attributes:
        keys: int64 (n, 4), one row per image.
        salt: name of the view.
        spacing: millimetres per voxel and array axis (d,).
    """

    keys: Tensor
    salt: str
    spacing: Sequence[float]


def noise(image: Tensor, strength: Tensor, context: IntensityContext) -> Tensor:
    """Gaussian noise: `x + strength * std(x) * n`, n from N(0, 1)."""
    salt = (context.salt, "noise field")
    fields = draw_fields(torch.randn, context.keys, image.shape[1:], image.device, *salt)
    return image + strength * find_std(image) * fields


def blur(image: Tensor, strength: Tensor, context: IntensityContext) -> Tensor:
    """Gaussian blur, isotropic in millimetres; strength: sigma in voxels of the finest axis."""
    finest = min(context.spacing)
    operators = {}
    for axis in find_fine_axes(context.spacing):
        sigma = strength.flatten(2) * finest / context.spacing[axis]
        operators[axis] = make_gaussians(sigma, image.shape[axis + 2])
    return apply_along_axes(image, operators)


def brightness(image: Tensor, strength: Tensor, context: IntensityContext) -> Tensor:
    """`x + strength * std(x)`."""
    return image + strength * find_std(image)


def contrast(image: Tensor, strength: Tensor, context: IntensityContext) -> Tensor:
    """`mean(x) + strength * (x - mean(x))`."""
    return torch.lerp(find_mean(image), image, strength)


def low_resolution(image: Tensor, strength: Tensor, context: IntensityContext) -> Tensor:
    """Fine axes down by nearest neighbour to `strength` times their size, and up linearly."""
    operators = {
        axis: make_resamplings(strength.flatten(2), image.shape[axis + 2])
        for axis in find_fine_axes(context.spacing)
    }
    return apply_along_axes(image, operators)


def gamma(image: Tensor, strength: Tensor, context: IntensityContext) -> Tensor:
    """`low + range * ((x - low) / range) ** strength` between robust quantiles, slope 1 beyond."""
    low, high = find_robust_range(image)
    span = (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    inside = image.clamp(low, high)
    return image - inside + low + (high - low) * ((inside - low) / span) ** strength


def gamma_inverted(image: Tensor, strength: Tensor, context: IntensityContext) -> Tensor:
    """`gamma` of the negative image: acts on the bright end instead of the dark one."""
    return -gamma(-image, strength, context)


Operation = Callable[[Tensor, Tensor, IntensityContext], Tensor]
OPERATIONS: dict[str, Operation] = {  # in nnU-Net's order
    "noise": noise,
    "blur": blur,
    "brightness": brightness,
    "contrast": contrast,
    "low_resolution": low_resolution,
    "gamma": gamma,
    "gamma_inverted": gamma_inverted,
}


class Intensity:
    """One operation that happens to a sample with some probability and a uniform strength.

    Args:
        name: key of `OPERATIONS`.
        probability: that a sample is changed, 0 to 1.
        low: smallest strength; drawn per sample and channel.
        high: largest strength.
    """

    def __init__(self, name: str, probability: float, low: float, high: float) -> None:
        self.name, self._apply = name, OPERATIONS[name]
        self.probability, self.low, self.high = probability, low, high

    def draw(self, random: np.random.Generator, channels: int) -> np.ndarray | None:
        """Strength per channel, or None where the sample stays as it is."""
        if random.random() >= self.probability:
            return None
        return random.uniform(self.low, self.high, channels)

    def __call__(self, image: Tensor, keys: Tensor, salt: str, spacing: Sequence[float]) -> Tensor:
        """Changes some of the samples.

        Args:
            image: (B, C, *S) float32, is not changed.
            keys: int64 (B, 4) on the CPU.
            salt: name of the view.
            spacing: millimetres per voxel and array axis (d,).

        Returns:
            (B, C, *S) float32.
        """
        drawn = [self.draw(generator(key, salt, self.name), image.shape[1]) for key in keys]
        chosen = {row: strength for row, strength in enumerate(drawn) if strength is not None}
        if not chosen:
            return image
        rows = torch.tensor(list(chosen)).to(image.device, non_blocking=True)
        strengths = torch.from_numpy(np.stack(list(chosen.values())))  # (n, C)
        strengths = strengths.to(image, non_blocking=True)
        strengths = strengths.reshape(*strengths.shape, *[1] * (image.ndim - 2))  # (n, C, 1, ...)
        context = IntensityContext(keys[list(chosen)], salt, spacing)
        changed = self._apply(image[rows], strengths, context)
        return image.index_copy(0, rows, changed)


def make_intensities(**changes: Sequence[float] | None) -> list[Intensity]:
    """Operations in nnU-Net's order, each [probability, lowest, highest strength]; without null."""
    given = {name: changes.get(name) for name in OPERATIONS}
    return [Intensity(name, *change) for name, change in given.items() if change is not None]


def find_mean(image: Tensor) -> Tensor:
    return image.mean(dim=tuple(range(2, image.ndim)), keepdim=True)


def find_std(image: Tensor) -> Tensor:
    return image.std(dim=tuple(range(2, image.ndim)), keepdim=True, correction=0)


def find_robust_range(image: Tensor) -> tuple[Tensor, Tensor]:
    """Quantiles (n, C, 1, ...) of voxels that the golden ratio spreads evenly over the image."""
    voxels = image.flatten(2)
    count = voxels.shape[-1]
    if count > QUANTILE_VOXELS:
        steps = torch.arange(QUANTILE_VOXELS, dtype=torch.float64, device=image.device)
        voxels = voxels[..., (steps * (math.sqrt(5) - 1) / 2 % 1 * count).long()]
    quantiles = torch.tensor(QUANTILES, dtype=image.dtype).to(image.device, non_blocking=True)
    low, high = torch.quantile(voxels, quantiles, dim=-1)  # (n, C) each
    shape = (*low.shape, *[1] * (image.ndim - 2))
    return low.reshape(shape), high.reshape(shape)


def apply_along_axes(image: Tensor, operators: dict[int, Tensor]) -> Tensor:
    """Applies matrices (n, C, S, S) along image axes: smoothing is separable."""
    for axis, operator in operators.items():
        moved = image.movedim(axis + 2, -1)  # (n, C, ..., S)
        product = moved.flatten(2, -2) @ operator.mT
        image = product.reshape(moved.shape).movedim(-1, axis + 2)
    return image.contiguous()


def make_gaussians(sigma: Tensor, length: int) -> Tensor:
    """Rows of normalised Gaussians: sigma (n, C, 1) in voxels to (n, C, S, S)."""
    cells = torch.arange(length, device=sigma.device, dtype=sigma.dtype)
    distance = (cells[:, None] - cells) / sigma[..., None].clamp_min(1e-3)
    weights = torch.exp(-0.5 * distance**2)
    return weights / weights.sum(-1, keepdim=True)


def make_resamplings(zoom: Tensor, length: int) -> Tensor:
    """Nearest-neighbour downsampling, then linear upsampling: zoom (n, C, 1) to (n, C, S, S)."""
    coarse = (zoom * length).round().clamp_min(1)  # (n, C, 1) cells
    cells = torch.arange(length, device=zoom.device, dtype=zoom.dtype)
    position = ((cells + 0.5) * coarse / length - 0.5).clamp_min(0)  # (n, C, S) in coarse cells
    position = torch.minimum(position, coarse - 1)
    left = position.floor()
    right = torch.minimum(left + 1, coarse - 1)
    weight = (position - left)[..., None]  # (n, C, S, 1)

    def source(cell: Tensor) -> Tensor:
        fine = ((cell + 0.5) * length / coarse).floor()  # (n, C, S) fine cell that was kept
        return (fine[..., None] == cells).to(zoom.dtype)

    return (1 - weight) * source(left) + weight * source(right)
