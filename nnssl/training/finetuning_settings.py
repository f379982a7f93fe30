"""Knobs of a fine-tuning run (section `training` of a YAML)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FinetuningSettings:
    """nnU-Net's schedule, with a learning rate per part and a warm-up.

    Attributes:
        num_epochs: epochs of the run.
        num_iterations_per_epoch: optimiser steps per epoch.
        num_val_iterations_per_epoch: batches of the quick validation per epoch.
        initial_lr: learning rate before decay.
        weight_decay: added to the gradient.
        encoder_lr_scale: factor for the transferred encoder.
        decoder_lr_scale: factor for the transferred decoder.
        random_lr_scale: factor for what started at random.
        warmup_epochs: epochs of linear increase.
        freeze_encoder_epochs: epochs in which the transferred encoder has learning rate 0.
        save_every: epochs between two `checkpoint_latest` (ten minutes at the latest).
        seed: of what starts at random, of batches and augmentation.
        overwrite: whether a finished run with another configuration may be replaced.
    """

    num_epochs: int = 1000
    num_iterations_per_epoch: int = 250
    num_val_iterations_per_epoch: int = 50
    initial_lr: float = 1e-2
    weight_decay: float = 3e-5
    encoder_lr_scale: float = 1.0
    decoder_lr_scale: float = 1.0
    random_lr_scale: float = 1.0
    warmup_epochs: int = 0
    freeze_encoder_epochs: int = 0
    save_every: int = 50
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        positive = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
        for name in (*positive, "initial_lr", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training.{name}: found {getattr(self, name)}, allowed above 0")
        scales = ("encoder_lr_scale", "decoder_lr_scale", "random_lr_scale")
        epochs = ("warmup_epochs", "freeze_encoder_epochs")
        for name in (*scales, *epochs, "weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"training.{name}: found {getattr(self, name)}, allowed from 0")


# On a resume these may differ from what is stored; they do not change what was learned so far.
MAY_CHANGE = {"training.num_epochs", "training.save_every", "training.overwrite"}
