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


@pytest.mark.parametrize("dimension", [2, 3])
def test_logits_add_up_what_a_permutation_claims_of_every_place(
    make_unet: Callable[..., nn.Module], dimension: int
) -> None:
    made = objective(make_unet, dimension, permutations=12)
    pieces, table = made.grid.pieces, made.permutations
    cells, target = torch.randn(2, pieces, pieces), torch.tensor([[3, 0, 7], [1, 11, 3]])
    logits = made.score(cells, target)
    assert logits.shape == (2, 3, 12)
    for b, q, p in [(0, 0, 0), (0, 2, 11), (1, 1, 4), (1, 0, 1)]:
        laid_out = table[target[b, q]]
        claimed = sum(float(cells[b, laid_out[i], table[p, i]]) for i in range(pieces))
        assert float(logits[b, q, p]) == pytest.approx(claimed, abs=1e-4)


def test_who_knows_every_cell_is_always_right_and_who_knows_none_guesses(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, target = objective(make_unet), torch.arange(100).view(4, 25)
    knowing = made.score(torch.eye(9).expand(4, 9, 9), target)
    assert torch.equal(knowing.argmax(2), target)
    alike = made.score(torch.randn(4, 1, 9).expand(4, 9, 9), target)  # pieces look the same
    torch.testing.assert_close(alike, alike[:, :, :1].expand_as(alike))


def test_no_permutation_of_an_image_is_asked_twice(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet)
    _, target = made.answer(torch.zeros(4, 9, 128), make_batch(2, 1))
    assert all(len(set(row)) == 8 for row in target.view(4, 8).tolist())


def test_every_piece_is_seen_beside_the_mean_of_all_pieces(
    make_unet: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, codes, seen = objective(make_unet), torch.randn(4, 9, 128), []
    forward = made.head.forward
    monkeypatch.setattr(made.head, "forward", lambda rows: seen.append(rows) or forward(rows))
    made.answer(codes, make_batch(2, 1))
    own, together = seen[0].view(4, 9, 256).split(128, 2)
    assert torch.equal(own, codes)
    torch.testing.assert_close(together[:, 3], codes.mean(1))


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
    assert made.illustrate(batch)["confusion"].rows[0].images.shape == (1, places, places)


@pytest.mark.parametrize(
    ("size", "voxels"),
    [((96, 96), 1.0), ((16, 16), 9 * 8 * 8 / 256), ((8, 16), 3 * 8 * 8 / 128)],
)
def test_the_budget_counts_pieces_as_large_as_the_network_sees_them(
    make_unet: Callable[..., nn.Module], size: tuple[int, ...], voxels: float
) -> None:
    """Strides of 4 want pieces of 8 voxels or more: those of a small patch are made larger."""
    knobs = {"pieces": 3, "gap": 0.1, "jitter": 0.1}
    assert JigsawObjective.count_inputs(make_unet(2), size, knobs) == voxels
