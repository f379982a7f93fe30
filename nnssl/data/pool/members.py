"""The cases of a pool: what is known of each dataset in it, and how they join."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from typing_extensions import TypedDict

from nnssl.common.files import hash_json, read_json
from nnssl.convert.volumes import be_quiet
from nnssl.data.case_table import REORIENTING
from nnssl.nnunet.cases import CaseRecord, Patient, read_all_cases, read_cases
from nnssl.nnunet.paths import (
    DATASET_FILE,
    TRAINING_IMAGES,
    TRAINING_LABELS,
    Roots,
    dataset_number,
    find_raw_images,
)
from nnssl.nnunet.plans import Description
from nnssl.nnunet.splits import (
    SIDES,
    Split,
    check_split,
    foresee_splits,
    restore_records,
)

FINGERPRINT = "dataset_fingerprint.json"
LABELS = {"background": 0, "foreground": 1}
CHANNEL = "mixed"
MOST_NAMED = 10


@dataclass(frozen=True)
class PoolMember:
    """One dataset of a pool."""

    folder: str
    channels: tuple[str, ...]
    images: Mapping[str, tuple[str, ...]]  # case -> a file per channel, or one of all
    labels: Mapping[str, str]  # training case -> label file
    records: Mapping[str, CaseRecord]  # of the training cases
    held_out: frozenset[Patient]  # patients of ``imagesTs``
    splits: Split
    spacings: np.ndarray  # mm of the training images (N, 3), axes as the reader gives them
    shapes: np.ndarray  # their shape after nnU-Net's crop (N, 3)
    relative_size: float  # median share of the volume that this crop leaves
    reader: str

    @property
    def number(self) -> int:
        """Id of the dataset."""
        return dataset_number(self.folder)

    @property
    def transpose(self) -> list[int]:
        """The coarsest axis first, as nnU-Net transposes: 2D slices lie in the fine plane."""
        coarsest = int(np.argmax(np.median(self.spacings, 0)))
        return [coarsest, *(axis for axis in range(3) if axis != coarsest)]

    @property
    def own_spacing(self) -> list[float]:
        """Median spacing in mm after the transposition."""
        return [float(mm) for mm in np.median(self.spacings, 0)[self.transpose]]

    def cases(self, folds: int) -> list[str]:
        """Cases of the first folds, on either side."""
        return sorted(
            {case for fold in self.splits[:folds] for side in SIDES for case in fold[side]}
        )


def read_member(roots: Roots, number: int) -> PoolMember:
    """Read all small files of a dataset; ValueError says what is missing and what to do.

    The converter's copies of case records and folds are put in place where nnU-Net lacks them, as
    our trainers do.
    """
    be_quiet()
    folder = roots.dataset(number)
    raw, preprocessed = roots.raw / folder, roots.preprocessed / folder
    description = _read(raw / DATASET_FILE, "it is not converted (nnssl_convert)", Description)
    advice = f"run first: nnUNetv2_extract_fingerprint -d {number}"
    fingerprint = _read(preprocessed / FINGERPRINT, advice, _Fingerprint)
    files = _find_files(raw, description)
    if not files:
        raise ValueError(f"{raw} has no training images")
    restore_records(raw, preprocessed)
    records = read_cases(preprocessed, files)
    splits = foresee_splits(preprocessed, records)
    check_split(splits, records)
    example = next(iter(files.values()))["images"][0]
    reader = determine_reader_writer_from_dataset_json(description, example, verbose=False)
    return PoolMember(
        folder=folder,
        channels=tuple(description["channel_names"].values()),
        images={case: tuple(entry["images"]) for case, entry in files.items()},
        labels={case: entry["label"] for case, entry in files.items()},
        records=records,
        held_out=frozenset(r.key for r in read_all_cases(preprocessed, "Ts").values()),
        splits=splits,
        spacings=np.array(fingerprint["spacings"], float),
        shapes=np.array(fingerprint["shapes_after_crop"], float),
        relative_size=float(fingerprint["median_relative_size_after_cropping"]),
        reader=reader.__name__,
    )


class _Fingerprint(TypedDict):
    """What is read of nnU-Net's fingerprint."""

    spacings: list[list[float]]
    shapes_after_crop: list[list[int]]
    median_relative_size_after_cropping: float


def _find_files(raw: Path, description: dict[str, Any]) -> dict[str, dict[str, Any]]:
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


def _read(path: Path, advice: str, kind: Any) -> Any:
    if not path.exists():
        raise ValueError(f"{path} does not exist; {advice}")
    return read_json(path, kind)


@dataclass(frozen=True)
class PoolCase:
    """One channel of one case of a member."""

    identifier: str  # `<id of the member>_<case>`, and `_c<channel>` of several channels
    member: PoolMember
    case: str  # identifier in the member
    channel: int

    @property
    def image(self) -> Path:
        """The file that has this channel."""
        files = self.member.images[self.case]
        return Path(files[self.channel if len(files) > 1 else 0])

    @property
    def index(self) -> int:
        """Number of this channel in its file."""
        return 0 if len(self.member.images[self.case]) > 1 else self.channel

    @property
    def source(self) -> str:
        """Dataset and case that it comes from."""
        return f"{self.member.folder}/{self.case}"

    @property
    def record(self) -> CaseRecord:
        """Its patient, dataset of origin, modality and orientation."""
        return self.member.records[self.case]

    @property
    def modality(self) -> str:
        """Name of the channel where there are several, else the recorded modality."""
        recorded = self.record.modality
        several = len(self.member.channels) > 1 or recorded == "unknown"
        return self.member.channels[self.channel] if several else recorded

    @property
    def orientation(self) -> str | None:
        """Recorded direction in which the axes x, y, z of the reader's array grow."""
        return "RAS" if self.member.reader == REORIENTING else self.record.orientation


@dataclass(frozen=True)
class DatasetPool:
    """Cases and folds of a pool."""

    folder: str
    members: tuple[PoolMember, ...]  # its members, in the order of their ids
    cases: tuple[PoolCase, ...]  # all cases, sorted by identifier
    copies: tuple[tuple[str, str], ...] = ()  # cases of two members with the same image

    @cached_property
    def union(self) -> Split:
        """Fold f joins the folds f of all members."""
        folds = min(len(member.splits) for member in self.members)
        return [
            {
                side: [c.identifier for c in self.cases if c.case in c.member.splits[fold][side]]
                for side in SIDES
            }
            for fold in range(folds)
        ]

    @cached_property
    def splits(self) -> Split:
        """The union, in which all cases of a person validate whom any member holds back."""
        person = self._find_people()
        tested = {key for member in self.members for key in member.held_out}
        in_test = {person[c.identifier] for c in self.cases if c.record.key in tested}
        joined = []
        for fold in self.union:
            held = {person[case] for case in fold["val"]} | in_test
            moved = [case for case in fold["train"] if person[case] in held]
            left = [case for case in fold["train"] if person[case] not in held]
            joined.append({"train": left, "val": sorted([*fold["val"], *moved])})
        return joined

    def _find_people(self) -> dict[str, int]:
        """Case -> number of its person: cases of one patient's name are one's, and so are copies.

        Names of patients in two datasets of origin may be those of different people; that they are
        kept together costs training cases only.
        """
        names = sorted({case.record.patient for case in self.cases})
        number = {case.identifier: names.index(case.record.patient) for case in self.cases}
        pairs = np.array([[number[a], number[b]] for a, b in self.copies], int).reshape(-1, 2).T
        graph = coo_matrix((np.ones(pairs.shape[1]), pairs), shape=(len(names), len(names)))
        _, person = connected_components(graph, directed=False)
        return {case: int(person[name]) for case, name in number.items()}

    def describe_moved(self) -> list[str]:
        """Sentences on cases that their own dataset trains on, and the pool does not."""
        sentences = []
        for fold, (before, now) in enumerate(zip(self.union, self.splits, strict=True)):
            if moved := sorted(set(before["train"]) - set(now["train"])):
                sentences.append(
                    f"fold {fold} leaves out {len(moved)} training cases, because another member "
                    "holds their patients back (the same name, or the same image): "
                    f"{', '.join(moved[:MOST_NAMED])}{', ...' * (len(moved) > MOST_NAMED)}"
                )
        return sentences

    @property
    def job(self) -> str:
        """Hash of members, images and folds; equal jobs are the same pool."""
        images = {c.identifier: [c.source, c.image.name, c.index] for c in self.cases}
        return hash_json({"images": images, "splits": self.union})

    def description(self, raw: Path) -> dict[str, Any]:
        """``dataset.json``; images are referenced, by relative paths where they lie in ``raw``."""
        home = raw / self.folder
        dataset = {
            case.identifier: {
                "images": [_refer_to(case.image, home)],
                "label": _refer_to(Path(case.member.labels[case.case]), home),
            }
            for case in self.cases
        }
        return {
            "channel_names": {"0": CHANNEL},
            "labels": LABELS,
            "numTraining": len(self.cases),
            "file_ending": ".nii.gz",
            "name": self.folder.split("_", 1)[1],
            "description": f"pool of {', '.join(member.folder for member in self.members)}; made "
            "by nnssl_pool, which also preprocesses it (nnUNetv2_preprocess would treat all alike)",
            "dataset": dataset,
        }

    def marks(self) -> dict[str, Any]:
        """What the plans, and so every checkpoint, say of the pool."""
        origins = {m.folder: sorted({r.dataset for r in m.records.values()}) for m in self.members}
        splits = {member.folder: hash_json(member.splits) for member in self.members}
        return {"members": origins, "folds": len(self.splits), "splits": splits}

    def fingerprint(self, intensities: dict[str, float]) -> dict[str, Any]:
        """nnU-Net's fingerprint of the pool: the members' ones, axes in the order of the arrays."""
        rows = [(m, m.transpose) for m in self.members for _ in m.channels]
        spacings = [mm for m, axes in rows for mm in m.spacings[:, axes].tolist()]
        shapes = [size for m, axes in rows for size in m.shapes[:, axes].astype(int).tolist()]
        sizes = [m.relative_size for m, _ in rows for _ in range(len(m.spacings))]
        return {
            "spacings": spacings,
            "shapes_after_crop": shapes,
            "foreground_intensity_properties_per_channel": {"0": intensities},
            "median_relative_size_after_cropping": sorted(sizes)[len(sizes) // 2],
        }


def assemble(
    folder: str, members: Sequence[PoolMember], copies: Iterable[tuple[str, str]] = ()
) -> DatasetPool:
    """Join datasets; fold f of the pool trains on the union of what their folds f train on.

    Left out are patients whom another member holds back, in its fold f or in imagesTs. Patients are
    joined by name, and by copies.

    Args:
        folder: name of the pool.
        members: the datasets.
        copies: pairs of cases of the pool with the same image.

    Raises:
        ValueError: a member is named twice, or nothing is left to train on in a fold.
    """
    members = tuple(sorted(members, key=lambda member: member.number))
    numbers = [member.number for member in members]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise ValueError(f"dataset {twice} is named twice (--from)")
    folds = min(len(member.splits) for member in members)
    cases = [c for m in members for case in m.cases(folds) for c in _split_channels(m, case)]
    cases.sort(key=lambda case: case.identifier)
    pool = DatasetPool(folder, members, tuple(cases), tuple(copies))
    if empty := [fold for fold, split in enumerate(pool.splits) if not split["train"]]:
        raise ValueError(
            f"{folder} cannot be made: nothing is left to train on in fold {empty}. Give the "
            "members the same folds (splits_final.json), or leave one of them out.\n"
            + "\n".join(pool.describe_moved())
        )
    return pool


def _split_channels(member: PoolMember, case: str) -> Iterator[PoolCase]:
    for channel in range(len(member.channels)):
        ending = f"_c{channel}" if len(member.channels) > 1 else ""
        yield PoolCase(f"{member.number:03d}_{case}{ending}", member, case, channel)


def _refer_to(file: Path, home: Path) -> str:
    """Relative to the pool's folder for files beside it, so that ``nnUNet_raw`` may move."""
    absolute = Path(os.path.abspath(file))
    if absolute.is_relative_to(os.path.abspath(home.parent)):
        return os.path.relpath(absolute, os.path.abspath(home))
    return str(absolute)
