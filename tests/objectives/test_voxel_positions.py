"""The positions of voxels as a second target of the reconstruction family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from building import PATCH_SIZES, make_objective
from test_contract import make_batch, with_views
from torch import nn

from nnssl.losses.reconstruction import trivial_losses
from nnssl.modules.positions import voxel_positions
from nnssl.objectives.mae import MAEObjective
from nnssl.objectives.models_genesis import ModelsGenesisObjective
from nnssl.objectives.position_head import BINS
from nnssl.objectives.reconstruction import ReconstructionObjective
from nnssl.objectives.spark import SparkObjective
from nnssl.views.random_view import RandomView

FAMILY = [MAEObjective, SparkObjective, ModelsGenesisObjective]


@pytest.mark.parametrize("dimension", [2, 3])
def test_positions_are_what_a_view_of_a_picture_of_positions_shows(dimension: int) -> None:
    """A linear ramp survives rotation, zoom and linear interpolation exactly."""
    patch_size, spacing = PATCH_SIZES[dimension], (1.0, 1.5, 1.0)[-dimension:]
    view = RandomView(count=1, rotation=30, scale=(0.7, 1.1), shift=0.2)
    raw_patch = (1,) * (3 - dimension) + tuple(view.raw_patch_size(patch_size, spacing))
    shape, begin = np.array([50, 90, 70]), np.array([[3, 7, 11], [0, 20, 5]])
    ramps = []
    for first in begin:
        axes = [f + np.arange(n) for f, n in zip(first, raw_patch, strict=True)]
        voxel = np.stack(np.meshgrid(*axes, indexing="ij"))
        ramps.append((voxel + 0.5) / shape[:, None, None, None] * 2 - 1)
    image = torch.from_numpy(np.stack(ramps).astype(np.float32))
    batch = {
        "image": image[:, :, 0] if dimension == 2 else image,
        "key": torch.tensor([[1, 2, 3, j] for j in range(2)]),
        "box": torch.from_numpy(np.stack([begin, begin + raw_patch], -1).astype(np.float32)),
        "shape": torch.from_numpy(np.stack([shape, shape]).astype(np.float32)),
    }
    view.intensities = []
    seen = view(batch, "global", patch_size, spacing)["global_0"]
    found = voxel_positions(batch, seen.matrix, patch_size)
    torch.testing.assert_close(found, seen.image, atol=2e-6, rtol=0)


def values(objective: ReconstructionObjective, batch: dict[str, Any]) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in objective(batch).items()}


@pytest.mark.parametrize("kind", FAMILY)
def test_the_weight_adds_the_error_of_voxels_inside_the_volume(
    make_unet: Callable[..., nn.Module], kind: type[ReconstructionObjective]
) -> None:
    batch = make_batch(2, 1)
    batch["box"][0, 1] -= 12  # half of this patch lies in the padding
    batch = with_views(batch, kind)
    objective = make_objective(kind, make_unet, position=0.5)
    assert objective.locate is not None
    logits = torch.randn(3, BINS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        objective.locate.project.weight.zero_()
        objective.locate.project.bias.copy_(logits.flatten())
    terms = values(objective, batch)

    place = voxel_positions(batch, batch["views"]["global_0"].matrix, PATCH_SIZES[2]).numpy()
    place = place[:, :, ::2, ::2]
    inside = (np.abs(place) <= 1).all(1)
    assert 0.1 < inside.mean() < 1
    voxels = np.moveaxis(place, 1, -1)[inside]  # (N, 3)
    edges = np.linspace(-1, 1, BINS + 1)[1:-1]
    bins = np.digitize(voxels, edges)
    chance = scipy.special.softmax(logits.numpy().astype(np.float64), axis=1)
    cost = -np.log([chance[axis, bins[:, axis]] for axis in range(3)]).mean() / np.log(BINS)
    assert terms["position_loss"] == pytest.approx(cost, rel=1e-4)
    expected = chance @ (np.arange(BINS) * 2 + 1 - BINS) / BINS
    error = np.abs(voxels - expected).mean() / 2
    assert terms["position_error"] == pytest.approx(error, rel=1e-4)
    whole = terms["reconstruction_loss"] + 0.5 * terms["position_loss"]
    assert terms["loss"] == pytest.approx(whole, rel=1e-5)
    plain = make_objective(kind, make_unet)
    plain.load_state_dict(objective.state_dict(), strict=False)
    without = values(plain, batch)
    assert terms["reconstruction_loss"] == pytest.approx(without["loss"])

    shares = np.stack([np.bincount(bins[:, axis], minlength=BINS) for axis in range(3)])
    with torch.no_grad():
        best = np.log(shares / len(bins) + 1e-9).astype(np.float32)
        objective.locate.project.bias.copy_(torch.from_numpy(best.flatten()))
    terms = values(objective, batch)
    expected = without["collapse_loss"] + 0.5 * terms["position_loss"]
    assert terms["collapse_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", FAMILY)
def test_the_network_learns_to_tell_positions(
    make_unet: Callable[..., nn.Module], kind: type[ReconstructionObjective]
) -> None:
    """On images that show where they are the error falls below that of any constant."""
    objective = make_objective(kind, make_unet, position=10.0)
    batch = make_batch(2, 1)
    batch["box"][:, 0] = torch.tensor([11, 12])  # one slice, in the middle
    ramp = torch.linspace(-2, 2, 24)
    batch["image"] = (ramp[:, None] + 3 * (ramp > 0)[None]).expand(4, 1, 24, 24).contiguous()
    batch = with_views(batch, kind)
    optimiser = torch.optim.AdamW(objective.parameters(), 1e-2)
    history = []
    for _ in range(120):
        terms = objective(batch)
        history.append(float(terms["position_loss"]))
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
    task = objective.corrupt(batch)
    of_image = trivial_losses(task.target, task.image, task.weight)["collapse_loss"]
    assert history[-1] < 0.7 * float(terms["collapse_loss"] - of_image) / 10


@pytest.mark.parametrize("kind", FAMILY)
def test_without_weight_there_is_no_head(
    make_unet: Callable[..., nn.Module], kind: type[ReconstructionObjective]
) -> None:
    assert not [n for n in make_objective(kind, make_unet).state_dict() if n.startswith("locate")]
