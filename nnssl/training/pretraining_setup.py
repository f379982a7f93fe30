"""Setting up a pre-training run: configuration, cases, budget, objective, optimiser, loaders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnssl.cluster_maps import DENSE_TARGETS, Image, TargetRun
from nnssl.config import Config, Groups, Schema
from nnssl.data.budget import (
    Budget,
    BudgetRequest,
    complete_median_shape,
    divide_voxels,
    find_raw_patch,
)
from nnssl.data.case_table import DataFolders, read_case_table
from nnssl.data.pretraining_batches import (
    BatchMaker,
    make_training_batches,
    make_validation_batches,
)
from nnssl.data.sampling import Sampling
from nnssl.data.stepped_loader import SteppedLoader
from nnssl.leakage.ancestry import Ancestor, trace_ancestry
from nnssl.leakage.unlabelled import (
    ChosenImages,
    PretrainingFold,
    choose_images,
    find_recorded,
)
from nnssl.modules import unet
from nnssl.modules.cpu_bfloat16 import float32_where_shallow
from nnssl.nnunet.checkpoint import speaking_of
from nnssl.nnunet.planned_network import build_network, refuse_cascade
from nnssl.nnunet.plans import name_channels
from nnssl.nnunet.splits import check_fold
from nnssl.nnunet.stock_weights import refuse_stock_weights
from nnssl.nnunet.weight_files import read_weights
from nnssl.objectives import OBJECTIVES, Context, Objective, find_objective
from nnssl.probe.fold import ProbeFold
from nnssl.probe.settings import ProbeSettings
from nnssl.training.history import WeightChange
from nnssl.training.initial_weights import (
    find_initial,
    leave_out_encoder,
    load_initial,
    refuse_random_encoder,
)
from nnssl.training.interruptible import Interruptible, limit_threads
from nnssl.training.lars import LARS
from nnssl.training.preflight import refuse_single_slices
from nnssl.training.settings import PretrainingSettings
from nnssl.views import RandomView

SCHEMA: Schema = {
    "training": PretrainingSettings,
    "sampling": Sampling,
    "views": Groups(RandomView),
    "objective": OBJECTIVES,
    "probe": ProbeSettings,
}
GIVEN = ("network", "context")
# of a batch, which objectives compute with
PLACES = ("box", "shape", "axis", "sign", "case", "dataset")


class PretrainingSetup(Interruptible):
    """What `initialize` does, and the batches of a run.

    The constructor derives nothing from the configuration: `initialize` binds it (unless
    `load_checkpoint` has bound a stored one) and alone sets budget, batch and network.
    """

    config_name = "nnSSLContrastiveTrainer"
    schema, given, may_change = SCHEMA, GIVEN, PretrainingSettings.may_change
    settings: PretrainingSettings
    trained: unet.Trained  # parts of the U-Net that learn

    def begin_state(self) -> None:
        super().begin_state()
        self.enable_deep_supervision = False
        self.step = 0
        self.recorded_unlabelled: Mapping[str, Any] | None = None  # of a resumed run's checkpoint
        self.takes_weights = True  # a dry run does not look for those that it would start from
        self.initial_file: str | None = None
        self.inherited: list[str] = []  # keys that the initial weights gave
        self.ancestors: list[Ancestor] = []  # of the initial weights
        self.seen_record: dict[str, Any] = {}  # whose images are trained on, and their signatures

    def initialize(self) -> None:
        """Bind the configuration, divide the budget, build objective and optimiser."""
        limit_threads(self.device)
        refuse_stock_weights()
        self.check_setup()
        refuse_cascade(self.configuration_manager, self.configuration_name)
        self.config = self.config or self.bind_config()
        self._apply(self.config)
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        self._read_cases()
        self.unlabelled = self._choose_unlabelled()
        more = self.unlabelled.make_cases(
            self.train_cases,
            Path(self.preprocessed_dataset_folder_base),
            self.plans_manager.transpose_forward,
            self.sampling.position_axis,
        )
        self.drawn_cases = [*self.train_cases, *more]
        refuse_single_slices(self.drawn_cases, self.sampling)
        torch.manual_seed(self.settings.seed)
        self.network: nn.Module = self._build_objective().to(self.device)
        if self.takes_weights:
            self._take_initial_weights()
        self.weight_change = WeightChange(self.objective.network)
        if super()._do_i_compile():
            unet.compile_parts(self.objective.network)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
            devices = [self.local_rank] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network, device_ids=devices)
        self.was_initialized = True

    def _take_initial_weights(self) -> None:
        """A resume has its own weights; the file then only says where the first came from."""
        if self.begun is None:
            refuse_random_encoder(self.trained, self.settings.initial_weights)
            file = find_initial(self.settings.initial_weights, self.location)
        else:
            file = self.begun.get("weights", {}).get("file")
            file = file if file is not None and Path(file).is_file() else None
        self.initial_file = file
        if file is None:
            return
        initial, channels = read_weights(file), name_channels(self.dataset_json)
        with speaking_of(file):
            loaded = load_initial(self.objective, self.trained, initial, channels)
            self.inherited, self.ancestors = loaded.loaded, trace_ancestry(initial)
        self.print_to_log_file(f"Initial weights from {file}:\n{loaded.table()}")

    def _apply(self, config: Config) -> None:
        sections = config.sections
        self.settings = PretrainingSettings(**sections["training"])
        self.probe_settings = ProbeSettings(**sections["probe"])
        self.kind = find_objective(*config.chosen("objective"))
        self.sampling = Sampling(**sections["sampling"]).with_default(self.kind.sampling)
        groups = sections["views"] or self.kind.default_views
        self.views = {name: RandomView(**knobs) for name, knobs in groups.items()}
        self.apply_schedule()

    def _read_cases(self) -> None:
        self.folders = DataFolders(Path(self.preprocessed_dataset_folder), self.fold)
        split = self.do_split()
        table = read_case_table(  # one, so that numbers of patients and datasets mean the same
            self.folders.preprocessed,
            {identifier for identifiers in split for identifier in identifiers},
            self.plans_manager.transpose_forward,
            self.sampling.position_axis,
            self.plans_manager.plans["image_reader_writer"],
        )
        self.train_cases, self.val_cases = (
            [case for case in table if case.identifier in side] for side in map(set, split)
        )

    def _choose_unlabelled(self) -> ChosenImages:
        """Images of `nnssl_preprocess_unlabelled` that join the training cases of this fold."""
        assert self.config is not None
        if self.recorded_unlabelled is not None:
            chosen = find_recorded(self.folders.own, self.recorded_unlabelled)
        else:
            held_out = () if self.fold == "all" else self.val_cases
            fold = PretrainingFold(
                self.folders.preprocessed,
                self.preprocessing,
                tuple(case.identifier for case in self.train_cases),
                tuple(case.identifier for case in held_out),
            )
            chosen = choose_images(fold, self.sampling.unlabelled)
        if chosen.members or chosen.left_out:
            self.print_to_log_file(f"Beside the training cases: {chosen.describe()}")
        return chosen

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, refused where it would leak (see `check_fold`)."""
        check_fold(Path(self.preprocessed_dataset_folder), self.fold)
        train, val = super().do_split()
        return list(train), list(val)

    def _build_objective(self) -> Objective:
        assert self.config is not None
        kind, knobs = self.kind, self.config.chosen("objective")[1]
        planned_channels = self.label_manager.num_segmentation_heads
        channels = kind.output_channels(self.num_input_channels) or planned_channels
        network = build_network(self.configuration_manager, self.num_input_channels, channels)
        self.budget = self._divide_budget(network, knobs)
        context = Context(
            self.num_input_channels,
            self.budget.patch_size,
            tuple(self.configuration_manager.spacing)[-len(self.budget.patch_size) :],
            self.sampling.partitions,
            1 + max(case.dataset for case in self.drawn_cases),
        )
        objective = kind(network, context, **knobs)
        self.trained = leave_out_encoder(objective.trained, self.settings.encoder_lr_scale)
        unet.freeze_untrained(network, self.trained)
        if self.device.type == "cpu":
            float32_where_shallow(objective)
        return objective

    def _divide_budget(self, network: nn.Module, knobs: Mapping[str, Any]) -> Budget:
        """Patch, raw patch and number of raw patches per step (the only place that sets them)."""
        manager, sampling = self.configuration_manager, self.sampling
        planned = tuple(int(n) for n in manager.patch_size)
        views = sum(v.count * v.size_fraction ** len(planned) for v in self.views.values())
        views *= self.kind.count_inputs(network, planned, knobs)
        axis = self.train_cases[0].axis
        parts = sampling.partitions if sampling.structured else 1
        count = sum(v.count for v in self.views.values())
        decoded = self.kind.count_decoded(count) / count
        encoder = unet.encoder_share(network, planned)
        share = encoder * (1 - decoded) + decoded
        if decoded and not self.settings.encoder_lr_scale:  # nothing of a frozen encoder is kept
            share -= encoder
        request = BudgetRequest(
            planned,
            manager.batch_size,
            tuple(unet.total_stride(network)),
            views,
            share / self.settings.voxel_budget,
            self.kind.least_samples,
            parts,
            complete_median_shape(manager.median_image_size_in_voxels, len(planned)),
            axis,
            tuple(self.settings.patch_size) if self.settings.patch_size is not None else None,
            None if sampling.volumes is None else sampling.volumes * parts,
        )
        patch_size, samples = divide_voxels(request)
        spacing = tuple(manager.spacing)[-len(patch_size) :]
        wanted = [view.raw_patch_size(patch_size, spacing) for view in self.views.values()]
        largest = [max(sizes) for sizes in zip(*wanted, strict=True)]
        voxels = math.prod(planned) * manager.batch_size
        return Budget(patch_size, find_raw_patch(patch_size, largest), samples, views, voxels)

    def make_dense_targets(self) -> None:
        """Have the maps made that the objective wants and this run lacks."""
        for wanted in self.objective.dense_targets:
            maker = DENSE_TARGETS[wanted.kind]
            maker.make(wanted, self._describe_run(), self.print_to_log_file)

    def check_dense_targets(self) -> None:
        """Refuse maps that are missing or were made for another run (ValueError)."""
        for wanted in self.objective.dense_targets:
            DENSE_TARGETS[wanted.kind].check(wanted, self._describe_run())

    def describe_dense_targets(self) -> dict[str, Any]:
        """What the maps that the objective wants were made by."""
        run = self._describe_run()
        wanted = self.objective.dense_targets
        return {each.name: DENSE_TARGETS[each.kind].describe(each, run) for each in wanted}

    def _describe_run(self) -> TargetRun:
        return TargetRun(
            self.folders,
            self.plans_manager.plans,
            self.configuration_name,
            tuple(case.identifier for case in self.train_cases),
            tuple(Image(c.identifier, c.folder) for c in (*self.drawn_cases, *self.val_cases)),
        )

    def make_probe_fold(self) -> ProbeFold:
        """What the probe looks at: this run's fold."""
        return ProbeFold(
            self.plans_manager.plans,
            self.dataset_json,
            self.configuration_name,
            self.fold,
            self.folders.preprocessed,
            tuple(case.identifier for case in self.train_cases),
            tuple(case.identifier for case in self.val_cases),
            self.sampling.partitions,
            self.sampling.position_axis,
        )

    def _do_i_compile(self) -> bool:
        """The objective itself is never compiled; `unet.compile_parts` compiles what it calls."""
        return False

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": trainable}]
        if (scale := self.settings.encoder_lr_scale) not in (0, 1):
            stages = unet.encoder_stage_parameters(self.objective.network)
            encoder = [p for stage in stages for p in stage if p.requires_grad]
            known = {id(p) for p in encoder}
            rest = [p for p in trainable if id(p) not in known]
            groups = [{"params": rest}, {"params": encoder, "lr_scale": scale}]
        kind, more = {
            "adam": (torch.optim.Adam, {}),
            "adamw": (torch.optim.AdamW, {}),
            "sgd": (torch.optim.SGD, {"momentum": 0.99, "nesterov": True}),
            "lars": (LARS, {}),
        }[self.settings.optimizer]
        rate, decay = self.settings.initial_lr, self.settings.weight_decay
        return kind(groups, rate, weight_decay=decay, **more), None

    @property
    def objective(self) -> Objective:
        wrapped = isinstance(self.network, DistributedDataParallel)
        return self.network.module if wrapped else self.network  # type: ignore[return-value]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The objective decides itself which outputs it reads."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's drawing assumes a plain U-Net."""

    def get_dataloaders(self) -> tuple[SteppedLoader, SteppedLoader | None]:
        """Loaders that begin at the step at which the run is."""
        processes = get_allowed_n_proc_DA()
        train = self._make_loader(self.batch_maker, self.step, processes)
        return train, self._make_validation_loader(processes)

    def _make_loader(
        self, maker: Callable[[int], dict[str, Any]], first: int, processes: int
    ) -> SteppedLoader:
        pinned = self.device.type == "cuda"
        waiting = self.leave_while_waiting
        return SteppedLoader(maker, first, processes, pinned, while_waiting=waiting)

    @cached_property
    def batch_maker(self) -> BatchMaker:
        """Step -> batch of the training cases and of the images without labels."""
        return make_training_batches(
            self.drawn_cases,
            self.folders,
            [wanted.name for wanted in self.objective.dense_targets],
            self.budget,
            self.sampling,
            self.settings.seed,
            self.local_rank,
        )

    def _make_validation_loader(self, processes: int) -> SteppedLoader | None:
        maker = make_validation_batches(
            self.batch_maker, self.val_cases, self.settings.num_val_iterations_per_epoch
        )
        if maker is None:
            self.num_val_iterations_per_epoch = 0
            return None
        return self._make_loader(maker, 0, min(1, processes))

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device and make its views there."""
        ready = dict(batch)
        ready["image"] = batch["image"].to(self.device, non_blocking=True)
        ready["dense_targets"] = {
            name: dense_target.to(self.device, non_blocking=True)
            for name, dense_target in batch["dense_targets"].items()
        }
        for name in PLACES:
            ready[name] = batch[name].to(self.device, non_blocking=True)
        patch_size, spacing = self.budget.patch_size, self.objective.context.spacing
        ready["views"] = {}
        for name, view in self.views.items():
            ready["views"].update(view(ready, name, patch_size, spacing))
        return ready
