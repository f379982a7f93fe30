"""The pre-training trainer: nnU-Net's loop and commands around an objective that reads no label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn
from torch import distributed as dist

from nnssl.common.files import read_json, write_json
from nnssl.data.case_table import describe_axes
from nnssl.leakage.ancestry import record_patients, record_signatures, trace_ancestry
from nnssl.leakage.check import Evaluation
from nnssl.leakage.policy import judge
from nnssl.nnunet.checkpoint import read_checkpoint, speaking_of
from nnssl.nnunet.namesakes import describe_parts
from nnssl.nnunet.paths import DATASET_FILE, FINAL, LATEST, PLANS_FILE, cache_places
from nnssl.nnunet.planned_network import build_network
from nnssl.probe.during_training import TrainingProbe
from nnssl.probe.volumes import NO_STRUCTURE, read_structures
from nnssl.training import preflight
from nnssl.training.checkpoints import (
    Progress,
    compose_pretraining,
    restore_pretraining,
    write_resolved_config,
)
from nnssl.training.history import History
from nnssl.training.identity import TARGETS, Identity, describe_weights, refuse_changes
from nnssl.training.initial_weights import describe_named
from nnssl.training.pretraining_loop import PretrainingLoop
from nnssl.training.run_report import REPORT_FILE, suggest_next, write_run_report

SEEN = ("records", "signatures")  # of training cases and images, in a checkpoint
NO_IMAGES: dict[str, Any] = {"images": {}, "left_out": {}}  # of runs of an older version


class nnSSLPretrainer(PretrainingLoop):
    """Pre-trains the planned U-Net with the objective of the YAML file `config_name`.

    The chain `Interruptible`, `PretrainingSetup`, `PretrainingLoop` ends here: the beginning and
    the end of a run, and its checkpoints.
    """

    @staticmethod
    def build_network_architecture(plans_manager: Any, *_: Any, **__: Any) -> nn.Module:
        """nnU-Net's prediction asks for the network here; pre-training does not.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "These weights are those of a pre-training: no label was learned, so that a prediction "
            "would be random. Fine-tune them (nnUNetv2_train ... -tr nnSSLFinetuneTrainer) and "
            "predict with -tr nnSSLFinetuneTrainer. nnssl_probe says what the features know."
        )

    # ------------------------------------------------------------------ beginning and end

    def on_train_start(self) -> None:
        self.take_folder()
        if not self.was_initialized:
            self.initialize()
        if self.begun is None:
            self.begin()
        else:
            self.go_on()
        assert self.config is not None
        folder = Path(self.output_folder)
        self.probe = TrainingProbe(
            self.make_probe_fold(),
            self.probe_settings,
            self.objective,
            self.settings.seed,
            self.device,
            folder,
            self.print_to_log_file,
            self.find_shortcuts,
        )
        self.probe.check()
        self.make_dense_targets()
        self.check_dense_targets()
        if self.begun is not None:
            refuse_changes(self.begun, {TARGETS: self.describe_dense_targets()})
        self.stop.install()
        if self.begun is None:
            self._record_seen()
            self._preflight(folder)
            self.clear_folder()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        if self.local_rank == 0:
            write_resolved_config(folder, self.config.to_dict())
            self._copy_plans()
        self._describe()
        if self.begun is not None:
            self.write_history()
        if self.is_ddp:
            dist.barrier()

    def _copy_plans(self) -> None:
        """Plans, dataset.json and fingerprint beside the run, as nnU-Net does."""
        base, source = Path(self.output_folder_base), Path(self.preprocessed_dataset_folder_base)
        write_json(base / PLANS_FILE, self.plans_manager.plans)
        write_json(base / DATASET_FILE, self.dataset_json)
        fingerprint = source / "dataset_fingerprint.json"
        if fingerprint.is_file():
            write_json(base / fingerprint.name, read_json(fingerprint))

    def _describe(self) -> None:
        assert self.config is not None
        world = dist.get_world_size() if self.is_ddp else 1
        log = self.print_to_log_file
        log(f"nnSSL pre-training with {self.config.name}: {self.config.about.get('summary', '')}")
        if (place := cache_places(self.folders.own)[0]) != self.folders.own:
            log(f"{self.folders.own} cannot be written: caches and dense targets go to {place}")
        log(self.budget.describe(self.num_input_channels, world))
        if text := self.objective.describe():
            log(f"Task: {text}")
        log(f"Position along {describe_axes(self.train_cases)}")
        log(self._describe_cases())
        training, held_out = ([c.identifier for c in t] for t in (self.train_cases, self.val_cases))
        dataset = self.folders.preprocessed.parent
        if warning := describe_parts(dataset, [*training, *held_out], held_out):
            log(f"WARNING: {warning}")

    def _describe_cases(self) -> str:
        """What is learned from, what is only looked at, and what reads labels."""
        drawn, images = len(self.batch_maker.sampler.eligible), len(self.unlabelled.members)
        text = f"{len(self.train_cases)} training cases"
        text += f" and {images} images without labels" * bool(images)
        text += f", of which {drawn} can be drawn" * (drawn < len(self.drawn_cases))
        if self.fold == "all":
            text += "; fold all trains on every case, so that val_loss is of images it has seen"
        else:
            text += f"; {len(self.val_cases)} validation cases are not trained on"
        labels = {*read_structures(self.dataset_json).values()} - {NO_STRUCTURE}
        reads = labels and self.probe_settings.active
        return f"{text}. No label enters the weights" + (
            "; the probe reads some, to report what the features know." if reads else "."
        )

    def _record_seen(self) -> None:
        """Whose images are seen, and their signatures, for whoever uses these weights."""
        dataset, folder = self.folders.preprocessed.parent, self.folders.preprocessed
        if self.ancestors and self.fold != "all":
            validation = [case.identifier for case in self.val_cases]
            evaluation = Evaluation(dataset, self.fold, validation, folder, self.preprocessing)
            found = judge(self.ancestors, evaluation)
            refused = "fine-tuning on this fold will refuse the weights of this run. "
            for text in (*found.reasons, *found.untold):
                more = refused if found.contaminated else ""
                self.print_to_log_file(f"WARNING: initial weights: {more}{text}")
        if self.local_rank == 0 and not self.disable_checkpointing:
            cases = [case.identifier for case in self.train_cases]
            workers = max(1, get_allowed_n_proc_DA())
            signatures = record_signatures(folder, cases, self.unlabelled, workers)
            self.seen_record = {**record_patients(dataset, cases), **signatures}

    def _preflight(self, folder: Path) -> None:
        """One dry step, free disk, and a checkpoint that nnU-Net's own loader reads back."""

        def forward(number: int) -> Mapping[str, Tensor]:
            batch = self.prepare(self.batch_maker(number))
            with self.autocast():
                return self.network(batch)  # type: ignore[no-any-return]

        loss = preflight.dry_step(self.network, forward)
        self.print_to_log_file(f"Pre-flight: one dry step, loss {loss:.4f}")
        if self.disable_checkpointing or self.local_rank != 0:
            return
        preflight.check_disk(folder, 4 * 4 * sum(p.numel() for p in self.network.parameters()))
        planned = build_network(
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            deep_supervision=True,
        )
        preflight.check_export(folder, self.compose_checkpoint(), planned.to(self.device))
        self.print_to_log_file("Pre-flight: checkpoint saved and read back by nnU-Net's own loader")

    def on_train_end(self) -> None:
        folder = Path(self.output_folder)
        self.finish()
        self.save_checkpoint(str(folder / FINAL))
        if self.local_rank == 0:
            if not self.disable_checkpointing:
                (folder / LATEST).unlink(missing_ok=True)
            done = f"Pre-training done{self._write_report()}. {self._suggest_next()}"
            self.print_to_log_file(done)
        self.close()

    def _write_report(self) -> str:
        """Where the page of the run is; a failure is told, since the training is done and saved."""
        if self.disable_checkpointing:
            return ""
        try:
            return f", all of it on one page: {write_run_report(Path(self.output_folder))}"
        except Exception as error:
            self.print_to_log_file(
                f"WARNING: {REPORT_FILE} could not be written; the run is whole without it "
                f"({type(error).__name__}: {error})"
            )
            return ""

    def _suggest_next(self) -> str:
        """What to do with the weights: fine-tuning needs labels, which not every dataset has."""
        plans, file = self.plans_manager.plans, Path(self.output_folder) / FINAL
        return " ".join(suggest_next(plans, self.dataset_json, self.location, file))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """The validation loss of the loaded weights; this network cannot segment."""
        means = self.val_terms or self._validate()
        told = ", ".join(f"{key} {value:.4g}" for key, value in means.items())
        self.print_to_log_file(f"Validation: {told or 'no validation case can be drawn'}")

    def _validate(self) -> Mapping[str, float]:
        loader = self._make_validation_loader(get_allowed_n_proc_DA())
        if loader is None:
            return {}
        self.network.eval()
        steps = range(self.settings.num_val_iterations_per_epoch)
        means = self._average([self.validation_step(next(loader)) for _ in steps])
        loader.close()
        return means

    # ------------------------------------------------------------------ identity, checkpoints

    def find_cases(self) -> dict[str, list[str]]:
        return {
            "train": [case.identifier for case in self.train_cases],
            "validation": [case.identifier for case in self.val_cases],
        }

    def identify(self) -> Identity:
        return {**super().identify(), TARGETS: self.describe_dense_targets()}

    def find_weights(self) -> Mapping[str, str]:
        return self._first_weights

    def find_named_weights(self) -> Mapping[str, str]:
        assert self.config is not None
        return describe_named(self.config.sections["training"]["initial_weights"])

    def go_on(self) -> None:
        super().go_on()
        assert self.config is not None
        self._apply(self.config)

    @cached_property
    def _first_weights(self) -> Mapping[str, str]:
        known = self.begun and self.begun.get("weights")
        return known or describe_weights(self.initial_file)

    def compose_checkpoint(self) -> dict[str, Any]:
        assert self.config is not None
        found = self.find_cases()
        cases = {
            "train": found["train"],
            "left_out": found["validation"],
            "unlabelled": self.unlabelled.record(),
            **self.seen_record,
        }
        progress = Progress(
            self.step,
            self.current_epoch,
            self.epoch_terms,
            self.skipped_steps,
            self.history.values,
            finished=self.step >= self.settings.steps,
        )
        checkpoint = compose_pretraining(
            self,
            self.objective,
            self.trained,
            self.config,
            self.identify(),
            progress,
            cases,
            self.ancestors,
            self.inherited,
        )
        checkpoint["nnssl"]["budget"] = asdict(self.budget)
        return checkpoint

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Bind the stored configuration, then initialise and restore everything."""
        name, checkpoint = "the checkpoint", filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            name, checkpoint = checkpoint, read_checkpoint(checkpoint)
        own = self.take_up(checkpoint, "pretrain", str(name))
        if not self.was_initialized:
            self.initialize()
        self.check_cases()
        self.val_terms = {}
        with speaking_of(name):
            self._take_same_images(own["cases"].get("unlabelled", NO_IMAGES))
            self.ancestors, self.inherited = trace_ancestry(checkpoint)[1:], own["trained_keys"]
            self.seen_record = {key: own["cases"][key] for key in SEEN if key in own["cases"]}
            progress = restore_pretraining(checkpoint, self, self.objective)
        self.step, self.skipped_steps = progress.step, progress.skipped_steps
        self.epoch_terms, self.history = list(progress.epoch_terms), History(progress.history)

    def _take_same_images(self, record: Mapping[str, Any]) -> None:
        """A resumed run goes on with the images without labels that it began with, whatever has
        been added since: it is set up anew with these."""
        if self.unlabelled.record()["images"] == record["images"]:
            return
        self.print_to_log_file("Resume: other images without labels are there than when it began")
        self.recorded_unlabelled = record
        self.initialize()
