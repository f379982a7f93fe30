"""Division of a step's voxels."""

from __future__ import annotations

import math

import pytest

from nnssl.data.budget import Budget, BudgetRequest, check_patch_size, divide_voxels, find_raw_patch


def request(**changes: object) -> BudgetRequest:
    plan = {
        "planned_patch": (80, 80),
        "planned_batch": 8,
        "stride": (8, 8),
        "views": 2.0,
        "parts": 4,
    }
    return BudgetRequest(**{**plan, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("views", [1.0, 2.0, 3.0, 6.0])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_stays_within_the_allowed_voxels(views: float, share: float) -> None:
    patch_size, samples = divide_voxels(request(views=views, share=share))
    assert samples % 4 == 0
    least = math.prod(patch_size) == 32 * 32
    assert math.prod(patch_size) * samples * views <= 80 * 80 * 8 / share or least


def test_three_volumes_fit_and_patches_divide_by_the_strides() -> None:
    patch_size, samples = divide_voxels(request())
    assert samples >= 12
    assert all(size % 8 == 0 and size >= 32 for size in patch_size)
    check_patch_size(patch_size, (8, 8))


def test_anisotropy_of_the_plan_is_kept() -> None:
    patch_size, _ = divide_voxels(
        request(
            planned_patch=(16, 128, 128), planned_batch=2, stride=(4, 32, 32), views=2.0, parts=1
        )
    )
    assert patch_size[0] <= patch_size[1] == patch_size[2]


def test_position_axis_is_shortened_until_parts_differ() -> None:
    """A hippocampus patch as long as the volume would leave every centre at one half."""
    plan = {"planned_patch": (32, 32, 32), "planned_batch": 4, "stride": (4, 4, 4)}
    patch_size, samples = divide_voxels(request(**plan, median=(36.0, 50.0, 35.0)))
    assert patch_size[0] <= 24
    assert samples >= 4


def test_users_patch_size_and_samples_are_taken() -> None:
    assert divide_voxels(request(patch_size=(64, 48), samples=8)) == ((64, 48), 8)


@pytest.mark.parametrize("patch_size", [(60, 64), (8, 64), (64,)])
def test_users_patch_size_must_fit_the_network(patch_size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"training\.patch_size"):
        divide_voxels(request(patch_size=patch_size))


def test_raw_patch_has_an_even_margin() -> None:
    """An odd margin would move the centre of every view by half a voxel."""
    assert find_raw_patch((16, 16), (19, 22)) == (20, 22)
    assert find_raw_patch((16, 16), (10, 16)) == (16, 16)


def test_the_log_line_states_local_and_global_voxels() -> None:
    line = Budget((16, 16), (20, 20), 4, 2.0, 999).describe(1, 3)
    assert "= 2048 voxels" in line
    assert "6144" in line
    assert "999" in line
