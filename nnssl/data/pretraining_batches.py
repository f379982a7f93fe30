"""Batches of a pre-training run: what is drawn is read, padded with zeros, and stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnssl.data.budget import Budget
from nnssl.data.case_table import Case, DataFolders, dense_target_folder
from nnssl.data.sampling import Sampler, Sampling
from nnssl.data.tissue_share import CACHE, MOST_KEPT, TissueShare
from nnssl.modules.positions import extent3
from nnssl.nnunet.images import CaseError, check_finite, image_file, open_image

VALIDATION_SEED = 1_000_003  # keeps validation batches apart from training batches


class RawPatchReader:
    """Cuts a box out of a case; what lies outside the volume is filled.

    Labels and stored class locations are not read.

    Args:
        dense_targets: name -> folder of integer maps on the same grid (`<case>.b2nd`).
    """

    def __init__(self, folder: Path, dense_targets: Mapping[str, Path] | None = None) -> None:
        self.folder, self.dense_targets = folder, dict(dense_targets or {})
        self._open: dict[Path, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to a process that is spawned."""
        return {**vars(self), "_open": {}}

    def read_image(
        self, identifier: str, box: np.ndarray, folder: Path | None = None
    ) -> np.ndarray:
        """float32 (C, Z, Y, X) of the box (3, 2), zero outside the volume; folder: see `Case`."""
        file = image_file(folder or self.folder, identifier)
        return check_finite(self._cut(file, identifier, box, 0, "f").astype(np.float32), identifier)

    def read_dense_target(
        self, name: str, identifier: str, box: np.ndarray, folder: Path | None = None
    ) -> np.ndarray:
        """int64 (Z, Y, X) of the box, -1 outside the volume; folder: see `Case`."""
        file = image_file(dense_target_folder(self.dense_targets[name], folder), identifier)
        return self._cut(file, identifier, box, -1, "iu").astype(np.int64)[0]

    def _cut(
        self, file: Path, identifier: str, box: np.ndarray, fill: float, kinds: str
    ) -> np.ndarray:
        try:
            array = self._open_array(file, kinds)
            low = np.maximum(box[:, 0], 0)
            high = np.minimum(box[:, 1], array.shape[1:])
            ends = np.maximum(low, high)
            inside = [slice(int(a), int(b)) for a, b in zip(low, ends, strict=True)]
            index = (slice(None), *inside)
            part = np.asarray(array[index])
        except Exception as error:
            kind = "" if isinstance(error, CaseError) else f"{type(error).__name__}: "
            raise CaseError(
                f"case {identifier}, file {file}: cannot be read ({kind}{error})"
            ) from error
        pad = [(0, 0), *zip(low - box[:, 0], np.maximum(box[:, 1] - high, 0), strict=True)]
        return np.pad(part, pad, constant_values=fill)

    def _open_array(self, file: Path, kinds: str) -> Any:
        if file not in self._open:
            if len(self._open) >= MOST_KEPT:
                self._open.clear()
            self._open[file] = open_image(file, kinds)
        return self._open[file]


@dataclass(frozen=True)
class BatchMaker:
    """Callable that gives the batch of a step, see *Batch* in `docs/architecture.md`."""

    sampler: Sampler
    reader: RawPatchReader
    raw_patch: tuple[int, ...]  # patch and margin, length d
    seed: int
    rank: int = 0

    def __call__(self, step: int) -> dict[str, Any]:
        places = self.sampler.draw((self.seed, step, self.rank))
        raw_patch = np.array(extent3(self.raw_patch))
        margin = (raw_patch - self.sampler.extent) // 2
        begins = [np.array(place.begin) - margin for place in places]
        boxes = [np.stack([begin, begin + raw_patch], 1) for begin in begins]
        cases = [self.sampler.cases[place.case] for place in places]
        read, found = self.reader, list(zip(cases, boxes, strict=True))
        return {
            "image": self._stack(read.read_image(c.identifier, b, c.folder) for c, b in found),
            "key": torch.tensor([[self.seed, step, self.rank, j] for j in range(len(places))]),
            "box": torch.from_numpy(np.stack(boxes).astype(np.float32)),
            "shape": torch.tensor([case.shape for case in cases], dtype=torch.float32),
            "axis": torch.tensor([case.axis for case in cases]),
            "sign": torch.tensor([case.sign for case in cases]),
            "case": torch.tensor([place.case for place in places]),
            "patient": torch.tensor([case.patient for case in cases]),
            "dataset": torch.tensor([case.dataset for case in cases]),
            "identifier": [case.identifier for case in cases],
            "dense_targets": {
                name: self._stack(
                    read.read_dense_target(name, c.identifier, b, c.folder) for c, b in found
                )
                for name in read.dense_targets
            },
        }

    def _stack(self, arrays: Iterable[np.ndarray]) -> torch.Tensor:
        """One tensor of all samples; in 2D without the axis of slices."""
        stacked = torch.from_numpy(np.stack(list(arrays)))
        return stacked.select(-3, 0) if len(self.raw_patch) == 2 else stacked


@dataclass(frozen=True)
class Repeated:
    """The same `count` batches over and over: every epoch validates on the same views."""

    maker: Callable[[int], dict[str, Any]]
    count: int

    def __call__(self, step: int) -> dict[str, Any]:
        return self.maker(step % max(1, self.count))


def make_training_batches(
    cases: Sequence[Case],
    folders: DataFolders,
    dense_targets: Sequence[str],
    budget: Budget,
    sampling: Sampling,
    seed: int,
    rank: int,
) -> BatchMaker:
    """Batches of the cases that are trained on."""
    tissue = TissueShare(folders.preprocessed, folders.own / CACHE)
    sampler = Sampler(cases, budget.patch_size, budget.samples, sampling, tissue)
    reader = RawPatchReader(folders.preprocessed, folders.find_dense_targets(dense_targets))
    return BatchMaker(sampler, reader, budget.raw_patch, seed, rank)


def make_validation_batches(
    training: BatchMaker, cases: Sequence[Case], count: int
) -> Repeated | None:
    """Batches of the validation cases, with fewer volumes where there are fewer; None for none."""
    like = training.sampler
    try:
        sampler = Sampler(cases, like.patch_size, like.samples, like.sampling, like.tissue)
    except ValueError:
        return None
    if not sampler.eligible or not count:
        return None
    if like.sampling.structured:
        sampler.samples = min(like.samples, len(sampler.eligible) * like.sampling.partitions)
    seed, raw_patch = training.seed + VALIDATION_SEED, training.raw_patch
    return Repeated(BatchMaker(sampler, training.reader, raw_patch, seed, training.rank), count)
