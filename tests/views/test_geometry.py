"""Geometry: what is drawn, where it reaches, and what is cut out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.views.geometry import Geometry, Placement, find_fine_axes

OFF: dict[str, Any] = {
    "rotation": 0,
    "scale": (1, 1),
    "stretch": 1,
    "shift": 0,
    "flip": 0,
    "rotate_coarse": False,
}


def draws(
    patch_size: tuple[int, ...], spacing: tuple[float, ...], count: int = 300, **knobs: Any
) -> np.ndarray:
    """(count, d, d+1) affines."""
    geometry = Geometry(**{**OFF, **knobs})
    random = np.random.default_rng(0)
    return np.stack([geometry.draw(random, patch_size, spacing) for _ in range(count)])


def test_with_all_ranges_off_nothing_moves() -> None:
    assert (draws((8, 9, 10), (2, 1, 1)) == np.eye(3, 4)).all()


@pytest.mark.parametrize("flip", [0.5, [0, 1], [1], []])
def test_axes_of_the_image_may_be_flipped_and_no_others(flip: Any) -> None:
    Geometry(**{**OFF, "flip": flip}).check((8, 9), (2, 1), 2)
    with pytest.raises(ValueError, match=r"flip is \[0, 2\]; allowed are the image's axes 0 to 1"):
        Geometry(**{**OFF, "flip": [0, 2]}).check((8, 9), (2, 1), 2)


@pytest.mark.parametrize("spacing", [(3.0, 1.0), (2.0, 1.0, 1.5)])
def test_rotation_acts_in_millimetres(spacing: tuple[float, ...]) -> None:
    linear = draws((8, 9, 10)[: len(spacing)], spacing, rotation=40)[:, :, :-1]
    mm = np.diag(spacing) @ linear @ np.diag(1 / np.array(spacing))
    unit = np.broadcast_to(np.eye(len(spacing)), mm.shape)
    np.testing.assert_allclose(mm @ mm.transpose(0, 2, 1), unit, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(mm), 1)
    trace = np.trace(mm, axis1=1, axis2=2)
    cosine = trace / 2 if len(spacing) == 2 else (trace - 1) / 2
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    assert 38 < angles.max() <= 40 + 1e-6
    assert angles.min() < 5


def test_strongly_anisotropic_volumes_rotate_in_the_fine_plane_only() -> None:
    spacing = (1.0, 4.0, 1.0)
    linear = draws((8, 9, 10), spacing, rotation=40)[:, :, :-1]
    assert (linear[:, 1] == [0, 1, 0]).all()
    assert (linear[:, :, 1] == [0, 1, 0]).all()
    assert np.abs(linear[:, 0, 2]).max() > 0.5
    free = draws((8, 9, 10), spacing, rotation=40, rotate_coarse=True)[:, :, :-1]
    assert np.abs(free[:, 1, 0]).max() > 0.05


def test_fine_axes_use_the_threshold_of_nnunet() -> None:
    assert find_fine_axes((3.0, 1.0, 1.0)) == [0, 1, 2]
    assert find_fine_axes((3.1, 1.0, 1.0)) == [1, 2]
    assert find_fine_axes((1.0, 5.0, 5.0)) == [0]


def test_scale_is_one_number_and_stretch_one_per_axis() -> None:
    scaled = draws((8, 9), (2, 1), scale=(0.5, 2))
    zoom = scaled[:, 0, 0]
    np.testing.assert_array_equal(zoom, scaled[:, 1, 1])
    assert 0.5 <= zoom.min() < 0.52
    assert 1.95 < zoom.max() <= 2
    assert np.median(zoom) == pytest.approx(1, abs=0.1)
    stretched = draws((8, 9), (2, 1), stretch=1.5)
    factors = np.stack([stretched[:, 0, 0], stretched[:, 1, 1]])
    assert abs(np.corrcoef(factors)[0, 1]) < 0.2
    assert 1 / 1.5 <= factors.min() < 0.68
    assert 1.48 < factors.max() <= 1.5


def test_shift_is_a_fraction_of_the_patch() -> None:
    shift = draws((10, 40), (2, 1), shift=0.25)[:, :, -1]
    assert (np.abs(shift) <= [2.5, 10]).all()
    assert (np.abs(shift).max(0) > [2.4, 9.6]).all()


@pytest.mark.parametrize(("flip", "share"), [(0.2, (0.2, 0.2)), ([1], (0, 0.5)), ([], (0, 0))])
def test_flip(flip: Any, share: tuple[float, ...]) -> None:
    flipped = draws((8, 9), (2, 1), flip=flip, count=2000)[:, [0, 1], [0, 1]] < 0
    np.testing.assert_allclose(flipped.mean(0), share, atol=0.04)
    if flip == 0.2:
        assert (flipped[:, 0] & flipped[:, 1]).mean() == pytest.approx(0.04, abs=0.02)


@pytest.mark.parametrize("knobs", [{"rotation": 20}, {"rotation": 180}, {"rotation": 70}])
@pytest.mark.parametrize(
    ("size", "spacing"),
    [
        ((30, 20), (1.0, 2.0)),
        ((30, 6), (1.0, 1.0)),
        ((12, 20, 24), (2.0, 1.0, 1.0)),
        ((8, 20, 24), (5.0, 1.0, 1.0)),
    ],
)
def test_reach_is_the_farthest_corner(
    size: tuple[int, ...], spacing: tuple[float, ...], knobs: dict[str, float]
) -> None:
    """Many draws at the largest field of view come close to the bound and never pass it."""
    ranges = {"scale": (1.3, 1.3), "flip": 0.5, **knobs}
    linear = draws(size, spacing, count=4000, **ranges)[:, :, :-1]
    corners = (np.abs(linear) * np.array(size) / 2).sum(-1)  # (count, d)
    reach = Geometry(**{**OFF, **ranges}).reach(size, size, spacing)
    assert (corners <= reach + 1e-9).all()
    np.testing.assert_array_less(reach - corners.max(0), 0.6)


def test_reach_adds_stretch_and_shift() -> None:
    geometry = Geometry(**{**OFF, "scale": (0.5, 1.2), "stretch": 1.5, "shift": 0.1})
    reach = geometry.reach((10, 20), (20, 30), (1, 1))
    np.testing.assert_allclose(reach, [5 * 1.8 + 2, 10 * 1.8 + 3])


def test_a_quarter_turn_is_cut_exactly() -> None:
    image = torch.rand(1, 2, 7, 7)
    turn = np.array([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    cut = Placement(turn, (7, 7), (7, 7)).image(image)
    torch.testing.assert_close(cut, torch.rot90(image, -1, (2, 3)))


@pytest.mark.parametrize(("size", "raw_patch"), [((6, 7), (9, 9)), ((5, 4, 6), (6, 9, 6))])
def test_moved_by_voxels_and_mirrored(size: tuple[int, ...], raw_patch: tuple[int, ...]) -> None:
    """A shift by one voxel and a flip of the last axis, for all parities, against slicing."""
    dimension = len(size)
    affine = np.eye(dimension, dimension + 1)
    affine[-1, -2] = -1
    affine[0, -1] = 1
    image = torch.rand(1, 1, *raw_patch)
    before = [(p - s) // 2 for p, s in zip(raw_patch, size, strict=True)]
    before[0] += 1
    box = [slice(b, min(b + s, p)) for b, s, p in zip(before, size, raw_patch, strict=True)]
    wanted = image[(..., *box)].flip(-1)
    cut = Placement(affine[None], size, raw_patch).image(image)
    torch.testing.assert_close(cut[:, :, : wanted.shape[2]], wanted, atol=1e-5, rtol=0)


def test_an_unmoved_view_is_exact_also_beside_moving_samples() -> None:
    image = torch.randn(2, 1, 201, 199) * 100
    maps = torch.randint(0, 2**40, (2, 201, 199))
    affines = np.stack([np.eye(2, 3), np.eye(2, 3) * math.cos(0.3)])
    for rows in (slice(0, 2), slice(0, 1)):
        placement = Placement(affines[rows], (80, 90), (201, 199))
        centre = (slice(60, 140), slice(54, 144))
        assert torch.equal(placement.image(image[rows])[0, 0], image[(0, 0, *centre)])
        assert torch.equal(placement.dense_target(maps[rows])[0], maps[(0, *centre)])


def test_patches_smaller_than_the_view_are_padded() -> None:
    image, maps = torch.ones(2, 1, 4, 4), torch.ones(2, 4, 4, dtype=torch.int64)
    affines = np.stack([np.eye(2, 3), np.eye(2, 3) * 2.0])
    placement = Placement(affines, (8, 7), (4, 4))
    cut, clusters = placement.image(image), placement.dense_target(maps)
    assert cut[0].sum() == 16
    assert (clusters[0] == 1).sum() == 16
    assert (clusters == -1).sum() > 32
    assert ((cut[:, 0] == 1) == (clusters == 1)).all()
