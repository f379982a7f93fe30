"""The pre-training trainer: nnU-Net's loop and commands around an objective that reads no label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import distributed as dist

from nnssl.common.files import read_json, write_json
from nnssl.config import completed
from nnssl.data.case_table import describe_axes
from nnssl.modules import unet
from nnssl.nnunet.checkpoint import read_checkpoint, save_atomically
from nnssl.nnunet.paths import DATASET_FILE, FINAL, LATEST, PLANS_FILE
from nnssl.nnunet.planned_network import build_network
from nnssl.probe.during_training import TrainingProbe
from nnssl.training import preflight, pretraining_checkpoint, runs
from nnssl.training.history import History
from nnssl.training.interruptible import Interruptible
from nnssl.training.pretraining_loop import PretrainingLoop
from nnssl.training.pretraining_setup import GIVEN, SCHEMA
from nnssl.training.settings import MAY_CHANGE


class nnSSLPretrainer(Interruptible, PretrainingLoop):
    """Pre-trains the planned U-Net with the objective of the YAML file `config_name`."""

    def begin_state(self) -> None:
        self.enable_deep_supervision = False
        self.history = History()
        self.epoch_terms = []
        self.resumed = False

    # ------------------------------------------------------------------ beginning and end

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        assert self.config is not None
        folder = Path(self.output_folder)
        if not self.resumed:
            runs.refuse_overwrite(folder, self.config.sections, self.settings.overwrite)
        self.probe = TrainingProbe(
            self.probe_fold(),
            self.probe_settings,
            self.objective,
            self.settings.seed,
            self.device,
            folder,
            self.print_to_log_file,
        )
        self.probe.check()
        self.make_dense_targets()
        self.check_dense_targets()
        self.stop.install()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        if self.local_rank == 0:
            runs.write_resolved_config(folder, self.config.to_dict())
            self._copy_plans()
        self._describe()
        if not self.resumed:
            self._preflight(folder)
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
        for path, value in self.config.overrides.items():
            log(f"Override for this run: {path} = {value!r}")
        log(self.budget.describe(self.num_input_channels, world))
        log(f"Position along {describe_axes(self.train_cases)}")
        train = self.batch_maker.sampler
        log(
            f"{len(self.train_cases)} training cases and {len(self.unlabelled.members)} images "
            f"without labels ({len(train.eligible)} can be drawn); {len(self.val_cases)} "
            "validation cases are left out, and no label is read."
        )

    def _preflight(self, folder: Path) -> None:
        """One dry step, free disk, and a checkpoint that nnU-Net's own loader reads back."""
        batch = self.prepare(self.batch_maker(self.step))
        loss = preflight.dry_step(self.network, lambda: self._forward(batch))
        self.print_to_log_file(f"Pre-flight: one dry step, loss {loss:.4f}")
        if self.disable_checkpointing or self.local_rank != 0:
            return
        size = 4 * 4 * sum(p.numel() for p in self.network.parameters())
        preflight.check_disk(folder, size)
        file = folder / "checkpoint_preflight.pth"
        try:
            save_atomically(self.compose_checkpoint(), file)
            planned = build_network(
                self, self.num_input_channels, self.label_manager.num_segmentation_heads, True
            )
            weights = unet.plain_state_dict(self.objective.network)
            preflight.check_export(file, planned.to(self.device), weights)
        finally:
            file.unlink(missing_ok=True)
        self.print_to_log_file("Pre-flight: checkpoint saved and read back by nnU-Net's own loader")

    def on_train_end(self) -> None:
        folder = Path(self.output_folder)
        self.save_checkpoint(str(folder / FINAL))
        if self.local_rank == 0:
            if not self.disable_checkpointing:
                (folder / LATEST).unlink(missing_ok=True)
            self.print_to_log_file(
                "Pre-training done. Fine-tune these weights with: nnUNetv2_train "
                f"{self.plans_manager.dataset_name} {self.configuration_name} {self.fold} "
                f"-p {self.plans_manager.plans_name} -tr nnSSLFinetuneTrainer"
            )
        self.close()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """The validation loss of the loaded weights; this network cannot segment."""
        loader = self._validation_loader(get_allowed_n_proc_DA())
        if loader is None:
            self.print_to_log_file("Validation: no validation case can be drawn")
            return
        self.network.eval()
        steps = range(self.settings.num_val_iterations_per_epoch)
        means = self._means([self.validation_step(next(loader)) for _ in steps])
        loader.close()
        for key, value in means.items():
            self.print_to_log_file(f"Validation: {key} {value:.5g}")

    # ------------------------------------------------------------------ checkpoints

    def compose_checkpoint(self) -> dict[str, Any]:
        return pretraining_checkpoint.compose(self)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Rebind the stored configuration, then initialise and restore everything."""
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            checkpoint = read_checkpoint(checkpoint)
        stored = completed(pretraining_checkpoint.stored_config(checkpoint), SCHEMA, GIVEN)
        today = self.bind_config()
        for line in runs.compare_resume(stored.sections, today.sections, MAY_CHANGE):
            self.print_to_log_file(f"Resume: {line}")
        self.config = pretraining_checkpoint.with_changes(stored, today, MAY_CHANGE)
        self.resumed = True
        if not self.was_initialized:
            self.initialize()
        pretraining_checkpoint.restore(self, checkpoint)
