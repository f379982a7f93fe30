"""A mask of the body for images without labels, so that nnU-Net's fingerprint is sane."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk  # noqa: N813
from skimage.filters import threshold_otsu

LABELS = {"background": 0, "foreground": 1}
AIR_HU = -500.0  # between air (-1000) and soft tissue (0)
TAILS = (0.5, 99.5)  # percentiles that outliers are clipped to before Otsu's threshold


def otsu(array: np.ndarray) -> float:
    """Otsu's threshold of the intensities, without their tails."""
    values = array.ravel()[:: max(1, array.size // 2_000_000)].astype(np.float64)
    return float(threshold_otsu(np.clip(values, *np.percentile(values, TAILS))))


def hounsfield(array: np.ndarray) -> float:
    """The bound between air and tissue in CT."""
    return AIR_HU


FOREGROUND_RULES: dict[str, Callable[[np.ndarray], float]] = {
    "otsu": otsu,
    "hounsfield": hounsfield,
}


def rule_for(channel: str) -> str:
    """Rule for a channel, by the name from which nnU-Net derives the normalisation."""
    return "hounsfield" if channel.upper() == "CT" else "otsu"


def foreground(image: sitk.Image, rule: str) -> sitk.Image:
    """Largest component above the threshold, holes filled (in 3D and in every axial slice).

    Args:
        image: A volume.
        rule: ``otsu`` or ``hounsfield``.

    Raises:
        ValueError: The image is constant, or nothing lies above the threshold.
    """
    array = sitk.GetArrayViewFromImage(image)
    if array.min() == array.max():
        raise ValueError(f"is constant ({array.min()}); no foreground can be found")
    threshold = FOREGROUND_RULES[rule](array)
    if not array.max() > threshold:
        raise ValueError(
            f"has no value above {threshold:g} (largest: {array.max():g}), so no foreground by the "
            f"rule {rule!r}; is the channel named after its modality?"
        )
    above = sitk.GetImageFromArray((array > threshold).astype(np.uint8))
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(above)) == 1
    filled = sitk.BinaryFillhole(largest)
    slices = [sitk.BinaryFillhole(filled[:, :, z]) for z in range(filled.GetSize()[2])]
    mask = sitk.JoinSeries(slices)
    mask.CopyInformation(image)
    return mask
