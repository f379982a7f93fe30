"""Reading and writing of volumes: whole files only, geometry exactly as it was."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import shutil
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnssl.datasets.files import temporary

FILE_ENDING = ".nii.gz"
GEOMETRY = ("Size", "Spacing", "Origin", "Direction")


def be_quiet() -> None:
    """Silence ITK's warnings (``unexpected scales in sform``); one thread for each worker."""
    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    sitk.ProcessObject_SetGlobalDefaultNumberOfThreads(1)


def read_volume(path: Path) -> tuple[sitk.Image, str]:
    """Read a 3D volume after making sure that the file is whole (ITK reads truncated ones).

    Returns:
        The image and the SHA-256 of the file.

    Raises:
        ValueError: Unreadable, truncated, or not a volume of one value per voxel.
    """
    try:
        content = path.read_bytes()
        _check_voxels(gzip.decompress(content) if path.suffix == ".gz" else content)
        image = read_image(path)
    except EOFError as error:
        raise ValueError("is truncated") from error
    except (OSError, zlib.error, RuntimeError, HeaderDataError, WrapStructError) as error:
        raise ValueError(f"cannot be read ({_last_line(error)})") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"has size {image.GetSize()}; a volume of 3 axes is needed")
    return image, hashlib.sha256(content).hexdigest()


def read_image(path: Path) -> sitk.Image:
    """Read exactly this file.

    The NIfTI library prefers ``x.nii`` to ``x.nii.gz``, even a *folder* of that name (it then
    returns zeros); then the file is read through a link in a folder of its own.
    """
    if path.suffix != ".gz" or not path.with_suffix("").exists():
        return sitk.ReadImage(str(path))
    with TemporaryDirectory() as folder:
        link = Path(folder) / f"volume{FILE_ENDING}"
        link.symlink_to(path.resolve())
        return sitk.ReadImage(str(link))


def _check_voxels(content: bytes) -> None:
    """All voxels are there and finite (ITK fills what is missing and makes NaN 0)."""
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(content))
    dtype, count = header.get_data_dtype(), math.prod(header.get_data_shape())
    begin = header.get_data_offset()
    if len(content) < begin + count * dtype.itemsize:
        raise ValueError(f"is truncated ({len(content)} of {begin + count * dtype.itemsize} bytes)")
    if dtype.kind == "f" and not np.isfinite(np.frombuffer(content, dtype, count, begin)).all():
        raise ValueError("holds values that are not finite")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def geometry_differences(image: sitk.Image, label: sitk.Image) -> list[str]:
    """What differs between two grids: size, spacing, origin, direction (empty: nothing)."""
    differences = []
    for name in GEOMETRY:
        one, other = (getattr(each, f"Get{name}")() for each in (image, label))
        if len(one) != len(other) or not np.allclose(one, other, rtol=1e-4, atol=1e-4):
            shown = [tuple(round(value, 4) for value in each) for each in (one, other)]
            differences.append(f"{name.lower()} {shown[0]} of the image, {shown[1]} of the label")
    return differences


def orientation_of(image: sitk.Image) -> str:
    """Anatomical direction in which each image axis (x, y, z) grows, e.g. ``LPS``."""
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    return str(code)


def correct_bias_field(image: sitk.Image) -> sitk.Image:
    """N4 bias field correction: threshold 0.001, 4 levels of 50 iterations, no mask, float32.

    Reference: Tustison et al., N4ITK, 2010, doi:10.1109/TMI.2010.2046908.
    """
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetConvergenceThreshold(0.001)
    corrector.SetMaximumNumberOfIterations([50] * 4)
    return corrector.Execute(sitk.Cast(image, sitk.sitkFloat32))


def write_image(image: sitk.Image, path: Path) -> None:
    """Write a compressed volume.

    Raises:
        OSError: It cannot be written (disk full, for instance).
    """
    try:
        sitk.WriteImage(image, str(path), True)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written ({_last_line(error)})") from error


def transfer(source: Path, target: Path, n4: bool = False) -> None:
    """Bring one volume to its place, whole or not at all; a compressed file is copied as it is."""
    partial = temporary(target)
    if n4:
        write_image(correct_bias_field(read_image(source)), partial)
    elif source.name.endswith(FILE_ENDING):
        shutil.copyfile(source, partial)
    else:
        write_image(read_image(source), partial)
    os.replace(partial, target)
