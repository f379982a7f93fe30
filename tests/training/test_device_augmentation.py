"""Augmentation on the device in real trainings: nnU-Net's form of batches, exact resumption."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from nnssl.modules.unet import plain_state_dict
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.training.finetuner import nnSSLFinetuner
from nnssl.training.semi_supervised import nnSSLSemiSupervised
from tests.tiny import stop_after

TEXT = """
extends: %s
training:
  {augmentation: %s, num_epochs: 2, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1}
labels: {patients: 1}
"""


@pytest.fixture
def build(tiny_dataset, trainer_yaml):
    def make(name, augmentation="device", kind=nnSSLFinetuner, configuration="2d"):
        parent = "nnSSLScratchTrainer"
        if kind is nnSSLSemiSupervised:
            parent = "nnSSLSemiSupervisedScratchTrainer"
        trainer_yaml(name, TEXT % (parent, augmentation))
        return tiny_dataset.trainer(type(name, (kind,), {"config_name": name}), configuration)

    return make


def first_batch(trainer):
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    if trainer.augmentation is not None:
        batch = trainer.augment(batch, trainer.augmentation)
    trainer.close()
    return batch


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("regions", [False, True])
def test_batches_have_nnunets_form(build, tiny_dataset, configuration, regions):
    if regions:
        description = deepcopy(tiny_dataset.dataset_json)
        names = [name for name in description["labels"] if name != "background"]
        whole = list(range(1, len(names) + 1))
        description["labels"] = {"background": 0, "whole": whole, "part": [1]}
        description["regions_class_order"] = [2, 1]
        tiny_dataset.dataset_json.clear()
        tiny_dataset.dataset_json.update(description)
    stock = first_batch(build("nnSSLStockTrainer", "stock", configuration=configuration))
    ours = first_batch(build("nnSSLDeviceTrainer", configuration=configuration))
    assert ours["data"].shape == stock["data"].shape
    assert ours["data"].dtype == stock["data"].dtype
    assert len(ours["target"]) == len(stock["target"]) > 1
    for own, theirs in zip(ours["target"], stock["target"], strict=True):
        assert own.shape == theirs.shape
        assert own.dtype == theirs.dtype
        assert set(own.unique().tolist()) <= {0, 1, 2}
    assert ours["target"][0].float().mean() > 0
    assert list(ours["keys"]) == list(stock["keys"])  # the same cases at the same step


@pytest.mark.parametrize("kind", [nnSSLFinetuner, nnSSLSemiSupervised])
def test_a_run_that_was_stopped_ends_with_the_same_weights(build, kind):
    whole = build("nnSSLWholeTrainer", kind=kind)
    whole.run_training()
    part = build("nnSSLPartTrainer", kind=kind)
    stop_after(part, 3)
    with pytest.raises(SystemExit):
        part.run_training()
    resumed = build("nnSSLPartTrainer", kind=kind)
    resumed.load_checkpoint(str(Path(part.output_folder) / "checkpoint_latest.pth"))
    resumed.run_training()
    first, second = (
        read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")["network_weights"]
        for trainer in (whole, resumed)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    stock = build("nnSSLStockTrainer", "stock", kind)
    stock.run_training()
    other = plain_state_dict(stock.planned_network)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_cascade_is_refused(build, monkeypatch):
    trainer = build("nnSSLDeviceTrainer")
    trainer.initialize()
    trainer.is_cascaded = True
    with pytest.raises(ValueError, match="second stage of a cascade"):
        trainer.get_dataloaders()
