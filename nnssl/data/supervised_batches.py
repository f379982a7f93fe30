"""nnU-Net's own training batches: every random number drawn from the step, some slices only."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch

from nnssl.common.environment import set_variables
from nnssl.nnunet.images import check_finite, open_image

Stream = Literal["train", "validation", "unlabelled"]
STREAMS = {"train": 0, "validation": 1, "step": 2, "network": 3, "unlabelled": 4, "partner": 5}


@dataclass(frozen=True)
class SeededBatches:
    """Step -> batch of nnU-Net's data loader.

    The loader and its transforms draw from the global generators of NumPy, torch and Python; all
    three are seeded before each batch, so that it depends on seed, stream, rank and step only.
    A case with values that are not finite is refused by its name.
    """

    loader: Any  # an `nnUNetDataLoader`
    seed: int
    stream: Stream
    rank: int = 0

    def __call__(self, step: int) -> dict[str, Any]:
        seed_everything(self.seed, self.stream, self.rank, step)
        batch = dict(self.loader.generate_train_batch())
        for case, image in zip(batch["keys"], batch["data"], strict=True):
            check_finite(np.asarray(image), case)
        return batch


def seed_everything(seed: int, stream: str, *numbers: int) -> None:
    """Seeds the global generators of NumPy, torch and Python; streams are independent."""
    state = np.random.SeedSequence((seed, STREAMS[stream], *numbers)).generate_state(3)
    np.random.seed(state[0])
    torch.manual_seed(int(state[1]))
    random.seed(int(state[2]))


def single_threaded_augmentation() -> AbstractContextManager[None]:
    """Makes nnU-Net build its loaders without background processes; ours take their place."""
    return set_variables({"nnUNet_n_proc_DA": "0"})


def resize_batches(loader: Any, batch_size: int, dataset: Any = None) -> Any:
    """A copy of nnU-Net's data loader for batches of another size, or of another dataset.

    Without labels there is nothing to oversample: another dataset is drawn from uniformly.
    """
    made = copy(loader)
    made.batch_size = batch_size
    made.get_do_oversample = MethodType(loader.get_do_oversample.__func__, made)
    if dataset is not None:
        made._data, made.indices = dataset, dataset.identifiers
        made.has_ignore, made.get_do_oversample = False, _never
    return made


def _never(_: int) -> bool:
    return False


@dataclass(frozen=True)
class PairedBatches:
    """Step -> batch of labelled cases, from some step on with images without labels beside it.

    Attributes:
        supervised: batches of the first steps.
        labelled: those of all later steps.
        unlabelled: images of all later steps; key `unlabelled` of the batch.
        first: the first step with images without labels.
    """

    supervised: SeededBatches
    labelled: SeededBatches
    unlabelled: SeededBatches
    first: int

    def __call__(self, step: int) -> dict[str, Any]:
        if step < self.first:
            return self.supervised(step)
        return {**self.labelled(step), "unlabelled": self.unlabelled(step)["data"]}


class UnlabelledImages:
    """What nnU-Net's data loader asks a dataset for, of images whose labels are not read.

    Args:
        files: name -> file of the preprocessed image.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files, self.identifiers = dict(files), list(files)

    def __getitem__(self, name: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        return self.load_case(name)

    def load_case(self, name: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Returns image (C, Z, Y, X), labels that are 0 everywhere, None, and the properties."""
        image = open_image(self.files[name])
        nothing = np.broadcast_to(np.zeros((), np.int8), (1, *image.shape[1:]))
        return image, nothing, None, {"class_locations": {}}


class LabelledSlices:
    """What nnU-Net's data loader asks a dataset for, restricted to the labelled slices.

    Volumes come with these slices only, one behind the other; image, label and class locations of
    the others are never handed out. A case is listed once per slice, so that every labelled slice
    is drawn equally often.

    Args:
        dataset: one of nnU-Net's datasets.
        slices: case -> its slices along array axis 0, ascending.
    """

    def __init__(self, dataset: Any, slices: Mapping[str, Sequence[int]]) -> None:
        self.dataset = dataset
        self.slices = {case: list(chosen) for case, chosen in slices.items()}
        self.identifiers = [case for case, chosen in self.slices.items() for _ in chosen]

    def __getitem__(self, case: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        return self.load_case(case)

    def load_case(self, case: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Returns image and label (C, n, X, Y), None, and the properties."""
        chosen = self.slices[case]
        *volumes, properties = self.dataset.load_case(case)
        image, label, previous = (_take_slices(volume, chosen) for volume in volumes)
        locations = {
            name: _keep_within(voxels, chosen)
            for name, voxels in properties["class_locations"].items()
        }
        return image, label, previous, {**properties, "class_locations": locations}


def _take_slices(volume: Any, chosen: Sequence[int]) -> Any:
    """The chosen slices; the volume may be a compressed array of which the rest is not read."""
    if volume is None:
        return None
    return np.stack([np.asarray(volume[:, index]) for index in chosen], axis=1)


def _keep_within(voxels: Any, chosen: Sequence[int]) -> Any:
    """Those (channel, slice, x, y) that lie in chosen slices, numbered by their new place."""
    if len(voxels) == 0:
        return voxels
    voxels = np.asarray(voxels)
    kept = voxels[np.isin(voxels[:, 1], chosen)]
    kept[:, 1] = np.searchsorted(chosen, kept[:, 1])
    return kept
