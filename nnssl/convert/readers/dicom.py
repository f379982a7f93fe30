"""DICOM series: slices are ordered by their place in the patient, never by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.convert.readers.pictures import natural

POSITION, ORIENTATION = "0020|0032", "0020|0037"
INSTANCE, SERIES, SPACING = "0020|0013", "0020|000e", "0028|0030"
EVEN = 0.02  # largest deviation of a slice distance from the median that counts as even, share
TILT = 0.02  # largest sideways shift per slice, in slice distances


@dataclass(frozen=True)
class Slice:
    """Header of one slice (mm, LPS); ``size`` is (columns, rows)."""

    path: Path
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    size: tuple[int, int]
    instance: int
    series: str


@dataclass(frozen=True)
class Series:
    """Slices from the first to the last along the normal, with their places.

    Args:
        slices: The headers, in order.
        places: Distance of each slice along the normal from the first, mm.
        shifts: Sideways shift of each slice against the first along columns and rows, mm.
    """

    slices: tuple[Slice, ...]
    places: np.ndarray
    shifts: np.ndarray

    @property
    def distance(self) -> float:
        """Median distance of neighbouring slices, mm."""
        return float(np.median(np.diff(self.places))) if len(self.slices) > 1 else 1.0

    @property
    def even(self) -> bool:
        """Whether all distances agree."""
        steps = np.diff(self.places)
        return bool(np.all(np.abs(steps - self.distance) <= EVEN * self.distance))

    @property
    def tilt(self) -> float:
        """Gantry tilt, degrees."""
        if len(self.slices) < 2:
            return 0.0
        sideways = np.linalg.norm(self.shifts[-1]) / self.places[-1]
        return float(np.degrees(np.arctan(sideways)))

    @property
    def tilted(self) -> bool:
        """Whether slices are shifted sideways."""
        steps = np.linalg.norm(np.diff(self.shifts, axis=0), axis=1)
        return bool(np.any(steps > TILT * self.distance))


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark, or at least its ending."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or path.suffix.lower() == ".dcm"


def read_series(paths: Sequence[Path]) -> Series:
    """Read the headers of a series; files that are no DICOM are passed over.

    Raises:
        ValueError: Several series, sizes or orientations, two slices at one place, a missing
            slice, or no place at all.
    """
    slices = [_header(path) for path in paths if is_dicom(path) and path.name != "DICOMDIR"]
    if not slices:
        raise ValueError(f"holds no DICOM file among {len(paths)} files")
    _check_one_series(slices)
    across = slices[0].axes
    normal = np.cross(across[0], across[1])
    slices.sort(key=lambda each: float(each.position @ normal))
    offsets = np.array([each.position - slices[0].position for each in slices])
    series = Series(tuple(slices), offsets @ normal, offsets @ across.T)
    _check_places(series)
    return series


def in_file_order(series: Series) -> list[int]:
    """Place in the series of the k-th file, counted by name.

    Raises:
        ValueError: Names follow neither the slices' places nor their instance numbers.
    """
    by_name = sorted(range(len(series.slices)), key=lambda k: natural(series.slices[k].path))
    instances = [series.slices[k].instance for k in by_name]
    for order in (by_name, instances):
        if len(set(order)) == len(order) and order in (sorted(order), sorted(order)[::-1]):
            return by_name
    raise ValueError(
        "has slices whose file names follow neither their places nor their instance numbers, so "
        "that it is not known which slice a picture belongs to; give pictures their slices' names"
    )


def _header(path: Path) -> Slice:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        position, axes = (_numbers(reader, key) for key in (POSITION, ORIENTATION))
        rows, columns = _numbers(reader, SPACING)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot be read in {path.name} (no image with position, orientation and pixel spacing)"
        ) from error
    known = {
        key: reader.GetMetaData(key) for key in (INSTANCE, SERIES) if reader.HasMetaDataKey(key)
    }
    size = reader.GetSize()
    return Slice(
        path,
        position,
        axes.reshape(2, 3),
        (float(columns), float(rows)),
        (size[0], size[1]),
        int(known.get(INSTANCE, "0").strip() or 0),
        known.get(SERIES, "").strip(),
    )


def _numbers(reader: sitk.ImageFileReader, key: str) -> np.ndarray:
    return np.array([float(value) for value in reader.GetMetaData(key).split("\\")])


def _check_one_series(slices: Sequence[Slice]) -> None:
    first = slices[0]
    names = {each.series for each in slices}
    if 1 < len(names) < len(slices):  # some anonymisers give every slice a series of its own
        raise ValueError(f"holds {len(names)} series; give each a folder of its own")
    for each in slices:
        if each.size != first.size or not np.allclose(each.spacing, first.spacing, rtol=1e-4):
            what = f"{first.size} at {first.spacing} mm, {each.size} at {each.spacing} mm"
            raise ValueError(f"holds slices of different sizes: {what} ({each.path.name})")
        if not np.allclose(each.axes, first.axes, atol=1e-3):
            raise ValueError(f"holds slices of different orientations ({each.path.name})")


def _check_places(series: Series) -> None:
    steps = np.diff(series.places)
    for index in np.flatnonzero(steps < 1e-3):
        names = [series.slices[k].path.name for k in (index, index + 1)]
        raise ValueError(f"has two slices at one place: {names[0]} and {names[1]}")
    jumps = np.abs(np.diff([each.instance for each in series.slices]))
    gaps = steps > 1.5 * series.distance
    for index in np.flatnonzero(gaps & (jumps > np.median(jumps))) if len(jumps) else ():
        names = [series.slices[k].path.name for k in (index, index + 1)]
        raise ValueError(f"misses slices between {names[0]} and {names[1]}")
