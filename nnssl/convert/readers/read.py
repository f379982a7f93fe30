"""One door to all formats: files in, one volume of three axes out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk  # noqa: N813
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnssl.convert.readers import pictures
from nnssl.convert.readers.dicom import read_pictures_of, read_series, read_slices
from nnssl.convert.readers.dicom_labels import holds_label, read_label
from nnssl.convert.readers.dicom_objects import explain_damage
from nnssl.convert.readers.itk import find_partner, read_itk
from nnssl.convert.readers.nifti import read_mgz, read_nifti, read_pair
from nnssl.convert.volumes import (
    ImageAndNotes,
    Reading,
    Volume,
    hash_files,
    last_line,
    settle_values,
)

BROKEN = (OSError, zlib.error, RuntimeError, HeaderDataError, WrapStructError, ImageFileError)


def read_volume(
    paths: Sequence[Path],
    how: Reading | None = None,
    channel: int = 0,
    like: Sequence[Path] = (),
) -> Volume:
    """Read what one volume is made of, after making sure that it is whole.

    Args:
        paths: One file, or the slices of a DICOM series or of a stack of pictures.
        channel: Which channel of a file that holds several.
        like: Files of the image that a label belongs to; pictures take its geometry.

    Raises:
        ValueError: Unreadable, truncated, or not a volume of one value per voxel.
    """
    how = how or Reading()
    with explain_broken():
        image, notes = _read(paths, how, like)
        one, more = settle_values(_take_channel(image, how, channel), how.nan)
        return Volume(one, hash_files(with_partners(paths)), (*notes, *more))


def read_frames(path: Path, how: Reading | None = None) -> Volume:
    """Read a file of time frames: an image of four axes, the last of them time.

    Raises:
        ValueError: Unreadable, truncated, or without a fourth axis.
    """
    with explain_broken():
        how = how or Reading()
        image, notes = _read([path], how, ())
        if image.GetDimension() != 4 or image.GetNumberOfComponentsPerPixel() != 1:
            raise ValueError(f"has size {image.GetSize()}; a fourth axis of frames is needed")
        image, more = settle_values(image, how.nan)
        return Volume(image, hash_files(with_partners([path])), (*notes, *more))


@contextmanager
def explain_broken() -> Iterator[None]:
    """Whatever the libraries raise for a broken file becomes one sentence."""
    try:
        yield
    except EOFError as error:
        raise ValueError("is truncated") from error
    except BROKEN as error:
        raise ValueError(f"cannot be read ({last_line(error)})") from error


def _read(paths: Sequence[Path], how: Reading, like: Sequence[Path]) -> ImageAndNotes:
    first, ending = paths[0], _ending(paths[0])
    if ending in pictures.ENDINGS:
        if len(like) > 1 and _ending(like[0]) not in pictures.ENDINGS:
            return read_pictures_of(_by_name(paths), read_series(like), how.slices)
        if len(paths) > 1:
            return pictures.read_stack(_by_name(paths)), ()
        return pictures.read_picture(first), ()
    if ending in (".nii", ".nii.gz"):
        return read_nifti(first, how.headers)
    if ending in (".mgz", ".mgh"):
        return read_mgz(first)
    if ending in (".hdr", ".img"):
        return read_pair(first, how.headers)
    if ending in (".mha", ".mhd", ".nrrd", ".nhdr", ".gipl"):
        return read_itk(first)
    if how.structures and any(map(holds_label, paths)):
        with explain_damage():
            return read_label(paths, read_series(like), how)
    return read_slices(read_series(paths), how.slices)


def _by_name(paths: Sequence[Path]) -> list[Path]:
    found = [path for path in paths if _ending(path) in pictures.ENDINGS]
    return sorted(found, key=pictures.sort_naturally)


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix.lower()


def with_partners(paths: Sequence[Path]) -> list[Path]:
    """The files themselves, and those of voxels that lie beside their headers."""
    beside = [partner for path in paths if (partner := find_partner(path))]
    return [*paths, *(path for path in beside if path.exists() and path not in paths)]


def _take_channel(image: sitk.Image, how: Reading, channel: int) -> sitk.Image:
    components = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() == 4 and components == 1 and how.fourth_axis:
        count = image.GetSize()[3]
        if how.fourth_axis == "channels" and count != how.channels:
            raise ValueError(f"holds {count} channels; the dataset has {how.channels}")
        index = channel if how.fourth_axis == "channels" else how.frame
        if not 0 <= index < count:
            raise ValueError(f"holds {count} frames, of which number {index + 1} is asked for")
        return take_frame(image, index)
    if image.GetDimension() == 3 and components == how.channels > 1:
        return sitk.VectorIndexSelectionCast(image, channel)
    if image.GetDimension() != 3 or components != 1:
        of = f" of {components} values" if components > 1 else ""
        raise ValueError(f"has size {image.GetSize()}{of}; a volume of 3 axes is needed")
    return image


def take_frame(image: sitk.Image, index: int) -> sitk.Image:
    """One entry of the fourth axis, with the geometry of the other three."""
    size = [*image.GetSize()[:3], 0]
    return sitk.Extract(image, size, [0, 0, 0, index])
