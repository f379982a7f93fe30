"""Coordinate arithmetic: aligned coordinates give coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnssl.modules.grids import (
    align,
    compose,
    coordinates,
    invert,
    overlap,
    sample,
    volume_centre,
)

SIZES = {2: (24, 20), 3: (12, 16, 14)}


def matrices(dimension: int, count: int = 6, seed: int = 0) -> Tensor:
    """Random rotations about the centre with flips, zooms and shifts: (count, d, d+1)."""
    random = np.random.default_rng(seed)
    turns = np.stack(
        [
            np.linalg.qr(random.normal(size=(dimension, dimension)))[0] * s
            for s in random.uniform(0.5, 0.8, count)
        ]
    )
    shifts = random.uniform(-0.2, 0.2, (count, dimension, 1))
    return torch.tensor(np.concatenate([turns, shifts], -1), dtype=torch.float32)


@pytest.fixture(params=[2, 3])
def dimension(request: pytest.FixtureRequest) -> int:
    return request.param


def test_coordinates_equal_affine_grid(dimension: int) -> None:
    matrix, size = matrices(dimension), SIZES[dimension]
    wanted = functional.affine_grid(matrix, [len(matrix), 1, *size], align_corners=False)
    torch.testing.assert_close(coordinates(matrix, size), wanted)


def test_coordinates_keep_their_precision_under_autocast(dimension: int) -> None:
    matrix, size = matrices(dimension), SIZES[dimension]
    other = matrices(dimension, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = coordinates(compose(invert(matrix), other), size)
    assert torch.equal(inside, coordinates(compose(invert(matrix), other), size))


def test_aligned_coordinates_give_coordinates(dimension: int) -> None:
    """View a holds, per cell, where it lies in the patch; so must a's map read at b's cells."""
    size, other_size = SIZES[dimension], SIZES[dimension][::-1]
    matrix_a, matrix_b = matrices(dimension), matrices(dimension, seed=1)
    own_a = coordinates(matrix_a, size).movedim(-1, 1)
    own_b = coordinates(matrix_b, other_size).movedim(-1, 1)
    aligned = align(own_a, matrix_a, matrix_b, other_size)
    valid = overlap(matrix_a, matrix_b, other_size)
    assert 0.2 < valid.float().mean() < 1
    error = (aligned - own_b).abs().amax(1)
    cell = 2 * 0.8 / min(size)
    assert error[valid].max() < cell  # half a cell per axis where only a's edge is near
    assert error[valid].median() < 1e-5
    assert error[~valid].median() > 0.1


def test_alignment_of_a_patch_map_viewed_twice(dimension: int) -> None:
    """The same through sampled views of a coordinate map of the patch."""
    size = SIZES[dimension]
    unit = torch.eye(dimension, dimension + 1).expand(6, -1, -1) * 0.6
    matrix_a, matrix_b = (
        compose(unit, matrices(dimension)),
        compose(unit, matrices(dimension, 6, 1)),
    )
    raw_patch = coordinates(torch.eye(dimension, dimension + 1)[None], [40] * dimension)
    raw_patch = raw_patch.movedim(-1, 1).expand(6, -1, *[-1] * dimension)
    view_a, view_b = sample(raw_patch, matrix_a, size), sample(raw_patch, matrix_b, size)
    valid = overlap(matrix_a, matrix_b, size)
    error = (align(view_a, matrix_a, matrix_b) - view_b).abs().amax(1)
    assert error[valid].max() < 2 / 40
    assert error[valid].median() < 1e-4


def test_align_to_itself_is_the_identity_and_has_gradients(dimension: int) -> None:
    features = torch.randn(6, 3, *SIZES[dimension], requires_grad=True)
    matrix = matrices(dimension)
    aligned = align(features, matrix, matrix)
    torch.testing.assert_close(aligned, features, atol=1e-4, rtol=0)
    aligned.sum().backward()
    torch.testing.assert_close(features.grad, torch.ones_like(features), atol=1e-3, rtol=0)


def test_align_repeats_the_edge_of_coarse_maps() -> None:
    """Cells inside the overlap but beyond the outermost cell centres are not mixed with zeros."""
    identity = torch.eye(2, 3)[None]
    aligned = align(torch.ones(1, 1, 2, 2), identity, identity, (8, 8))
    assert torch.equal(aligned, torch.ones(1, 1, 8, 8))


def test_compose_and_invert(dimension: int) -> None:
    outer, inner = matrices(dimension), matrices(dimension, seed=1)
    point = torch.randn(6, dimension, 1)

    def apply(matrix: Tensor, x: Tensor) -> Tensor:
        return matrix[:, :, :-1] @ x + matrix[:, :, -1:]

    torch.testing.assert_close(
        apply(compose(outer, inner), point), apply(outer, apply(inner, point))
    )
    torch.testing.assert_close(apply(invert(outer), apply(outer, point)), point)


def test_overlap_of_shifted_halves() -> None:
    """b lies half a view below a on the first array axis: a covers b's upper half."""
    matrix_a = torch.tensor([[[0.5, 0, 0], [0, 0.5, 0.0]]])
    matrix_b = torch.tensor([[[0.5, 0, 0], [0, 0.5, 0.5]]])
    wanted = torch.tensor([[[True] * 3] * 2 + [[False] * 3] * 2])
    assert torch.equal(overlap(matrix_a, matrix_b, (4, 3)), wanted)


def test_centre_in_the_volume() -> None:
    box = torch.tensor([[[4.0, 5.0], [10.0, 20.0], [-2.0, 6.0]]])
    flat = torch.tensor([[[1.0, 0, 0.5], [0, 1.0, -0.2]]])
    torch.testing.assert_close(volume_centre(flat, box), torch.tensor([[4.5, 14.0, 4.0]]))
    solid = torch.cat([torch.eye(3), torch.tensor([[0.5], [-0.2], [1.0]])], 1)[None]
    torch.testing.assert_close(volume_centre(solid, box), torch.tensor([[5.0, 14.0, 4.0]]))


def test_sample_reads_low_precision_and_whole_numbers_as_float32() -> None:
    identity = torch.eye(2, 3)[None]
    for image in (torch.ones(1, 1, 4, 4).bfloat16(), torch.ones(1, 1, 4, 4, dtype=torch.int64)):
        assert sample(image, identity, (4, 4)).dtype == torch.float32


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size is \[4\]; allowed are 2"):
        coordinates(torch.eye(2, 3)[None], [4])
    with pytest.raises(ValueError, match=r"matrix has shape \(2, 3\)"):
        coordinates(torch.eye(2, 3), [4, 4])
