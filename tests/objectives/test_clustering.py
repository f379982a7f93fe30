"""Patch-level clustering: codes stay with their tokens, views meet, air hardly counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from building import make_objective
from halves import check_halves
from test_contract import make_batch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, one_hot

from nnssl.losses.clustering import sinkhorn
from nnssl.objectives.clustering import ClusteringObjective, _to_maps, _to_rows
from nnssl.views import RandomView

PATCH_SIZE = (32, 32)
PLAIN = dict.fromkeys(
    ["noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"]
)
objective = partial(
    make_objective,
    ClusteringObjective,
    patch_size=PATCH_SIZE,
    prototypes=6,
    hidden_features=16,
    embedding_features=8,
)


def batch(
    image: Tensor | None = None,
    step: int = 0,
    patch_size: tuple[int, int] = PATCH_SIZE,
    **knobs: Any,
) -> dict[str, Any]:
    made = make_batch(2, 1, step)
    if image is not None:
        size = torch.tensor([1.0, *image.shape[2:]])
        made["image"] = image
        made["box"] = torch.stack([torch.zeros(len(image), 3), size.expand(len(image), 3)], 2)
        made["shape"] = size.expand(len(image), 3)
        made["key"] = torch.tensor([[5, step, 0, j] for j in range(len(image))])
    made["dense_targets"] = {}
    views = RandomView(**{"count": 2, **PLAIN, **knobs})(made, "global", patch_size, (1.0, 1.0))
    return {**made, "views": views}


# ---------------------------------------------------------------- codes and tokens


def test_codes_stay_with_their_tokens() -> None:
    """The thesis' code read (K, B*N) as (B, N, K): here tokens, sums and equal use survive."""
    views, samples, cells, count = 2, 3, [4, 5], 7
    rows = views * samples * math.prod(cells)
    tokens = torch.arange(rows) % count
    codes = sinkhorn(one_hot(tokens, count).float())
    maps = _to_maps(codes, views, cells)
    assert maps.shape == (views, samples, count, *cells)
    torch.testing.assert_close(maps.sum(2), torch.ones(views, samples, *cells))
    assert torch.equal(maps.argmax(2).flatten(), tokens)
    assert torch.equal(_to_rows(maps[1]), codes[rows // 2 :])
    assert (maps.sum((0, 1, 3, 4)) / rows - 1 / count).abs().max() < 0.01


class Quadrants(nn.Module):
    """In the place of the projector: the embedding of a token is its quadrant of the patch."""

    def forward(self, tokens: Tensor) -> Tensor:
        return one_hot(tokens.round().long().clamp(0, 3)[:, 0], 4).float()


def mean_grey(whole: dict[str, Any]) -> list[Tensor]:
    """In the place of the network: tokens of 4 x 4 voxels."""
    return [avg_pool2d(torch.cat([view.image for view in whole["views"].values()]), 4)]


@pytest.mark.parametrize(
    "geometry",
    [
        {"rotation": 180.0, "flip": 0.5, "shift": 0.1},
        {"rotation": 0.0, "flip": 0.5, "shift": 0.2, "scale": (0.7, 1.4)},
    ],
)
def test_places_of_two_views_meet_through_rotation_and_flip(
    make_unet: Callable[..., nn.Module], geometry: dict[str, Any]
) -> None:
    """Perfect embeddings agree where views are aligned, and only there."""
    made = objective(make_unet, prototypes=4, embedding_features=4, background_weight=1.0)
    made.prototypes.weight.data = torch.eye(4)
    made.projector, made.stage = Quadrants(), 0
    object.__setattr__(made, "encode_views", mean_grey)
    image = torch.zeros(4, 1, 64, 64)
    image[..., 32:] += 1
    image[..., 32:, :] += 2
    whole = batch(image, **geometry)
    aligned = made(whole)
    assert float(aligned["accuracy"]) > 0.8
    for view in whole["views"].values():
        view.matrix = torch.eye(2, 3).expand(4, 2, 3)
    assert float(made(whole)["accuracy"]) < 0.7
    assert float(aligned["overlap"]) < 1


def test_pairs_with_too_little_overlap_do_not_count(make_unet: Callable[..., nn.Module]) -> None:
    apart = batch(shift=0.5, rotation=0.0)
    for view, side in zip(apart["views"].values(), (-0.6, 0.6), strict=True):
        view.matrix = torch.tensor([[0.5, 0, side], [0, 0.5, 0]]).expand(4, 2, 3)
    terms = objective(make_unet)(apart)
    assert float(terms["overlap"]) == 0
    assert float(terms["loss"].detach()) == 0


@pytest.mark.parametrize(("least", "counts"), [(0.2, True), (0.3, False)])
def test_the_least_overlap_decides_which_pairs_count(
    make_unet: Callable[..., nn.Module], least: float, counts: bool
) -> None:
    """One of the four columns of cells is shared: a quarter of each view."""
    apart = batch(shift=0.0, rotation=0.0)
    for view, side in zip(apart["views"].values(), (-0.375, 0.375), strict=True):
        view.matrix = torch.tensor([[0.5, 0, side], [0, 0.5, 0]]).expand(4, 2, 3)
    terms = objective(make_unet, min_overlap=least)(apart)
    assert float(terms["overlap"]) == (0.25 if counts else 0)
    assert (float(terms["loss"].detach()) > 0) == counts


def test_equal_embeddings_cost_the_collapse_value(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet, projector_layers=1, background_weight=1.0)
    nn.init.zeros_(made.projector[0].weight), nn.init.zeros_(made.projector[0].bias)
    terms = made(batch())
    assert float(terms["loss"].detach()) == pytest.approx(math.log(6), rel=1e-5)
    assert float(terms["collapse_loss"]) == pytest.approx(math.log(6))


def test_air_has_hardly_a_say(make_unet: Callable[..., nn.Module]) -> None:
    """Tokens of background weigh next to nothing, those of tissue one."""
    image = torch.randn(4, 1, 40, 40, generator=torch.Generator().manual_seed(2)) * 0.1
    image[..., 20:] += 10
    made = objective(make_unet, background_weight=0.0)
    still = {"rotation": 0.0, "scale": (1.0, 1.0), "stretch": 1.0, "shift": 0.0}
    weights = made._weights(batch(image, flip=0.0, **still), [8, 8])
    assert float(weights[..., :3].max()) < 0.1  # the threshold's bin holds the brightest of the air
    assert float(weights[..., 5:].min()) == 1


def test_background_weight_decides_what_codes_air_may_take(
    make_unet: Callable[..., nn.Module],
) -> None:
    """Codes are balanced over tokens by weight: light air shares few prototypes, full air many."""
    found = {}
    image = torch.randn(4, 1, 40, 40, generator=torch.Generator().manual_seed(2)) * 0.1
    image[..., 32:] += 10  # a fifth is tissue
    still = {"rotation": 0.0, "scale": (1.0, 1.0), "stretch": 1.0, "shift": 0.0, "flip": 0.0}
    for weight in (0.0, 0.1, 1.0):
        made = objective(make_unet, background_weight=weight)
        full = batch(image, patch_size=(40, 40), **still)
        weights = made._weights(full, [10, 10])
        air = weights[..., :8]
        found[weight] = float(air.sum() / weights.sum())
    assert found[0.0] < 0.06  # the bin of the threshold holds the brightest of the air
    assert found[0.1] == pytest.approx(0.1 * 0.8 / (0.1 * 0.8 + 0.2), abs=0.03)
    assert found[1.0] == pytest.approx(0.8, abs=1e-6)


def test_default_stage_has_tokens_of_at_most_eight_voxels(
    make_unet: Callable[..., nn.Module],
) -> None:
    made = objective(make_unet)
    assert made.stage == 2
    assert objective(make_unet, stage=0).trained.encoder_stages == 1
    with pytest.raises(ValueError, match="stage: found 3"):
        objective(make_unet, stage=3)


# ---------------------------------------------------------------- bank and target


def test_memory_bank_fills_after_steps_and_changes_the_codes(
    make_unet: Callable[..., nn.Module],
) -> None:
    made = objective(make_unet, codes_from="memory_bank", memory_bank=64, normalisation="layer")
    first = made(batch())["loss"]
    assert len(made.bank.read()) == 0
    made.after_step(batch(), 0.1)
    kept = made.bank.read()
    assert 0 < len(kept) <= 8
    torch.testing.assert_close(kept[:, :-1].norm(dim=1), torch.ones(len(kept)))
    assert not torch.equal(made(batch())["loss"], first)


def test_target_network_follows_and_gives_the_codes(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet, momentum=0.9)
    made(batch())["loss"].backward()
    assert all(not p.requires_grad and p.grad is None for p in made.target.parameters())
    with torch.no_grad():
        made.prototypes.weight += 1
    before = made.target[2].module.weight.clone()
    made.after_step(batch(), 0.0)
    expected = 0.9 * before + 0.1 * made.prototypes.weight
    torch.testing.assert_close(made.target[2].module.weight, expected)


def test_codes_are_those_of_the_target_network(make_unet: Callable[..., nn.Module]) -> None:
    """Another target gives another loss, with the same online network."""
    made = objective(make_unet, momentum=0.9, normalisation="layer")
    first = float(made(batch())["loss"].detach())
    with torch.no_grad():
        for parameter in made.target[1].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    changed = float(made(batch())["loss"].detach())
    assert changed != pytest.approx(first, abs=1e-3)


def test_pictures_show_image_and_clusters_in_colour(make_unet: Callable[..., nn.Module]) -> None:
    rows, columns = objective(make_unet).illustrate(batch())["clusters"]
    assert [row.name for row in rows] == ["global_0", "cluster", "global_1", "cluster"]
    assert len(columns) == 4
    panel = torch.stack([row.images for row in rows])
    assert panel.shape == (4, 4, *PATCH_SIZE, 3)
    assert float(panel.min()) >= 0
    assert float(panel.max()) <= 1
    assert len(panel[1].flatten(0, 2).unique(dim=0)) > 1


# ---------------------------------------------------------------- processes


def test_two_processes_equal_one_in_value_and_gradient(
    make_unet: Callable[..., nn.Module], two_processes: Callable[..., list[Any]]
) -> None:
    check_halves(partial(objective, make_unet, normalisation="layer"), batch, two_processes)
