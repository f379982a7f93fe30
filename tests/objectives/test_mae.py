"""Masked autoencoding: what is hidden, what counts, what is logged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from building import make_objective
from test_contract import make_batch, with_views
from torch import nn

from nnssl.modules import unet
from nnssl.objectives.mae import MAEObjective

objective = partial(make_objective, MAEObjective)


@pytest.mark.parametrize("dimension", [2, 3])
def test_three_quarters_of_the_blocks_are_zero_in_all_channels(
    make_unet: Callable[..., nn.Module], dimension: int
) -> None:
    made = objective(make_unet, dimension, channels=2)
    batch = with_views(make_batch(dimension, 2), MAEObjective)
    task = made.corrupt(batch)
    view = batch["views"]["global_0"].image
    assert made.block == tuple(unet.total_stride(made.network))
    hidden = task.weight.bool().expand_as(view)
    assert hidden.float().mean() == 0.75
    assert not task.image[hidden].any()
    assert torch.equal(task.image[~hidden], view[~hidden])
    assert torch.equal(task.target, view)


def test_the_finest_features_restore_the_image(make_unet: Callable[..., nn.Module]) -> None:
    """Of a U-Net with three levels of its decoder, the last of which is as large as the image."""
    deep = partial(make_unet, features=(4, 4, 6, 8))
    made = make_objective(MAEObjective, deep, patch_size=(32, 32))
    task = made.corrupt(with_views(make_batch(2, 1, scale=2), MAEObjective, scale=2))
    assert made.decode(task).shape[2:] == task.image.shape[2:]


def test_the_loss_is_the_error_of_hidden_voxels_only(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet)
    batch = with_views(make_batch(2, 1), MAEObjective)
    task = made.corrupt(batch)
    restored = made.reconstruct(task).detach()
    hidden = task.weight.bool()
    expected = (restored - task.target)[hidden].square().mean()
    torch.testing.assert_close(made(batch)["loss"].detach(), expected)


def test_trivial_answers_are_logged(make_unet: Callable[..., nn.Module]) -> None:
    """Zeros cost the mean square, the own mean costs the variance, of hidden voxels."""
    made = objective(make_unet)
    batch = with_views(make_batch(2, 1), MAEObjective)
    terms, task = made(batch), made.corrupt(batch)
    hidden = [image[weight.bool()] for image, weight in zip(task.target, task.weight, strict=True)]
    torch.testing.assert_close(terms["identity_loss"], torch.cat(hidden).square().mean())
    torch.testing.assert_close(
        terms["mean_image_loss"], torch.stack([h.var(correction=0) for h in hidden]).mean()
    )
    torch.testing.assert_close(terms["collapse_loss"], torch.cat(hidden).var(correction=0))


def test_a_normalised_target_has_mean_0_and_deviation_1_in_every_block(
    make_unet: Callable[..., nn.Module],
) -> None:
    made = objective(make_unet, 3, normalise_target=True, block=[4, 8, 8])
    image = make_batch(3, 1)["image"][:, :, :8, :16, :16] * 3 + 5
    batch = make_batch(3, 1)
    batch["views"] = with_views(batch, MAEObjective)["views"]
    batch["views"]["global_0"].image = image
    blocks = made.corrupt(batch).target.unfold(2, 4, 4).unfold(3, 8, 8).unfold(4, 8, 8).flatten(5)
    torch.testing.assert_close(blocks.mean(-1), torch.zeros(blocks.shape[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(blocks.var(-1, correction=0), torch.ones(blocks.shape[:-1]))


def test_masks_follow_the_key(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet)
    batch = with_views(make_batch(2, 1), MAEObjective)
    weight = made.corrupt(batch).weight
    later = made.corrupt({**batch, "key": batch["key"] + torch.tensor([0, 1, 0, 0])}).weight
    assert not torch.equal(weight, later)
    rows = [
        made.corrupt({"views": batch["views"], "key": batch["key"][[row] * 4]}).weight[row]
        for row in range(4)
    ]
    assert torch.equal(torch.stack(rows), weight)


@pytest.mark.parametrize("skips", [True, False])
def test_what_is_trained_is_recorded(make_unet: Callable[..., nn.Module], skips: bool) -> None:
    made = objective(make_unet, skips=skips)
    keys = unet.trained_keys(made.network, made.trained)
    planned = {key for key, _ in made.network.named_parameters()}
    assert planned - set(keys) == {
        "decoder.seg_layers.0.weight",
        "decoder.seg_layers.0.bias",
    }
    assert made.trained.skips is skips
    made(with_views(make_batch(2, 1), MAEObjective))["loss"].backward()
    first = made.network.decoder.stages[-1].convs[0].conv.weight.grad
    half = first.shape[1] // 2
    assert first[:, :half].any()
    assert bool(first[:, half:].any()) is skips


@pytest.mark.parametrize("dimension", [2, 3])
def test_panels_show_target_corrupted_restored_and_error(
    make_unet: Callable[..., nn.Module], dimension: int
) -> None:
    made = objective(make_unet, dimension)
    batch = with_views(make_batch(dimension, 1), MAEObjective)
    rows = made.illustrate(batch)["reconstruction"].rows
    assert [row.name for row in rows] == ["target", "seen", "reconstructed", "error"]
    assert [bool(row.scale) for row in rows] == [False, False, False, True]
    panel = torch.stack([row.images for row in rows])
    assert panel.shape == (4, 4, 16, 16)
    task = made.corrupt(batch)
    middle = (slice(None), 0) if dimension == 2 else (slice(None), 0, 4)
    assert torch.equal(panel[0], task.target[middle])
    assert torch.equal(panel[1], task.image[middle])
    error = (panel[2] - panel[0]).abs() * task.weight[middle]
    torch.testing.assert_close(panel[3], error)


def test_blocks_that_do_not_tile_the_patch_are_refused(
    make_unet: Callable[..., nn.Module],
) -> None:
    with pytest.raises(ValueError, match=r"block: found \[5, 4\]"):
        objective(make_unet, block=[5, 4])
    with pytest.raises(ValueError, match=r"block: found \[4\]"):
        objective(make_unet, block=[4])
