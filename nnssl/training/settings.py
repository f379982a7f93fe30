"""Knobs of both trainers (section `training` of a YAML), and which of them a resume may change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from nnssl.common.checks import Count, NotNegative, Positive, Whole, checked

FOREVER = 10**9  # epochs


@checked
@dataclass(frozen=True)
class PretrainingSettings:
    """How long and how fast to pre-train.

    Attributes:
        num_epochs: epochs of the run.
        num_iterations_per_epoch: optimiser steps per epoch.
        num_val_iterations_per_epoch: validation batches per epoch, the same ones every epoch.
        optimizer: `adamw`, `adam`, `sgd` (Nesterov momentum 0.99, as nnU-Net), or `lars` (momentum
            0.9, steps scaled by layer).
        initial_lr: learning rate after the warm-up; `lars` wants 0.1 to 1.
        encoder_lr_scale: factor for the encoder; 0 freezes it, running statistics included.
        weight_decay: decoupled for `adamw`, added to the gradient otherwise.
        schedule: course of the learning rate after the warm-up.
        warmup_epochs: epochs of linear increase from 0.
        clip_gradient: largest norm of the gradient.
        precision: of the matrix arithmetic. `auto`: float16 with loss scaling on CUDA, as nnU-Net,
            and float32 elsewhere; `bfloat16` also speeds up CPUs that compute in it.
        seed: run seed, of weights, sampling and views.
        patch_size: size of a full view in voxels, or null for what the budget allows.
        voxel_budget: multiple of the voxels that nnU-Net's plan allows.
        initial_weights: checkpoint to start from; or the name of a pre-training trainer, whose
            finished run of the same dataset, plans, configuration and fold is taken; null: random.
        save_every: epochs between two `checkpoint_latest` (ten minutes at the latest).
        picture_every: epochs between two pictures of what the objective does.
        overwrite: whether a run that is there is set aside (`former_1`) and a new one begun.
        max_skipped_steps: consecutive non-finite losses after which the run stops.
    """

    num_epochs: Count = 400
    num_iterations_per_epoch: Count = 250
    num_val_iterations_per_epoch: Whole = 10
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    initial_lr: Positive = 1e-3
    encoder_lr_scale: NotNegative = 1.0
    weight_decay: NotNegative = 1e-4
    schedule: Literal["constant", "cosine", "poly"] = "cosine"
    warmup_epochs: NotNegative = 2
    clip_gradient: Positive = 12.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: Whole = 0
    patch_size: Sequence[Count] | None = None
    voxel_budget: Positive = 1.0
    initial_weights: str | None = None
    save_every: Count = 25
    picture_every: Count = 25
    overwrite: bool = False
    max_skipped_steps: Count = 10

    # what may differ on a resume: it does not change what was learned so far
    may_change: ClassVar[tuple[str, ...]] = (
        "training.num_epochs",
        "training.save_every",
        "training.picture_every",
        "training.overwrite",
        "training.max_skipped_steps",
        "probe",
    )

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_epochs, self.num_epochs)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.num_epochs * self.num_iterations_per_epoch

    def autocast_dtype(self, device: str) -> str | None:
        """Type in which a device computes matrix products; None: that of the weights."""
        return _autocast_dtype(self.precision, device)

    def learning_rate(self, step: int) -> float:
        """Learning rate of one step: linear warm-up, then constant, cosine to 0, or poly 0.9."""
        warmup = self.warmup_epochs * self.num_iterations_per_epoch
        if step < warmup:
            return self.initial_lr * (step + 1) / math.ceil(warmup)
        done = min(1.0, (step - warmup) / max(1.0, self.steps - warmup))
        factor = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "poly": (1 - done) ** 0.9,
        }
        return self.initial_lr * factor[self.schedule]


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
        warmup_epochs: epochs of linear increase; a frozen encoder has them when it is released.
        freeze_encoder_epochs: epochs in which the transferred encoder is frozen, or `all`.
        rewarm_all: when the encoder is released, everything warms up anew (sawtooth).
        layer_decay: factor on the learning rate of each stage of the transferred encoder, against
            that of the next deeper one.
        start_decay: transferred weights decay towards where they started (L2-SP) with this factor,
            in the place of `weight_decay`; 0: they do not.
        augmentation: `stock`: nnU-Net's own, in background processes; `device`: the same changes
            with the same probabilities for whole batches on the device, for machines with few
            cores beside a GPU (see `StockAugmentation`).
        mix: whether labelled images are mixed in pairs: `copy_paste` (a box of the other image and
            its labels), `mixup` (blends of both), or `none`.
        mix_box: side of copy-paste's box, as a share of the patch.
        precision: of the matrix arithmetic while training. `auto`: nnU-Net's own, float16 with loss
            scaling on CUDA and float32 elsewhere; `bfloat16` also speeds up CPUs that compute in
            it. The final validation is nnU-Net's in any case.
        weights_average: `ema`: validation and the finished model take the running average of the
            weights (see `average_decay`) in the place of the last ones.
        average_decay: of the running average, `a <- d a + (1 - d) w` after every step, d being
            `min(1 - 1 / (t + 1), average_decay)` after t steps.
        save_every: epochs between two `checkpoint_latest` (ten minutes at the latest).
        seed: of what starts at random, of batches and augmentation.
        overwrite: whether a run that is there is set aside (`former_1`) and a new one begun.
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
    freeze_encoder_epochs: Whole | Literal["all"] = 0
    rewarm_all: bool = False
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0
    start_decay: NotNegative = 0.0
    augmentation: Literal["stock", "device"] = "stock"
    mix: Literal["none", "copy_paste", "mixup"] = "none"
    mix_box: Annotated[float, Interval(gt=0, le=1)] = 2 / 3
    precision: Literal["auto", "bfloat16"] = "auto"
    weights_average: Literal["none", "ema"] = "none"
    average_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.99
    save_every: Count = 50
    seed: Whole = 0
    overwrite: bool = False

    may_change: ClassVar[tuple[str, ...]] = (
        "training.num_epochs",
        "training.save_every",
        "training.overwrite",
    )

    def __post_init__(self) -> None:
        frozen = self.frozen_epochs if self.num_epochs > self.frozen_epochs else 0
        _check_warmup(self.warmup_epochs, self.num_epochs, frozen)
        if self.rewarm_all and not frozen:
            raise ValueError(
                "training.rewarm_all: found true with training.freeze_encoder_epochs: "
                f"{self.freeze_encoder_epochs}; allowed with 1 to {self.num_epochs - 1} epochs, "
                "after which the encoder is released"
            )

    @property
    def frozen_epochs(self) -> int:
        """Epochs in which the encoder is frozen, as a number."""
        return FOREVER if self.freeze_encoder_epochs == "all" else int(self.freeze_encoder_epochs)

    def autocast_dtype(self, device: str) -> str | None:
        """Type in which a device computes matrix products; None: that of the weights."""
        return _autocast_dtype(self.precision, device)


def _autocast_dtype(precision: str, device: str) -> str | None:
    if precision == "auto":
        return "float16" if device == "cuda" else None
    return None if precision == "float32" else precision


def _check_warmup(warmup: float, epochs: int, frozen: int = 0) -> None:
    """Raises ValueError where the learning rate would not reach its full value in the run."""
    if frozen + warmup > epochs:
        before = f" after {frozen} frozen ones" if frozen else ""
        raise ValueError(
            f"training.warmup_epochs: found {warmup:g}{before} with training.num_epochs: {epochs}; "
            f"allowed: 0 to {epochs - frozen}, the run would end before its warm-up does"
        )
