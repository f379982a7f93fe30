"""HD95 in mm and normalised surface Dice of a predicted segmentation, on the original grid.

The definitions are those of DeepMind's `surface-distance` (surface elements weighted by their area,
so that thick slices do not distort the figures), and the tests hold the numbers equal to that
package. It is not called here because its release fails with NumPy 2 where a mask is empty and uses
parts of SciPy that are to go; MONAI has the same numbers but needs torch 2.8 and seconds to import.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects

TOLERANCE = 2.0  # mm
Mask = NDArray[np.bool_]


class Surface(NamedTuple):
    """Distances between two surfaces; NaN where they are not defined.

    Attributes:
        hd95: larger of the two directed 95th percentiles, mm.
        nsd: normalised surface Dice at the stated tolerance, 0 to 1.
    """

    hd95: float
    nsd: float


def measure_surfaces(
    predicted: Mask, reference: Mask, spacing: Sequence[float], tolerance: float = TOLERANCE
) -> Surface:
    """HD95 and NSD of two masks.

    With S the surface elements (area a, distance d to the other surface) of prediction p and
    reference r: `HD95 = max(q95(d_p), q95(d_r))`, each quantile weighted by a, and
    `NSD = (sum_p a [d <= tolerance] + sum_r a [d <= tolerance]) / (sum_p a + sum_r a)`.
    Both empty: NaN, NaN. One of them empty: NaN, 0.

    Args:
        predicted: (Z, Y, X); an axis of length 1 is not measured along (contours instead).
        reference: as `predicted`.
        spacing: size of a voxel per array axis, mm.
        tolerance: mm.
    """
    if predicted.shape != reference.shape:
        raise ValueError(
            f"the prediction has shape {predicted.shape} and the reference {reference.shape}; "
            "predict again on the original grid"
        )
    if not predicted.any() or not reference.any():
        return Surface(math.nan, 0.0 if predicted.any() or reference.any() else math.nan)
    (box,) = find_objects((predicted | reference).astype(np.uint8))
    areas = _tabulate_areas(tuple(float(step) for step in spacing))
    elements = [areas[_code_neighbourhoods(mask[box])] for mask in (predicted, reference)]
    return _compare_elements(elements, spacing, tolerance)


def _compare_elements(
    elements: Sequence[NDArray[np.float64]], spacing: Sequence[float], tolerance: float
) -> Surface:
    borders = [each > 0 for each in elements]
    to = [distance_transform_edt(~each, sampling=tuple(spacing)) for each in borders]
    distances = [to[1][borders[0]], to[0][borders[1]]]
    weights = [each[border] for each, border in zip(elements, borders, strict=True)]
    within = [w[d <= tolerance].sum() for d, w in zip(distances, weights, strict=True)]
    hd95 = max(_find_quantile(d, w) for d, w in zip(distances, weights, strict=True))
    return Surface(float(hd95), float(sum(within) / sum(each.sum() for each in weights)))


def _find_quantile(
    distances: NDArray[np.float64], weights: NDArray[np.float64], share: float = 0.95
) -> float:
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(weights[order]) / weights.sum()
    place = int(np.searchsorted(covered, share))
    return float(distances[order][min(place, len(order) - 1)])


def _code_neighbourhoods(mask: Mask) -> NDArray[np.intp]:
    """Which of the 2 x 2 x 2 voxels round each corner of the grid are inside, as 8 bits."""
    flat = [axis for axis, length in enumerate(mask.shape) if length == 1]
    padded = np.pad(mask, [(0, 0) if axis in flat else (1, 1) for axis in range(3)])
    for axis in flat:  # the same slice on both sides: walls, but no floor and no ceiling
        padded = np.repeat(padded, 2, axis=axis)
    codes = np.zeros([length - 1 for length in padded.shape], dtype=np.intp)
    for bit, corner in enumerate(np.ndindex(2, 2, 2)):
        view = tuple(slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True))
        codes += padded[view].astype(np.intp) << (7 - bit)
    return codes


@cache
def _tabulate_areas(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Area in mm2 of the surface inside each of the 256 neighbourhoods (marching cubes)."""
    from skimage.measure import marching_cubes, mesh_surface_area

    areas = np.zeros(256)
    for code in range(1, 255):
        few = code if bin(code).count("1") <= 4 else 255 - code  # inside and outside swapped
        corners = np.array([few >> (7 - bit) & 1 for bit in range(8)], dtype=float)
        points, triangles, _, _ = marching_cubes(
            corners.reshape(2, 2, 2), 0.5, spacing=spacing, method="lorensen"
        )
        areas[code] = mesh_surface_area(points, triangles)
    return areas


def measure_case(
    predicted: Path,
    reference: Path,
    regions: Mapping[str, Iterable[int]],
    tolerance: float = TOLERANCE,
    ignore: int | None = None,
) -> dict[str, Surface]:
    """HD95 and NSD per structure of one case.

    Args:
        predicted: image of predicted labels.
        reference: image of reference labels on the same grid.
        regions: structure -> the label values that make it up.
        tolerance: mm.
        ignore: label value of the reference whose voxels count for nothing.
    """
    images = [sitk.ReadImage(str(path)) for path in (predicted, reference)]
    found, wanted = (sitk.GetArrayFromImage(image) for image in images)
    if found.shape != wanted.shape:
        raise ValueError(
            f"{predicted} has shape {found.shape} and {reference} {wanted.shape}; they must lie "
            "on one grid: validate the run again (nnUNetv2_train ... --val)"
        )
    spacing = images[1].GetSpacing()[::-1]
    if found.ndim == 2:
        found, wanted, spacing = found[None], wanted[None], (1.0, *spacing)
    counted = np.full(wanted.shape, True) if ignore is None else wanted != ignore
    masks = {
        name: (np.isin(found, list(values)) & counted, np.isin(wanted, list(values)) & counted)
        for name, values in regions.items()
    }
    return {name: measure_surfaces(*pair, spacing, tolerance) for name, pair in masks.items()}
