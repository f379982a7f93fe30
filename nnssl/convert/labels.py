"""Label values by lookup, and the foreground mask that images without labels get."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from skimage.filters import threshold_otsu

OTHER = "other"
Remap = Mapping[Any, int]


class UnknownValuesError(ValueError):
    """Label values that the lookup does not know."""

    def __init__(self, values: list[float]) -> None:
        self.values = values
        super().__init__(f"unknown values {values[:10]}")


def map_values(remap: Remap, values: np.ndarray) -> np.ndarray:
    """New value of each source value.

    A key of ``remap`` is a source value, a range (``56-70``, both ends included) or ``other``; a
    single value goes before a range, a range before ``other``.

    Raises:
        UnknownValuesError: Values that no key covers.
    """
    found = [_target(remap, float(value)) for value in values]
    if unknown := [value for value, new in zip(values.tolist(), found, strict=True) if new is None]:
        raise UnknownValuesError(unknown)
    return np.array(found, np.uint8 if max(map(int, remap.values())) < 256 else np.uint16)


def look_up(remap: Remap, array: np.ndarray) -> np.ndarray:
    """Replace every value of a label; raises as ``map_values`` does."""
    values = np.unique(array)
    new: np.ndarray = map_values(remap, values)[np.searchsorted(values, array)]
    return new


def check_remap(remap: object, allowed: set[int]) -> None:
    """Refuse (``ValueError``) keys that are no value, range or ``other``, and unknown labels."""
    if not isinstance(remap, Mapping) or not remap:
        raise ValueError(f"remap is {remap!r}; it must map source values to label values")
    for key, value in remap.items():
        known = isinstance(key, int) or key == OTHER or _range(key)
        if not known or value not in allowed:
            raise ValueError(
                f"remap has {key!r}: {value!r}; allowed: a value, a range such as 56-70 or "
                f"'{OTHER}', to one of {sorted(allowed)}"
            )


def _target(remap: Remap, value: float) -> int | None:
    if value in remap:
        return remap[value]
    for key, new in remap.items():
        if (ends := _range(key)) and ends[0] <= value <= ends[1]:
            return new
    return remap.get(OTHER)


def _range(key: object) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)-(\d+)", key) if isinstance(key, str) else None
    return (int(match[1]), int(match[2])) if match else None


LABELS = {"background": 0, "foreground": 1}
AIR_HU = -500.0  # between air (-1000) and soft tissue (0)
TAILS = (0.5, 99.5)  # percentiles that outliers are clipped to before Otsu's threshold


def otsu(array: np.ndarray) -> float:
    """Otsu's threshold of the intensities, without their tails."""
    values = array.ravel()[:: max(1, array.size // 2_000_000)].astype(np.float64)
    return float(threshold_otsu(np.clip(values, *np.percentile(values, TAILS))))


FOREGROUND_RULES: dict[str, Callable[[np.ndarray], float]] = {
    "otsu": otsu,
    "hounsfield": lambda array: AIR_HU,
}


def choose_foreground_rule(channel: str) -> str:
    """Rule for a channel, by the name from which nnU-Net derives the normalisation."""
    return "hounsfield" if channel.upper() == "CT" else "otsu"


def make_foreground_mask(image: sitk.Image, rule: str) -> sitk.Image:
    """Largest component above the threshold, holes filled (in 3D and in every axial slice).

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
