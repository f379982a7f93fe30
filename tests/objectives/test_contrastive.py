"""The contrastive objective: pairs follow position in the body; two processes equal one."""

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

from nnssl.losses.contrastive import NoSignalError
from nnssl.modules import unet
from nnssl.objectives.contrastive import ContrastiveObjective
from nnssl.views import RandomView

PATCH_SIZE = (16, 16)
STILL = {"rotation": 0.0, "scale": (1.0, 1.0), "stretch": 1.0, "shift": 0.0}
objective = partial(make_objective, ContrastiveObjective, hidden_features=16)


def batch(dataset: tuple[int, ...] = (0, 0, 0, 0), **knobs: Any) -> dict[str, Any]:
    """Two volumes (samples 0, 1 and 2, 3), two parts each (0, 1, 0, 1)."""
    made = make_batch(2, 1)
    made["dataset"] = torch.tensor(dataset)
    views = RandomView(count=2, **{**STILL, **knobs})(made, "global", PATCH_SIZE, (1.0, 1.0))
    return {**made, "views": views}


@pytest.mark.parametrize(
    ("pairs", "positives", "negatives"),
    [("instances", 1, 6), ("partitions", 1, 4), ("partitions_across", 3, 4)],
)
def test_an_anchor_has_the_pairs_that_its_method_gives_it(
    make_unet: Callable[..., nn.Module], pairs: str, positives: int, negatives: int
) -> None:
    made = objective(make_unet, pairs=pairs)
    terms = made(batch())
    assert terms["positives"] == positives
    assert terms["negatives"] == negatives
    assert float(terms["collapse_loss"]) == pytest.approx(math.log(1 + negatives))


def test_views_of_one_patch_and_a_patch_that_is_drawn_twice_are_no_further_ones(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, seen = objective(make_unet), batch()
    terms = made(seen)  # its own patch, and one of the other volume; of the other part two
    assert (terms["distinct_positives"], terms["distinct_negatives"]) == (2, 2)
    seen["case"], seen["box"] = seen["case"] * 0, seen["box"][[0, 1, 0, 1]]
    terms = made(seen)
    assert (terms["distinct_positives"], terms["distinct_negatives"]) == (1, 1)
    assert terms["positives"] == 3


def test_every_view_has_the_part_that_itself_lies_in(make_unet: Callable[..., nn.Module]) -> None:
    """The second view of sample 0 reaches into part 1: 3 views in part 0, 5 in part 1.

    Their 15 unlike pairs, but the one of sample 0 with itself, make 28 negatives of 8 anchors.
    """
    made, size = make_batch(3, 1), (8, 16, 16)
    views = RandomView(count=2, **STILL)(made, "global", size, (1.0, 1.0, 1.0))
    matrix = torch.eye(3, 4).repeat(4, 1, 1)
    views["global_0"].matrix = matrix.clone()
    matrix[0, 2, 3] = 1.2  # along array axis 0, in half raw patches
    views["global_1"].matrix = matrix
    objective_3d = objective(make_unet, dimension=3, pairs="partitions")
    assert float(objective_3d({**made, "views": views})["negatives"]) == 28 / 8


@pytest.mark.parametrize(
    ("similar", "within", "negatives"), [(True, False, 4), (False, False, 6), (True, True, 2)]
)
def test_datasets_of_origin_are_respected(
    make_unet: Callable[..., nn.Module], similar: bool, within: bool, negatives: int
) -> None:
    """Volumes of two datasets: the same part of the other one is negative only if dissimilar."""
    made = objective(make_unet, dataset_similar=similar, within_dataset=within)
    terms = made(batch((0, 0, 1, 1)))
    assert terms["negatives"] == negatives
    assert terms["positives"] == 1


def test_identical_images_cost_the_collapse_value(make_unet: Callable[..., nn.Module]) -> None:
    made, same = objective(make_unet, normalisation="none"), batch()
    for view in same["views"].values():
        view.image[:] = same["views"]["global_0"].image[:1]
    terms = made(same)
    assert float(terms["loss"].detach()) == pytest.approx(float(terms["collapse_loss"]), abs=1e-5)


def test_an_earlier_stage_trains_only_up_to_it(make_unet: Callable[..., nn.Module]) -> None:
    made = objective(make_unet, stage=1)
    keys = unet.trained_keys(made.network, made.trained)
    assert all(key.startswith(("encoder.stages.0.", "encoder.stages.1.")) for key in keys)
    with pytest.raises(ValueError, match="stage: found 7"):
        objective(make_unet, stage=7)


def test_two_processes_equal_one_in_value_and_gradient(
    make_unet: Callable[..., nn.Module], two_processes: Callable[..., list[Any]]
) -> None:
    check_halves(partial(objective, make_unet, normalisation="layer"), batch, two_processes)


# ---------------------------------------------------------------- places, bank, target network


def test_places_give_the_positives(make_unet: Callable[..., nn.Module]) -> None:
    """Samples lie at slices 0, 12, 0, 12 of 24: 0.02 and 0.52; 3 positives and 4 negatives each."""
    terms = objective(make_unet, pairs="positions")(batch())
    assert terms["positives"] == 3
    assert terms["negatives"] == 4
    assert float(terms["collapse_loss"]) == pytest.approx(math.log(5))
    with pytest.raises(NoSignalError, match="negative: found none"):
        objective(make_unet, pairs="positions", near=0.6)(batch())


def test_places_on_every_axis_part_what_one_axis_does_not(
    make_unet: Callable[..., nn.Module],
) -> None:
    apart = batch()
    apart["box"][2:, 1] += 8  # the second volume's patches lie elsewhere in the slice
    for every_axis, positives in ((False, 3), (True, 1)):
        made = objective(make_unet, pairs="positions", every_axis=every_axis)
        assert made(apart)["positives"] == positives


def test_a_bank_adds_the_negatives_of_earlier_steps(make_unet: Callable[..., nn.Module]) -> None:
    """8 views per step, half of them in the anchor's part; a bank of 20 holds 2.5 steps."""
    made = objective(make_unet, pairs="partitions", memory_bank=20)
    for negatives in (4, 8, 12, 14, 14):
        terms = made(batch())
        assert terms["negatives"] == pytest.approx(negatives)
        assert terms["positives"] == 1
        made.after_step(batch(), 0.1)


def test_anchors_are_compared_with_the_target_network(make_unet: Callable[..., nn.Module]) -> None:
    """Equal at first; where the target differs, so does the loss, but not what is measured."""
    plain, made = objective(make_unet), objective(make_unet, momentum=0.9)
    made.load_state_dict(plain.state_dict(), strict=False)
    for copy in made.target:
        copy.update(0)
    assert torch.equal(plain(batch())["loss"], made(batch())["loss"])
    with torch.no_grad():
        made.target[1].module[-1].weight[:, ::2] *= -1
    before, after = plain(batch()), made(batch())
    assert before["loss"] != after["loss"]
    assert before["alignment"] == after["alignment"]
    with torch.no_grad():
        made.projector[0].weight.add_(1.0)
    before = made.target[1].module[0].weight.clone()
    made.after_step(batch(), 1.0)
    assert torch.equal(made.target[1].module[0].weight, before)
    made.after_step(batch(), 0.0)
    torch.testing.assert_close(made.target[1].module[0].weight, before + 0.1)


def test_two_processes_equal_one_with_places_and_target(
    make_unet: Callable[..., nn.Module], two_processes: Callable[..., list[Any]]
) -> None:
    knobs = {"pairs": "positions", "momentum": 0.9, "memory_bank": 16, "normalisation": "layer"}
    check_halves(partial(objective, make_unet, **knobs), batch, two_processes)
