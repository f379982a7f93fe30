"""Knobs of a fine-tuning run (section `training` of a YAML)."""

from __future__ import annotations

from dataclasses import dataclass

from nnssl.common.checks import Count, NotNegative, Positive, Whole, checked


@checked
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

    num_epochs: Count = 1000
    num_iterations_per_epoch: Count = 250
    num_val_iterations_per_epoch: Count = 50
    initial_lr: Positive = 1e-2
    weight_decay: NotNegative = 3e-5
    encoder_lr_scale: NotNegative = 1.0
    decoder_lr_scale: NotNegative = 1.0
    random_lr_scale: NotNegative = 1.0
    warmup_epochs: Whole = 0
    freeze_encoder_epochs: Whole = 0
    save_every: Count = 50
    seed: Whole = 0
    overwrite: bool = False


# On a resume these may differ from what is stored; they do not change what was learned so far.
MAY_CHANGE = {"training.num_epochs", "training.save_every", "training.overwrite"}
