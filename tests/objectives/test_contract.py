"""The contract of `Objective`, applied to every objective and to one toy of each coming family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from toys import TOYS

from nnssl.modules import unet
from nnssl.objectives import OBJECTIVES, Context, Objective, find_objective
from nnssl.views import RandomView

PARTS = {"parts": {"pixel_clustering": {}, "contrastive": {}}}
ALL = {**OBJECTIVES, "joint": find_objective("joint", PARTS), **TOYS}
SAMPLES, PARTS = 4, 2
KINDS = {
    "2d": (2, False, 1),
    "3d": (3, False, 1),
    "residual": (2, True, 1),
    "channels": (2, False, 3),
}


def make_batch(dimension: int, channels: int, step: int = 0, scale: int = 1) -> dict[str, Any]:
    """Random patches of two volumes in two parts, with a dense target."""
    size = (24 * scale, 24 * scale) if dimension == 2 else (12, 24, 24)
    generator = torch.Generator().manual_seed(17 + step)
    image = torch.randn(SAMPLES, channels, *size, generator=generator)
    begin = torch.zeros(SAMPLES, 3)
    begin[:, 0] = torch.tensor([0, 12, 0, 12])
    thickness = 1 if dimension == 2 else size[0]
    extent = torch.tensor([thickness, *size[-2:]], dtype=torch.float32)
    return {
        "image": image,
        "key": torch.tensor([[5, step, 0, j] for j in range(SAMPLES)]),
        "box": torch.stack([begin, begin + extent], 2),
        "shape": torch.tensor([[24.0, 24 * scale, 24 * scale]]).repeat(SAMPLES, 1),
        "axis": torch.zeros(SAMPLES, dtype=torch.int64),
        "sign": torch.ones(SAMPLES, dtype=torch.int64),
        "case": torch.tensor([0, 0, 1, 1]),
        "patient": torch.tensor([0, 0, 1, 1]),
        "dataset": torch.zeros(SAMPLES, dtype=torch.int64),
        "identifier": ["a", "a", "b", "b"],
        "dense_targets": {"clusters": torch.randint(0, 3, (SAMPLES, *size), generator=generator)},
    }


def with_views(batch: dict[str, Any], kind: type[Objective], scale: int = 1) -> dict[str, Any]:
    patch_size = (16 * scale, 16 * scale) if batch["image"].ndim == 4 else (8, 16, 16)
    spacing = (1.0,) * len(patch_size)
    views: dict[str, Any] = {}
    for name, knobs in kind.default_views.items():
        views.update(RandomView(**knobs)(batch, name, patch_size, spacing))
    return {**batch, "views": views}


class Subject:
    """An objective of one kind on one kind of network, with batches for it."""

    def __init__(self, name: str, variant: str, make_unet: Callable[..., nn.Module]) -> None:
        dimension, residual, channels = KINDS[variant]
        self.kind, self.dimension, self.channels = ALL[name], dimension, channels
        classes = self.kind.output_channels(channels) or 3
        network = make_unet(dimension, residual, channels=channels, classes=classes)
        self.plain_keys = set(network.state_dict())
        patch_size = (16, 16) if dimension == 2 else (8, 16, 16)
        context = Context(channels, patch_size, (1.0,) * dimension, partitions=PARTS)
        torch.manual_seed(3)
        self.objective = self.kind(network, context)
        unet.freeze_untrained(self.objective.network, self.objective.trained)

    def batch(self, step: int = 0) -> dict[str, Any]:
        return with_views(make_batch(self.dimension, self.channels, step), self.kind)


@pytest.fixture(params=[f"{name}-{variant}" for name in ALL for variant in KINDS])
def subject(request: pytest.FixtureRequest, make_unet: Callable[..., nn.Module]) -> Subject:
    return Subject(*request.param.rsplit("-", 1), make_unet)


def test_loss_is_a_finite_float32_scalar_and_terms_are_detached(subject: Subject) -> None:
    terms = subject.objective(subject.batch())
    loss = terms.pop("loss")
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert loss.isfinite()
    assert all(term.ndim == 0 and not term.requires_grad for term in terms.values())


def test_every_trainable_parameter_has_a_gradient_and_no_frozen_one(subject: Subject) -> None:
    objective = subject.objective
    objective(subject.batch())["loss"].backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in objective.network.parameters()
    )


def test_same_seed_same_loss_and_the_batch_is_not_changed(subject: Subject) -> None:
    first, second = subject.batch(), subject.batch()
    again = copy.deepcopy(subject.objective)
    assert torch.equal(subject.objective(first)["loss"], again(second)["loss"])
    for name, view in first["views"].items():
        assert torch.equal(view.image, second["views"][name].image)
        assert torch.equal(view.matrix, second["views"][name].matrix)


def test_state_dict_round_trip(subject: Subject) -> None:
    objective = subject.objective
    objective(subject.batch())
    objective.after_step(subject.batch(), 0.5)
    other = copy.deepcopy(objective)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(objective.state_dict())
    objective.eval(), other.eval()
    batch = subject.batch(1)
    assert torch.equal(objective(batch)["loss"], other(batch)["loss"])


def test_bfloat16_autocast_agrees_with_float32(subject: Subject) -> None:
    objective, batch = subject.objective.eval(), subject.batch()
    exact = objective(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(batch)["loss"]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)


def test_evaluation_changes_no_buffer_or_parameter(subject: Subject) -> None:
    objective = subject.objective.eval()
    before = copy.deepcopy(objective.state_dict())
    with torch.no_grad():
        objective(subject.batch())
    for key, value in objective.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_exported_keys_are_those_of_the_planned_network(subject: Subject) -> None:
    exported = unet.plain_state_dict(subject.objective.network)
    assert set(exported) == subject.plain_keys


def test_ten_steps_on_one_batch_lower_the_loss(subject: Subject) -> None:
    objective, batch = subject.objective, subject.batch()
    trainable = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, 3e-3)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_after_step_moves_targets_and_never_the_online_network(subject: Subject) -> None:
    objective, batch = subject.objective, subject.batch()
    before = copy.deepcopy(objective.network.state_dict())
    objective(batch)
    objective.after_step(batch, 0.1)
    for key, value in objective.network.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", [name for name in ALL if name not in TOYS])
def test_every_objective_runs_on_a_resnet(name: str, make_resnet: Callable[..., nn.Module]) -> None:
    """Which needs patches of 64, or two pieces of such; its BatchNorm has a state."""
    kind, scale = ALL[name], 8 if name in ("cpc", "relative_patch", "jigsaw") else 4
    network = make_resnet(classes=kind.output_channels(1) or 3)
    keys = set(network.state_dict())
    torch.manual_seed(3)
    objective = kind(network, Context(1, (16 * scale,) * 2, (1.0, 1.0), partitions=PARTS))
    unet.freeze_untrained(network, objective.trained)
    batch = with_views(make_batch(2, 1, scale=scale), kind, scale)
    loss = objective(batch)["loss"]
    loss.backward()
    assert loss.isfinite()
    for each, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, each
    assert any(p.grad is not None and p.grad.any() for p in network.encoder.parameters())
    objective.after_step(batch, 0.5)
    assert set(unet.plain_state_dict(network)) == keys
    before = copy.deepcopy(objective.eval().state_dict())
    with torch.no_grad():
        assert objective(batch)["loss"].isfinite()
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())


def test_forbidden_network_is_named() -> None:
    context = Context(1, (16, 16), (1.0, 1.0))
    with pytest.raises(ValueError, match="PlainConvUNet"):
        OBJECTIVES["contrastive"](nn.Conv2d(1, 1, 3), context)


BAD = [
    ("contrastive", {"temperature": 0}, "temperature = 0 must be a number above 0"),
    ("contrastive", {"pooling": "mean"}, "pooling = 'mean' must be one of 'average', 'moments'"),
    ("contrastive", {"projector_layers": 0}, "projector_layers = 0 must be an integer of at least"),
    ("contrastive", {"stage": 7}, "stage: found 7, allowed are 0 to 2 or null"),
    ("contrastive", {"near": 0}, "near = 0 must be a number above 0"),
    ("byol", {"momentum": 1.5}, "momentum = 1.5"),
    ("dense_byol", {"decoder_levels": 9}, "decoder_levels: found 9, allowed: 0 to 2"),
    ("clustering", {"temperature": 0}, "temperature = 0"),
    ("clustering", {"epsilon": 0}, "epsilon = 0"),
    ("clustering", {"iterations": 0}, "iterations = 0"),
    ("clustering", {"prototypes": 1}, "prototypes = 1"),
    ("clustering", {"memory_bank": 0}, "memory_bank = 0"),
    ("clustering", {"momentum": 1.5}, "momentum = 1.5"),
    ("clustering", {"background_weight": -1}, "background_weight = -1"),
    ("clustering", {"min_overlap": 2}, "min_overlap = 2"),
    ("clustering", {"normalisation": "group"}, "normalisation = 'group' must be one of 'none'"),
    ("clustering", {"stage": 3}, "stage: found 3"),
    ("pixel_clustering", {"clusters": 1}, "clusters = 1 must be an integer of at least 2"),
    ("mae", {"mask_ratio": 0}, "mask_ratio = 0 must be a number above 0 and below 1"),
    ("mae", {"mask_ratio": 1.0}, "mask_ratio = 1.0"),
    ("mae", {"position": -1.0}, "position = -1.0"),
    ("mae", {"position": float("inf")}, "position = inf"),
    ("spark", {"position": float("nan")}, "position = nan"),
    (
        "models_genesis",
        {"shuffle": -1},
        "shuffle = -1 must be a number from 0 to 1",
    ),
    ("models_genesis", {"nonlinear": 1.5, "paint": -1}, "nonlinear = 1.5 .*; paint = -1 "),
    ("models_genesis", {"outpaint": 1.5}, "outpaint = 1.5"),
    ("pcrlv2", {"swap": 1.5}, "swap = 1.5"),
    ("cpc", {"overlap": 1}, "overlap = 1 must be a number of at least 0 and below 1"),
    ("cpc", {"loss": "nce"}, "loss = 'nce' must be one of 'info_nce', 'binary'"),
    ("cpc", {"pieces": 2}, "pieces = 2 must be an integer from 3 to 16"),
    ("relative_patch", {"gap": -0.1}, "gap = -0.1 must be a number from 0 to 1"),
    ("jigsaw", {"pieces": 1, "permutations": 1}, "pieces = 1 .*; permutations = 1 "),
    ("exemplar", {"margin": 0}, "margin = 0 must be a number above 0"),
    ("exemplar", {"mining": "hard"}, "mining = 'hard' must be one of 'all', 'semi_hard'"),
    ("pcrlv2", {"noise": [0.5, 0.3, 0.1]}, r"noise = \[0.5, 0.3, 0.1\] .*the smaller first"),
]


@pytest.mark.parametrize(("name", "knobs", "message"), BAD)
def test_bad_knobs_are_named(
    make_unet: Callable[..., nn.Module], name: str, knobs: dict[str, Any], message: str
) -> None:
    context = Context(1, (16, 16), (1.0, 1.0))
    with pytest.raises(ValueError, match=message):
        OBJECTIVES[name](make_unet(2, classes=1), context, **knobs)
