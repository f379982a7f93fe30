"""NIfTI, Analyze 7.5 and MGZ: complete files only, and headers that ITK refuses or passes over."""

from __future__ import annotations

import gzip
import io
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from nibabel.nifti1 import Nifti1PairHeader, data_type_codes
from nibabel.spm99analyze import Spm99AnalyzeHeader

from nnssl.convert.volumes import ImageAndNotes, make_image

SMALLEST_OFFSET = 352  # bytes: the header, and whether something follows it
MGH_HEADER = 284  # bytes
ROTATION = {"quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"}
AFFINE = {"srow_x", "srow_y", "srow_z"}
FAR = 1e6  # mm; no image lies farther from the origin of its world
SKEW = 1e-2  # largest entry of M^T M - 1 that counts as a rounding error of the header
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from the world of NIfTI (RAS) to that of ITK


def read_nifti(path: Path, headers: str = "exact") -> ImageAndNotes:
    """Read a whole NIfTI file, values that are not finite included (ITK makes them 0).

    Raises:
        ValueError: Truncated, or a header that no image can have.
        RuntimeError: ITK cannot read it and ``headers`` is not ``repair``.
    """
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(content), check=False)
    if content[344:348] != b"n+1\0":
        raise ValueError(f"has the mark {content[344:348]!r} in its header; NIfTI has b'n+1\\x00'")
    begin = float(header["vox_offset"])
    if not (SMALLEST_OFFSET <= begin < len(content) and begin == int(begin)):
        raise ValueError(f"has voxels at byte {begin:g} of {len(content)} (header: vox_offset)")
    return _read_with_header(path, header, content[int(begin) :], headers)


def read_shape(path: Path) -> tuple[int, ...]:
    """Size of a NIfTI file by its header alone, which is checked.

    Raises:
        ValueError: A header that no image can have.
    """
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        head = stream.read(348)
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(head), check=False)
    _check_header(header)
    return tuple(int(n) for n in header.get_data_shape())


def read_pair(path: Path, headers: str = "exact") -> ImageAndNotes:
    """Read header and voxels in two files (``.hdr``, ``.img``): NIfTI, or Analyze 7.5.

    Axes of Analyze run to the left, to the front and to the head; ITK turns the second around.

    Raises:
        ValueError: See `read_nifti`; or Analyze of another orientation.
    """
    head, voxels = path.with_suffix(".hdr"), path.with_suffix(".img").read_bytes()
    content = head.read_bytes()
    kind = Nifti1PairHeader if content[344:347] == b"ni1" else Spm99AnalyzeHeader
    header = kind.from_fileobj(io.BytesIO(content), check=False)
    if kind is Nifti1PairHeader:
        return _read_with_header(head, header, voxels[int(header["vox_offset"]) :], headers)
    if header["orient"] not in (b"", b"\0"):
        raise ValueError(f"is Analyze 7.5 of orientation {header['orient']!r}; allowed: 0")
    _check_header(header)
    _check_length(header, voxels)
    image = nibabel.Spm99AnalyzeImage.from_filename(head)
    array = np.asanyarray(image.dataobj)
    shape = header.get_data_shape()
    array = array.reshape(shape[:3]) if set(shape[3:]) <= {1} else array
    return make_orthogonal(array, image.affine), ("Analyze 7.5 taken as left, front, head",)


def _read_with_header(path: Path, header: Any, voxels: bytes, headers: str) -> ImageAndNotes:
    _check_header(header)
    _check_length(header, voxels)
    try:
        image = read_exactly(path)
    except RuntimeError as error:
        if headers != "repair" or "orthonormal" not in str(error):
            raise
        skewed: Any = nibabel.load(path)
        array, notes = np.asanyarray(skewed.dataobj), ("axes made orthogonal",)
        return make_orthogonal(array, skewed.affine), notes
    return _put_back(image, header.get_data_dtype(), voxels), ()


def _put_back(image: sitk.Image, dtype: np.dtype[Any], voxels: bytes) -> sitk.Image:
    """The values that are not finite, which ITK has made 0."""
    count = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel()
    if dtype.kind != "f" or np.isfinite(stored := np.frombuffer(voxels, dtype, count)).all():
        return image
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ValueError("holds values that are not finite")
    array = sitk.GetArrayFromImage(image)
    array[~np.isfinite(stored).reshape(array.shape)] = np.nan
    put_back = sitk.GetImageFromArray(array, isVector=False)
    put_back.CopyInformation(image)
    return put_back


def read_exactly(path: Path) -> sitk.Image:
    """Read exactly this file.

    The NIfTI library prefers ``x.nii`` to ``x.nii.gz``, even a *folder* of that name (it then
    returns zeros); then the file is read through a link in a folder of its own.
    """
    if path.suffix != ".gz" or not path.with_suffix("").exists():
        return sitk.ReadImage(str(path))
    with TemporaryDirectory() as folder:
        link = Path(folder) / "volume.nii.gz"
        link.symlink_to(path.resolve())
        return sitk.ReadImage(str(link))


def read_mgz(path: Path) -> ImageAndNotes:
    """Read a FreeSurfer volume (``.mgz``, ``.mgh``)."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix.lower() == ".mgz" else content
    if len(content) < MGH_HEADER:
        raise ValueError(f"is truncated ({len(content)} of {MGH_HEADER} bytes of its header)")
    image = nibabel.MGHImage.from_bytes(content)
    return make_orthogonal(np.asanyarray(image.dataobj), image.affine), ()


def make_orthogonal(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """An image from an array (x, y, z) and its affine; the axes become the nearest rotation.

    Raises:
        ValueError: The axes are too far from orthogonal for a rounding error.
    """
    if array.ndim != 3:
        raise ValueError(f"has size {array.shape}; a volume of 3 axes is needed")
    lps = LPS @ np.asarray(affine, float)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    skew = np.abs(axes.T @ axes - np.eye(3)).max()
    if not skew <= SKEW:
        raise ValueError(f"has axes that are not orthogonal (by {skew:.3f}); allowed: {SKEW}")
    left, _, right = np.linalg.svd(axes)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return make_image(array.T, spacing, lps[:3, 3], (left @ right).ravel())


def _check_header(header: Any) -> None:
    """What readers replace silently (by 1 mm, by the first axis, by no scaling) is refused."""
    dim, spacing = header["dim"], header["pixdim"][1:4]
    if not 3 <= dim[0] <= 7 or (dim[1 : dim[0] + 1] < 1).any():
        raise ValueError(f"has the size {dim[1:].tolist()} and {dim[0]} axes in its header")
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ValueError(f"has the spacing {spacing.tolist()} mm in its header")
    if int(header["datatype"]) not in data_type_codes.code:
        raise ValueError(f"has the unknown data type {header['datatype']} in its header")
    fields = set(header.keys()) & {"scl_slope", "scl_inter"}
    for code, of_code in (("qform_code", ROTATION), ("sform_code", AFFINE)):
        fields |= of_code if header.get(code, 0) > 0 else set()
    for name in sorted(fields):
        bound = math.inf if name.startswith("scl") else FAR
        if not (np.abs(header[name]) < bound).all():
            raise ValueError(f"has {name} = {header[name]} in its header; allowed: below {bound:g}")


def _check_length(header: Any, voxels: bytes) -> None:
    """All voxels are there (ITK fills what is missing)."""
    expected = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    if len(voxels) < expected:
        raise ValueError(f"is truncated ({len(voxels)} of {expected} bytes of voxels)")
