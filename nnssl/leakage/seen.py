"""What a pre-training has seen: read from its checkpoint, of this or an older version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nnssl.data.pool.settings import MARK
from nnssl.data.unlabelled.records import UnlabelledImage, find_collections, read_images
from nnssl.nnunet.cases import CaseRecord, Patient, read_all_cases, read_cases
from nnssl.nnunet.paths import CASES_FILE, find_data_identifier

SEEN_IMAGE_KEYS = ("identifiers", "patients", "datasets", "contents")  # in a checkpoint


class SeenImage(NamedTuple):
    """An image without label, as a checkpoint lists it."""

    collection: str
    identifier: str
    patient: str
    dataset: str  # of origin of the patient
    content: str  # beginning of the hash of what it was made from

    @property
    def name(self) -> str:
        return f"{self.collection}/{self.identifier}"


@dataclass(frozen=True)
class Seen:
    """What a pre-training has seen, by its checkpoint and the records of its dataset."""

    dataset: Path  # `nnUNet_preprocessed/DatasetXXX_NAME`, whether or not it is at hand
    fold: int | str | None  # its fold, or `all`
    configuration: str | None  # nnU-Net's configuration
    plans: str | None  # name of the plans
    configuration_folder: Path | None  # nnU-Net's folder of the configuration; None: not known
    cases: tuple[str, ...] | None  # for training; None: not known, or no nnSSL pre-training
    records: Mapping[str, CaseRecord]  # of these cases; without records, each is a patient
    has_records: bool  # whether the dataset has records of at least one of these cases
    images: tuple[SeenImage, ...]  # images without labels
    members: Mapping[str, Sequence[str]]  # of a pool: dataset in it -> datasets of origin
    folds: Mapping[str, str]  # of a pool: name of each dataset in it -> hash of its folds

    @classmethod
    def of(cls, own: Mapping[str, Any], preprocessed: Path) -> Seen:
        """What a checkpoint says.

        Args:
            own: the part under `nnssl` of the checkpoint; empty for a stock one.

        Raises:
            ValueError: the records of the dataset are damaged.
        """
        dataset = preprocessed / str(own.get("dataset"))
        listed, plans = own.get("cases", {}), own.get("plans", {})
        cases = listed.get("train")
        recorded = (dataset / CASES_FILE).is_file()
        known = read_all_cases(dataset) if recorded else read_cases(dataset, cases or ())
        records = {case: known[case] for case in cases or () if case in known}
        identifier = find_data_identifier(plans, own.get("configuration"))
        mark = plans.get(MARK, {})
        return cls(
            dataset=dataset,
            fold=own.get("fold"),
            configuration=own.get("configuration"),
            plans=plans.get("plans_name"),
            configuration_folder=None if identifier is None else dataset / identifier,
            cases=None if cases is None else tuple(cases),
            records=records,
            has_records=recorded and bool(records),
            images=tuple(read_seen_images(listed.get("unlabelled", {}))),
            members=mark.get("members", {}),
            folds=mark.get("splits", {}),
        )

    @property
    def patients(self) -> set[Patient]:
        """Patients of the training cases and of the images without labels."""
        of_images = {(image.dataset, image.patient) for image in self.images}
        return {record.key for record in self.records.values()} | of_images

    @property
    def origins(self) -> set[str]:
        """Datasets of origin of all that was seen."""
        of_members = {origin for origins in self.members.values() for origin in origins}
        of_cases = of_members or {record.dataset for record in self.records.values()}
        named = of_cases | {image.dataset for image in self.images}
        return named or {self.dataset.name.split("_", 1)[-1]}

    def can_compare(self, dataset: Path) -> bool:
        """Whether patients, or the folds of a pool's member, can be compared with a dataset's."""
        if dataset == self.dataset:
            return self.cases is not None and len(self.records) == len(self.cases)
        return self.has_records or dataset.name in self.members


def read_seen_images(record: Mapping[str, Any]) -> list[SeenImage]:
    """Images without labels of the record `cases.unlabelled` of a checkpoint."""
    return [
        SeenImage(collection, *values)
        for collection, lists in record.get("images", {}).items()
        for values in zip(*(lists[key] for key in SEEN_IMAGE_KEYS), strict=True)
    ]


def find_images(
    images: Sequence[SeenImage],
    own: Path,
    read: Callable[[Path], list[UnlabelledImage]] = read_images,
) -> list[UnlabelledImage | None]:
    """Records of images that a checkpoint lists; None for one that is gone or has changed."""
    folders = find_collections(own)
    known = {
        (name, record.identifier): record
        for name in {image.collection for image in images} & folders.keys()
        for record in read(folders[name])
    }
    found = [known.get((image.collection, image.identifier)) for image in images]
    return [
        record if record and record.content.startswith(image.content) else None
        for image, record in zip(images, found, strict=True)
    ]
