"""Files as scanners and challenges write them: NIfTI, MGZ, MetaImage, DICOM, PNG."""

from __future__ import annotations

import locale
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

SHAPE = (5, 8, 7)  # z, y, x
SPACING = (1.5, 1.25, 3.0)
ORIGIN = (-3.0, 4.5, 10.0)
TURNED = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0)
UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def intensities(seed: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """A bright box in air, with noise; no two seeds alike."""
    values = np.random.default_rng(seed).integers(-1000, -900, shape)
    values[..., 2:-2, 2:-2] += 1000
    return values.astype(np.int16)


def values_in(values: Sequence[int], shape: Sequence[int] = SHAPE, kind: type = np.int16):
    """A label that holds each of the values."""
    return np.resize(np.asarray(values), shape).astype(kind)


def write(
    path: Path, array: np.ndarray, direction: Sequence[float] = TURNED, origin=ORIGIN
) -> Path:
    """A volume with an unusual geometry; the ending chooses the format (4D: z, y, x, then t)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    four = array.ndim == 4
    image.SetSpacing((*SPACING, 1.0)[: array.ndim])
    image.SetOrigin((*origin, 0.0)[: array.ndim])
    matrix = np.eye(array.ndim)
    matrix[:3, :3] = np.reshape(direction, (3, 3))
    image.SetDirection(matrix.ravel() if not four else np.eye(4).ravel())
    sitk.WriteImage(image, str(path))
    return path


def mgz(path: Path, array: np.ndarray, shift: float = 0.0) -> Path:
    """A FreeSurfer volume (x, y, z) whose axes run left, superior, posterior."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.array([[-1.0, 0, 0, 90 + shift], [0, 0, 1.5, -60], [0, -1.25, 0, 70], [0, 0, 0, 1]])
    nibabel.save(nibabel.MGHImage(array.T, affine), path)
    return path


def dicom(
    folder: Path,
    array: np.ndarray,
    names: str = "IMG-0004-{:05d}.dcm",
    places: Sequence[Sequence[float]] | None = None,
    **options,
) -> list[Path]:
    """A series, slice k (of z) at ``places[k]``; file names count against the slices' order.

    Options: ``first`` and ``step`` of names and instance numbers, ``series``, ``instances``,
    ``modality``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = places or [(-50.0, -60.0, 3.0 * k - 20) for k in range(len(array))]
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    before = locale.setlocale(locale.LC_ALL)  # ITK's writer of DICOM sets it to C
    paths = []
    for k, (values, place) in enumerate(zip(array, places, strict=True)):
        number = options.get("first", 1) + options.get("step", 1) * (len(array) - 1 - k)
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(SPACING[:2])
        tags = {
            "0008|0060": options.get("modality", "CT"),
            "0020|000e": options.get("series", "1.2.826.1").format(k),
            "0020|0013": str(options.get("instances", {}).get(k, number)),
            "0020|0032": "\\".join(map(str, place)),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0008|0018": f"1.2.826.1.{folder.name.__hash__() % 9999}.{k}",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        paths.append(folder / names.format(number))
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)
    return paths


def pictures(folder: Path, array: np.ndarray, names: Sequence[str]) -> list[Path]:
    """Slices as 8-bit PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in zip(names, array, strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.uint8)), str(folder / name))
    return [folder / name for name in names]


def photograph(path: Path, seed: int) -> Path:
    """A colour picture: a bright disc on black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:24, :30]
    disc = ((y - 12) ** 2 + (x - 15) ** 2 < 81)[..., None]
    colours = np.random.default_rng(seed).integers(120, 250, (24, 30, 3)) * disc
    sitk.WriteImage(sitk.GetImageFromArray(colours.astype(np.uint8), isVector=True), str(path))
    return path
