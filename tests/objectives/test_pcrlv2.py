"""PCRLv2: every view counts once, on its own level; overlap; fading; what is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from building import PATCH_SIZES, make_objective
from test_contract import make_batch, with_views
from torch import Tensor, nn
from torch.nn import functional

from nnssl.losses.reconstruction import trivial_losses
from nnssl.modules import unet
from nnssl.modules.grids import overlap
from nnssl.objectives import Context
from nnssl.objectives.pcrlv2 import PCRLv2Objective
from nnssl.views import RandomView

STEPS = 40
PLAIN = {"swap": 0.0, "noise": None, "blur": None, "gamma": None}
objective = partial(make_objective, PCRLv2Objective)


def batch(dimension: int = 2, step: int = 0) -> dict[str, Any]:
    return with_views(make_batch(dimension, 1, step), PCRLv2Objective)


def without(batch: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    views = {name: view for name, view in batch["views"].items() if name not in names}
    return {**batch, "views": views}


@pytest.mark.parametrize("dimension", [2, 3])
def test_there_are_two_global_and_six_local_views(dimension: int) -> None:
    shapes = {name: tuple(v.image.shape[2:]) for name, v in batch(dimension)["views"].items()}
    small = tuple(length // 2 for length in PATCH_SIZES[dimension])
    wanted = {f"global_{i}": PATCH_SIZES[dimension] for i in range(2)}
    assert shapes == wanted | {f"local_{i}": small for i in range(6)}


def test_every_local_view_is_used_and_none_twice(make_unet: Callable[..., nn.Module]) -> None:
    """The error of a known port: view 0 six times. Here the loss is the mean of six of its own.

    Each view alone gives its own term, on the level drawn for its place; batch statistics are
    fixed, so that views are independent of each other.
    """
    made, full = objective(make_unet, **PLAIN).eval(), batch()
    whole = made._embed([full["views"][f"global_{i}"].image for i in range(2)])
    local = [made._embed([made._appearance(full, f"local_{i}")]) for i in range(6)]
    chosen = made._levels(full["key"], 7)
    alone = []
    for view in range(2):
        one = replace(
            whole,
            embedding=[z[view : view + 1] for z in whole.embedding],
            prediction=[p[view : view + 1] for p in whole.prediction],
        )
        alone += [made._local(one, local[i], chosen[1 + i : 2 + i]).detach() for i in range(6)]
    assert len({round(float(value), 6) for value in alone}) == 12
    torch.testing.assert_close(made(full)["local_loss"], torch.stack(alone).mean())


def test_every_local_view_changes_the_loss(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, full = objective(make_unet, **PLAIN).eval(), batch()
    originals = {name: view.image for name, view in full["views"].items()}
    base = float(made(full)["local_loss"])
    for name in [f"local_{i}" for i in range(6)]:
        full["views"][name].image = originals[name].flip(0)
        assert float(made(full)["local_loss"]) != base
        full["views"][name].image = originals[name]
    assert float(made(full)["local_loss"]) == base


def test_the_levels_are_drawn_uniformly_per_sample_and_view(
    make_unet: Callable[..., nn.Module],
) -> None:
    made = objective(make_unet)
    keys = torch.tensor([[1, step, 0, 0] for step in range(800)])
    chosen = made._levels(keys, 7)
    assert chosen.shape == (7, 2, 800)
    assert torch.equal(chosen.sum(1), torch.ones(7, 800))
    torch.testing.assert_close(chosen.mean(2), torch.full((7, 2), 0.5), atol=0.06, rtol=0)
    agree = (chosen[0] == chosen[1]).all(0).float().mean()
    assert agree == pytest.approx(0.5, abs=0.06)
    assert torch.equal(made._levels(keys[3:4], 7), chosen[:, :, 3:4])


def test_the_siamese_loss_is_that_of_the_formula(make_unet: Callable[..., nn.Module]) -> None:
    made, full = objective(make_unet, **PLAIN).eval(), batch()
    images = [full["views"][f"global_{i}"].image for i in range(2)]
    terms = 0.0
    for sample, levels in enumerate(made._levels(full["key"], 1)[0].T):
        number = int(levels.argmax())
        vectors = []
        for image in images:
            features = unet.encode(made.network, image[sample : sample + 1])
            level = unet.decode(made.network, features, use_skips=False)[number]
            head = made.heads[number]
            z = head.normalise(level.flatten(2).mean(2)).detach()
            vectors.append((head.predictor(z).detach(), z))
        (p_a, z_a), (p_b, z_b) = vectors
        cosines = functional.cosine_similarity(p_a, z_b), functional.cosine_similarity(p_b, z_a)
        terms -= float(cosines[0] + cosines[1]) / 2 / len(images[0])
    assert float(made(full)["global_loss"]) == pytest.approx(terms, abs=1e-5)


def test_the_reconstruction_of_levels_fades_out(make_unet: Callable[..., nn.Module]) -> None:
    made, full = objective(make_unet), batch()
    parts = ("reconstruction_loss", "global_loss", "local_loss")
    for progress in (0.0, 0.25, 1.0):
        made.after_step(full, progress)
        terms = {name: term.detach() for name, term in made(full).items()}
        beta = 0.5 * (1 + math.cos(math.pi * progress))
        expected = sum(float(terms[p]) for p in parts)
        expected += beta * float(terms["level_reconstruction_loss"])
        assert float(terms["loss"]) == pytest.approx(expected, abs=1e-5)
        task = made.corrupt(full)
        trivial = trivial_losses(task.target, task.image)
        assert float(terms["collapse_loss"]) == pytest.approx(
            (1 + beta) * float(trivial["collapse_loss"]) - 2, abs=1e-5
        )
    assert float(made.state_dict()["progress"]) == 1


def test_mismatched_views_are_compared_as_the_global_ones(
    make_unet: Callable[..., nn.Module],
) -> None:
    """With equal samples a view matches every sample's; it is told and not trained on."""
    made, full = objective(make_unet, **PLAIN).eval(), batch()
    for view in full["views"].values():
        view.image[:] = view.image[:1]
    terms = made(full)
    assert float(terms["mismatched_loss"]) == pytest.approx(float(terms["global_loss"]), abs=1e-5)
    assert not terms["mismatched_loss"].requires_grad
    for view in full["views"].values():
        view.image[1:] = torch.randn(view.image[1:].shape)
    other = made(full)
    assert abs(float(other["mismatched_loss"]) - float(other["global_loss"])) > 1e-3


def test_the_siamese_part_learns(make_unet: Callable[..., nn.Module]) -> None:
    """Views of one body agree, views of different bodies do not: at collapse both would."""
    torch.manual_seed(0)
    context = Context(1, PATCH_SIZES[2], (1.0, 1.0))
    made = PCRLv2Objective(make_unet(2, classes=1, features=(8, 16, 16)), context)
    unet.freeze_untrained(made.network, made.trained)
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 5e-3)
    names = ("global_loss", "mismatched_loss", "embedding_std")
    found = []
    for step in range(STEPS):
        terms = made(with_views(bodies(step), PCRLv2Objective))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        found.append([float(terms[name].detach()) for name in names])
    (first, *_), (last, other, spread) = (
        torch.tensor(part).mean(0).tolist() for part in (found[:4], found[-8:])
    )
    assert last < first - 0.1
    assert last < other - 0.1
    assert spread > 0.5


def bodies(step: int, size: int = 24, samples: int = 8) -> dict[str, Any]:
    """A batch of bright ellipses on dark ground, each with a brightness and a form of its own."""
    made = make_batch(2, 1, step)
    generator = torch.Generator().manual_seed(step)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    axes = 0.3 + 0.6 * torch.rand(samples, 2, 1, 1, generator=generator)
    body = (x / axes[:, 0]) ** 2 + (y / axes[:, 1]) ** 2 < 1
    hole = (x**2 + y**2)[None] < 0.3 * torch.rand(samples, 1, 1, generator=generator)
    image = body * (1 + torch.rand(samples, 1, 1, generator=generator)) - 1.5 * (hole & body)
    image = image[:, None] + 0.05 * torch.randn(samples, 1, size, size, generator=generator)
    keys = torch.tensor([[3, step, 0, j] for j in range(samples)])
    return {**made, "image": image, "key": keys, "dense_targets": {}}


def test_it_works_without_local_views(make_unet: Callable[..., nn.Module]) -> None:
    terms = objective(make_unet)(without(batch(), {f"local_{i}" for i in range(6)}))
    assert "local_loss" not in terms
    assert terms["loss"].isfinite()


def test_only_the_first_view_is_reconstructed_and_its_target_is_clean(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, full = objective(make_unet), batch()
    task = made.corrupt(full)
    assert torch.equal(task.target, full["views"]["global_0"].image)
    assert not torch.equal(task.image, task.target)
    before = made(full)["reconstruction_loss"]
    full["views"]["global_1"].image = full["views"]["global_1"].image * 2
    assert torch.equal(made(full)["reconstruction_loss"], before)


@pytest.mark.parametrize("skips", [True, False])
def test_halves_that_read_skips_are_trained_only_with_skips(
    make_unet: Callable[..., nn.Module], skips: bool
) -> None:
    made = objective(make_unet, skips=skips)
    made(batch())["loss"].backward()
    assert made.trained == unet.Trained(None, None, skips=skips, output=True)
    for stage in made.network.decoder.stages:
        gradient = stage.convs[0].conv.weight.grad
        half = gradient.shape[1] // 2
        assert gradient[:, :half].any()
        assert bool(gradient[:, half:].any()) is skips


@pytest.mark.parametrize("dimension", [2, 3])
def test_global_views_overlap_as_in_the_paper(dimension: int) -> None:
    """Share of what either view sees that both see; the paper draws again below 0.3."""
    patch_size = (16,) * dimension
    made = {
        "image": torch.zeros(100, 1, *[24] * dimension),
        "key": torch.tensor([[1, step, 0, 0] for step in range(100)]),
    }
    view = RandomView(**PCRLv2Objective.default_views["global"])
    a, b = (v.matrix for v in view(made, "global", patch_size, (1.0,) * dimension).values())

    def volume(matrix: Tensor) -> Tensor:
        return torch.linalg.det(matrix[:, :, :-1]).abs()

    shared = overlap(a, b, patch_size).flatten(1).float().mean(1) * volume(b)
    union = volume(a) + volume(b) - shared
    assert (shared / union).min() > 0.3


@pytest.mark.parametrize("size", [(10, 14), (6, 9)])
def test_views_that_the_strides_do_not_divide_are_resampled(
    make_unet: Callable[..., nn.Module], size: tuple[int, int]
) -> None:
    made, full = objective(make_unet, **PLAIN), batch()
    full["views"]["local_0"].image = torch.full((4, 1, *size), 3.0)
    fitted = made._appearance(full, "local_0")
    assert all(length % 4 == 0 and length >= 8 for length in fitted.shape[2:])
    assert fitted.unique().tolist() == [3.0]
