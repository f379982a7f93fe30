"""Models Genesis as an objective: what is restored, switches, panels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from building import make_objective
from test_contract import make_batch, with_views
from torch import nn

from nnssl.objectives.models_genesis import ModelsGenesisObjective

objective = partial(make_objective, ModelsGenesisObjective)


def test_all_voxels_of_the_undeformed_view_are_restored(
    make_unet: Callable[..., nn.Module],
) -> None:
    made = objective(make_unet)
    batch = with_views(make_batch(2, 1), ModelsGenesisObjective)
    task = made.corrupt(batch)
    assert torch.equal(task.target, batch["views"]["global_0"].image)
    assert not torch.equal(task.image, task.target)
    expected = (made.reconstruct(task) - task.target).square().mean()
    torch.testing.assert_close(made(batch)["loss"], expected)


def test_without_deformations_the_identity_costs_nothing(
    make_unet: Callable[..., nn.Module],
) -> None:
    batch = with_views(make_batch(2, 1), ModelsGenesisObjective)
    off = objective(make_unet, shuffle=0, nonlinear=0, paint=0)(batch)
    assert off["identity_loss"] == 0
    on = objective(make_unet)(batch)
    assert on["identity_loss"] > 0
    assert torch.equal(on["mean_image_loss"], off["mean_image_loss"])
