"""A pretext task without signal stops before the first epoch, and names trainers that suit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from torch import nn

from nnssl.losses.contrastive import NoSignalError
from nnssl.training import preflight, pretraining_loop
from nnssl.training.factory import trainer_class

SMALL = """
training: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0}
objective: {hidden_features: 16, embedding_features: 8}
probe: {probe_at_end: false}
"""


@pytest.fixture
def pictures(tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The dataset as single 2D pictures: of each volume the middle slice."""
    monkeypatch.setattr(pretraining_loop, "draw_progress", lambda *_: None)
    for file in (tiny_dataset.preprocessed / "nnUNetPlans_2d").glob("*.b2nd"):
        slices = np.asarray(blosc2.open(str(file), mode="r")[:])
        file.unlink()
        blosc2.asarray(np.ascontiguousarray(slices[:, 4:5]), urlpath=str(file), mode="w")
    return tiny_dataset


@pytest.fixture
def make(pictures: Any, trainer_yaml: Callable[[str, str], str]) -> Callable[[str], Any]:
    def build(text: str) -> Any:
        trainer_yaml("nnSSLOnPictures", text + SMALL)
        trainer_class.cache_clear()
        return pictures.trainer(trainer_class("nnSSLOnPictures"))

    return build


def test_contrast_between_images_works_on_pictures(make: Callable[[str], Any]) -> None:
    trainer = make("extends: nnSSLContrastiveGRTrainer")
    trainer.run_training()
    values = trainer.history.values
    assert values["skipped_steps"] == [0]
    assert values["negatives"][0] > 0
    assert values["train_loss"][0] > 0
    assert values["val_loss"][0] > 0


def test_positions_are_not_demanded_of_pictures(make: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="pictures have no position") as caught:
        make("extends: nnSSLContrastiveTrainer").initialize()
    text = str(caught.value)
    assert "nnSSLContrastiveGRTrainer" in text
    assert "nnSSLMAETrainer" in text
    assert "nnSSLContrastiveGDMinusTrainer" not in text
    assert "nnSSLFinetuneTrainer" not in text


@pytest.mark.parametrize("name", ["nnSSLContrastiveTrainer", "nnSSLContrastiveGDMinusTrainer"])
def test_contrast_without_negatives_stops_in_preflight(
    make: Callable[[str], Any], name: str
) -> None:
    """Every picture lies in the one part of its volume that there is."""
    with pytest.raises(RuntimeError, match=r"no signal .* negative: found none") as caught:
        make(f"extends: {name}\nsampling: {{mode: random}}").run_training()
    assert "nnSSLContrastiveGRTrainer" in str(caught.value)


def test_a_step_and_a_validation_without_signal_are_left_out(
    make: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make("extends: nnSSLContrastiveGRTrainer")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    before = [p.clone() for p in trainer.network.parameters()]

    def raise_it(_: Any) -> Any:
        raise NoSignalError("nothing")

    batch = next(trainer.dataloader_train)
    monkeypatch.setattr(trainer.objective, "forward", raise_it)
    assert trainer.train_step(batch) == {}
    assert trainer.validation_step(batch) == {}
    assert trainer.skipped_steps == 1
    assert all(map(torch.equal, before, trainer.network.parameters()))
    trainer.close()


class Constant(nn.Module):
    """A loss that falls with the weight, or does not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("steps", torch.zeros(()))

    def loss(self, moves: bool) -> dict[str, torch.Tensor]:
        self.steps += 1
        return {"loss": self.weight * float(moves) + 3}


@pytest.mark.parametrize("first", range(4))
def test_one_batch_with_a_signal_among_three_suffices(first: int) -> None:
    network = Constant()
    if first == preflight.TRIES:
        with pytest.raises(RuntimeError, match="in 3 batches: its loss is 3 whatever the weights"):
            preflight.dry_step(network, lambda number: network.loss(number == first))
    else:
        value = preflight.dry_step(network, lambda number: network.loss(number == first))
        assert value == 4
    assert network.steps == 0
    assert network.weight.grad is None


def test_every_shipped_trainer_that_draws_at_random_is_named() -> None:
    names = preflight.name_trainers_without_positions()
    configs = Path(__file__).parents[2] / "nnssl_configs" / "pretrain"
    variants = ("", "GDMinus", "Demeaned", "DemeanedRepresentation", "Representation", "TwoSteps")
    structured = {f"nnSSLContrastive{variant}Trainer" for variant in variants}
    structured |= {"nnSSLJointTrainer", "nnSSLLocalContrastiveLDTrainer", "nnSSLPCLTrainer"}
    structured.add("nnSSLModelsGenesisPositionTrainer")
    for file in configs.glob("*.yaml"):
        assert (f" {file.stem}" in names) != (file.stem in structured)
