"""Pixel-level clustering: targets meet predictions at the same place, -1 does not count."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from building import make_objective
from test_contract import make_batch
from torch import Tensor, nn

from nnssl.modules import unet
from nnssl.objectives import DenseTargets
from nnssl.objectives.pixel_clustering import PixelClusteringObjective
from nnssl.views import RandomView

PATCH_SIZE = (16, 16)
CLUSTERS = 4
STILL = {"rotation": 0.0, "scale": (1.0, 1.0), "stretch": 1.0, "shift": 0.0, "flip": 0.0}
objective = partial(make_objective, PixelClusteringObjective, clusters=CLUSTERS)


def batch(count: int = 2, **knobs: Any) -> dict[str, Any]:
    """The dense target: quadrants of the patch; the last two columns are unknown."""
    made = make_batch(2, 1)
    quadrant = torch.zeros(24, 24, dtype=torch.int64)
    quadrant[:, 12:] += 1
    quadrant[12:] += 2
    quadrant[:, 18:] = -1
    made["dense_targets"] = {"clusters": quadrant.repeat(4, 1, 1)}
    views = RandomView(count=count, **knobs)(made, "global", PATCH_SIZE, (1.0, 1.0))
    return {**made, "views": views}


def let_answer(made: PixelClusteringObjective, logits: Tensor) -> None:
    """The decoder gives these, and the head hands them on."""
    object.__setattr__(made, "decode_views", lambda *_, **__: [logits])
    with torch.no_grad():
        made.head.weight.copy_(torch.eye(CLUSTERS).view_as(made.head.weight))
        made.head.bias.zero_()


def perfect(made: PixelClusteringObjective, whole: dict[str, Any]) -> None:
    """Predicts what each view's own map says (0 where it is unknown)."""
    maps = [view.dense_targets[made.maps] for view in whole["views"].values()]
    target = torch.cat(maps).clamp_min(0)
    logits = 20.0 * nn.functional.one_hot(target, CLUSTERS).movedim(-1, 1).float()
    let_answer(made, logits)


@pytest.mark.parametrize("loss", ["swapped", "cross_entropy"])
def test_perfect_predictions_cost_nothing_through_rotation_and_flip(
    make_unet: Callable[..., nn.Module], loss: str
) -> None:
    made, whole = objective(make_unet, loss=loss), batch(rotation=180.0, flip=0.5)
    perfect(made, whole)
    terms = made(whole)
    assert float(terms["accuracy"]) > 0.9
    assert 0 < float(terms["known_share"]) < 1
    if loss == "swapped":
        for view in whole["views"].values():
            view.matrix = torch.eye(2, 3).expand(4, 2, 3)
        assert float(made(whole)["accuracy"]) < 0.7


def test_swapped_is_plain_cross_entropy_where_the_views_are_one(
    make_unet: Callable[..., nn.Module],
) -> None:
    whole = batch(**STILL)
    swapped = objective(make_unet, loss="swapped")(whole)["loss"].detach()
    plain = objective(make_unet, loss="cross_entropy")(whole)["loss"].detach()
    torch.testing.assert_close(swapped, plain)
    with pytest.raises(ValueError, match="views: found 1"):
        objective(make_unet, loss="swapped")(batch(1))


def test_unknown_voxels_get_no_gradient(make_unet: Callable[..., nn.Module]) -> None:
    made, whole = objective(make_unet, loss="cross_entropy"), batch(1, **STILL)
    view = whole["views"]["global_0"]
    logits = torch.randn(4, CLUSTERS, *PATCH_SIZE, requires_grad=True)
    let_answer(made, logits)
    made(whole)["loss"].backward()
    assert logits.grad is not None
    known = view.dense_targets["clusters"] >= 0
    assert (logits.grad.abs().sum(1) > 0).equal(known)


def test_fewer_levels_ask_every_cell_for_the_cluster_in_its_middle(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, whole = objective(make_unet, decoder_levels=1), batch(1, **STILL)
    target = whole["views"]["global_0"].dense_targets["clusters"]
    assert made(whole)["loss"].isfinite()
    cells = nn.functional.one_hot(target[:, 1::2, 1::2].clamp_min(0), CLUSTERS)
    made.head = nn.Conv2d(CLUSTERS, CLUSTERS, 1)
    let_answer(made, 20.0 * cells.movedim(-1, 1).float())
    terms = made(whole)
    assert float(terms["accuracy"]) == 1
    assert float(terms["loss"].detach()) < 1e-6
    assert float(terms["known_share"]) == pytest.approx(float((target >= 0).float().mean()))
    keys: list[str] = unet.trained_keys(made.network, made.trained)
    assert any(key.startswith("decoder.stages.0.") for key in keys)
    assert not any(key.startswith("decoder.stages.1.") for key in keys)


def test_clusters_of_fewer_levels_have_the_images_size(
    make_unet: Callable[..., nn.Module],
) -> None:
    made = objective(make_unet, decoder_levels=1)
    image = torch.randn(2, 1, *PATCH_SIZE)
    found = made.clusters(image)
    assert found.shape == (2, *PATCH_SIZE)
    assert found.dtype == torch.int64
    assert found.equal(found[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2))
    with pytest.raises(ValueError, match="decoder_levels: found 3, allowed: 0 to 2"):
        objective(make_unet, decoder_levels=3)


def test_collapse_value_is_the_entropy_of_the_targets(make_unet: Callable[..., nn.Module]) -> None:
    """The best constant prediction is the clusters' own shares."""
    made, whole = objective(make_unet, loss="cross_entropy"), batch(1, **STILL)
    target = whole["views"]["global_0"].dense_targets["clusters"]
    shares = torch.bincount(target[target >= 0], minlength=CLUSTERS) / (target >= 0).sum()
    constant = shares.log().reshape(1, -1, 1, 1).expand(4, CLUSTERS, *PATCH_SIZE)
    let_answer(made, constant)
    terms = made(whole)
    assert float(terms["collapse_loss"]) == pytest.approx(float(terms["loss"]), rel=1e-4)
    balanced = objective(make_unet, loss="cross_entropy", balanced=True)
    assert float(balanced(whole)["collapse_loss"]) == pytest.approx(math.log(4))


def test_learns_intensity_clusters(make_unet: Callable[..., nn.Module]) -> None:
    made, whole = objective(make_unet, loss="swapped"), batch(rotation=0.0)
    for view in whole["views"].values():
        view.dense_targets["clusters"] = (view.image[:, 0] > 0).long()
    for view in whole["views"].values():
        view.matrix = torch.eye(2, 3).expand(4, 2, 3)
    whole["views"]["global_1"] = whole["views"]["global_0"]
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 1e-2)
    for _ in range(25):
        terms = made(whole)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert float(terms["accuracy"]) > 0.85
    assert float(terms["loss"].detach()) < 0.95 * float(terms["collapse_loss"])


def test_whole_network_is_trained_and_named_maps_are_read(
    make_unet: Callable[..., nn.Module],
) -> None:
    made = objective(make_unet, maps="dino", skips=False)
    assert made.dense_targets == (DenseTargets("dino", "clusters", CLUSTERS),)
    assert made.cluster_count == CLUSTERS
    assert not made.trained.skips
    keys: list[str] = unet.trained_keys(made.network, made.trained)
    assert any(key.startswith("decoder.stages.1.") for key in keys)
    assert not any("seg_layers" in key for key in keys)


def test_pictures_show_image_target_and_prediction(make_unet: Callable[..., nn.Module]) -> None:
    rows = objective(make_unet).illustrate(batch())["clusters"].rows
    names = ["target (black: none)", "predicted"]
    assert [row.name for row in rows] == ["global_0", *names, "global_1", *names]
    panel = torch.stack([row.images for row in rows])
    assert panel.shape == (6, 4, *PATCH_SIZE, 3)
    assert 0 <= float(panel.min()) <= float(panel.max()) <= 1
