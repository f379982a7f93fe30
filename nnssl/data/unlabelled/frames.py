"""Volumes of a file: itself, or the frames of a cine, each read alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.convert.readers.read import BROKEN, read_volume
from nnssl.convert.volumes import last_line

NIFTI = (".nii.gz", ".nii")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".hdr")


@dataclass(frozen=True)
class FrameVolume:
    """One volume: its voxels in any order of axes, and how it is written as NIfTI (`.nii`)."""

    array: np.ndarray
    write: Callable[[Path], None]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.array).all())


def frame_count(files: Collection[Path]) -> int | None:
    """Number of frames of a cine, from the header alone; None for a volume without fourth axis.

    Args:
        files: One file, or the slices of a series.

    Raises:
        ValueError: The header cannot be read, or has more than four axes.
    """
    first = next(iter(files))
    try:
        shape = _shape(first)
    except (EOFError, *BROKEN) as error:
        raise ValueError(f"cannot be read ({last_line(error)})") from error
    if len(shape) > 4:
        raise ValueError(f"has size {shape}; volumes of 3 axes and cines of 4 can be read")
    return shape[3] if len(shape) == 4 else None


def volumes(
    files: Collection[Path], numbers: Collection[int] | None = None
) -> Iterator[tuple[int, FrameVolume]]:
    """Volumes with their numbers from 1, one after the other, in one pass through the file.

    Args:
        files: One file, or the slices of a series.
        numbers: Frames that are wanted; None: all.

    Raises:
        ValueError: It cannot be read, or is truncated.
    """
    count = frame_count(files)
    wanted = range(1, (count or 1) + 1)
    kind = _nifti if _is(files, NIFTI) else _itk if count is not None else _whole
    try:
        read = kind(list(files), count)
        for number in wanted:
            if numbers is None or number in numbers:
                yield number, read(number)
    except EOFError as error:
        raise ValueError("is truncated") from error
    except BROKEN as error:
        raise ValueError(f"cannot be read ({last_line(error)})") from error


def _is(files: Collection[Path], endings: tuple[str, ...]) -> bool:
    return next(iter(files)).name.lower().endswith(endings)


def _shape(path: Path) -> tuple[int, ...]:
    if _is([path], NIFTI):
        return tuple(int(n) for n in nibabel.Nifti1Image.from_filename(path).shape)
    if not _is([path], ITK):
        return ()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return tuple(reader.GetSize())


def _nifti(files: list[Path], count: int | None) -> Callable[[int], FrameVolume]:
    image = nibabel.Nifti1Image.from_filename(files[0], keep_file_open=True)

    def read(number: int) -> FrameVolume:
        voxels = image.dataobj if count is None else image.dataobj[..., number - 1]
        array = np.asanyarray(voxels)
        if array.dtype == np.float64:
            array = array.astype(np.float32)  # a scaled file; nnU-Net computes in float32 too
        return FrameVolume(array, lambda path: _write_nifti(array, image, path))

    return read


def _write_nifti(array: np.ndarray, like: Any, path: Path) -> None:
    frame = nibabel.Nifti1Image(array, like.affine, like.header)
    frame.set_data_dtype(array.dtype)
    nibabel.save(frame, path)


def _itk(files: list[Path], count: int | None) -> Callable[[int], FrameVolume]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(files[0]))
    reader.ReadImageInformation()
    size = [*reader.GetSize()[:3], 0]

    def read(number: int) -> FrameVolume:
        reader.SetExtractSize(size)
        reader.SetExtractIndex([0, 0, 0, number - 1])
        return _of_itk(reader.Execute())

    return read


def _whole(files: list[Path], count: int | None) -> Callable[[int], FrameVolume]:
    return lambda number: _of_itk(read_volume(files).image)


def _of_itk(image: sitk.Image) -> FrameVolume:
    array = sitk.GetArrayViewFromImage(image)
    return FrameVolume(np.array(array), lambda path: sitk.WriteImage(image, str(path)))
