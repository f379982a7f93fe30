"""SparK: what is hidden reaches the decoder as tokens only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from building import make_objective
from test_contract import make_batch, with_views
from torch import nn

from nnssl.modules import unet
from nnssl.objectives.spark import SparkObjective

objective = partial(make_objective, SparkObjective)


@pytest.mark.parametrize("dimension", [2, 3])
def test_what_is_hidden_does_not_change_what_is_reconstructed(
    make_unet: Callable[..., nn.Module], dimension: int
) -> None:
    made = objective(make_unet, dimension)
    batch = with_views(make_batch(dimension, 1), SparkObjective)
    task = made.corrupt(batch)
    reconstructed = made.reconstruct(task)
    view = batch["views"]["global_0"]
    view.image = view.image + 5 * task.weight
    other = made.corrupt(batch)
    assert not torch.equal(other.target, task.target)
    assert torch.equal(made.reconstruct(other), reconstructed)


def test_tokens_are_learned_and_not_part_of_the_network(
    make_unet: Callable[..., nn.Module],
) -> None:
    made = objective(make_unet)
    keys = set(make_unet(2, classes=1).state_dict())
    assert set(unet.plain_state_dict(made.network)) == keys
    assert [token.shape[1] for token in made.tokens] == unet.output_channels(made.network)
    made(with_views(make_batch(2, 1), SparkObjective))["loss"].backward()
    assert all(token.grad.any() for token in made.tokens)


def test_the_tokens_change_what_is_reconstructed(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet)
    batch = with_views(make_batch(2, 1), SparkObjective)
    loss = made(batch)["loss"].detach()
    for token in made.tokens:
        with torch.no_grad():
            token.add_(1)
        changed = made(batch)["loss"].detach()
        assert not torch.equal(changed, loss)
        loss = changed


def test_the_encoder_is_a_plain_one_outside_of_pre_training(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, plain = objective(make_unet), make_unet(2, classes=1)
    plain.load_state_dict(made.network.state_dict())
    images = make_batch(2, 1)["image"][..., :16, :16]
    made(with_views(make_batch(2, 1), SparkObjective))
    for found, wanted in zip(
        unet.encode(made.network, images), unet.encode(plain, images), strict=True
    ):
        assert torch.equal(found, wanted)


def test_blocks_below_the_bottlenecks_stride_are_refused(
    make_unet: Callable[..., nn.Module],
) -> None:
    with pytest.raises(ValueError, match=r"block: found \[2, 4\].*stride \[4, 4\]"):
        objective(make_unet, block=[2, 4])
    assert objective(make_unet, block=[8, 4]).block == (8, 4)
