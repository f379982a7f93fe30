"""NIfTI and MGZ: complete files only, and headers that ITK refuses."""

from __future__ import annotations

import gzip
import io
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.convert.volumes import ImageAndNotes, make_image

SKEW = 1e-2  # largest entry of M^T M - 1 that counts as a rounding error of the header
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from the world of NIfTI (RAS) to that of ITK


def read_nifti(path: Path, headers: str = "exact") -> ImageAndNotes:
    """Read a whole NIfTI file.

    Raises:
        ValueError: Truncated, or values that are not finite.
        RuntimeError: ITK cannot read it and ``headers`` is not ``repair``.
    """
    content = path.read_bytes()
    _check_voxels(gzip.decompress(content) if path.suffix == ".gz" else content)
    try:
        return read_exactly(path), ()
    except RuntimeError as error:
        if headers != "repair" or "orthonormal" not in str(error):
            raise
    image = nibabel.Nifti1Image.from_filename(path)
    return make_orthogonal(np.asanyarray(image.dataobj), image.affine), ("axes made orthogonal",)


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
    image = nibabel.MGHImage.from_filename(path)
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


def _check_voxels(content: bytes) -> None:
    """All voxels are there and finite (ITK fills what is missing and makes NaN 0)."""
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(content))
    dtype, count = header.get_data_dtype(), math.prod(header.get_data_shape())
    begin = header.get_data_offset()
    if len(content) < begin + count * dtype.itemsize:
        raise ValueError(f"is truncated ({len(content)} of {begin + count * dtype.itemsize} bytes)")
    if dtype.kind == "f" and not np.isfinite(np.frombuffer(content, dtype, count, begin)).all():
        raise ValueError("holds values that are not finite")
