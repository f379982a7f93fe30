"""Rotation: exact turns, as many classes as patch and spacing allow, no help from the views."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from building import make_objective
from test_contract import make_batch, with_views
from torch import nn

from nnssl.objectives import Context
from nnssl.objectives.rotation import RotationObjective, find_common_size, find_turns

objective = partial(make_objective, RotationObjective)


@pytest.mark.parametrize(
    ("size", "spacing", "classes"),
    [
        ((16, 16), (1, 1), 4),
        ((16, 24), (1, 1), 2),
        ((16, 16), (1, 2), 2),
        ((8, 8, 8), (1, 1, 1), 10),
        ((8, 16, 16), (1, 1, 1), 6),
        ((16, 16, 16), (5, 1, 1), 6),
        ((8, 16, 24), (1, 1, 1), 4),
    ],
)
def test_classes_are_the_distinct_turns_that_keep_shape_and_spacing(
    size: tuple[int, ...], spacing: tuple[float, ...], classes: int
) -> None:
    turns = find_turns(size, spacing)
    image = np.random.default_rng(0).normal(size=size)
    turned = [np.rot90(image, count, axes) for count, axes in turns]
    assert len(turns) == classes
    assert all(t.shape == size for t in turned)
    assert len({t.tobytes() for t in turned}) == classes


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_question_is_the_view_turned_voxel_by_voxel(
    make_unet: Callable[..., nn.Module], dimension: int
) -> None:
    made = objective(make_unet, dimension, channels=2)
    batch = with_views(make_batch(dimension, 2), RotationObjective)
    pieces = made.cut(batch)[:, 0]
    _, answers = made.answer(torch.zeros(4, 1, 128), batch)
    for sample, answer in enumerate(answers):
        view = batch["views"]["global_0"].image[sample].numpy()
        margins = [(w - s) // 2 for w, s in zip(view.shape[1:], made.size, strict=True)]
        inside = [slice(m, m + s) for m, s in zip(margins, made.size, strict=True)]
        count, (a, b) = made.turns[answer]
        expected = np.rot90(view[(slice(None), *inside)], count, (a + 1, b + 1))
        np.testing.assert_array_equal(pieces[sample].numpy(), expected)


def test_axes_of_like_spacing_are_cut_to_one_length(make_unet: Callable[..., nn.Module]) -> None:
    """The tiny 3D network has strides 2, 4, 4."""
    network = make_unet(3)
    sizes = {
        spacing: find_common_size(network, Context(1, (8, 16, 24), spacing))
        for spacing in ((1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (1.0, 5.0, 9.0))
    }
    assert list(sizes.values()) == [(8, 8, 8), (8, 16, 16), (8, 16, 24)]
    assert objective(make_unet, 3, crop=False).classes == 6
    assert objective(make_unet, 3).classes == 10
    assert objective(make_unet, 3).describe() == "10 rotations of 8x8x8 voxels"


def test_every_class_is_asked_for(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet, 3)
    drawn = [made._draw(make_batch(3, 1, step)) for step in range(50)]
    assert {c for step in drawn for c in step} == set(range(10))
