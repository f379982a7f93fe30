"""Images and integer label maps of preprocessed cases; the only place of nnSSL's pre-training side
that opens a segmentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnssl.data.case_store import CaseError, image_file, open_image

BACKGROUND, IGNORE = 0, "ignore"
NO_STRUCTURE = "foreground"  # name of the mask that converters write for unlabelled data
LEFT_OUT = -1


def structures_of(dataset_json: Mapping[str, Any]) -> dict[int, str]:
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
        structures: see `structures_of`; class k is the k-th of them, class 0 the background.
        device: where tensors are put.
    """

    folder: Path
    structures: Mapping[int, str]
    device: torch.device

    @property
    def classes(self) -> int:
        """Number of classes K, the background among them."""
        return len(self.structures) + 1

    def image(self, identifier: str) -> Tensor:
        """float32 (C, Z, Y, X)."""
        array = np.asarray(open_image(image_file(self.folder, identifier))[:], np.float32)
        return torch.from_numpy(array).to(self.device)

    def labels(self, identifier: str) -> Tensor:
        """int64 (Z, Y, X), classes 0 to K - 1; -1 for voxels to leave out, on the CPU.

        Left out are the ignore label, nnU-Net's -1 outside the body, and unknown integers.
        """
        raw = np.asarray(_segmentation(self.folder, identifier)).astype(np.int64)
        return torch.from_numpy(self._lookup[np.clip(raw, -1, len(self._lookup) - 2) + 1])

    def why_unlabelled(self, identifiers: Iterable[str]) -> str | None:
        """Why there are no labels to probe with; None where there are."""
        if not set(self.structures.values()) - {NO_STRUCTURE}:
            return f"dataset.json names no structure (only background and {NO_STRUCTURE})"
        missing = [each for each in identifiers if not _has_segmentation(self.folder, each)]
        if missing:
            return f"{len(missing)} cases have no segmentation file, for instance {missing[0]}"
        return None

    @cached_property
    def _lookup(self) -> np.ndarray:
        """Class of integer n at index n + 1; the first and the last entry: left out."""
        table = np.full(max(self.structures, default=0) + 3, LEFT_OUT, np.int64)
        table[[BACKGROUND + 1, *(n + 1 for n in self.structures)]] = np.arange(self.classes)
        return table


def _segmentation(folder: Path, identifier: str) -> Any:
    """(Z, Y, X) of the first channel."""
    if not _has_segmentation(folder, identifier):
        raise CaseError(f"case {identifier}: no preprocessed segmentation in {folder}")
    try:
        if _archive(folder, identifier).is_file() and not _own_file(folder, identifier):
            with np.load(_archive(folder, identifier), allow_pickle=False) as archive:
                return archive["seg"][0]
        return open_image(image_file(folder, f"{identifier}_seg"))[:][0]
    except Exception as error:
        raise CaseError(
            f"case {identifier}: its segmentation in {folder} cannot be read "
            f"({type(error).__name__}: {error})"
        ) from error


def _archive(folder: Path, identifier: str) -> Path:
    """nnU-Net's older format: image and segmentation in one file."""
    return folder / f"{identifier}.npz"


def _own_file(folder: Path, identifier: str) -> bool:
    return any((folder / f"{identifier}_seg{ending}").is_file() for ending in (".b2nd", ".npy"))


def _has_segmentation(folder: Path, identifier: str) -> bool:
    return _own_file(folder, identifier) or _archive(folder, identifier).is_file()
