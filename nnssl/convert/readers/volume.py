"""What a reader returns, and the knobs that all readers share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

FOURTH_AXES = ("channels", "first")
HEADERS = ("exact", "repair")
SLICES = ("refuse", "resample")


@dataclass(frozen=True)
class Reading:
    """How files become a volume.

    Args:
        fourth_axis: Meaning of a fourth axis: ``channels`` (file k of a case is its k-th entry)
            or ``first`` (the first time frame is taken); ``None``: refused.
        headers: ``repair`` takes the nearest rotation for slightly skewed axes, and gives a label
            whose header disagrees the geometry of its image (sizes must agree); ``exact`` refuses.
        slices: What happens to DICOM series with gantry tilt or uneven slice distance.
        channels: Number of channels of a case.
    """

    fourth_axis: str | None = None
    headers: str = "exact"
    slices: str = "refuse"
    channels: int = 1


@dataclass(frozen=True)
class Volume:
    """An image of three axes, the SHA-256 of its files, and what was done to it."""

    image: sitk.Image
    sha256: str
    notes: tuple[str, ...] = ()


def hash_of(paths: Iterable[Path]) -> str:
    """SHA-256 of one file, or of the hashes of several in their order."""
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def image_of(
    array: np.ndarray, spacing: Iterable[float], origin: Iterable[float], direction: Iterable[float]
) -> sitk.Image:
    """An image from an array (z, y, x) and its geometry (x, y, z; mm; LPS)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing([float(value) for value in spacing])
    image.SetOrigin([float(value) for value in origin])
    image.SetDirection([float(value) for value in direction])
    return image


def last_line(error: Exception) -> str:
    """The last line of an error: the one that says what happened."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
