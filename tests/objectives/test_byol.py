"""BYOL, global and dense: places meet, the target follows, two processes equal one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from building import make_objective
from halves import check_halves
from test_clustering import batch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, one_hot

from nnssl.modules import unet
from nnssl.modules.tissue import weigh_voxels
from nnssl.objectives.byol import BYOLObjective
from nnssl.objectives.dense_byol import DenseBYOLObjective

SMALL = {"patch_size": (32, 32), "hidden_features": 16, "embedding_features": 8}
whole = partial(make_objective, BYOLObjective, **SMALL)
dense = partial(make_objective, DenseBYOLObjective, **SMALL)


@pytest.mark.parametrize("make", [whole, dense])
def test_the_target_follows_with_a_momentum_that_rises_to_one(
    make_unet: Callable[..., nn.Module], make: Callable[..., Any]
) -> None:
    made = make(make_unet, momentum=0.8)
    online, target = (next(m.parameters()) for m in (made.network, made.target[0].module))
    before = target.clone()
    with torch.no_grad():
        online.add_(1.0)
    made.after_step(batch(), 1.0)
    assert torch.equal(target, before)
    made.after_step(batch(), 0.5)  # half of 1 - 0.8 is left at half time
    torch.testing.assert_close(target, before + 0.1)
    assert torch.equal(online, before + 1)


@pytest.mark.parametrize("make", [whole, dense])
def test_equal_images_collapse(
    make_unet: Callable[..., nn.Module], make: Callable[..., Any]
) -> None:
    """Where all images are one, the targets of other samples are as near as the own ones."""
    made, same = make(make_unet, normalisation="none"), batch()
    first = next(iter(same["views"].values()))
    for view in same["views"].values():
        view.image, view.matrix = (
            first.image[:1].repeat(4, 1, 1, 1),
            first.matrix[:1].repeat(4, 1, 1),
        )
    same["image"] = same["image"][:1].repeat(4, 1, 1, 1)
    terms = made(same)
    assert float(terms["mismatched_loss"]) == pytest.approx(float(terms["loss"].detach()), abs=1e-5)
    assert float(terms["collapse_loss"]) == 0


@pytest.mark.parametrize("normalisation", ["none", "layer"])
def test_without_batch_normalisation_a_sample_does_not_see_the_others(
    make_unet: Callable[..., nn.Module], normalisation: str
) -> None:
    made, both = whole(make_unet, normalisation=normalisation), batch()
    images = torch.cat([view.image for view in both["views"].values()])
    alone = torch.cat([made._make_targets(image[None]) for image in images])
    torch.testing.assert_close(made._make_targets(images), alone)


class Quadrants:
    """In the place of the network: each cell's features are its quadrant of the raw patch."""

    def __call__(self, images: Tensor) -> Tensor:
        cells = avg_pool2d(images, 4).round().long().clamp(0, 3)[:, 0]
        return one_hot(cells, 4).float().movedim(-1, 1)

    def encode_views(self, both: dict[str, Any]) -> list[Tensor]:
        return [self(torch.cat([view.image for view in both["views"].values()]))]


def test_places_of_two_views_meet_through_rotation_and_flip(
    make_unet: Callable[..., nn.Module],
) -> None:
    """Features that know their place agree where views are aligned, and only there."""
    made = dense(make_unet, background_weight=1.0)
    made.projector = made.predictor = nn.Identity()
    object.__setattr__(made, "encode_views", Quadrants().encode_views)
    object.__setattr__(made, "_make_targets", Quadrants())
    image = torch.zeros(4, 1, 64, 64)
    image[..., 32:] += 1
    image[..., 32:, :] += 2
    moved = batch(image, rotation=180.0, flip=0.5, shift=0.1)
    assert float(made(moved)["loss"]) < 0.2
    for view in moved["views"].values():
        view.matrix = torch.eye(2, 3).expand(4, 2, 3)
    assert float(made(moved)["loss"]) > 0.5


def test_cells_outside_the_overlap_and_air_do_not_count(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, both = dense(make_unet, background_weight=0.0), batch(shift=0.2, rotation=0.0)
    voxels = weigh_voxels(both, 0.0)
    a, b = both["views"].values()
    target = torch.zeros(4, 8, 8, 8)
    _, weights = made._align(voxels, target, a, b)
    inside = made._align(voxels, target, b, b)[1]
    assert (weights <= inside).all()
    assert (weights < inside).any()
    assert (inside == 0).any()
    b.matrix = b.matrix.clone()
    b.matrix[:, :, -1] += 5
    assert not made._align(voxels, target, a, b)[1].any()


@pytest.mark.parametrize(("levels", "chosen", "cells"), [(None, 0, 8), (0, 0, 8), (2, 2, 32)])
def test_the_map_lies_after_so_many_decoder_levels(
    make_unet: Callable[..., nn.Module], levels: int | None, chosen: int, cells: int
) -> None:
    """The small U-Net's bottleneck has cells of 4 voxels, which is fine enough by default."""
    made = dense(make_unet, decoder_levels=levels)
    assert made.trained == unet.Trained(encoder_stages=None, decoder_levels=chosen)
    assert made._make_targets(torch.randn(2, 1, 32, 32)).shape[2:] == (cells, cells)
    with pytest.raises(ValueError, match="decoder_levels: found 3, allowed: 0 to 2, or null"):
        dense(make_unet, decoder_levels=3)


@pytest.mark.parametrize("make", [whole, dense])
def test_two_processes_equal_one_in_value_and_gradient(
    make_unet: Callable[..., nn.Module],
    two_processes: Callable[..., list[Any]],
    make: Callable[..., Any],
) -> None:
    check_halves(partial(make, make_unet, normalisation="layer"), batch, two_processes)
