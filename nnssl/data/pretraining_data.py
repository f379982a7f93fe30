"""From the fold's cases and the budget to the two loaders of a pre-training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.data.case_store import Case, TissueShare
from nnssl.data.loader import BatchMaker, RawPatchReader
from nnssl.data.sampling import Sampler, Sampling
from nnssl.nnunet.paths import own_folder

VALIDATION_SEED = 1_000_003  # keeps validation batches apart from training batches


@dataclass(frozen=True)
class Repeated:
    """The same `count` batches over and over: every epoch validates on the same views."""

    maker: Callable[[int], dict[str, Any]]
    count: int

    def __call__(self, step: int) -> dict[str, Any]:
        return self.maker(step % max(1, self.count))


@dataclass(frozen=True)
class DataFolders:
    """Where a configuration's data lie.

    Attributes:
        preprocessed: nnU-Net's folder (`data_identifier`); nothing of ours is written there.
        own: nnssl's folder for it, `nnUNet_preprocessed/DatasetXXX/nnssl/<data_identifier>`.
        fold: number, or `all`; every fold has dense targets of its own, made from its own
            training cases.
    """

    preprocessed: Path
    own: Path
    fold: int | str

    @classmethod
    def of(cls, preprocessed: Path, fold: int | str) -> DataFolders:
        return cls(preprocessed, own_folder(preprocessed), fold)

    def tissue_share(self) -> TissueShare:
        return TissueShare(self.preprocessed, self.own / "occupancy")

    def dense_target(self, name: str) -> Path:
        """Folder of one dense target of this fold, whether it is there or not."""
        return self.own / name / f"fold_{self.fold}"

    def dense_targets(self, names: Sequence[str]) -> dict[str, Path]:
        """Folders of dense targets; a missing one stops the run."""
        folders = {name: self.dense_target(name) for name in names}
        for name, folder in folders.items():
            if not folder.is_dir():
                raise ValueError(
                    f"dense targets {name!r} of fold {self.fold} are not in {folder}. Cluster "
                    f"maps are made with: nnssl_cluster -f {self.fold} --name {name}"
                )
        return folders


def batch_maker(
    cases: list[Case],
    folders: DataFolders,
    dense_targets: Sequence[str],
    patch_size: Sequence[int],
    raw_patch: Sequence[int],
    samples: int,
    sampling: Sampling,
    seed: int,
    rank: int,
) -> BatchMaker:
    """Batches of one set of cases."""
    sampler = Sampler(cases, patch_size, samples, sampling, folders.tissue_share())
    reader = RawPatchReader(folders.preprocessed, folders.dense_targets(dense_targets))
    return BatchMaker(sampler, reader, cases, raw_patch, patch_size, seed, rank)


def validation_maker(training: BatchMaker, cases: list[Case], count: int) -> Repeated | None:
    """Batches of the validation cases, with fewer volumes where there are fewer; None for none."""
    sampler = training.sampler
    try:
        own = Sampler(cases, training.patch_size, sampler.samples, sampler.sampling, sampler.tissue)
    except ValueError:
        return None
    if not own.eligible or not count:
        return None
    if sampler.sampling.structured:
        own.samples = min(sampler.samples, len(own.eligible) * sampler.sampling.partitions)
    seed = training.seed + VALIDATION_SEED
    maker = BatchMaker(
        own, training.reader, cases, training.raw_patch, training.patch_size, seed, training.rank
    )
    return Repeated(maker, count)
