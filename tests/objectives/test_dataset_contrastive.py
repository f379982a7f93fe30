"""Contrast over several datasets: printed values of PDM, means that are subtracted, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from building import make_objective
from halves import check_halves
from resuming import check_resumed
from test_contract import make_batch
from torch import nn

from nnssl.modules.dataset_means import DatasetMeans
from nnssl.objectives.dataset_contrastive import DatasetContrastiveObjective
from nnssl.training.factory import trainer_class
from nnssl.views import RandomView

VARIANTS = ("representation", "2_steps", "demeaned", "demeaned_representation")
STILL = {"rotation": 0.0, "scale": (1.0, 1.0), "stretch": 1.0, "shift": 0.0, "flip": 0.0}
objective = partial(make_objective, DatasetContrastiveObjective)


def pdm_batch(datasets: int, volumes: int) -> dict[str, Any]:
    """D datasets x V volumes x 4 parts, as PDM draws them: 48 patches of 3 equal views each."""
    count, made = 48, make_batch(2, 1)
    index = torch.arange(count)
    begin = torch.zeros(count, 3)
    begin[:, 0] = 6.0 * (index % 4)
    extent = torch.tensor([1.0, 24, 24])
    made |= {
        "image": made["image"][:1].repeat(count, 1, 1, 1),
        "key": torch.tensor([[5, 0, 0, j] for j in range(count)]),
        "box": torch.stack([begin, begin + extent], 2),
        "shape": torch.tensor([[24.0, 24, 24]]).repeat(count, 1),
        "axis": torch.zeros(count, dtype=torch.int64),
        "sign": torch.ones(count, dtype=torch.int64),
        "case": index // 4,
        "dataset": index // 4 % datasets,
        "dense_targets": {},
    }
    assert len(set((index // 4).tolist())) == datasets * volumes
    views = RandomView(count=3, **STILL)(made, "global", (16, 16), (1.0, 1.0))
    for view in views.values():
        view.image[:] = made["image"][:, :, :16, :16]
    return {**made, "views": views}


@pytest.mark.parametrize(
    ("datasets", "volumes", "similar", "printed"),
    [(1, 12, True, 14.0740), (3, 4, True, 14.0740), (3, 4, False, 14.6710), (4, 3, False, 14.7380)],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_images_cost_what_pdm_prints(
    make_unet: Callable[..., nn.Module],
    datasets: int,
    volumes: int,
    similar: bool,
    printed: float,
    variant: str,
) -> None:
    """D-: PDM sums 3 pairs. Within one dataset V * 3 parts * 3 views are negative."""
    made = make_objective(
        DatasetContrastiveObjective,
        make_unet,
        variant=variant,
        pairs="partitions",
        dataset_similar=similar,
        partitions=4,
    ).eval()
    expected = printed / 3
    if variant == "2_steps":
        expected = (expected + math.log(1 + volumes * 9)) / 2
    terms = made(pdm_batch(datasets, volumes))
    assert float(terms["loss"].detach()) == pytest.approx(expected, abs=1e-4)
    assert float(terms["collapse_loss"]) == pytest.approx(expected, abs=1e-4)


def batch(dataset: tuple[int, ...] = (0, 0, 1, 1), still: bool = True) -> dict[str, Any]:
    made = make_batch(2, 1)
    made["dataset"] = torch.tensor(dataset)
    views = RandomView(count=2)(made, "global", (16, 16), (1.0, 1.0))
    if still:
        views |= RandomView(count=2, **STILL)(made, "still", (16, 16), (1.0, 1.0))
    return {**made, "views": views}


def test_the_second_loss_looks_at_the_views_that_keep_their_place(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, seen = objective(make_unet, variant="representation").eval(), batch()
    terms = made(seen)
    other = {**seen, "views": dict(seen["views"])}
    for name in ("global_0", "global_1"):
        other["views"][name] = seen["views"]["still_0"]
    assert torch.equal(made(other)["second_loss"], terms["second_loss"])
    assert not torch.equal(made(other)["first_loss"], terms["first_loss"])
    alone = made(batch(still=False))
    assert torch.equal(alone["first_loss"], terms["first_loss"])
    assert not torch.equal(alone["second_loss"], terms["second_loss"])


def test_two_steps_knows_negatives_of_the_own_dataset(make_unet: Callable[..., nn.Module]) -> None:
    """Of one dataset both steps are the same loss."""
    made = objective(make_unet, variant="2_steps", share=0.25).eval()
    one, two = made(batch((0, 0, 0, 0))), made(batch())
    assert torch.equal(one["first_loss"], one["second_loss"])
    assert two["second_loss"] < two["first_loss"]  # fewer negatives
    mixed = two["first_loss"] / 4 + two["second_loss"] * 3 / 4
    torch.testing.assert_close(two["loss"].detach(), mixed)


@pytest.mark.parametrize("variant", ["demeaned", "demeaned_representation"])
def test_what_all_images_of_a_dataset_share_does_not_count(
    make_unet: Callable[..., nn.Module], variant: str
) -> None:
    made = objective(make_unet, variant=variant, datasets=2).eval()
    seen = batch()
    stages = made.encode_views(seen)
    offset = torch.zeros_like(stages[-1])
    offset[:] = torch.randn(2, *offset.shape[1:])[seen["dataset"]].repeat(4, 1, 1, 1)
    losses = []
    for maps in (stages[-1], stages[-1] + offset):
        object.__setattr__(made, "encode_views", lambda _, maps=maps: [maps])
        made(seen)
        made.after_step(seen, 0.5)
        made.after_epoch()
        terms = made(seen)
        losses.append(terms["loss" if variant == "demeaned" else "second_loss"].detach())
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_means_are_those_of_what_was_collected() -> None:
    means, generator = DatasetMeans(3, 2, (4, 5)), torch.Generator().manual_seed(0)
    maps, dataset = (
        torch.randn(7, 2, 4, 5, generator=generator),
        torch.tensor([0, 2, 0, 2, 2, 0, 0]),
    )
    assert torch.equal(means.subtract(maps, dataset), maps)
    means.collect(maps[:3], dataset[:3])
    means.collect(maps[3:], dataset[3:])
    assert not means.means.any()
    means.refresh()
    for number in (0, 2):
        torch.testing.assert_close(means.means[number], maps[dataset == number].mean(0))
    assert not means.means[1].any()
    centred = means.subtract(maps, dataset)
    torch.testing.assert_close(centred[dataset == 2].mean(0), torch.zeros(2, 4, 5))
    unknown = torch.tensor([5])
    assert torch.equal(means.subtract(maps[:1], unknown), maps[:1])
    before = means.means.clone()
    means.collect(maps[:1], dataset[:1])
    means.refresh()
    assert torch.equal(means.means[2], before[2])  # nothing of it was collected
    torch.testing.assert_close(means.means[0], maps[0])


def test_a_run_that_is_stopped_inside_an_epoch_keeps_what_it_collected(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = trainer_class("nnSSLContrastiveDemeanedTrainer")
    whole = check_resumed(tiny_dataset, kind, 3, monkeypatch)
    means: DatasetMeans = whole.objective.means
    assert means.means.any()
    assert not means.counts.any()


@pytest.mark.parametrize("variant", ["2_steps", "demeaned_representation"])
def test_two_processes_equal_one(
    make_unet: Callable[..., nn.Module], two_processes: Callable[..., list[Any]], variant: str
) -> None:
    make = partial(_layered, make_unet, variant)
    check_halves(make, batch, two_processes)


def _layered(make_unet: Callable[..., nn.Module], variant: str) -> Any:
    """Normalised over features, so that a process alone computes what two do."""
    made = objective(make_unet, variant=variant, datasets=2)
    for number, layer in enumerate(made.projector):
        if isinstance(layer, nn.BatchNorm1d):
            made.projector[number] = nn.LayerNorm(layer.num_features)
    return made
