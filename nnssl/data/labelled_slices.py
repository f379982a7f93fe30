"""A dataset of nnU-Net of which only some slices exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


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
        image, label, previous, properties = self.dataset.load_case(case)
        locations = {
            name: _within(voxels, chosen) for name, voxels in properties["class_locations"].items()
        }
        properties = {**properties, "class_locations": locations}
        return _take(image, chosen), _take(label, chosen), _take(previous, chosen), properties


def _take(volume: Any, chosen: Sequence[int]) -> Any:
    """The chosen slices; the volume may be a compressed array of which the rest is not read."""
    if volume is None:
        return None
    return np.stack([np.asarray(volume[:, index]) for index in chosen], axis=1)


def _within(voxels: Any, chosen: Sequence[int]) -> Any:
    """Those (channel, slice, x, y) that lie in chosen slices, numbered by their new place."""
    if len(voxels) == 0:
        return voxels
    voxels = np.asarray(voxels)
    kept = voxels[np.isin(voxels[:, 1], chosen)]
    kept[:, 1] = np.searchsorted(chosen, kept[:, 1])
    return kept
