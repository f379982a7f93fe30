"""nnU-Net's augmentation on the device: the loader reads raw patches, the step makes samples."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
    DownsampleSegForDSTransform,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnssl.views.stock_augmentation import OUTSIDE, StockAugmentation

NOTHING = ComposeTransforms([])  # what the loader does to a raw patch


@dataclass(frozen=True)
class DeviceAugmentation:
    """Raw patches of nnU-Net's loader to what its training step takes.

    Attributes:
        stock: the random part.
        regions: labels of each region, and the ignored label where there is one; None: no regions.
        scales: of deep supervision; None: there is none.
    """

    stock: StockAugmentation
    regions: Sequence[Sequence[int]] | None
    scales: Sequence[Any] | None

    @classmethod
    def make(cls, trainer: nnUNetTrainer, *args: Any, **kwargs: Any) -> DeviceAugmentation:
        """From the arguments of nnU-Net's `get_training_transforms`.

        Raises:
            ValueError: for a cascade, whose second stage changes masks as well.
        """
        bound = inspect.signature(nnUNetTrainer.get_training_transforms).bind(*args, **kwargs)
        given = bound.arguments
        if given.get("is_cascaded"):
            raise ValueError(
                "training.augmentation: found device, which does not know the masks that the "
                "second stage of a cascade augments; allowed there: stock"
            )
        manager, ignored = trainer.label_manager, given.get("ignore_label")
        values = {*manager.all_labels, *([] if ignored is None else [ignored]), 0}
        stock = StockAugmentation(
            tuple(int(length) for length in given["patch_size"]),
            given["rotation_for_DA"],
            tuple(given["mirror_axes"] or ()),
            bool(given["do_dummy_2d_data_aug"]),
            tuple(c for c, masked in enumerate(given.get("use_mask_for_norm") or ()) if masked),
            tuple(sorted(values - {OUTSIDE})),
        )
        regions = given.get("regions")
        if regions is not None:
            regions = [*regions, *([] if ignored is None else [ignored])]
            regions = [[r] if isinstance(r, int) else list(r) for r in regions]
        return cls(stock, regions, given["deep_supervision_scales"])

    def finish(
        self, images: Tensor, labels: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor | list[Tensor]]:
        """Samples and their targets, in nnU-Net's form (a list with deep supervision)."""
        images, found = self.stock(images, labels, keys)
        assert found is not None
        if self.regions is not None:
            parts = [torch.isin(found, found.new_tensor(region)) for region in self.regions]
            found = torch.cat(parts, 1)
        if self.scales is None:
            return images, found
        # a batch is one "image" with samples and channels as its channels
        coarser = DownsampleSegForDSTransform(self.scales)(segmentation=found.flatten(0, 1))
        shape = found.shape[:2]
        return images, [each.unflatten(0, shape) for each in coarser["segmentation"]]
