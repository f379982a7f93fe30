"""Jigsaw: the order that is asked for is the one that is laid out; the permutations are kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from building import make_objective
from test_contract import make_batch, with_views
from torch import nn

from nnssl.objectives.jigsaw import JigsawObjective

objective = partial(make_objective, JigsawObjective)


@pytest.mark.parametrize(("dimension", "pieces"), [(2, 9), (3, 27)])
def test_pieces_are_laid_out_in_the_order_of_the_answer(
    make_unet: Callable[..., nn.Module], dimension: int, pieces: int
) -> None:
    """Embeddings that are the number of their piece show the order."""
    made, batch = objective(make_unet, dimension), make_batch(dimension, 1)
    codes = torch.arange(pieces).view(1, pieces, 1) + 100 * torch.arange(4).view(4, 1, 1)
    questions, answers = made.ask(codes, batch)
    assert questions.shape == (32, pieces, 1)
    expected = made.permutations[answers] + 100 * torch.arange(4).repeat_interleave(8)[:, None]
    assert torch.equal(questions[:, :, 0], expected)
    assert all(len(set(row)) == 8 for row in answers.view(4, 8).tolist())  # none twice


def test_a_flat_patch_has_a_smaller_puzzle(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet, 2, patch_size=(8, 16))  # strides 4: two pieces, and three
    assert made.grid.counts == (1, 3)
    assert made.classes == 6
    assert "6 permutations, of which any two differ at 2 places" in made.describe()


def test_permutations_are_those_of_the_checkpoint(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet)
    other = made.permutations.roll(1, 0)
    made.load_state_dict({**made.state_dict(), "permutations": other})
    assert torch.equal(made.permutations, other)


def test_confusion_is_that_of_places(make_unet: Callable[..., nn.Module]) -> None:
    made, batch = objective(make_unet), with_views(make_batch(2, 1), JigsawObjective)
    target, answer = torch.tensor([0, 3]), torch.tensor([0, 4])
    laid_out, said, places = made.compare(target, answer)
    assert laid_out.tolist() == made.permutations[target].flatten().tolist()
    assert said.tolist() == made.permutations[answer].flatten().tolist()
    assert made.illustrate(batch)["confusion"].shape == (1, 1, 8 * places, 8 * places)
