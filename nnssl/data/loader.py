"""From places to a batch: reads only the raw patches, pads with zeros, reports what fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnssl.data.case_store import MOST_KEPT, Case, dense_target_folder
from nnssl.data.sampling import PatchPlace, Sampler
from nnssl.modules.positions import extent3
from nnssl.nnunet.images import CaseError, image_file, open_image


class RawPatchReader:
    """Cuts a box out of a case; what lies outside the volume is filled.

    Args:
        folder: nnU-Net's preprocessed folder of one configuration.
        dense_targets: name -> folder of integer maps on the same grid (`<case>.b2nd`).
    """

    def __init__(self, folder: Path, dense_targets: Mapping[str, Path] | None = None) -> None:
        self.folder, self.dense_targets = folder, dict(dense_targets or {})
        self._open: dict[Path, Any] = {}

    def image(self, identifier: str, box: np.ndarray, folder: Path | None = None) -> np.ndarray:
        """float32 (C, Z, Y, X) of the box (3, 2), zero outside the volume; folder: see `Case`."""
        file = image_file(folder or self.folder, identifier)
        return self._cut(file, identifier, box, 0).astype(np.float32)

    def dense_target(
        self, name: str, identifier: str, box: np.ndarray, folder: Path | None = None
    ) -> np.ndarray:
        """int64 (Z, Y, X) of the box, -1 outside the volume; folder: see `Case`."""
        file = image_file(dense_target_folder(self.dense_targets[name], folder), identifier)
        return self._cut(file, identifier, box, -1).astype(np.int64)[0]

    def _cut(self, file: Path, identifier: str, box: np.ndarray, fill: float) -> np.ndarray:
        try:
            array = self._array(file)
            low = np.maximum(box[:, 0], 0)
            high = np.minimum(box[:, 1], array.shape[1:])
            inside = tuple(
                slice(int(a), max(int(a), int(b))) for a, b in zip(low, high, strict=True)
            )
            index = (slice(None), *inside)
            part = np.asarray(array[index])
        except Exception as error:
            cause = (
                str(error) if isinstance(error, CaseError) else f"{type(error).__name__}: {error}"
            )
            raise CaseError(f"case {identifier}, file {file}: cannot be read ({cause})") from error
        pad = [(0, 0), *zip(low - box[:, 0], np.maximum(box[:, 1] - high, 0), strict=True)]
        return np.pad(part, pad, constant_values=fill)

    def _array(self, file: Path) -> Any:
        if file not in self._open:
            if len(self._open) >= MOST_KEPT:
                self._open.clear()
            self._open[file] = open_image(file)
        return self._open[file]


class BatchMaker:
    """Callable that gives the batch of a step, see *Batch* in `docs/architecture.md`.

    Args:
        sampler: draws the places.
        reader: cuts the raw patches.
        cases: all cases of the sampler.
        raw_patch: size of the raw patch (patch and margin), length d.
        patch_size: nominal size of a full view, length d.
        seed: run seed.
        rank: number of this process.
    """

    def __init__(
        self,
        sampler: Sampler,
        reader: RawPatchReader,
        cases: Sequence[Case],
        raw_patch: Sequence[int],
        patch_size: Sequence[int],
        seed: int,
        rank: int = 0,
    ) -> None:
        self.sampler, self.reader, self.cases = sampler, reader, list(cases)
        self.raw_patch, self.patch_size = tuple(raw_patch), tuple(patch_size)
        self.flat = len(raw_patch) == 2
        self.seed, self.rank = seed, rank

    def __call__(self, step: int) -> dict[str, Any]:
        places = self.sampler.draw((self.seed, step, self.rank))
        boxes = [self._box(place) for place in places]
        cases = [self.cases[place.case] for place in places]
        images = [
            self.reader.image(c.identifier, b, c.folder) for c, b in zip(cases, boxes, strict=True)
        ]
        return {
            "image": self._stack(images),
            "key": torch.tensor([[self.seed, step, self.rank, j] for j in range(len(places))]),
            "box": torch.from_numpy(np.stack(boxes).astype(np.float32)),
            "shape": torch.tensor([case.shape for case in cases], dtype=torch.float32),
            "axis": torch.tensor([case.axis for case in cases]),
            "sign": torch.tensor([case.sign for case in cases]),
            "case": torch.tensor([place.case for place in places]),
            "patient": torch.tensor([case.patient for case in cases]),
            "dataset": torch.tensor([case.dataset for case in cases]),
            "identifier": [case.identifier for case in cases],
            "dense_targets": self._dense_targets(cases, boxes),
        }

    def _box(self, place: PatchPlace) -> np.ndarray:
        """Box of the raw patch around the nominal patch."""
        raw_patch, patch_size = (
            np.array(extent3(self.raw_patch)),
            np.array(extent3(self.patch_size)),
        )
        begin = np.array(place.begin) - (raw_patch - patch_size) // 2
        return np.stack([begin, begin + raw_patch], 1)

    def _stack(self, arrays: list[np.ndarray]) -> torch.Tensor:
        stacked = torch.from_numpy(np.stack(arrays))
        return stacked[:, :, 0] if self.flat else stacked

    def _dense_targets(self, cases: list[Case], boxes: list[np.ndarray]) -> dict[str, torch.Tensor]:
        found = {}
        for name in self.reader.dense_targets:
            maps = [
                self.reader.dense_target(name, c.identifier, b, c.folder)
                for c, b in zip(cases, boxes, strict=True)
            ]
            stacked = torch.from_numpy(np.stack(maps))
            found[name] = stacked[:, 0] if self.flat else stacked
        return found
