"""The pre-training trainer: nnU-Net's loop and commands around an objective that reads no label."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnssl.config import Config, Groups, Schema, bind, read_config
from nnssl.datasets.files import read_json, write_json
from nnssl.modules import unet
from nnssl.objectives import OBJECTIVES, Context, Objective
from nnssl.training import folds, preflight, pretraining_checkpoint, runs
from nnssl.training.budget import Budget, Request, divide, median_shape, raw_patch
from nnssl.training.case_table import case_table, describe_axes
from nnssl.training.checkpoint import read_checkpoint, save_atomically
from nnssl.training.history import History
from nnssl.training.pictures import save_pictures
from nnssl.training.planned_network import build_network, check_supported, refuse_cascade
from nnssl.training.loader import BatchMaker
from nnssl.training.pretraining_data import DataFolders, batch_maker, validation_maker
from nnssl.training.sampling import Sampling
from nnssl.training.settings import MAY_CHANGE, PretrainingSettings
from nnssl.training.signals import StopRequest
from nnssl.training.stepped_loader import SteppedLoader
from nnssl.training.weight_change import WeightChange
from nnssl.views import VIEWS

SCHEMA: Schema = {
    "training": PretrainingSettings,
    "sampling": Sampling,
    "views": Groups(VIEWS),
    "objective": OBJECTIVES,
}
GIVEN = ("network", "context")
SECONDS_BETWEEN_SAVES = 600.0
SECONDS_BETWEEN_PLOTS = 30.0


class nnSSLPretrainer(nnUNetTrainer):
    """Pre-trains the planned U-Net with the objective of the YAML file `config_name`.

    The constructor derives nothing from the configuration: `initialize` binds it (unless
    `load_checkpoint` has bound a stored one) and alone sets budget, batch and network.
    """

    config_name: str = "nnSSLContrastiveTrainer"

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        plans.setdefault("continue_training", False)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.config: Config | None = None
        self.enable_deep_supervision = False
        self.history = History()
        self.step = 0
        self.resumed = False
        self.stop = StopRequest()
        self.epoch_terms: list[Mapping[str, float]] = []
        self._skipped_in_a_row = self.skipped_steps = 0
        self._last_save = time()
        self._last_plot = 0.0

    # ------------------------------------------------------------------ setting up

    def initialize(self) -> None:
        """Bind the configuration, divide the budget, build objective and optimiser."""
        check_supported(self.configuration_manager)
        refuse_cascade(self.configuration_manager, self.configuration_name)
        if self.config is None:
            self.config = bind(read_config(self.config_name), SCHEMA, GIVEN)
        self._apply(self.config)
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        self.train_cases, self.val_cases = self._cases()
        torch.manual_seed(self.settings.seed)
        self.network = self._build_objective().to(self.device)
        self.weight_change = WeightChange(self.objective.network)
        if self.settings.initial_weights is not None:
            pretraining_checkpoint.load_initial(self, self.settings.initial_weights)
        if self._compiles_parts():
            unet.compile_parts(self.objective.network)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
            self.network = DistributedDataParallel(self.network, device_ids=[self.local_rank])
        self.was_initialized = True

    def _apply(self, config: Config) -> None:
        sections = config.sections
        self.settings = PretrainingSettings(**sections["training"])
        self.sampling = Sampling(**sections["sampling"])
        self.views = {name: VIEWS[v.pop("kind")](**v) for name, v in sections["views"].items()}
        settings = self.settings
        self.num_epochs, self.save_every = settings.num_epochs, settings.save_every
        self.num_iterations_per_epoch = settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = settings.num_val_iterations_per_epoch
        self.initial_lr, self.weight_decay = settings.initial_lr, settings.weight_decay

    def _cases(self) -> tuple[list[Any], list[Any]]:
        self.folders = DataFolders.of(Path(self.preprocessed_dataset_folder))
        return tuple(  # type: ignore[return-value]
            case_table(
                self.folders.preprocessed,
                self.folders.own,
                identifiers,
                self.plans_manager.transpose_forward,
                self.sampling.position_axis,
            )
            for identifiers in self.do_split()
        )

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, refused where it would leak (see `folds.check`)."""
        folds.check(Path(self.preprocessed_dataset_folder), self.fold)
        train, val = super().do_split()
        return list(train), list(val)

    def _build_objective(self) -> Objective:
        assert self.config is not None
        name, knobs = self.config.chosen("objective")
        kind = OBJECTIVES[name]
        planned_channels = self.label_manager.num_segmentation_heads
        channels = kind.output_channels(self.num_input_channels) or planned_channels
        network = build_network(self, self.num_input_channels, channels, deep_supervision=False)
        self.budget = self._divide(network, kind)
        context = Context(
            self.num_input_channels,
            self.budget.crop,
            tuple(self.configuration_manager.spacing)[-len(self.budget.crop) :],
            self.budget.samples,
            partitions=self.sampling.partitions,
            datasets=len({case.dataset for case in self.train_cases}),
            cases=len(self.train_cases),
        )
        objective = kind(network, context, **knobs)
        unet.freeze_untrained(network, objective.trained)
        return objective

    def _divide(self, network: nn.Module, kind: type[Objective]) -> Budget:
        """Crop, patch and number of patches per step (the only place that sets them)."""
        manager, sampling = self.configuration_manager, self.sampling
        planned = tuple(int(n) for n in manager.patch_size)
        views = sum(v.count * v.size_fraction ** len(planned) for v in self.views.values())
        axis = self.train_cases[0].axis
        parts = sampling.partitions if sampling.structured else 1
        share = 1.0 if kind.decodes else unet.encoder_share(network, planned)
        request = Request(
            planned,
            manager.batch_size,
            tuple(unet.total_stride(network)),
            views,
            share / self.settings.voxel_budget,
            parts,
            median_shape(manager.median_image_size_in_voxels, len(planned)),
            axis,
            tuple(self.settings.crop) if self.settings.crop is not None else None,
            None if sampling.volumes is None else sampling.volumes * parts,
        )
        crop, samples = divide(request)
        spacing = tuple(manager.spacing)[-len(crop) :]
        wanted = [view.patch_size(crop, spacing) for view in self.views.values()]
        largest = [max(sizes) for sizes in zip(*wanted, strict=True)]
        voxels = math.prod(planned) * manager.batch_size
        return Budget(crop, raw_patch(crop, largest), samples, views, voxels)

    def _compiles_parts(self) -> bool:
        return bool(super()._do_i_compile())

    def _do_i_compile(self) -> bool:
        """The objective itself is never compiled; `unet.compile_parts` compiles what it calls."""
        return False

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        rate, decay = self.settings.initial_lr, self.settings.weight_decay
        if self.settings.optimizer == "sgd":
            return torch.optim.SGD(
                trainable, rate, weight_decay=decay, momentum=0.99, nesterov=True
            ), None
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.settings.optimizer]
        return kind(trainable, rate, weight_decay=decay), None

    @property
    def objective(self) -> Objective:
        return self.network.module if self.is_ddp else self.network  # type: ignore[return-value]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The objective decides itself which outputs it reads."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's drawing assumes a plain U-Net."""

    # ------------------------------------------------------------------ data

    def get_dataloaders(self) -> tuple[SteppedLoader, SteppedLoader | None]:
        """Loaders that begin at the step at which the run is."""
        processes = get_allowed_n_proc_DA()
        train = SteppedLoader(self.batch_maker, self.step, processes, self._pins)
        return train, self._validation_loader(processes)

    @property
    def _pins(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def batch_maker(self) -> BatchMaker:
        """Step -> batch of the training cases."""
        return batch_maker(
            self.train_cases,
            self.folders,
            self.objective.companions,
            self.budget.crop,
            self.budget.patch,
            self.budget.samples,
            self.sampling,
            self.settings.seed,
            self.local_rank,
        )

    def _validation_loader(self, processes: int) -> SteppedLoader | None:
        maker = validation_maker(
            self.batch_maker, self.val_cases, self.settings.num_val_iterations_per_epoch
        )
        if maker is None:
            self.num_val_iterations_per_epoch = 0
            return None
        return SteppedLoader(maker, 0, min(1, processes), self._pins)

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device and make its views there."""
        ready = dict(batch)
        ready["image"] = batch["image"].to(self.device, non_blocking=True)
        ready["companions"] = {
            name: companion.to(self.device, non_blocking=True)
            for name, companion in batch["companions"].items()
        }
        crop, spacing = self.budget.crop, self.objective.context.spacing
        ready["views"] = {}
        for name, view in self.views.items():
            ready["views"].update(view(ready, name, crop, spacing))
        return ready

    # ------------------------------------------------------------------ the loop's hooks

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        assert self.config is not None
        folder = Path(self.output_folder)
        if not self.resumed:
            runs.refuse_overwrite(folder, self.config.sections, self.settings.overwrite)
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
        self._last_save = time()

    def _copy_plans(self) -> None:
        """Plans, dataset.json and fingerprint beside the run, as nnU-Net does."""
        base, source = Path(self.output_folder_base), Path(self.preprocessed_dataset_folder_base)
        write_json(base / "plans.json", self.plans_manager.plans)
        write_json(base / "dataset.json", self.dataset_json)
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
            f"{len(self.train_cases)} training cases ({len(train.eligible)} of them can be drawn), "
            f"{len(self.val_cases)} validation cases are left out of training; no label is read."
        )

    def _preflight(self, folder: Path) -> None:
        """One dry step, free disk, and a checkpoint that nnU-Net's own loader reads back."""
        batch = self.prepare(self.batch_maker(self.step))
        loss = preflight.dry_step(self.network, lambda: self.network(batch))
        self.print_to_log_file(f"Pre-flight: one dry step, loss {loss:.4f}")
        if self.disable_checkpointing or self.local_rank != 0:
            return
        size = 4 * 4 * sum(p.numel() for p in self.network.parameters())
        preflight.check_disk(folder, size)
        file = folder / "checkpoint_preflight.pth"
        try:
            self._write_checkpoint(file)
            planned = build_network(
                self, self.num_input_channels, self.label_manager.num_segmentation_heads, True
            )
            weights = unet.plain_state_dict(self.objective.network)
            preflight.check_export(file, planned.to(self.device), weights)
        finally:
            file.unlink(missing_ok=True)
        self.print_to_log_file("Pre-flight: checkpoint saved and read back by nnU-Net's own loader")

    def on_train_epoch_start(self) -> None:
        self.network.train()
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self._waited = self.dataloader_train.seconds_waited
        self._train_seconds = time()
        # a run that was stopped inside an epoch goes on there; nnU-Net's loop counts these steps
        per_epoch = self.settings.num_iterations_per_epoch
        self.num_iterations_per_epoch = per_epoch - (self.step - self.current_epoch * per_epoch)

    def train_step(self, batch: dict[str, Any]) -> Mapping[str, float]:
        rate = self.settings.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        prepared = self.prepare(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            terms = self.network(prepared)
        stop, finite = self._agree(terms["loss"])
        if finite:
            self._descend(terms["loss"])
        self._count_skipped(finite)
        self.step += 1
        self.objective.after_step(prepared, self.step / self.settings.steps)
        logged = self._to_floats(terms) if finite else {}
        self.epoch_terms.append(logged)
        if stop:
            self._leave()
        self._save_if_due()
        return logged

    def _autocast(self) -> Any:
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _agree(self, loss: Tensor) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether the loss is finite on all ranks."""
        flags = torch.stack([loss.new_tensor(float(self.stop.requested)), (~loss.isfinite()).float()])
        if self.is_ddp:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        stop, broken = flags.tolist()
        return stop > 0, broken == 0

    def _descend(self, loss: Tensor) -> None:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        if self.grad_scaler is None:
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, self.settings.clip_gradient)
            self.optimizer.step()
            return
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(parameters, self.settings.clip_gradient)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _count_skipped(self, finite: bool) -> None:
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        self.skipped_steps += not finite
        if self._skipped_in_a_row > self.settings.max_skipped_steps:
            raise RuntimeError(
                f"The loss was not finite {self._skipped_in_a_row} times in a row (step {self.step}). "
                "Lower training.initial_lr, or look for NaN in the preprocessed images; "
                "checkpoint_latest.pth holds the last weights that were saved."
            )

    @staticmethod
    def _to_floats(terms: Mapping[str, Tensor]) -> dict[str, float]:
        values = torch.stack([v.detach().float().reshape(()) for v in terms.values()]).tolist()
        return dict(zip(terms, values, strict=True))

    def on_train_epoch_end(self, train_outputs: list[Mapping[str, float]]) -> None:
        seconds = max(time() - self._train_seconds, 1e-9)
        steps = len(train_outputs)
        views = self.budget.samples * sum(view.count for view in self.views.values())
        means = self._means(self.epoch_terms)
        self._epoch_log: dict[str, float | None] = {
            "train_loss": means.pop("loss", None),
            **means,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": views * steps / seconds,
            "seconds_per_step": seconds / max(1, steps),
            "seconds_waited": self.dataloader_train.seconds_waited - self._waited,
            "skipped_steps": float(self.skipped_steps),
            **self.weight_change(self.objective.network),
        }
        self.epoch_terms = []
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch

    def validation_step(self, batch: dict[str, Any]) -> Mapping[str, float]:
        with torch.no_grad(), self._autocast():
            return self._to_floats(self.objective(self.prepare(batch)))

    def on_validation_epoch_end(self, val_outputs: list[Mapping[str, float]]) -> None:
        means = self._means(val_outputs)
        self._epoch_log["val_loss"] = means.get("loss")
        if "accuracy" in means:
            self._epoch_log["val_accuracy"] = means["accuracy"]

    def _means(self, outputs: list[Mapping[str, float]]) -> dict[str, float]:
        """Mean of each term over steps and ranks; skipped steps do not count."""
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, outputs)
            outputs = [terms for part in gathered for terms in part]
        kept = [terms for terms in outputs if terms]
        return {key: float(np.mean([t[key] for t in kept])) for key in (kept[0] if kept else {})}

    def on_epoch_start(self) -> None:
        self._epoch_begin = time()

    def on_epoch_end(self) -> None:
        self._epoch_log["epoch_seconds"] = time() - self._epoch_begin
        self.history.log(self.current_epoch, self._epoch_log)
        for logger in getattr(self.logger, "loggers", ()):
            for key, value in self._epoch_log.items():
                logger.log(key, value, self.current_epoch)
        for key, value in self._epoch_log.items():
            if value is not None:
                self.print_to_log_file(f"{key} {value:.5g}")
        self.current_epoch += 1
        better = self._better()
        if self.current_epoch % self.save_every == 0 and self.current_epoch < self.num_epochs:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        if better:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_best.pth"))
        if self.local_rank == 0:
            self._draw()

    def _better(self) -> bool:
        """Whether the smoothed validation loss fell; without a criterion the latest is the best."""
        value = self.history.last("val_loss")
        if self.objective.best is None or value is None:
            return self.current_epoch % self.save_every == 0
        previous = [v for v in self.history.values["val_loss"] if v is not None]
        smooth = previous[0]
        for v in previous[1:]:
            smooth = 0.9 * smooth + 0.1 * v
        if self._best_ema is not None and smooth >= self._best_ema:
            return False
        self._best_ema = smooth
        return True

    def _draw(self) -> None:
        folder, last = Path(self.output_folder), self.current_epoch == self.num_epochs
        if last or time() - self._last_plot > SECONDS_BETWEEN_PLOTS:
            self._last_plot = time()
            self.history.plot(folder / "progress.png")
        if last or self.current_epoch % self.settings.picture_every == 0:
            save_pictures(self, folder / "pictures", f"epoch_{self.current_epoch:04d}")

    def on_train_end(self) -> None:
        folder = Path(self.output_folder)
        self.save_checkpoint(str(folder / "checkpoint_final.pth"))
        if self.local_rank == 0:
            if not self.disable_checkpointing:
                (folder / "checkpoint_latest.pth").unlink(missing_ok=True)
            self.print_to_log_file(
                "Pre-training done. Fine-tune these weights with: nnUNetv2_train "
                f"{self.plans_manager.dataset_name} {self.configuration_name} {self.fold} "
                f"-p {self.plans_manager.plans_name} -tr nnSSLFinetuneTrainer"
            )
        self._close()

    def _close(self) -> None:
        for loader in (self.dataloader_train, self.dataloader_val):
            if loader is not None:
                loader.close()
        self.stop.restore()

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

    def _save_if_due(self) -> None:
        due = time() - self._last_save > SECONDS_BETWEEN_SAVES
        if self.is_ddp:
            flag = torch.tensor(float(due), device=self.device)
            dist.broadcast(flag, 0)
            due = bool(flag)
        if due:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))

    def _leave(self) -> None:
        """Save after a stop request, say how to continue, and exit."""
        self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        name = self.stop.signal.name if self.stop.signal else "a stop signal on another rank"
        self.print_to_log_file(
            f"Stopped by {name} after step {self.step} (epoch {self.current_epoch}). Continue with "
            "the same command and --c"
        )
        number = int(self.stop.signal) if self.stop.signal else 0
        self._close()
        sys.exit(128 + number)

    def save_checkpoint(self, filename: str) -> None:
        self._last_save = time()
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        self._write_checkpoint(Path(filename))

    def _write_checkpoint(self, file: Path) -> None:
        save_atomically(pretraining_checkpoint.compose(self), file)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Rebind the stored configuration, then initialise and restore everything."""
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            checkpoint = read_checkpoint(checkpoint)
        stored = pretraining_checkpoint.stored_config(checkpoint)
        today = bind(read_config(self.config_name), SCHEMA, GIVEN)
        for line in runs.compare_resume(stored.sections, today.sections, MAY_CHANGE):
            self.print_to_log_file(f"Resume: {line}")
        self.config = pretraining_checkpoint.with_changes(stored, today, MAY_CHANGE)
        if not self.was_initialized:
            self.initialize()
        pretraining_checkpoint.restore(self, checkpoint)
        self.resumed = True
