from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnssl.studies.analysis.surface import Surface, measure_case, measure_surfaces

SPACINGS = [(1.0, 1.0, 1.0), (10.0, 1.5, 1.5), (3.0, 2.0, 0.7)]


def cube(begin: tuple[int, int, int], length: int = 8, size: int = 24) -> np.ndarray:
    mask = np.zeros((size,) * 3, dtype=bool)
    mask[tuple(slice(b, b + length) for b in begin)] = True
    return mask


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [1, 3])
def test_shifted_cube_has_the_shift_as_hd95(
    spacing: tuple[float, ...], axis: int, shift: int
) -> None:
    """The face that leads is k voxels away, and makes up more than 5 % of the surface."""
    begin = [6, 6, 6]
    begin[axis] += shift
    found = measure_surfaces(cube(tuple(begin)), cube((6, 6, 6)), spacing)
    assert found.hd95 == pytest.approx(shift * spacing[axis])


def test_nsd_of_a_shifted_cube_by_counting() -> None:
    """Cubes of 20 voxels, 3 apart along x, within 2 mm: of each surface two faces are too far.

    A surface has 6 * 19**2 elements of 1 mm2 on faces, 12 * 19 of sqrt(1/2) on edges, and 8 of
    sqrt(3)/8 at corners. The face outside the other cube is too far as a whole; of the face inside
    it only the 15**2 elements that lie more than 2 mm from the other's walls.
    """
    edge, corner = math.sqrt(0.5), math.sqrt(3) / 8
    surface = 6 * 19**2 + 12 * 19 * edge + 8 * corner
    too_far = 15**2 + 19**2 + 4 * 19 * edge + 4 * corner
    found = measure_surfaces(cube((6, 6, 9), 20, 40), cube((6, 6, 6), 20, 40), (1, 1, 1), 2.0)
    assert found.nsd == pytest.approx(1 - too_far / surface)


def test_concentric_spheres() -> None:
    """Radii 10 and 13 mm on half-millimetre voxels: distance 3 mm everywhere."""
    axis = (np.arange(60) - 29.5) * 0.5
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(axis, axis, axis, indexing="ij")))
    inner, outer = radius < 10, radius < 13
    found = measure_surfaces(inner, outer, (0.5,) * 3, tolerance=2.0)
    assert found.hd95 == pytest.approx(3.0, abs=0.6)
    assert found.nsd == 0
    assert measure_surfaces(inner, outer, (0.5,) * 3, tolerance=4.0).nsd == 1


def test_equal_masks_and_symmetry() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.random((6, 9, 9)) > 0.6 for _ in range(2))
    assert measure_surfaces(one, one, (3, 1, 1)) == Surface(0.0, 1.0)
    assert measure_surfaces(one, other, (3, 1, 1)) == measure_surfaces(other, one, (3, 1, 1))


def test_object_at_the_border_of_the_volume_has_a_whole_surface() -> None:
    at_border, inside = cube((0, 0, 0)), cube((5, 5, 5))
    moved = measure_surfaces(cube((2, 0, 0)), at_border, (2, 1, 1), 1.0)
    assert moved == measure_surfaces(cube((7, 5, 5)), inside, (2, 1, 1), 1.0)


def test_empty_masks() -> None:
    empty = np.zeros((24, 24, 24), dtype=bool)
    both = measure_surfaces(empty, empty, (1, 1, 1))
    assert math.isnan(both.hd95)
    assert math.isnan(both.nsd)
    for pair in ((empty, cube((1, 1, 1))), (cube((1, 1, 1)), empty)):
        one = measure_surfaces(*pair, (1, 1, 1))
        assert math.isnan(one.hd95)
        assert one.nsd == 0


def test_single_slice_is_measured_by_its_contour() -> None:
    """Two squares of one slice: contours count, not the area of the slice."""
    square, moved = (np.zeros((1, 30, 30), dtype=bool) for _ in range(2))
    square[0, 5:15, 5:15], moved[0, 5:15, 9:19] = True, True
    found = measure_surfaces(moved, square, (10.0, 1.0, 1.0), tolerance=0.5)
    assert found.hd95 == pytest.approx(4.0)
    assert found.nsd == pytest.approx(12 / 40, abs=0.05)  # 6 voxels on two sides of 40


@pytest.mark.parametrize("spacing", SPACINGS)
def test_equal_to_the_package_of_deepmind(spacing: tuple[float, ...]) -> None:
    package = pytest.importorskip("surface_distance")
    rng = np.random.default_rng(1)
    noise = [rng.random((7, 18, 17)) > 0.7 for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one, other in (noise, (cube((3, 4, 5)), cube((6, 4, 3), 11))):
            theirs = package.compute_surface_distances(other, one, spacing)
            ours = measure_surfaces(one, other, spacing, 2.0)
            assert ours.hd95 == pytest.approx(package.compute_robust_hausdorff(theirs, 95))
            expected = package.compute_surface_dice_at_tolerance(theirs, 2.0)
            assert ours.nsd == pytest.approx(expected, rel=1e-5)


def write(path: Path, labels: np.ndarray, spacing: tuple[float, float, float]) -> Path:
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def test_case_by_structure_regions_and_ignored_voxels(tmp_path: Path) -> None:
    reference, predicted = np.zeros((2, 10, 20, 20), dtype=np.uint8)
    reference[2:8, 5:12, 5:12] = 1
    reference[2:8, 12:15, 5:12] = 2
    predicted[2:8, 5:12, 7:14] = 1
    predicted[2:8, 12:15, 7:14] = 2
    reference[:, :, 18:], predicted[:, :, 19:] = 9, 1
    paths = [
        write(tmp_path / f"{name}.nii.gz", labels, (1.5, 1.0, 5.0))  # x, y, z
        for name, labels in (("p", predicted), ("r", reference))
    ]
    found = measure_case(*paths, {"1": [1], "(1, 2)": [1, 2], "3": [3]}, ignore=9)
    assert found["1"].hd95 == pytest.approx(3.0)  # two voxels of 1.5 mm along x
    assert found["(1, 2)"].hd95 == pytest.approx(3.0)
    assert math.isnan(found["3"].nsd)


def test_different_grids_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "a.nii.gz", np.ones((3, 4, 5)), (1, 1, 1))
    other = write(tmp_path / "b.nii.gz", np.ones((3, 4, 6)), (1, 1, 1))
    with pytest.raises(ValueError, match="one grid"):
        measure_case(one, other, {"1": [1]})
