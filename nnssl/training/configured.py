"""A trainer with a configuration and an identity: how a run begins in its folder, and goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.common.locks import Lock, hold_with_process
from nnssl.config import Config, Schema, bind, complete, read_config
from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.nnunet.checkpoint import own_part, speaking_of
from nnssl.nnunet.paths import DATASET_FILE, PREPROCESSED, RESULTS, check_preprocessed, root_folder
from nnssl.nnunet.planned_network import check_supported
from nnssl.nnunet.plans import check_configuration, check_description, check_plans
from nnssl.nnunet.runs import RunLocation
from nnssl.training.identity import (
    Identity,
    compose_identity,
    describe_data,
    read_identity,
    refuse_changes,
    refuse_occupied,
    refuse_plans_of_other_folds,
    set_aside,
)
from nnssl.training.settings import FinetuningSettings, PretrainingSettings


class ConfiguredTrainer(nnUNetTrainer):
    """What both trainers share: a YAML file, a lock on their folder, and who may go on there.

    A subclass gives `settings`, `find_cases`, `find_weights` and `find_named_weights`. It calls
    `take_up` and `check_cases` when a checkpoint is loaded, and when training starts
    `begin` or `go_on`.

    Class attributes:
        config_name: stem of the YAML file.
        schema: sections of the configuration.
        given: parameters of the schema's targets that no YAML sets.
        may_change: knobs and whole sections that may differ on a resume.
    """

    config_name: str
    schema: ClassVar[Schema]
    given: ClassVar[Collection[str]] = ()
    may_change: ClassVar[Collection[str]]
    settings: PretrainingSettings | FinetuningSettings

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        for variable in (PREPROCESSED, RESULTS):  # nnU-Net would end in a bare TypeError
            root_folder(variable)
        check_plans(plans, "the plans")
        check_configuration(plans, configuration, f"{plans.get('plans_name')} has")
        check_description(dataset_json, DATASET_FILE)
        plans.setdefault("continue_training", False)  # for code that builds a trainer by hand
        super().__init__(plans, configuration, fold, dataset_json, device)
        plans.pop("continue_training", None)  # nnU-Net before 2.7.0 leaves it
        self.config: Config | None = None
        self.stored: dict[str, Any] | None = None  # our part of the loaded checkpoint
        self.begun: dict[str, Mapping[str, Any]] | None = None  # identity of its run
        self.lock: Lock | None = None
        self.begin_state()

    def begin_state(self) -> None:
        """Set what a fresh trainer remembers; nothing here depends on the configuration.

        nnU-Net records the constructor's arguments by its signature, so a subclass has none of
        its own.
        """

    def apply_schedule(self) -> None:
        """Hand nnU-Net's loop the settings that it knows."""
        settings = self.settings
        self.num_epochs, self.save_every = settings.num_epochs, settings.save_every
        self.num_iterations_per_epoch = settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = settings.num_val_iterations_per_epoch
        self.initial_lr, self.weight_decay = settings.initial_lr, settings.weight_decay

    def check_setup(self) -> None:
        """Refuse (ValueError) a network that nnSSL does not know, and cases that are not there."""
        check_supported(self.configuration_manager)
        folder, plans = Path(self.preprocessed_dataset_folder), self.plans_manager.plans_name
        check_preprocessed(folder, plans, self.configuration_name)

    def bind_config(self, stored: Mapping[str, Any] | None = None) -> Config:
        """Today's configuration: YAML file, overrides that a run was begun with, and today's."""
        return bind(read_config(self.config_name), self.schema, self.given, stored=stored or {})

    # ------------------------------------------------------------------ what the run is

    def find_cases(self) -> Mapping[str, Any]:
        """Names of the fold's cases: `train`, `validation` and what else tells what is seen."""
        raise NotImplementedError

    def find_weights(self) -> Mapping[str, str]:
        """The weights that the run started from, see `describe_weights`."""
        raise NotImplementedError

    def find_named_weights(self) -> Mapping[str, str]:
        """The weights that file or environment name today; empty where they name none."""
        raise NotImplementedError

    def describe_data(self) -> dict[str, dict[str, Any]]:
        """Plans and dataset of today."""
        return describe_data(self.plans_manager.plans, self.configuration_name, self.dataset_json)

    @property
    def preprocessing(self) -> PreprocessingPlan:
        """How nnU-Net prepares the images of this run."""
        plans = self.plans_manager.plans
        return PreprocessingPlan(plans, self.configuration_name, self.dataset_json)

    def identify(self) -> Identity:
        """The record of this run, as checkpoints hold it and runs are compared by."""
        assert self.config is not None
        return compose_identity(
            self.describe_data(), self.config, self.find_cases(), self.find_weights()
        )

    # ------------------------------------------------------------------ beginning and going on

    def take_folder(self) -> None:
        """No other process trains or validates in the folder from now on; rank 0 holds it."""
        if self.local_rank == 0 and self.lock is None:
            self.lock = hold_with_process(Path(self.output_folder), self.print_to_log_file)

    def begin(self) -> None:
        """A fresh run: nothing may be lost (RuntimeError)."""
        assert self.config is not None
        if self.local_rank == 0:
            folder, identity = Path(self.output_folder), self.identify()
            refuse_plans_of_other_folds(folder, identity, self.configuration_name)
            if not self.settings.overwrite:
                refuse_occupied(folder, identity, self.may_change, self.make_command())
        for path, value in self.config.overrides.items():
            self.print_to_log_file(f"Override for this run: {path} = {value!r}")

    def clear_folder(self) -> None:
        """Sets the run aside that a fresh one replaces (`overwrite`), once nothing can fail."""
        if self.local_rank == 0 and self.settings.overwrite:
            kept = set_aside(Path(self.output_folder))
            if kept is not None:
                self.print_to_log_file(f"The former run is kept in {kept}, which may be deleted")

    def take_up(
        self, checkpoint: Mapping[str, Any], kind: Literal["pretrain", "finetune"], file: str
    ) -> dict[str, Any]:
        """Binds the configuration that a checkpoint was begun with; returns our part of it.

        Raises:
            ValueError: the checkpoint is of another kind or damaged, or plans or dataset have
                changed; it names `file`.
            RuntimeError: another process works in the folder.
        """
        self.take_folder()
        with speaking_of(file):
            own, begun = own_part(checkpoint, kind), read_identity(checkpoint)
            refuse_changes(begun, self.describe_data())
            self.config = complete(Config.from_dict(own["config"]), self.schema, self.given)
            sections = self.config.sections
            if strange := [k for k in self.config.overrides if k.split(".")[0] not in sections]:
                raise ValueError(f"config.overrides: {strange} belong to none of its sections")
        self.stored, self.begun = own, {**begun, "settings": self.config.sections}
        return own

    def check_cases(self) -> None:
        """Refuse another fold than the run was begun with (ValueError)."""
        assert self.begun is not None
        refuse_changes(self.begun, {"cases": self.find_cases()})

    def go_on(self) -> None:
        """A run that was loaded goes on with today's settings, as far as these may change.

        Raises:
            ValueError: they differ in more than `may_change`, or other weights are named.
        """
        assert self.config is not None
        assert self.begun is not None
        stored = self.config.overrides
        self.config = self.bind_config(stored)
        today = compose_identity({}, self.config, {}, self.find_named_weights())
        changes = refuse_changes(self.begun, today, self.may_change)
        if self.local_rank == 0:
            folder = Path(self.output_folder)
            refuse_plans_of_other_folds(folder, self.describe_data(), self.configuration_name)
        done, epochs = self.current_epoch, self.config.sections["training"]["num_epochs"]
        what = f"goes on after {done} of {epochs} epochs" if done < epochs else "has all its epochs"
        self.print_to_log_file(f"Resume: this very run {what}")
        for path, value in self.config.overrides.items():
            origin = "stored with the run" if stored.get(path) == value else "of today"
            self.print_to_log_file(f"Resume: override {path} = {value!r} ({origin})")
        for line in changes:
            self.print_to_log_file(f"Resume: {line}")

    @property
    def location(self) -> RunLocation:
        """Where the runs of other trainers on this fold lie."""
        results, plans = Path(self.output_folder_base).parent, self.plans_manager.plans_name
        return RunLocation(results, plans, self.configuration_name, self.fold)

    @property
    def heading(self) -> str:
        """What stands above the pictures of the run: what it is, and how far."""
        place = self.location
        return (
            f"{type(self).__name__} on {place.results.name}, {place.plans}, {place.configuration}, "
            f"fold {place.fold}: {self.current_epoch} of {self.num_epochs} epochs"
        )

    def make_command(self) -> str:
        """The command of this run, without `--c`."""
        device = "" if self.device.type == "cuda" else f" -device {self.device.type}"
        return self.location.make_command(type(self).__name__) + device
