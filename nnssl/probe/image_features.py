"""Features of whole images for a classifier: moments of every encoder stage, tile by tile."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch.nn import functional

from nnssl.finetuning.weights import asked_keys, fit, load
from nnssl.modules import unet
from nnssl.modules.metrics import evaluating
from nnssl.nnunet.checkpoint import find_plans
from nnssl.nnunet.planned_network import build_network
from nnssl.nnunet.plans import count_channels
from nnssl.nnunet.weight_files import as_source


@dataclass(frozen=True)
class FeatureReader:
    """Preprocesses images as a checkpoint's plans say, and encodes them.

    Attributes:
        network: the planned U-Net with the checkpoint's encoder.
        plans: nnU-Net's, with the name of the configuration.
        dataset_json: of the dataset that it was trained on.
    """

    network: nn.Module
    plans: Mapping[str, Any]
    configuration: str
    dataset_json: Mapping[str, Any]
    device: torch.device

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], device: torch.device) -> FeatureReader:
        """From weights that were read.

        Raises:
            ValueError: they do not say by which plans they were trained, or do not fit these.
        """
        found = find_plans(checkpoint)
        dataset = (checkpoint.get("init_args") or {}).get("dataset_json")
        if found is None or dataset is None:
            raise ValueError("it does not say by which plans its images were prepared")
        plans, configuration = found
        manager = PlansManager(copy.deepcopy(dict(plans))).get_configuration(configuration)
        network = build_network(manager, count_channels(dataset), 2)
        transfer = fit(as_source(checkpoint), network, asked_keys(network, "encoder"))
        transfer.require(1.0)
        load(network, transfer)
        return cls(network.to(device), plans, configuration, dataset, device)

    def read(self, files: Sequence[Path]) -> tuple[Tensor, list[float]]:
        """The preprocessed image (C, Z, Y, X) of one file per channel, and its spacing in mm."""
        manager = PlansManager(copy.deepcopy(dict(self.plans)))
        configured = manager.get_configuration(self.configuration)
        preprocessor = configured.preprocessor_class(verbose=False)
        names = [str(file) for file in files]
        data, _, properties = preprocessor.run_case(
            names, None, manager, configured, dict(self.dataset_json)
        )
        planned = [float(mm) for mm in configured.spacing]
        native = [float(properties["spacing"][axis]) for axis in manager.transpose_forward]
        spacing = [*native[: 3 - len(planned)], *planned]  # 2D resamples in the plane only
        return torch.as_tensor(np.asarray(data), dtype=torch.float32), spacing

    def encode(self, image: Tensor) -> Iterator[tuple[list[int], list[Tensor]]]:
        """First voxel of each tile, and per stage mean and standard deviation (2 F,).

        A tile is as large as the patch that the network was trained on, so that norms over the
        image see what they saw then; the last one of an axis is moved back into the image.
        """
        size = self._tile_size()
        with evaluating(self.network), torch.no_grad():
            for begin, tile in cut_tiles(image, size):
                inputs = tile[None] if len(size) == 3 else tile[:, 0][None]
                stages = unet.encode(self.network, inputs.to(self.device))
                yield begin, [_measure_moments(stage[0]) for stage in stages]

    def _tile_size(self) -> list[int]:
        patch = self.plans["configurations"][self.configuration]["patch_size"]
        return unet.fitting_size(self.network, patch)


def cut_tiles(image: Tensor, size: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    """Windows that cover an image (C, Z, Y, X), on a regular grid; zeros where it is too small.

    Args:
        image: the image.
        size: of a window; of two axes: a window is one slice thick.
    """
    window = [1] * (3 - len(size)) + list(size)
    starts = []
    for length, step in zip(image.shape[1:], window, strict=True):
        last = max(0, length - step)
        starts.append(sorted({*range(0, last, step), last}))
    for begin in product(*starts):
        z, y, x = (slice(b, b + n) for b, n in zip(begin, window, strict=True))
        tile = image[:, z, y, x]
        missing = [n - found for n, found in zip(window, tile.shape[1:], strict=True)]
        yield list(begin), functional.pad(tile, [n for m in reversed(missing) for n in (0, m)])


def _measure_moments(stage: Tensor) -> Tensor:
    """(F, *S) to (2 F,): instance norms leave little to the mean alone."""
    flat = stage.float().flatten(1)
    return torch.cat([flat.mean(1), flat.std(1, unbiased=False)]).cpu()


def read_features(
    reader: FeatureReader, cases: Mapping[str, Sequence[Path]]
) -> dict[str, np.ndarray]:
    """Arrays of T tiles of all images.

    Args:
        reader: of the checkpoint.
        cases: identifier -> one file per channel.

    Returns:
        `case` (T,), `begin` (T, 3) the tile's first voxel, `centre` (T, 3) in mm from the corner of
        the preprocessed image, and `stage_0`, ... (T, 2 F) mean and standard deviation.

    Raises:
        ValueError: an image has another number of channels.
    """
    rows: dict[str, list[Any]] = {"case": [], "begin": [], "centre": []}
    wanted = count_channels(reader.dataset_json)
    for case, files in cases.items():
        if len(files) != wanted:
            raise ValueError(f"{case} has {len(files)} channels; the network takes {wanted}")
        image, spacing = reader.read(files)
        size = [1, 1, 1, *reader._tile_size()][-3:]
        for begin, moments in reader.encode(image):
            centre = [(b + n / 2) * mm for b, n, mm in zip(begin, size, spacing, strict=True)]
            rows["case"].append(case)
            rows["begin"].append(begin)
            rows["centre"].append(centre)
            for number, each in enumerate(moments):
                rows.setdefault(f"stage_{number}", []).append(each.numpy())
    return {name: np.array(values) for name, values in rows.items()}
