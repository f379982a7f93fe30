"""The labelled cases of a fold, and nnU-Net's loaders over them, counted by steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor

from nnssl.data import labels
from nnssl.data.labels import LabelBudget
from nnssl.data.stepped_loader import SteppedLoader
from nnssl.data.supervised_batches import (
    LabelledSlices,
    SeededBatches,
    Stream,
    single_threaded_augmentation,
)
from nnssl.nnunet.cases import read_cases
from nnssl.nnunet.images import image_file, open_image
from nnssl.nnunet.splits import SIDES, check_fold
from nnssl.training.device_augmentation import NOTHING, DeviceAugmentation
from nnssl.training.interruptible import Interruptible
from nnssl.training.settings import FinetuningSettings


class LabelledBatches(Interruptible):
    """Which cases a fine-tuning run learns from, and its batches.

    A subclass gives `budget` before `do_split` is called.

    Attributes:
        labelled: cases within the label budget, once `do_split` was called.
        fold_cases: all training cases of the fold; fold_validation: its validation cases.
        augmentation: what makes samples of raw patches on the device, where that is wanted.
    """

    settings: FinetuningSettings
    budget: LabelBudget

    def begin_state(self) -> None:
        super().begin_state()
        self.labelled: labels.Labelled | None = None
        self.augmentation: DeviceAugmentation | None = None
        self._depths: dict[str, int] = {}

    def do_split(self) -> tuple[list[str], list[str]]:
        """The fold's labelled training cases, and all of its validation cases."""
        labels.refuse_budget_for_all(self.budget, self.fold)
        check_fold(Path(self.preprocessed_dataset_folder), self.fold, SIDES)
        train, val = super().do_split()
        self.fold_cases, self.fold_validation = list(train), list(val)
        records = read_cases(Path(self.preprocessed_dataset_folder_base), {*train, *val})
        depth = self._count_slices if len(self.configuration_manager.patch_size) == 2 else None
        self.labelled = labels.choose_labelled(self.budget, train, records, depth)
        return self.labelled.cases, self.fold_validation

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's datasets; a budget of slices shows the training only these."""
        train, val = super().get_tr_and_val_datasets()
        assert self.labelled is not None
        if self.labelled.slices is not None:
            train = LabelledSlices(train, self.labelled.slices)
        return train, val

    def _count_slices(self, case: str) -> int:
        """Slices of a preprocessed volume along array axis 0; reads no voxel."""
        if case not in self._depths:
            file = image_file(Path(self.preprocessed_dataset_folder), case)
            self._depths[case] = int(open_image(file).shape[1])
        return self._depths[case]

    def get_dataloaders(self) -> tuple[SteppedLoader, SteppedLoader]:
        """nnU-Net's loaders and augmentation, counted by steps."""
        processes = get_allowed_n_proc_DA()
        val_processes = min(processes, max(1, processes // 2))  # nnU-Net's shares
        with single_threaded_augmentation():
            train, val = super().get_dataloaders()
        val_step = self.current_epoch * self.num_val_iterations_per_epoch
        return (
            self._make_loader(self.make_batches(train.data_loader), self.step, processes),
            self._make_loader(
                self.seed_batches(val.data_loader, "validation"), val_step, val_processes
            ),
        )

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """nnU-Net's, or none in the loader where the device augments."""
        if self.settings.augmentation == "stock":
            return super().get_training_transforms(*args, **kwargs)
        self.augmentation = DeviceAugmentation.make(self, *args, **kwargs)
        return NOTHING

    def make_batches(self, loader: Any) -> Callable[[int], dict[str, Any]]:
        """Step -> training batch, from nnU-Net's loader of the labelled cases."""
        return self.seed_batches(loader, "train")

    def seed_batches(self, loader: Any, stream: Stream) -> SeededBatches:
        return SeededBatches(loader, self.settings.seed, stream, self.local_rank)

    def _make_loader(
        self, batches: Callable[[int], dict[str, Any]], first: int, processes: int
    ) -> SteppedLoader:
        pinned, waiting = self.device.type == "cuda", self.leave_while_waiting
        return SteppedLoader(batches, first, processes, pinned, while_waiting=waiting)

    def write_labelled(self, labelled: labels.Labelled) -> None:
        """Tells log and folder which cases have labels, and how many slices."""
        if labelled.slices is not None:
            count = sum(map(len, labelled.slices.values()))
        else:
            count = sum(map(self._count_slices, labelled.cases))
        labels.write_labelled(self.output_folder, labelled, count)
        self.print_to_log_file(labelled.describe())

    def augment(self, batch: dict[str, Any], augmentation: DeviceAugmentation) -> dict[str, Any]:
        """The batch on the device, its raw patches made into samples."""
        images = batch["data"].to(self.device, non_blocking=True)
        labels = batch["target"].to(self.device, non_blocking=True)
        images, target = augmentation.finish(images, labels, self.make_keys(len(images)))
        return {**batch, "data": images, "target": target}

    def make_keys(self, count: int, first: int = 0) -> Tensor:
        """Keys of the samples `first`, `first + 1`, ... of this step, int64 (count, 4)."""
        where = (self.settings.seed, self.step, self.local_rank)
        return torch.tensor([(*where, first + i) for i in range(count)])
