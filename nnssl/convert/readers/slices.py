"""Slices of a DICOM series become one straight grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from nnssl.convert.readers.dicom import Series, in_file_order
from nnssl.convert.readers.volume import image_of, last_line


def read_slices(series: Series, how: str) -> tuple[sitk.Image, tuple[str, ...]]:
    """The volume of a series.

    Args:
        series: Headers, in order.
        how: ``refuse`` or ``resample``, for tilted or uneven slices.

    Raises:
        ValueError: Tilted or uneven slices that may not be resampled, colours.
    """
    arrays = [_pixels(each.path) for each in series.slices]
    return assemble(np.stack(arrays), series, how)


def read_pictures_of(
    paths: Sequence[Path], series: Series, how: str
) -> tuple[sitk.Image, tuple[str, ...]]:
    """A label drawn as one picture per slice, on the grid of its series.

    Pictures belong to the slices of their name (``IMG-0004-00002.png``); where names differ, the
    k-th picture belongs to the k-th slice.

    Raises:
        ValueError: Not as many pictures as slices, or their order is not known.
    """
    if len(paths) != len(series.slices):
        stems = {path.stem for path in paths}
        missing = [each.path.name for each in series.slices if each.path.stem not in stems]
        what = f"has {len(paths)} pictures for {len(series.slices)} slices"
        raise ValueError(what + (f"; none for {missing[:5]}" if len(missing) < 20 else ""))
    order = _places_of(paths, series)
    pictures = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths]
    expected = series.slices[0].size[::-1]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != expected:
            raise ValueError(f"has size {picture.shape} in {path.name}; its slice has {expected}")
    return assemble(np.stack([pictures[k] for k in order]), series, how, label=True)


def _places_of(paths: Sequence[Path], series: Series) -> list[int]:
    """For each slice of the series, the number of its picture."""
    stems = {path.stem: number for number, path in enumerate(paths)}
    if all(each.path.stem in stems for each in series.slices):
        return [stems[each.path.stem] for each in series.slices]
    order = in_file_order(series)
    return [order.index(place) for place in range(len(order))]


def assemble(
    array: np.ndarray, series: Series, how: str, label: bool = False
) -> tuple[sitk.Image, tuple[str, ...]]:
    """Put slices (z, y, x) on a straight grid: as they are, or resampled.

    Raises:
        ValueError: Tilted or uneven slices that may not be resampled.
    """
    first, notes = series.slices[0], _deviations(series)
    normal = np.cross(*first.axes)
    direction = np.column_stack([*first.axes, normal]).ravel()
    if not notes:
        spacing = (*first.spacing, series.distance)
        return image_of(array, spacing, first.position, direction), ()
    if how != "resample":
        raise ValueError(
            f"has {' and '.join(notes)}: no straight grid holds these slices; allow resampling "
            "(--resample, or slices: resample in the dataset spec)"
        )
    straight, low = straighten(array, series, label)
    step = series.distance
    origin = first.position + low @ np.array(first.axes)
    note = f"resampled: {' and '.join(notes)}; slice distance {step:.3f} mm"
    return image_of(straight, (*first.spacing, step), origin, direction), (note,)


def straighten(array: np.ndarray, series: Series, label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Undo tilt and uneven distances: linear for images, nearest for labels.

    Every slice is shifted to its place in a field of view that holds all of them; new slices,
    at the median distance, are blends of their two neighbours. Nothing is cut off; what
    no slice covers has the smallest value of the series.

    Returns:
        Volume (z, y, x), and the offset (mm, along columns and rows) of its first voxel.
    """
    spacing = np.array(series.slices[0].spacing)
    low, high = series.shifts.min(axis=0), series.shifts.max(axis=0)
    low, high = np.floor(low / spacing), np.ceil(high / spacing)
    extra = (high - low).astype(int)
    fill = array.min()
    moved = np.full((len(array), *(np.array(array.shape[1:]) + extra[::-1])), fill, np.float32)
    for number, (image, shift) in enumerate(zip(array, series.shifts, strict=True)):
        padded = np.full(moved.shape[1:], fill, np.float32)
        padded[: image.shape[0], : image.shape[1]] = image
        by = (shift / spacing - low)[::-1]
        moved[number] = ndimage.shift(padded, by, order=0 if label else 1, cval=float(fill))
    step = series.distance
    count = math.ceil(series.places[-1] / step - 1e-3) + 1
    where = np.interp(np.arange(count) * step, series.places, np.arange(len(array)))
    below = np.minimum(where.astype(int), len(array) - 2)
    weight = (where - below)[:, None, None].astype(np.float32)
    if label:
        weight = np.round(weight)
    blended = (1 - weight) * moved[below] + weight * moved[below + 1]
    whole = np.issubdtype(array.dtype, np.integer)
    return (np.round(blended) if whole else blended).astype(array.dtype), low * spacing


def _deviations(series: Series) -> list[str]:
    found = [f"a gantry tilt of {series.tilt:.1f} degrees"] if series.tilted else []
    if not series.even:
        steps = np.diff(series.places)
        found.append(f"slice distances from {steps.min():.3f} to {steps.max():.3f} mm")
    return found


def _pixels(path: Path) -> np.ndarray:
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise ValueError(f"cannot be read in {path.name} ({last_line(error)})") from error
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() != 1 or (array.shape[0] != 1 and array.ndim == 3):
        raise ValueError(f"has colours or several frames in {path.name}")
    return array.reshape(array.shape[-2:])
