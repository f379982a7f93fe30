"""Retrieval of the axial position: exact on planted embeddings, chance on noise."""

from __future__ import annotations

import pytest
import torch

from nnssl.probe.slices import embed_planes, find_neighbours, measure_position_error

PATIENTS, PLANES = 6, 20
GROUPS = torch.arange(PATIENTS).repeat_interleave(PLANES)
POSITIONS = ((torch.arange(PLANES) + 0.5) / PLANES).repeat(PATIENTS)
QUERIES = torch.arange(PLANES)


def on_a_curve() -> torch.Tensor:
    angle = 3 * POSITIONS
    return torch.stack([angle.cos(), angle.sin(), torch.ones_like(angle)], dim=1)


def test_position_of_planted_embeddings_is_found() -> None:
    found = measure_position_error(on_a_curve(), POSITIONS, GROUPS, QUERIES)
    assert found.error == pytest.approx(0, abs=1e-6)  # the same plane of the five others
    assert 0.15 < found.chance < 0.35


def test_noise_is_no_better_than_chance() -> None:
    noise = torch.randn(len(GROUPS), 16, generator=torch.Generator().manual_seed(0))
    found = measure_position_error(noise, POSITIONS, GROUPS, torch.arange(len(GROUPS)))
    assert found.error == pytest.approx(found.chance, abs=0.03)


def test_neighbours_are_of_other_patients_nearest_first() -> None:
    nearest, allowed = find_neighbours(on_a_curve(), GROUPS, QUERIES, count=10)
    assert (GROUPS[nearest] != 0).all()
    assert allowed.sum(1).tolist() == [PLANES * (PATIENTS - 1)] * PLANES
    assert (POSITIONS[nearest[:, :5]] == POSITIONS[:PLANES, None]).all()
    assert (POSITIONS[nearest[:, 5:]] != POSITIONS[:PLANES, None]).all()


def test_one_patient_is_refused() -> None:
    with pytest.raises(ValueError, match="one patient only"):
        find_neighbours(on_a_curve()[:PLANES], GROUPS[:PLANES], QUERIES)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_plane_embeddings_take_planes_across_the_axis(axis: int) -> None:
    cells = torch.zeros(2, 4, 5, 6)
    shape = [1, 1, 1]
    shape[axis] = -1
    count = cells.shape[axis + 1]
    cells[1] = torch.arange(count).reshape(shape)
    found = embed_planes(cells, axis, grid=3)
    assert found.shape == (count, 18)
    assert (found[:, :9] == 0).all()
    assert torch.equal(found[:, 9], torch.arange(count).float())
