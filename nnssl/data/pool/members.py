"""A member of a pool: what is known of one nnU-Net dataset before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnssl.common.files import read_json
from nnssl.convert.volumes import be_quiet
from nnssl.nnunet.cases import CaseRecord, read_cases, restore_cases
from nnssl.nnunet.paths import (
    CASES_FILE,
    SPLITS_FILE,
    TRAINING_IMAGES,
    TRAINING_LABELS,
    Roots,
    find_raw_images,
)
from nnssl.nnunet.splits import Split, check_split, patient_splits, restore_split

Patient = tuple[str, str]  # dataset of origin, patient: equal keys of two datasets are two patients
FINGERPRINT = "dataset_fingerprint.json"
SIDES = ("train", "val")


@dataclass(frozen=True)
class PoolMember:
    """One dataset of a pool.

    Attributes:
        folder: ``DatasetXXX_NAME``.
        channels: Names of the channels.
        images: Training case -> image files, one per channel, or one that has all channels.
        labels: Training case -> label file.
        records: Training case -> patient, dataset of origin, modality, orientation.
        held_out: Patients of ``imagesTs``.
        splits: The folds.
        spacings: Spacing in mm of the training images (N, 3), axes as the reader gives them.
        shapes: Their shape after nnU-Net's crop (N, 3).
        relative_size: Median share of the volume that this crop leaves.
        reader: Name of nnU-Net's reader.
    """

    folder: str
    channels: tuple[str, ...]
    images: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str]
    records: Mapping[str, CaseRecord]
    held_out: frozenset[Patient]
    splits: Split
    spacings: np.ndarray
    shapes: np.ndarray
    relative_size: float
    reader: str

    @property
    def number(self) -> int:
        """Id of the dataset."""
        return int(self.folder[len("Dataset") :].split("_")[0])

    @property
    def transpose(self) -> list[int]:
        """The coarsest axis first, as nnU-Net transposes: 2D slices lie in the fine plane."""
        coarsest = int(np.argmax(np.median(self.spacings, 0)))
        return [coarsest, *(axis for axis in range(3) if axis != coarsest)]

    @property
    def own_spacing(self) -> list[float]:
        """Median spacing in mm after the transposition."""
        return [float(mm) for mm in np.median(self.spacings, 0)[self.transpose]]

    def patient(self, case: str) -> Patient:
        """Dataset of origin and patient of a case."""
        return self.records[case].dataset, self.records[case].patient

    def cases(self, folds: int) -> Iterator[str]:
        """Cases of the first folds, on either side."""
        used = {case for fold in self.splits[:folds] for side in SIDES for case in fold[side]}
        return iter(sorted(used))


def read_member(roots: Roots, number: int) -> PoolMember:
    """Read all small files of a dataset.

    The converter's copies of case records and folds are put in place where nnU-Net lacks them, as
    our trainers do.

    Args:
        roots: nnU-Net's folders.
        number: Id of the dataset.

    Raises:
        ValueError: Something is missing or wrong; the message says what to do.
    """
    be_quiet()
    folder = roots.dataset(number)
    raw, preprocessed = roots.raw / folder, roots.preprocessed / folder
    description = _json(raw / "dataset.json", "it is not converted (nnssl_convert)")
    advice = f"run first: nnUNetv2_extract_fingerprint -d {number}"
    fingerprint = _json(preprocessed / FINGERPRINT, advice)
    files = _files(raw, description)
    if not files:
        raise ValueError(f"{raw} has no training images")
    restore_cases(raw, preprocessed)
    restore_split(raw, preprocessed)
    records = read_cases(preprocessed, files)
    splits = member_splits(preprocessed, records)
    check_split(splits, records)
    example = next(iter(files.values()))["images"][0]
    reader = determine_reader_writer_from_dataset_json(description, example, verbose=False)
    return PoolMember(
        folder=folder,
        channels=tuple(description["channel_names"].values()),
        images={case: tuple(entry["images"]) for case, entry in files.items()},
        labels={case: entry["label"] for case, entry in files.items()},
        records=records,
        held_out=_held_out(preprocessed),
        splits=splits,
        spacings=np.array(fingerprint["spacings"], float),
        shapes=np.array(fingerprint["shapes_after_crop"], float),
        relative_size=float(fingerprint["median_relative_size_after_cropping"]),
        reader=reader.__name__,
    )


def member_splits(preprocessed: Path, records: Mapping[str, CaseRecord]) -> Split:
    """The folds that training on the dataset uses, or will draw; nothing is written.

    Args:
        preprocessed: ``nnUNet_preprocessed/DatasetXXX_NAME``.
        records: All training cases.
    """
    if (preprocessed / SPLITS_FILE).exists():
        found: Split = read_json(preprocessed / SPLITS_FILE)
        return found
    if (preprocessed / CASES_FILE).exists():
        return patient_splits({case: record.patient for case, record in records.items()})
    drawn = generate_crossval_split(sorted(records), seed=12345, n_splits=5)  # nnU-Net's own
    return [{side: [str(case) for case in fold[side]] for side in SIDES} for fold in drawn]


def _files(raw: Path, description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What nnU-Net takes for training cases; its own listing starts twelve processes."""
    if "dataset" in description:
        found: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(
            str(raw), description
        )
        return found
    ending = description["file_ending"]
    return {
        case: {
            "images": list(map(str, images)),
            "label": str(raw / TRAINING_LABELS / f"{case}{ending}"),
        }
        for case, images in find_raw_images(raw / TRAINING_IMAGES, ending).items()
    }


def _held_out(preprocessed: Path) -> frozenset[Patient]:
    if not (preprocessed / CASES_FILE).exists():
        return frozenset()
    entries = read_json(preprocessed / CASES_FILE)["cases"].values()
    test = [entry for entry in entries if entry.get("part") == "Ts"]
    return frozenset((entry["dataset"], entry["patient"]) for entry in test)


def _json(path: Path, advice: str) -> Any:
    if not path.exists():
        raise ValueError(f"{path} does not exist; {advice}")
    return read_json(path)
