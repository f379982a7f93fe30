"""The fine-tuning trainer: nnU-Net's own training from pre-trained weights, on few labels."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.common.files import write_json
from nnssl.config import Config, Schema
from nnssl.data.labels import LabelBudget
from nnssl.data.supervised_batches import seed_everything
from nnssl.finetuning.freezing import freeze_or_release
from nnssl.finetuning.learning_rates import PartSchedule, group_parameters
from nnssl.finetuning.semi_supervised import Lesson, mix_labelled
from nnssl.finetuning.start_weights import copy_start, pull_to_start
from nnssl.leakage.ancestry import ANCESTORS, record_patients
from nnssl.leakage.check import Evaluation
from nnssl.modules import unet
from nnssl.modules.cpu_bfloat16 import float32_where_shallow
from nnssl.modules.memory import MomentumCopy
from nnssl.nnunet.checkpoint import make_plain, read_checkpoint, speaking_of
from nnssl.nnunet.namesakes import describe_parts, list_cases
from nnssl.nnunet.paths import TRANSFER_FILE
from nnssl.nnunet.plans import name_channels
from nnssl.nnunet.runs import WeightSource
from nnssl.nnunet.stock_weights import check_stock_weights
from nnssl.training.checkpoints import (
    compose_finetuning,
    forget_open_epoch,
    restore_average,
    write_resolved_config,
)
from nnssl.training.epoch_log import describe_time, find_troubles
from nnssl.training.finetuning_weights import (
    StartingWeights,
    find_named_weights,
    read_identity_of_weights,
)
from nnssl.training.history import History, read_stock_terms, tell_loggers
from nnssl.training.interruptible import limit_threads
from nnssl.training.labelled_batches import LabelledBatches
from nnssl.training.lessons import LessonTarget, make_lesson_loss
from nnssl.training.settings import FinetuningSettings

MOST_BAD_LOSSES = 10  # steps without a finite loss, after which the run stops
SCHEMA: Schema = {"training": FinetuningSettings, "weights": WeightSource, "labels": LabelBudget}


class nnSSLFinetuner(LabelledBatches):
    """nnU-Net's trainer with weights, label budget, rates per part and exact resumption.

    Augmentation, loss, network and final validation are nnU-Net's. The constructor derives nothing
    from the configuration: `initialize` binds it, unless `load_checkpoint` has bound a stored one.
    """

    config_name = "nnSSLFinetuneTrainer"
    schema, may_change = SCHEMA, FinetuningSettings.may_change
    settings: FinetuningSettings

    def begin_state(self) -> None:
        super().begin_state()
        self.weights_record: dict[str, Any] = {"loaded": []}
        self.epoch_losses: list[float] = []
        self.history = History()
        self.start_weights: Mapping[str, Tensor] = {}
        self.average: MomentumCopy | None = None  # of the weights, or a semi-supervised teacher
        self._loaded_from_outside = False
        self._epoch_ended = True  # nnU-Net saves before it counts the epoch

    # ------------------------------------------------------------------ setting up

    def initialize(self) -> None:
        """Bind the configuration; the seed decides everything that starts at random."""
        limit_threads(self.device)
        check_stock_weights()
        self.check_setup()
        self.config = self.config or self.bind_config()
        self._apply(self.config)
        seed_everything(self.settings.seed, "network")
        super().initialize()
        unet.check_network(self.planned_network)
        if self.device.type == "cpu":
            float32_where_shallow(self.planned_network)
        # a function, since a copy of the network would copy the trainer of a bound method
        self.planned_network.register_load_state_dict_post_hook(lambda *_: self._note_loading())

    def _apply(self, config: Config) -> None:
        sections = config.sections
        self.settings = FinetuningSettings(**sections["training"])
        self.weight_source = WeightSource(**sections["weights"])
        self.budget = LabelBudget(**sections["labels"])
        self.apply_schedule()

    @property
    def planned_network(self) -> nn.Module:
        """The U-Net without the wrappers of DDP and torch.compile."""
        network = getattr(self.network, "module", self.network)
        network = getattr(network, "_orig_mod", network)
        assert isinstance(network, nn.Module)
        return network

    def _note_loading(self) -> None:
        """Sees what `-pretrained_weights` loads before the training starts."""
        self._loaded_from_outside = True

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PartSchedule]:
        """nnU-Net's SGD, with a group per part (see `group_parameters`).

        Where weights decay towards their start, `start_weights` is a copy of it, made once.
        """
        groups = group_parameters(
            self.planned_network,
            self.weights_record["loaded"],
            self.settings.encoder_lr_scale,
            self.settings.decoder_lr_scale,
            self.settings.random_lr_scale,
            self.settings.frozen_epochs,
            self.settings.layer_decay,
            self.settings.start_decay,
        )
        optimizer = torch.optim.SGD(
            groups, self.initial_lr, weight_decay=self.weight_decay, momentum=0.99, nesterov=True
        )
        if self.settings.start_decay:
            pull_to_start(self.planned_network, optimizer, self.start_weights)
        return optimizer, self._make_schedule(optimizer)

    def _make_schedule(self, optimizer: torch.optim.Optimizer) -> PartSchedule:
        warmup = self.settings.warmup_epochs
        restart = self.settings.frozen_epochs if self.settings.rewarm_all else 0
        return PartSchedule(optimizer, self.initial_lr, self.num_epochs, warmup, restart)

    def chosen_precision(self) -> AbstractContextManager[Any]:
        """Around nnU-Net's steps, which have `auto` by themselves and keep an outer type."""
        return nullcontext() if self.settings.precision == "auto" else self.autocast()

    def _build_loss(self) -> nn.Module:
        return make_lesson_loss(self, super()._build_loss)

    # ------------------------------------------------------------------ averaged weights

    @property
    def needs_average(self) -> bool:
        return self.settings.weights_average == "ema"

    def _begin_average(self) -> None:
        self.average = MomentumCopy(self.planned_network) if self.needs_average else None

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Lets the network have the averaged weights, where the finished model shall have them."""
        average = self.average if self.settings.weights_average == "ema" else None
        return nullcontext() if average is None else average.in_place()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self.averaged_weights(), self.chosen_precision():
            return super().validation_step(batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        with self.averaged_weights():
            super().perform_actual_validation(save_probabilities)

    @property
    def step(self) -> int:  # type: ignore[override]
        """Optimiser steps of the run so far."""
        per_epoch = self.settings.num_iterations_per_epoch
        return self.current_epoch * per_epoch + len(self.epoch_losses)

    # ------------------------------------------------------------------ the loop's hooks

    def on_train_start(self) -> None:
        self.take_folder()
        if not self.was_initialized:
            self.initialize()
        if self.begun is None:
            self._start_from_weights()
        else:
            self.go_on()
        self.stop.install()
        super().on_train_start()
        if self.local_rank == 0:
            self._write_records()
        if self.begun is not None:
            self.write_history()
        self._last_save = time()

    def _start_from_weights(self) -> None:
        """A fresh run: weights are looked for here and nowhere else."""
        dataset, (_, validation) = Path(self.preprocessed_dataset_folder_base), self.do_split()
        if warning := describe_parts(dataset, list_cases(dataset), validation):
            self.print_to_log_file(f"WARNING: {warning}")
        weights = StartingWeights(
            network=self.planned_network,
            plans=self.plans_manager,
            configuration=self.configuration_name,
            results=Path(self.output_folder_base).parent,
            evaluation=Evaluation(
                dataset,
                self.fold,
                validation,
                Path(self.preprocessed_dataset_folder),
                self.preprocessing,
            ),
            knobs=self.weight_source,
            log=self.print_to_log_file,
            channels=name_channels(self.dataset_json),
        )
        self.weights_record = weights.find(self._loaded_from_outside)
        self.begin()
        self.weights_record = weights.load(self.weights_record)
        self.clear_folder()
        if self.settings.start_decay:
            loaded = self.weights_record["loaded"]
            self.start_weights = copy_start(self.planned_network, loaded)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self._begin_average()

    def go_on(self) -> None:
        super().go_on()
        assert self.config is not None
        self._apply(self.config)
        self.lr_scheduler = self._make_schedule(self.optimizer)
        self.lr_scheduler.step(max(0, self.current_epoch - 1))  # that of a run with no epoch left

    def _write_records(self) -> None:
        assert self.config is not None
        assert self.labelled is not None
        write_resolved_config(self.output_folder, self.config.to_dict())
        told = {key: value for key, value in self.weights_record.items() if key != ANCESTORS}
        write_json(Path(self.output_folder) / TRANSFER_FILE, told)
        self.write_labelled(self.labelled)

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        self._epoch_begin, self._waited = time(), self.dataloader_train.seconds_waited

    def on_train_epoch_start(self) -> None:
        self._epoch_ended = False
        super().on_train_epoch_start()
        begun = bool(self.epoch_losses)
        freeze_or_release(self.planned_network, self.optimizer, self.current_epoch, begun)
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        text = ", ".join(f"{name} {rate:.6g}" for name, rate in rates.items())
        self.print_to_log_file(f"Learning rate by part: {text}")
        # a run that was stopped inside an epoch goes on there; nnU-Net's loop counts these steps
        done = len(self.epoch_losses)
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch - done

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        seed_everything(self.settings.seed, "step", self.local_rank, self.step)
        if self.augmentation is not None:
            batch = self.augment(batch, self.augmentation)
        lesson = self.make_lesson(batch)
        with self.chosen_precision():
            output = super().train_step(lesson)
        if self.average is not None:
            decay = min(1 - 1 / (self.step + 1), self.settings.average_decay)
            self.average.update(decay)
        self.epoch_losses.append(float(output["loss"]))
        self._refuse_nan()
        self.save_or_leave()
        return output

    def _refuse_nan(self) -> None:
        """nnU-Net itself trains on for ever."""
        last = self.epoch_losses[-MOST_BAD_LOSSES:]
        if len(last) == MOST_BAD_LOSSES and not np.isfinite(last).any():
            raise RuntimeError(
                f"the loss was not finite in {MOST_BAD_LOSSES} steps on end (up to step "
                f"{self.step}): the weights are lost. Look at the images and at the weights that "
                "the run began with, or lower training.initial_lr; checkpoints of before are kept."
            )

    def make_lesson(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What nnU-Net's training step gets: the batch, or labelled images mixed in pairs."""
        if self.settings.mix == "none":
            return batch
        images, values = self.move_labelled(batch)
        keys = self.make_keys(len(images))
        return self.as_batch(
            mix_labelled(images, values, keys, self.settings.mix, self.settings.mix_box)
        )

    def move_labelled(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Images and labels on full resolution, on the device, in the form of `LabelForm`."""
        target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
        images = batch["data"].to(self.device, non_blocking=True)
        return images, self.loss.form.complete(target.to(self.device, non_blocking=True))

    @staticmethod
    def as_batch(lesson: Lesson) -> dict[str, Any]:
        return {"data": lesson.images, "target": LessonTarget(lesson)}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch
        super().on_train_epoch_end([{"loss": np.array(loss)} for loss in self.epoch_losses])

    def on_epoch_end(self) -> None:
        """As nnU-Net's, but the file that a resume takes is the last: a kill forgets no best."""
        self.epoch_losses, self._epoch_ended = [], True
        # as a resumed run has it: nnU-Net's running mean of float32 rounds differently
        self.logger.load_checkpoint(make_plain(self.logger.get_checkpoint()))
        waited = self.dataloader_train.seconds_waited - self._waited
        seconds = {"epoch_seconds": time() - self._epoch_begin, "seconds_waited": waited}
        self.history.add(self.current_epoch, seconds)
        self.save_every = self.num_epochs + 1
        super().on_epoch_end()
        self._report(self.current_epoch - 1)
        self.save_every = self.settings.save_every
        if self.current_epoch % self.save_every == 0 and self.current_epoch < self.num_epochs:
            self.current_epoch -= 1
            self.save_checkpoint(self.latest_checkpoint)
            self.current_epoch += 1

    def _report(self, epoch: int) -> None:
        """What nnU-Net's lines lack, further loggers, and `history.csv`."""
        values = self.history.values
        self.print_to_log_file(describe_time(values, self.num_epochs))
        for trouble in find_troubles(values, self.settings.num_iterations_per_epoch):
            self.print_to_log_file(f"WARNING: {trouble}")
        tell_loggers(self.logger, {key: column[epoch] for key, column in values.items()}, epoch)
        self.write_history()

    def write_history(self) -> None:
        """All terms so far, nnU-Net's first."""
        if self.local_rank == 0:
            stock = read_stock_terms(self.logger.get_checkpoint())
            History({**stock, **self.history.values}).write(self.output_folder)

    def on_train_end(self) -> None:
        super().on_train_end()
        self.close()

    # ------------------------------------------------------------------ identity, checkpoints

    def find_cases(self) -> dict[str, Any]:
        if self.labelled is None:
            return {}
        slices = {} if self.labelled.slices is None else {"slices": self.labelled.slices}
        return {"train": self.labelled.cases, "validation": sorted(self.fold_validation), **slices}

    def find_weights(self) -> Mapping[str, str]:
        return read_identity_of_weights(self.weights_record)

    def find_named_weights(self) -> Mapping[str, str]:
        assert self.config is not None
        return find_named_weights(WeightSource(**self.config.sections["weights"]))

    def compose_checkpoint(self) -> dict[str, Any]:
        assert self.config is not None
        return compose_finetuning(
            self,
            self.planned_network,
            self.config,
            self.identify(),
            self.current_epoch + self._epoch_ended,
            self.epoch_losses,
            self.weights_record,
            None if self.labelled is None else self.labelled.to_dict(),
            self._record_cases(),
            self.average,
            export_average=self.settings.weights_average == "ema",
            start_weights=self.start_weights,
            history=self.history.values,
        )

    def _record_cases(self) -> dict[str, Any] | None:
        """Whose images these weights learn on."""
        if self.labelled is None:
            return None
        dataset, cases = Path(self.preprocessed_dataset_folder_base), self.labelled.cases
        return {"train": cases, **record_patients(dataset, cases)}

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Rebind the stored configuration, then initialise; nnU-Net restores the rest."""
        if isinstance(filename_or_checkpoint, dict):
            raise TypeError("load_checkpoint takes the path of a checkpoint, as nnU-Net's does")
        checkpoint = read_checkpoint(filename_or_checkpoint)
        own = self.take_up(checkpoint, "finetune", filename_or_checkpoint)
        self.weights_record = own["weights"]
        self.start_weights = own.get("start_weights", {})
        if not self.was_initialized:
            self.initialize()
        self.do_split()
        self.check_cases()
        with speaking_of(filename_or_checkpoint):
            super().load_checkpoint(str(filename_or_checkpoint))
            self._begin_average()
            if self.average is not None:
                restore_average(self.average, self.planned_network, own)
            self.epoch_losses = list(own["epoch_losses"])
            self.history = History(own.get("history"))
            forget_open_epoch(self.logger, self.current_epoch)
