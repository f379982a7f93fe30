"""Local contrast: regions that lie on each other, whatever the views; two processes equal one."""

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
from torch import nn

from nnssl.modules.grids import coordinates
from nnssl.objectives.local_contrastive import LocalContrastiveObjective
from nnssl.views import RandomView

objective = partial(make_objective, LocalContrastiveObjective)
STILL = {"rotation": 0.0, "scale": (1.0, 1.0), "stretch": 1.0, "shift": 0.0, "flip": 0.0}
GENERATOR = torch.Generator().manual_seed(5)


def batch(**knobs: Any) -> dict[str, Any]:
    made = make_batch(2, 1)
    views = RandomView(**{**STILL, **knobs})(made, "global", (16, 16), (1.0, 1.0))
    return {**made, "views": views}


@pytest.mark.parametrize(
    ("knobs", "negatives"),
    [({}, 10), ({"pairs": "partitions_across", "negatives": 4}, 8), ({"negatives": 2}, 4)],
)
def test_identical_regions_cost_the_collapse_value(
    make_unet: Callable[..., nn.Module], knobs: dict[str, Any], negatives: int
) -> None:
    made = objective(make_unet, **knobs)
    nn.init.zeros_(made.projector[-1].weight)
    terms = made(batch())
    assert float(terms["loss"].detach()) == pytest.approx(math.log(1 + negatives), abs=1e-5)
    assert float(terms["collapse_loss"]) == pytest.approx(math.log(1 + negatives), abs=1e-6)
    assert float(terms["chance"]) == pytest.approx(1 / (1 + negatives))


def test_across_volumes_the_same_part_is_a_pair_too(make_unet: Callable[..., nn.Module]) -> None:
    """Views without any change: those of one image are equal, other volumes are not."""
    made, still = objective(make_unet), batch(count=2)
    for view in still["views"].values():
        view.image = still["views"]["global_0"].image
    within = float(made(still)["loss"].detach())
    made.pairs = "partitions_across"
    assert float(made(still)["loss"].detach()) > within + 0.5


def test_padding_tells_the_place_in_the_patch_unless_views_move(
    make_unet: Callable[..., nn.Module],
) -> None:
    """Learned on independent noise, where there is nothing but the place to learn."""
    accuracy = {}
    for name, knobs in {"still": STILL, "moved": {**STILL, "shift": 0.2, "flip": 0.5}}.items():
        made = objective(make_unet)
        optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 1e-2)
        for step in range(40):
            raw = make_batch(2, 1, step)
            views = RandomView(**knobs)(raw, "global", (16, 16), (1.0, 1.0))
            for view in views.values():
                view.image = torch.randn(view.image.shape, generator=GENERATOR)
            terms = made({**raw, "views": views})
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
        accuracy[name] = float(terms["accuracy"])
    assert accuracy["still"] > 0.5
    assert accuracy["moved"] < 0.3


@pytest.mark.parametrize("dimension", [2, 3])
def test_regions_are_read_where_they_lie_in_the_other_view(
    make_unet: Callable[..., nn.Module], dimension: int
) -> None:
    """Maps of coordinates: rotated, zoomed and mirrored views read the first one's coordinates."""
    made = objective(make_unet, dimension=dimension, window=1)
    raw, size = make_batch(dimension, 1), made.context.patch_size
    view = RandomView(count=3, rotation=20.0, scale=(0.8, 1.0), shift=0.1, flip=0.5)
    views = view(raw, "global", size, (1.0,) * dimension)
    maps = torch.cat([coordinates(v.matrix, made.size).movedim(-1, 1) for v in views.values()])
    read: list[torch.Tensor] = []
    made.decode_views = lambda *_: [maps]
    made.projector = nn.Identity()
    made.embed = nn.Identity()
    made.embed.register_forward_hook(lambda *found: read.append(found[-1]))
    made({**raw, "views": views})
    first, *others = read[0].unflatten(0, (3, -1))  # (B, R, d) each
    places = made._places({"views": views}).unflatten(0, (3, -1))
    border = 1 - 1 / min(made.size)  # outside of the outer cells' centres the edge is repeated
    for other, place in zip(others, places[1:], strict=True):
        inner = (place.abs() < border).all(-1)
        assert inner.float().mean() > 0.3
        torch.testing.assert_close(other[inner], first[inner], atol=1e-4, rtol=0)
        assert (other - first).abs().max() > 0.01  # and not where nothing is to be read


def test_what_reaches_out_of_a_view_does_not_count(make_unet: Callable[..., nn.Module]) -> None:
    made, moved = objective(make_unet), batch()
    moved["views"]["global_1"].matrix[:, :, 2] += 5.0
    assert float(made(moved)["loss"].detach()) == 0


def test_the_map_decides_how_many_regions_there_are(make_unet: Callable[..., nn.Module]) -> None:
    assert objective(make_unet).describe() == (
        "13 regions of 9 cells on the map of 16x16 after 2 decoder levels; 10 negatives each"
    )
    assert (objective(make_unet, interleaved=False).regions, 35) == (9, objective(
        make_unet, dimension=3).regions)  # fmt: skip
    with pytest.raises(ValueError, match="levels: found 3, allowed: 1 to 2 with these plans"):
        objective(make_unet, levels=3)
    with pytest.raises(ValueError, match=r"levels: found 1, whose map of \[4, 4\] cells has no"):
        objective(make_unet, levels=1, patch_size=(8, 8))


def test_two_processes_equal_one_in_value_and_gradient(
    make_unet: Callable[..., nn.Module], two_processes: Callable[..., list[Any]]
) -> None:
    make = partial(objective, make_unet, pairs="partitions_across")
    check_halves(partial(_without_batch_norm, make), batch, two_processes)


def _without_batch_norm(make: Callable[..., Any], **knobs: Any) -> Any:
    made = make(**knobs)
    made.projector = nn.Identity()
    return made
