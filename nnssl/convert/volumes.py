"""Volumes: what a reader returns, its knobs; geometry, hashes, bias field, writing."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813

FILE_ENDING = ".nii.gz"
LARGEST = 1e15  # of a value; nnU-Net adds up to 1e8 squares in float32, which ends at 3e38
SPACINGS = (1e-5, 1e4)  # mm; a header beyond is damaged, and resampling by it would take all memory
FourthAxis = Literal["channels", "first"]
Frames = Literal["frames"]  # a fourth axis, for specs whose cases are frames
Headers = Literal["exact", "repair"]
Slices = Literal["refuse", "resample"]
Overlap = Literal["refuse", "last"]


@dataclass(frozen=True)
class Reading:
    """How files become a volume.

    Args:
        fourth_axis: Meaning of a fourth axis: ``channels`` (file k of a case is its k-th entry)
            or time, of which ``first`` takes the first frame, ``frames`` the one that the case
            is; ``None``: refused.
        headers: ``repair`` takes the nearest rotation for slightly skewed axes, turns a label that
            is stored on other axes to its image, and gives a label without header (origin 0,
            spacing 1, axes along the world's) the image's; ``exact`` refuses.
        slices: What happens to DICOM series with gantry tilt or uneven slice distance.
        channels: Number of channels of a case.
        structures: Regular expression of a structure's name in DICOM SEG and RTSTRUCT -> value.
        overlap: What happens to voxels of two structures: ``refuse``, or ``last`` (largest value).
        nan: What values that are not finite become; ``None``: refused.
        frame: Place of the case's frame on the fourth axis, from 0.
    """

    fourth_axis: FourthAxis | Frames | None = None
    headers: Headers = "exact"
    slices: Slices = "refuse"
    channels: int = 1
    structures: Mapping[str, int] = field(default_factory=dict)
    overlap: Overlap = "refuse"
    nan: float | None = None
    frame: int = 0


ImageAndNotes = tuple[sitk.Image, tuple[str, ...]]  # what a reader reads, and what it did to it


@dataclass(frozen=True)
class Volume:
    """An image of three axes, the SHA-256 of its files, and what was done to it."""

    image: sitk.Image
    sha256: str
    notes: tuple[str, ...] = ()


def settle_values(image: sitk.Image, nan: float | None) -> ImageAndNotes:
    """An image of finite real values on a grid of finite steps; ``nan`` replaces other values.

    Raises:
        ValueError: Complex numbers; values that are not finite, or that nnU-Net's arithmetic in 32
            bits cannot square and add; a grid without size in mm.
    """
    if "complex" in image.GetPixelIDTypeAsString():
        raise ValueError("holds complex numbers; write their magnitude or phase")
    geometry = (*image.GetOrigin(), *image.GetDirection())
    low, high = SPACINGS
    if not (all(low <= s <= high for s in image.GetSpacing()) and np.isfinite(geometry).all()):
        raise ValueError(
            f"has spacing {image.GetSpacing()} mm, origin {image.GetOrigin()}; allowed are "
            f"spacings from {low:g} to {high:g} mm and finite numbers"
        )
    array = sitk.GetArrayViewFromImage(image)
    notes: tuple[str, ...] = ()
    bad = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(0, bool)
    if count := int(bad.sum()):
        what = f"{count} of {array.size}"
        if nan is None:
            raise ValueError(f"holds values that are not finite ({what}); --nan 0 makes them 0")
        array = np.where(bad, nan, array).astype(array.dtype)
        settled = sitk.GetImageFromArray(array, image.GetNumberOfComponentsPerPixel() > 1)
        settled.CopyInformation(image)
        image, notes = settled, (f"values that are not finite became {nan:g} ({what})",)
    if (largest := max(float(array.max()), -float(array.min()))) > LARGEST:
        raise ValueError(
            f"holds values up to {largest:g}; allowed are {LARGEST:g}, which 32 bits "
            "can square and add"
        )
    return image, notes


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 of one file, or of the hashes of several in their order."""
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def make_image(
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


def be_quiet() -> None:
    """Silence ITK's warnings (``unexpected scales in sform``); one thread for each worker."""
    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    sitk.ProcessObject_SetGlobalDefaultNumberOfThreads(1)


def compare_geometry(image: sitk.Image, label: sitk.Image, what: str = "label") -> list[str]:
    """What differs between two grids: size, spacing, origin, direction (empty: nothing).

    ``what`` is the name of the second.
    """
    differences = []
    for name in ("Size", "Spacing", "Origin", "Direction"):
        one, other = (getattr(each, f"Get{name}")() for each in (image, label))
        if len(one) != len(other) or not np.allclose(one, other, rtol=1e-4, atol=1e-4):
            shown = [tuple(round(value, 4) for value in each) for each in (one, other)]
            differences.append(f"{name.lower()} {shown[0]} of the image, {shown[1]} of the {what}")
    return differences


def lie_on_one_box(image: sitk.Image, label: sitk.Image) -> bool:
    """Whether two grids of one size have their corners in the same places (a tenth of a voxel)."""
    if image.GetSize() != label.GetSize():
        return False
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(image.GetSize()) - 1)
    one, other = (
        np.array([each.TransformIndexToPhysicalPoint(corner.tolist()) for corner in corners])
        for each in (image, label)
    )
    return bool(np.abs(one - other).max() <= 0.1 * min(image.GetSpacing()))


def lacks_header(image: sitk.Image, label: sitk.Image) -> bool:
    """Whether all that a label's header says otherwise than its image's is what no header says."""
    if image.GetSize() != label.GetSize():
        return False
    nothing = {"Spacing": np.ones(3), "Origin": np.zeros(3), "Direction": np.eye(3).ravel()}
    return all(
        np.allclose(
            getattr(image, f"Get{name}")(), own := getattr(label, f"Get{name}")(), atol=1e-4
        )
        or np.allclose(np.abs(own), default)
        for name, default in nothing.items()
    )


def find_orientation(image: sitk.Image) -> str:
    """Anatomical direction in which each image axis (x, y, z) grows, e.g. ``LPS``."""
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    return str(code)


def has_bare_header(image: sitk.Image) -> bool:
    """Whether a volume's geometry is what programs write that know none: the identity."""
    unturned = np.allclose(np.abs(image.GetDirection()), np.eye(3).ravel())
    return unturned and image.GetSpacing() == (1, 1, 1) and image.GetOrigin() == (0, 0, 0)


def hash_of_voxels(image: sitk.Image) -> str:
    """SHA-256 of size and values: equal for equal values, whatever their type and geometry."""
    values = sitk.GetArrayViewFromImage(image).astype(np.float32)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def correct_bias_field(image: sitk.Image) -> sitk.Image:
    """N4 bias field correction: threshold 0.001, 4 levels of 50 iterations, no mask, float32.

    Reference: Tustison et al., N4ITK, 2010, doi:10.1109/TMI.2010.2046908.
    """
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetConvergenceThreshold(0.001)
    corrector.SetMaximumNumberOfIterations([50] * 4)
    return corrector.Execute(sitk.Cast(image, sitk.sitkFloat32))


def write_image(image: sitk.Image, path: Path) -> None:
    """Write a compressed volume and read it back: ITK does not tell of a full disk.

    Raises:
        OSError: It cannot be written, or does not hold every voxel (disk full, for instance).
    """
    try:
        sitk.WriteImage(image, str(path), True)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written ({last_line(error)})") from error
    voxels = sitk.GetArrayViewFromImage(image)
    little_endian = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
    if not (read_whole(path) or b"").endswith(little_endian.tobytes()):
        raise OSError(f"{path} was not written as a whole. Is the disk full?")


def read_whole(path: Path) -> bytes | None:
    """Content of a compressed file; None where it is missing, cut off or damaged (by its CRC)."""
    try:
        return gzip.decompress(path.read_bytes()) or None
    except (FileNotFoundError, EOFError, gzip.BadGzipFile, zlib.error):
        return None
