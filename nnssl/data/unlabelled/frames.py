"""Volumes of a file: itself, or the frames of a cine, each read alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.convert.readers.nifti import read_shape
from nnssl.convert.readers.read import explain_broken, read_volume

NIFTI = (".nii.gz", ".nii")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr", ".gipl")


class FrameVolume(NamedTuple):
    """One volume: its voxels in any order of axes, and how it is written as NIfTI (`.nii`)."""

    array: np.ndarray
    write: Callable[[Path], None]


def count_frames(files: Collection[Path]) -> int | None:
    """Number of frames of a cine, from the header of its first file; None without fourth axis.

    Raises:
        ValueError: The header cannot be read, or has more than four axes.
    """
    path = next(iter(files))
    shape: tuple[int, ...] = ()
    with explain_broken():
        if path.name.lower().endswith(NIFTI):
            shape = read_shape(path)
        elif path.name.lower().endswith(ITK):
            shape = tuple(_read_header(path).GetSize())
    if len(shape) > 4:
        raise ValueError(f"has size {shape}; volumes of 3 axes and cines of 4 can be read")
    return shape[3] if len(shape) == 4 else None


def read_frames(
    files: Collection[Path], numbers: Collection[int] | None = None
) -> Iterator[tuple[int, FrameVolume]]:
    """Volumes with their numbers from 1, one after the other, in one pass through the file.

    Only those of `numbers` are read; `files` are one file, or the slices of a series.

    Raises:
        ValueError: It cannot be read, or is truncated.
    """
    count, name = count_frames(files), next(iter(files)).name.lower()
    with explain_broken():
        open_file = _open_nifti if name.endswith(NIFTI) else _open_itk if count else _open_whole
        read = open_file(list(files), count)
        for number in range(1, (count or 1) + 1):
            if numbers is None or number in numbers:
                yield number, read(number)


def _read_header(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _open_nifti(files: list[Path], count: int | None) -> Callable[[int], FrameVolume]:
    image = nibabel.Nifti1Image.from_filename(files[0], keep_file_open=True)

    def read(number: int) -> FrameVolume:
        array = np.asanyarray(image.dataobj if count is None else image.dataobj[..., number - 1])
        if array.dtype == np.float64:
            array = array.astype(np.float32)  # a scaled file; nnU-Net computes in float32 too
        return FrameVolume(array, lambda path: _write_nifti(array, image, path))

    return read


def _write_nifti(array: np.ndarray, like: Any, path: Path) -> None:
    frame = nibabel.Nifti1Image(array, like.affine, like.header)
    frame.set_data_dtype(array.dtype)
    nibabel.save(frame, path)


def _open_itk(files: list[Path], count: int | None) -> Callable[[int], FrameVolume]:
    reader = _read_header(files[0])
    size = [*reader.GetSize()[:3], 0]

    def read(number: int) -> FrameVolume:
        reader.SetExtractSize(size)
        reader.SetExtractIndex([0, 0, 0, number - 1])
        return _wrap_itk(reader.Execute())

    return read


def _open_whole(files: list[Path], count: int | None) -> Callable[[int], FrameVolume]:
    return lambda number: _wrap_itk(read_volume(files).image)


def _wrap_itk(image: sitk.Image) -> FrameVolume:
    array = sitk.GetArrayViewFromImage(image)
    return FrameVolume(np.array(array), lambda path: sitk.WriteImage(image, str(path)))
