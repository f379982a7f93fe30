"""What the probe reads of preprocessed cases: images, label maps, and voxels of known class.

It is the only place of nnSSL's pre-training side that opens a segmentation.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnssl.nnunet.images import CaseError, image_file, open_image
from nnssl.probe.features import Block

BACKGROUND, IGNORE = 0, "ignore"
NO_STRUCTURE = "foreground"  # name of the mask that converters write for unlabelled data
LEFT_OUT = -1
VOXELS = 1000  # per class and volume, for fitting


def read_structures(dataset_json: Mapping[str, Any]) -> dict[int, str]:
    """Integer in the label map -> name, without background and `ignore`.

    Regions are taken apart into their integers: `label 2` where no name stands for 2 alone.
    """
    labels = {name: value for name, value in dataset_json["labels"].items() if name != IGNORE}
    names: dict[int, str] = {}
    for name, value in labels.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        for each in map(int, values):
            alone = f"label {each}" if len(values) > 1 else str(name)
            if each not in names or len(values) == 1:
                names[each] = alone
    ignored = dataset_json["labels"].get(IGNORE)
    return {n: names[n] for n in sorted(names) if n not in (BACKGROUND, ignored)}


@dataclass(frozen=True)
class Volumes:
    """Reads the cases of one preprocessed folder.

    Attributes:
        folder: nnU-Net's preprocessed folder of the configuration.
        structures: see `read_structures`; class k is the k-th of them, class 0 the background.
        device: where tensors are put.
    """

    folder: Path
    structures: Mapping[int, str]
    device: torch.device

    @property
    def classes(self) -> int:
        """Number of classes K, the background among them."""
        return len(self.structures) + 1

    def read_image(self, identifier: str) -> Tensor:
        """float32 (C, Z, Y, X)."""
        image = open_image(image_file(self.folder, identifier))
        return torch.from_numpy(np.asarray(image[:], np.float32)).to(self.device)

    def read_labels(self, identifier: str) -> Tensor:
        """int64 (Z, Y, X), classes 0 to K - 1; -1 for voxels to leave out, on the CPU.

        Left out are the ignore label, nnU-Net's -1 outside the body, and unknown integers.
        """
        raw = _read_segmentation(self.folder, identifier).astype(np.int64)
        return torch.from_numpy(self._lookup[np.clip(raw, -1, len(self._lookup) - 2) + 1])

    def explain_missing_labels(self, identifiers: Iterable[str]) -> str | None:
        """Why there are no labels to probe with; None where there are."""
        if not set(self.structures.values()) - {NO_STRUCTURE}:
            return f"dataset.json names no structure (only background and {NO_STRUCTURE})"
        if missing := [c for c in identifiers if not find_segmentation(self.folder, c)]:
            return f"{len(missing)} cases have no segmentation file, for instance {missing[0]}"
        return None

    @cached_property
    def _lookup(self) -> np.ndarray:
        """Class of integer n at index n + 1; the first and the last entry: left out."""
        table = np.full(max(self.structures, default=0) + 3, LEFT_OUT, np.int64)
        table[[BACKGROUND + 1, *(n + 1 for n in self.structures)]] = np.arange(self.classes)
        return table


def find_segmentation(folder: Path, identifier: str) -> Path | None:
    """nnU-Net's file of a case's labels: their own, or (older versions) the image's archive."""
    names = (f"{identifier}{ending}" for ending in ("_seg.b2nd", "_seg.npy", ".npz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_segmentation(folder: Path, identifier: str) -> np.ndarray:
    """(Z, Y, X) of the first channel."""
    file = find_segmentation(folder, identifier)
    if file is None:
        raise CaseError(f"case {identifier}: no preprocessed segmentation in {folder}")
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                return np.asarray(archive["seg"][0])
        return np.asarray(open_image(file, "iu")[:][0])
    except Exception as error:
        raise CaseError(
            f"case {identifier}: its segmentation in {folder} cannot be read "
            f"({type(error).__name__}: {error})"
        ) from error


class Examples:
    """Voxels of labelled cases for fitting: equally many per class at most, always the same."""

    def __init__(self, volumes: Volumes, cases: Sequence[str]) -> None:
        self.classes = volumes.classes
        self._chosen = {case: choose_voxels(volumes.read_labels(case), case) for case in cases}

    def count(self, cases: Collection[str]) -> Tensor:
        """Examples per class (K,) in these cases."""
        labels = [self._chosen[case][1] for case in cases]
        return torch.bincount(torch.cat(labels), minlength=self.classes)

    def __getitem__(self, case: str) -> tuple[Tensor, Tensor]:
        """Voxels (N, 3) and classes (N,) of a case."""
        return self._chosen[case]

    def read_features(self, case: str, block: Block) -> tuple[Tensor, Tensor]:
        """Features (N, F) and classes (N,) of the examples that lie in a block."""
        voxels, labels = self._chosen[case]
        features, inside = read_features_at(block, voxels)
        return features, labels[inside]


def read_features_at(block: Block, voxels: Tensor) -> tuple[Tensor, Tensor]:
    """Features (M, F) of those of the voxels (N, 3) of a volume that lie in a block.

    Returns:
        The features, and which voxels lie in the block, (N,) bool.
    """
    begin = torch.tensor(block.begin)
    inside = ((voxels >= begin) & (voxels < begin + torch.tensor(block.shape))).all(1)
    return block.at((voxels[inside] - begin).to(block.stages[0].device)), inside


def choose_voxels(labels: Tensor, case: str) -> tuple[Tensor, Tensor]:
    """At most `VOXELS` voxels (N, 3) per class and their classes (N,), drawn by the case's name.

    `labels` are (Z, Y, X) classes, -1: left out.
    """
    flat = labels.flatten().numpy()
    generator = np.random.default_rng(zlib.crc32(case.encode()))
    chosen = [
        generator.permutation(np.flatnonzero(flat == number))[:VOXELS]
        for number in np.unique(flat[flat >= 0])
    ]
    index = np.sort(np.concatenate([*chosen, np.zeros(0, np.int64)]))
    voxels = np.stack(np.unravel_index(index, labels.shape), axis=1)
    return torch.from_numpy(voxels), torch.from_numpy(flat[index])
