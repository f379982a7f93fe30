"""Objectives that share a pass: their sum, what they need together, and what cannot be joined."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from building import make_objective
from halves import check_halves
from resuming import check_resumed
from test_contract import make_batch
from torch import nn

from nnssl.config import bind, read_config
from nnssl.modules import unet
from nnssl.objectives import DenseTargets, find_objective
from nnssl.training.factory import trainer_class
from nnssl.training.pretraining_setup import GIVEN, SCHEMA
from nnssl.views import RandomView

PARTS: dict[str, dict[str, Any]] = {
    "pixel_clustering": {"clusters": 3, "weight": 2.0},
    "contrastive": {"hidden_features": 16, "normalisation": "layer", "weight": 0.25},
}


def joint(make_unet: Callable[..., nn.Module], dimension: int = 2, **parts: Any) -> Any:
    parts = parts or PARTS
    return make_objective(
        find_objective("joint", {"parts": parts}), make_unet, dimension, parts=parts
    )


def batch(dimension: int = 2) -> dict[str, Any]:
    made = make_batch(dimension, 1)
    size = (16, 16) if dimension == 2 else (8, 16, 16)
    views = RandomView(count=2)(made, "global", size, (1.0,) * dimension)
    return {**made, "views": views}


def gradients(losses: list[torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    for loss in losses:
        loss.backward()
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


@pytest.mark.parametrize("dimension", [2, 3])
def test_it_is_the_weighted_sum_of_its_parts_in_value_and_gradient(
    make_unet: Callable[..., nn.Module], dimension: int
) -> None:
    made, seen = joint(make_unet, dimension), batch(dimension)
    terms = made(seen)
    alone = [2.0 * made.parts["pixel_clustering"](seen)["loss"]]
    alone += [0.25 * made.parts["contrastive"](seen)["loss"]]
    torch.testing.assert_close(terms["loss"], sum(alone))
    together = gradients([terms["loss"]], made)
    for name, gradient in gradients(alone, made).items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=1e-6)
    for term in ("loss", "collapse_loss"):
        parts = 2 * terms[f"pixel_clustering_{term}"] + terms[f"contrastive_{term}"] / 4
        torch.testing.assert_close(terms[term].detach(), parts)


def test_a_part_may_see_the_first_views_only(make_unet: Callable[..., nn.Module]) -> None:
    """Encoder on both, decoder on one; the loss is that of the part alone on the first view."""
    made, seen = (
        joint(make_unet, **PARTS | {"pixel_clustering": {"clusters": 3, "views": 1}}),
        batch(),
    )
    rows: list[int] = []
    for stage in (made.network.encoder.stages[0], made.network.decoder.stages[-1]):
        stage.register_forward_hook(lambda _, __, output: rows.append(len(output)))
    terms = made(seen)
    assert rows == [8, 4]
    first = {**seen, "views": {"global_0": seen["views"]["global_0"]}}
    alone = made.parts["pixel_clustering"](first)["loss"]
    torch.testing.assert_close(terms["pixel_clustering_loss"], alone.detach())
    assert float(terms["contrastive_positives"]) == 3
    assert (made.count_decoded(2), made.count_decoded(1)) == (1, 1)
    assert joint(make_unet).count_decoded(3) == 3
    assert joint(make_unet, contrastive={}, clustering={}).count_decoded(3) == 0


def test_encoder_and_decoder_run_once(make_unet: Callable[..., nn.Module]) -> None:
    made = joint(make_unet, **PARTS, clustering={"prototypes": 4})
    calls: list[nn.Module] = []
    stages = [*made.network.encoder.stages, *made.network.decoder.stages]
    for stage in stages:
        stage.register_forward_hook(lambda module, *_: calls.append(module))
    made(batch())
    assert calls == stages


def test_a_frozen_pass_is_not_taken_for_one_with_gradient(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, shared = joint(make_unet), {**batch(), "shared_maps": {}}
    with torch.no_grad():
        made.encode_views(shared)
    assert made.encode_views(shared)[-1].requires_grad
    assert made.encode_views(shared)[-1] is made.encode_views(shared)[-1]


def test_levels_of_the_decoder_are_continued(make_unet: Callable[..., nn.Module]) -> None:
    made, seen = joint(make_unet), batch()
    shared = {**seen, "shared_maps": {}}
    first = made.decode_views(shared, levels=1)
    whole = made.decode_views(shared)
    assert whole[0] is first[0]
    assert made.decode_views(shared, levels=1)[0] is first[0]
    assert made.decode_views(shared)[-1] is whole[-1]
    assert torch.equal(whole[-1], made.decode_views(seen)[-1])


def test_the_network_is_stored_once_and_copies_share_it(
    make_unet: Callable[..., nn.Module],
) -> None:
    made = copy.deepcopy(joint(make_unet))
    assert all(part.network is made.network for part in made.parts.values())
    assert not [key for key in made.state_dict() if ".network." in key]
    assert any(key.startswith("parts.contrastive.projector.") for key in made.state_dict())


def test_it_needs_and_trains_what_its_parts_need_together(
    make_unet: Callable[..., nn.Module],
) -> None:
    made = joint(make_unet, **PARTS, clustering={"stage": 1})
    assert (made.sampling, made.least_samples, made.decodes) == ("partitioned", 12, True)
    assert made.default_views == {"global": {"count": 2}}
    assert made.best is None  # clustering has no criterion
    assert made.dense_targets == (DenseTargets("clusters", "clusters", 3),)
    assert made.cluster_count == 3
    assert made.validated[:2] == ("pixel_clustering_loss", "pixel_clustering_accuracy")
    assert made.panels["contrastive: pairs per anchor"] == (
        "contrastive_positives",
        "contrastive_negatives",
    )
    assert made.trained == unet.Trained(None, None)
    encoders = joint(make_unet, contrastive={"stage": 0}, clustering={"stage": 1})
    assert encoders.trained == unet.Trained(2, 0)
    assert joint(make_unet, **PARTS).best == "val_loss"


def test_clusters_and_pictures_are_those_of_the_parts(make_unet: Callable[..., nn.Module]) -> None:
    made, seen = joint(make_unet), batch()
    image = seen["views"]["global_0"].image
    alone = made.parts["pixel_clustering"]
    assert torch.equal(made.clusters(image), alone.clusters(image))
    assert set(made.illustrate(seen)) == {"pixel_clustering_clusters"}
    made.after_step(seen, 0.5)
    assert alone.change._images is not None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"contrastive": {}}, r"found \['contrastive'\], allowed: two or more"),
        ({"mae": {}, "contrastive": {}}, "found mae, whose network sees other images .* as contr"),
    ],
)
def test_what_cannot_be_joined_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_objective("joint", {"parts": parts})


def test_knobs_of_parts_are_bound_as_those_of_objectives() -> None:
    knobs = "objective.parts.contrastive.temperature=0.2 objective.parts.contrastive.weight=3"
    config = bind(read_config("nnSSLJointTrainer"), SCHEMA, GIVEN, overrides=knobs)
    parts = config.chosen("objective")[1]["parts"]
    assert list(parts) == ["pixel_clustering", "contrastive"]
    assert (parts["contrastive"]["temperature"], parts["contrastive"]["weight"]) == (0.2, 3)
    assert parts["contrastive"]["pairs"] == "partitions_across"  # a default, stored with the run
    again = bind(read_config("nnSSLJointTrainer"), SCHEMA, GIVEN, overrides="clusters=10")
    assert again.chosen("objective")[1]["parts"]["pixel_clustering"]["clusters"] == 10


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("{contrastive: {temprature: 1}}", "contrastive.temprature = 1 .*mean 'temperature'"),
        ("{contrastive: {temperature: 0}}", "contrastive.temperature = 0 .*must be a number above"),
        ("{contrastive: {weight: 0}}", "parts.contrastive.weight = 0 .*must be a number above 0"),
        ("{contrastiv: {}}", "parts.contrastiv .*unknown part .*mean 'contrastive'"),
        ("{joint: {}}", "parts.joint .*unknown part"),
        ("{contrastive: 0.5}", "parts.contrastive = 0.5 .*must be a mapping of knobs"),
        ("[contrastive]", "objective.parts = .*must be a mapping: name of a part"),
    ],
)
def test_wrong_parts_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: str, message: str
) -> None:
    file = tmp_path / "nnSSLOwn.yaml"
    file.write_text(f"kind: pretrain\nobjective: {{name: joint, parts: {parts}}}\n")
    monkeypatch.setenv("nnssl_configs", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        bind(read_config("nnSSLOwn"), SCHEMA, GIVEN, overrides="")


def test_a_stopped_run_goes_on_to_the_same_weights(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = check_resumed(tiny_dataset, trainer_class("nnSSLJointTrainer"), 3, monkeypatch)
    trained = unet.trained_keys(whole.objective.network, whole.objective.trained)
    assert any(key.startswith("decoder.stages.") for key in trained)
    assert any(key.startswith("encoder.stages.") for key in trained)


def test_two_processes_equal_one(
    make_unet: Callable[..., nn.Module], two_processes: Callable[..., list[Any]]
) -> None:
    parts: Any = {"contrastive": PARTS["contrastive"], "clustering": {"normalisation": "layer"}}
    check_halves(partial(joint, make_unet, **parts), batch, two_processes)
