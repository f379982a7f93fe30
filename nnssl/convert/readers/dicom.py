"""DICOM series: slices ordered by their place in the patient, straightened where asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from nnssl.convert.readers.dicom_objects import (
    explain_damage,
    read_frames_of,
    read_planes,
    require,
)
from nnssl.convert.readers.pictures import sort_naturally
from nnssl.convert.volumes import ImageAndNotes, last_line, make_image

POSITION, ORIENTATION = "0020|0032", "0020|0037"
FRAME_OF_REFERENCE, SOP_CLASS = "0020|0052", "0008|0016"
MANY_FRAMES = (  # MR, CT, PET; those that were converted from single slices
    *(f"1.2.840.10008.5.1.4.1.1.{each}" for each in ("4.1", "2.1", "130")),
    *(f"1.2.840.10008.5.1.4.1.1.{each}" for each in ("4.4", "2.2", "128.1")),
)
INSTANCE, SERIES, SPACING = "0020|0013", "0020|000e", "0028|0030"
THICKNESS, KIND = "0018|0050", "0008|0008"
BITS, SCALING = "0028|0100", ("0028|1052", "0028|1053")
PIXELS = re.compile(rb"\xe0\x7f\x10\x00(?:O[BW]\0\0)?(....)", re.DOTALL)  # tag and length
PACKED = 0xFFFFFFFF  # length of compressed pixels
EVEN = 0.02  # largest deviation of a slice distance from the median that counts as even, share
TILT = 0.02  # largest sideways shift per slice, in slice distances


@dataclass(frozen=True)
class Slice:
    """Header of one slice (mm, LPS): ``size`` is (columns, rows), ``frame`` counts in its file."""

    path: Path
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    size: tuple[int, int]
    instance: int
    series: str
    frame_of_reference: str = ""
    frame: int | None = None
    thickness: float = 0.0  # mm; 0: not known


@dataclass(frozen=True)
class Series:
    """Slices from the first to the last along the normal, and where they lie from the first, mm.

    ``places`` are distances along the normal, ``shifts`` those along columns and rows.
    """

    slices: tuple[Slice, ...]
    places: np.ndarray
    shifts: np.ndarray

    @property
    def distance(self) -> float:
        """Median distance of neighbouring slices, or thickness of a single one, mm."""
        if len(self.slices) > 1:
            return float(np.median(np.diff(self.places)))
        return self.slices[0].thickness or 1.0


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
    files = [path for path in paths if is_dicom(path) and path.name != "DICOMDIR"]
    slices = [each for path in files for each in _read_headers(path)]
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


def find_file_order(series: Series) -> list[int]:
    """Place in the series of the k-th file, counted by name.

    Raises:
        ValueError: Names follow neither the slices' places nor their instance numbers.
    """
    by_name = sorted(range(len(series.slices)), key=lambda k: sort_naturally(series.slices[k].path))
    instances = [series.slices[k].instance for k in by_name]
    for order in (by_name, instances):
        if len(set(order)) == len(order) and order in (sorted(order), sorted(order)[::-1]):
            return by_name
    raise ValueError(
        "has slices whose file names follow neither their places nor their instance numbers, so "
        "that it is not known which slice a picture belongs to; give pictures their slices' names"
    )


def _read_headers(path: Path) -> list[Slice]:
    """One slice, or the frames of a multi-frame image."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        keys = (INSTANCE, SERIES, FRAME_OF_REFERENCE, SOP_CLASS, THICKNESS, KIND)
        known = {key: reader.GetMetaData(key) for key in keys if reader.HasMetaDataKey(key)}
        known = {key: value.strip("\0 ") for key, value in known.items()}
        many = known.get(SOP_CLASS) in MANY_FRAMES
        if not many:
            position, axes = (_numbers(reader, key) for key in (POSITION, ORIENTATION))
            rows, columns = _numbers(reader, SPACING)
            scaling = [_numbers(reader, key)[0] for key in SCALING if reader.HasMetaDataKey(key)]
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot be read in {path.name} (no image with position, orientation and pixel spacing)"
        ) from error
    if many:
        return _read_frame_headers(path)
    if "MOSAIC" in known.get(KIND, ""):
        raise ValueError(
            f"is a mosaic of many slices in one picture ({path.name}); convert it by dcm2niix and "
            "give its NIfTI files"
        )
    if not np.isfinite([*position, *axes, *scaling]).all():
        raise ValueError(f"has numbers that are not finite in its header ({path.name})")
    size = reader.GetSize()
    _check_length(path, reader)
    header = Slice(
        path,
        position,
        axes.reshape(2, 3),
        (float(columns), float(rows)),
        (size[0], size[1]),
        int(known.get(INSTANCE) or 0),
        known.get(SERIES, ""),
        known.get(FRAME_OF_REFERENCE, ""),
        thickness=float(known.get(THICKNESS) or 0),
    )
    return [header]


def _read_frame_headers(path: Path) -> list[Slice]:
    with explain_damage():
        dataset = require("pydicom").dcmread(path, stop_before_pixels=True)
        planes = read_planes(dataset)
    size = int(dataset.Columns), int(dataset.Rows)
    uids = str(dataset.SeriesInstanceUID), str(dataset.FrameOfReferenceUID)
    return [
        Slice(path, each.position, each.axes, each.spacing, size, number, *uids, number)
        for number, each in enumerate(planes)
    ]


def _check_length(path: Path, reader: sitk.ImageFileReader) -> None:
    """As many bytes of pixels as the header says; GDCM fills or cuts off."""
    bytes_each = int(reader.GetMetaData(BITS)) // 8 * reader.GetNumberOfComponents()
    expected = math.prod(reader.GetSize()) * bytes_each
    lengths = [int.from_bytes(each, "little") for each in PIXELS.findall(path.read_bytes())]
    if lengths and PACKED not in lengths and expected + expected % 2 not in lengths:
        raise ValueError(
            f"holds {lengths[-1]} bytes of pixels, its header says {expected} ({path.name})"
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
        raise ValueError(
            f"has two slices at one place: {names[0]} and {names[1]}; if it holds several volumes "
            "(time points, b values, echoes), nnssl_convert dicom tells them apart"
        )
    jumps = np.abs(np.diff([each.instance for each in series.slices]))
    gaps = steps > 1.5 * series.distance
    for index in np.flatnonzero(gaps & (jumps > np.median(jumps))) if len(jumps) else ():
        names = [series.slices[k].path.name for k in (index, index + 1)]
        raise ValueError(f"misses slices between {names[0]} and {names[1]}")


def read_slices(series: Series, how: str) -> ImageAndNotes:
    """The volume of a series; ``how`` to treat tilted or uneven slices: ``refuse``, ``resample``.

    Raises:
        ValueError: Tilted or uneven slices that may not be resampled, colours.
    """
    many = {each.path for each in series.slices if each.frame is not None}
    with explain_damage():
        frames = {path: read_frames_of(path) for path in many}
    values = [
        _read_pixels(each.path) if each.frame is None else frames[each.path][each.frame]
        for each in series.slices
    ]
    return assemble(np.stack(values), series, how)


def read_pictures_of(paths: Sequence[Path], series: Series, how: str) -> ImageAndNotes:
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
    pictures = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths]
    expected = series.slices[0].size[::-1]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != expected:
            raise ValueError(f"has size {picture.shape} in {path.name}; its slice has {expected}")
    order = _order_pictures(paths, series)
    return assemble(np.stack([pictures[k] for k in order]), series, how, label=True)


def _order_pictures(paths: Sequence[Path], series: Series) -> list[int]:
    """For each slice of the series, the number of its picture."""
    stems = {path.stem: number for number, path in enumerate(paths)}
    if all(each.path.stem in stems for each in series.slices):
        return [stems[each.path.stem] for each in series.slices]
    order = find_file_order(series)
    return [order.index(place) for place in range(len(order))]


def assemble(array: np.ndarray, series: Series, how: str, label: bool = False) -> ImageAndNotes:
    """Put slices (z, y, x) on a straight grid: as they are, or resampled.

    Raises:
        ValueError: Tilted or uneven slices that may not be resampled.
    """
    first, notes = series.slices[0], _deviations(series)
    normal = np.cross(*first.axes)
    direction = np.column_stack([*first.axes, normal]).ravel()
    spacing = (*first.spacing, series.distance)
    if not notes:
        unknown = len(array) == 1 and not first.thickness
        said = ("slice thickness is not known, 1 mm taken",) if unknown else ()
        return make_image(array, spacing, first.position, direction), said
    if how != "resample":
        raise ValueError(
            f"has {' and '.join(notes)}: no straight grid holds these slices; allow resampling "
            "(--resample, or slices: resample in the dataset spec)"
        )
    straight, low = straighten(array, series, label)
    origin = first.position + low @ np.array(first.axes)
    note = f"resampled: {' and '.join(notes)}; slice distance {series.distance:.3f} mm"
    return make_image(straight, spacing, origin, direction), (note,)


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
    """What keeps the slices from a straight grid."""
    found, steps = [], np.diff(series.places)
    sideways = np.linalg.norm(np.diff(series.shifts, axis=0), axis=1)
    if np.any(sideways > TILT * series.distance):
        tilt = np.arctan(np.linalg.norm(series.shifts[-1]) / series.places[-1])
        found.append(f"a gantry tilt of {np.degrees(tilt):.1f} degrees")
    if np.any(np.abs(steps - series.distance) > EVEN * series.distance):
        found.append(f"slice distances from {steps.min():.3f} to {steps.max():.3f} mm")
    return found


def _read_pixels(path: Path) -> np.ndarray:
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise ValueError(f"cannot be read in {path.name} ({last_line(error)})") from error
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() != 1 or (array.shape[0] != 1 and array.ndim == 3):
        raise ValueError(f"has colours or several frames in {path.name}")
    return array.reshape(array.shape[-2:])
