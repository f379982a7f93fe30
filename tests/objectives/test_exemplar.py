"""Exemplar: which images are positive and negative, the memory bank, two processes equal one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from building import make_objective
from halves import check_halves
from test_contract import make_batch
from torch import nn

from nnssl.losses.contrastive import NoSignalError
from nnssl.objectives.exemplar import ExemplarObjective
from nnssl.views import RandomView

objective = partial(make_objective, ExemplarObjective, hidden_features=16, embedding_features=8)


def batch(count: int = 2, step: int = 0) -> dict[str, Any]:
    made = make_batch(2, 1, step)
    knobs = {**ExemplarObjective.default_views["global"], "count": count}
    return {**made, "views": RandomView(**knobs)(made, "global", (16, 16), (1.0, 1.0))}


def test_the_first_view_is_the_image_itself() -> None:
    made = batch()
    assert torch.equal(made["views"]["global_0"].image, made["image"][:, :, 4:20, 4:20])


def test_identical_images_cost_the_margin(make_unet: Callable[..., nn.Module]) -> None:
    made, same = objective(make_unet, normalisation="none", margin=0.6), batch()
    for view in same["views"].values():
        view.image[:] = same["views"]["global_0"].image[:1]
    terms = made(same)
    assert float(terms["loss"].detach()) == pytest.approx(0.6, abs=1e-5)
    assert float(terms["collapse_loss"]) == pytest.approx(0.6)
    assert float(terms["accuracy"]) == 0  # ties are wrong


def test_an_unchanged_image_finds_its_original(make_unet: Callable[..., nn.Module]) -> None:
    """Anchors that equal their originals: distance 0, every other image farther."""
    made, same = objective(make_unet, normalisation="none"), batch(count=3)
    for view in same["views"].values():
        view.image[:] = same["views"]["global_0"].image
    terms = made(same)
    assert float(terms["accuracy"]) == 1
    assert float(terms["chance"]) == pytest.approx(1 / 4)  # 4 images
    assert float(terms["positive_distance"]) == pytest.approx(0, abs=1e-5)


def test_the_bank_adds_originals_of_earlier_steps(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet, memory_bank=6)
    chances = []
    for step in range(3):
        made.after_step(batch(step=step), 0.0) if step else None
        chances.append(float(made(batch(step=step))["chance"]))
    assert chances == pytest.approx([1 / 4, 1 / 8, 1 / 10])  # 4 images, then 4 more, then 6 more
    assert made.bank is not None
    made.after_step(batch(), 0.0)
    assert torch.equal(made.bank.read()[2:], made._newest)  # rows 8 to 11 take the places 2 to 5


def test_only_semi_hard_negatives_count(make_unet: Callable[..., nn.Module]) -> None:
    easy, hard = objective(make_unet), objective(make_unet, mining="semi_hard")
    hard.load_state_dict(easy.state_dict())
    assert float(easy(batch())["loss"].detach()) != float(hard(batch())["loss"].detach())


def test_a_single_image_is_refused(make_unet: Callable[..., nn.Module]) -> None:
    one = {k: v[:1] if k in ("image", "key") else v for k, v in batch().items()}
    one["views"] = {n: type(v)(v.image[:1], v.matrix[:1], {}) for n, v in batch()["views"].items()}
    with pytest.raises(NoSignalError, match="found 1 images"):
        objective(make_unet, normalisation="layer")(one)


@pytest.mark.parametrize("mining", ["all", "semi_hard"])
def test_two_processes_equal_one_in_value_and_gradient(
    make_unet: Callable[..., nn.Module], two_processes: Callable[..., list[Any]], mining: str
) -> None:
    make = partial(objective, make_unet, normalisation="layer", mining=mining)
    check_halves(make, batch, two_processes)
