"""Pictures (PNG, JPEG, TIFF, BMP): single 2D images, and stacks of slices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from nnssl.convert.volumes import make_image

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FLAT = (1.0, 1.0, 999.0)  # spacing of a 2D image, as in nnU-Net's reader of natural images


def read_picture(path: Path) -> sitk.Image:
    """Read a 2D image as a volume of one slice (colours stay components); opacity is dropped.

    Raises:
        OSError: A JPEG is truncated.
    """
    if path.suffix.lower() in (".jpg", ".jpeg"):
        with Image.open(path) as picture:  # ITK fills what is missing with grey
            picture.load()
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    colours = image.GetNumberOfComponentsPerPixel() > 1
    if image.GetDimension() == 3:  # pages of a TIFF
        return image
    array = array[..., :3] if colours else array
    flat = sitk.GetImageFromArray(array[None], isVector=colours)
    flat.SetSpacing(FLAT)
    return flat


def read_stack(paths: Sequence[Path]) -> sitk.Image:
    """Read slices in the order given, as one volume of 1 mm voxels.

    Raises:
        ValueError: Slices of different sizes, or colours.
    """
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths]
    sizes = {array.shape for array in arrays}
    if len(sizes) > 1 or arrays[0].ndim != 2:
        raise ValueError(f"has slices of the sizes {sorted(sizes)}; one grey size is needed")
    return make_image(np.stack(arrays), (1, 1, 1), (0, 0, 0), np.eye(3).ravel())


def sort_naturally(path: Path) -> list[tuple[int, str]]:
    """Sort key: numbers in names count as numbers (``slice9`` before ``slice10``)."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", path.name)
        if part
    ]
