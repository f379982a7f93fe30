"""Patch-level clustering recovers four planted textures, and does not with scrambled codes."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import homogeneity_score, normalized_mutual_info_score
from test_clustering import batch
from torch import Tensor

from nnssl.losses.clustering import sinkhorn
from nnssl.modules import unet
from nnssl.objectives import Context, clustering
from nnssl.objectives.clustering import ClusteringObjective
from tests.conftest import build_unet

TEXTURES = 4
PLANTED_PATCH_SIZE = (48, 48)


def planted(seed: int, samples: int = 6, size: int = 56) -> tuple[Tensor, Tensor]:
    """Images with four textures (dark or bright, flat or striped), and the texture of each voxel.

    Every image has each texture in one quadrant, in an order of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    stripes = x // 2 % 2 * 2.0 - 1
    waves = [0 * stripes - 2, stripes - 2, 0 * stripes + 2, stripes + 2]
    order = torch.stack([torch.randperm(TEXTURES, generator=generator) for _ in range(samples)])
    texture = order[:, (y * 2 // size) * 2 + x * 2 // size]
    image = torch.stack(waves)[texture, y, x]
    return (image + 0.1 * torch.randn(image.shape, generator=generator))[:, None], texture


def textured() -> ClusteringObjective:
    """Twice as many prototypes as textures: cells that see two textures may have their own."""
    torch.manual_seed(0)
    context = Context(1, PLANTED_PATCH_SIZE, (1.0, 1.0))
    knobs = {"hidden_features": 32, "embedding_features": 8, "background_weight": 1.0, "stage": 1}
    network = build_unet(2, features=(8, 16, 16))
    made = ClusteringObjective(network, context, prototypes=2 * TEXTURES, **knobs)
    unet.freeze_untrained(made.network, made.trained)
    return made


def train(made: ClusteringObjective, steps: int = 60, rate: float = 5e-3) -> None:
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    still = {"rotation": 0.0, "scale": (1.0, 1.0), "stretch": 1.0, "shift": 0.1}
    for step in range(steps):
        loss = made(batch(planted(step)[0], step, PLANTED_PATCH_SIZE, **still))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def scores(made: ClusteringObjective) -> tuple[float, float]:
    """Homogeneity (1: every cluster has voxels of one texture only) and NMI.

    On images not seen before, at voxels whose surroundings hold one texture.
    """
    image, texture = planted(1000)
    found = made.clusters(image[..., 4:-4, 4:-4])
    inner = [*range(3, 20), *range(28, 45)]  # of 48; the textures meet at 24
    pair = [x[:, inner][..., inner].flatten() for x in (texture[:, 4:-4, 4:-4], found)]
    return float(homogeneity_score(*pair)), float(normalized_mutual_info_score(*pair))


def test_four_planted_textures_are_recovered() -> None:
    made = textured()
    assert max(scores(made)) < 0.5
    train(made)
    homogeneity, nmi = scores(made)
    assert homogeneity > 0.85
    assert nmi > 0.75


def test_scrambled_codes_do_not_recover_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reshape of the thesis' code, put back on purpose: what the test above is there to see."""
    monkeypatch.setattr(clustering, "sinkhorn", lambda s, **k: sinkhorn(s, **k).T.reshape(s.shape))
    made = textured()
    train(made)
    assert max(scores(made)) < 0.7
