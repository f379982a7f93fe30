"""Relative patch location: who is asked for, in which order, and what does not give it away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from building import make_objective
from test_contract import make_batch, with_views
from torch import nn

from nnssl.objectives.relative_patch import RelativePatchObjective

objective = partial(make_objective, RelativePatchObjective)


@pytest.mark.parametrize(
    ("dimension", "size", "classes"),
    [(2, (16, 16), 8), (3, (8, 16, 16), 26), (3, (4, 16, 16), 8), (2, (8, 24), 2)],
)
def test_there_are_as_many_places_as_neighbours(
    make_unet: Callable[..., nn.Module], dimension: int, size: tuple[int, ...], classes: int
) -> None:
    made = objective(make_unet, dimension, patch_size=size)
    assert made.classes == classes
    assert f"{classes} places about the central one" in made.describe()


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_centre_comes_first_and_its_neighbours_in_the_order_of_their_places(
    make_unet: Callable[..., nn.Module], dimension: int
) -> None:
    """Embeddings that are the number of their piece show who is asked for."""
    made = objective(make_unet, dimension)
    pieces = made.grid.pieces
    made.head = nn.Identity()
    codes = torch.arange(2 * pieces).view(2, pieces, 1)
    questions, answers = made.answer(codes, {})
    others = [n for n in range(pieces) if n != pieces // 2]
    pairs = [[s * pieces + pieces // 2, s * pieces + n] for s in range(2) for n in others]
    assert questions.tolist() == pairs
    assert answers.tolist() == [*range(pieces - 1)] * 2


def test_brightness_and_contrast_of_the_image_change_nothing(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, batch = objective(make_unet).eval(), with_views(make_batch(2, 1), RelativePatchObjective)
    before = made(batch)["loss"]
    batch["views"]["global_0"].image = 3 * batch["views"]["global_0"].image + 5
    torch.testing.assert_close(made(batch)["loss"], before, atol=1e-4, rtol=1e-4)


def test_pictures_show_pieces_and_confusions(make_unet: Callable[..., nn.Module]) -> None:
    made, batch = objective(make_unet, 3), with_views(make_batch(3, 1), RelativePatchObjective)
    shown = made.illustrate(batch)
    assert [row.name for row in shown["pieces"].rows] == batch["identifier"]
    assert shown["pieces"].rows[0].images.shape == (27, *made.grid.side[1:])
    (confusion,) = shown["confusion"].rows
    torch.testing.assert_close(confusion.images[0].sum(1), torch.ones(26))
