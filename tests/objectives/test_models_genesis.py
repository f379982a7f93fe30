"""Models Genesis as an objective: what is restored, switches, panels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from test_contract import make_batch, with_views
from torch import nn

from nnssl.modules import unet
from nnssl.objectives import Context
from nnssl.objectives.models_genesis import ModelsGenesisObjective


def objective(make_unet: Callable[..., nn.Module], **knobs: Any) -> ModelsGenesisObjective:
    torch.manual_seed(0)
    context = Context(1, (16, 16), (1.0, 1.0))
    made = ModelsGenesisObjective(make_unet(2, classes=1), context, **knobs)
    unet.freeze_untrained(made.network, made.trained)
    return made


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
